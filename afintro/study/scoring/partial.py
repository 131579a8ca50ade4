"""Measures that only some rows have: answers that could not be read are left out, and said to be."""

from collections.abc import Callable, Mapping, Sequence

from afintro.evaluation.intervals import Estimate
from afintro.study.asking.session import SYSTEMS, Row
from afintro.study.scoring.estimates import Measure, compare


def compare_where(
    rows: Sequence[Row], has: Callable[[Row], bool], measures: Mapping[str, Measure], seed: int
) -> dict[str, Estimate]:
    """As :func:`afintro.study.scoring.estimates.compare`, over the rows that have what is measured.

    Each system's own value is over all of its rows that do. The shift is over the questions on which both systems do: if
    not, it would also be a difference between questions.

    Args:
        rows: Of both systems.
        has: Whether a row counts.
        measures: By name.
        seed: Of the resamples.
    """
    known = [row for row in rows if has(row)]
    asked = [{_question(row) for row in known if row["system"] == system} for system in SYSTEMS]
    shared = set.intersection(*asked)
    own = compare(known, measures, seed)
    paired = compare([row for row in known if _question(row) in shared], measures, seed)
    return {name: (paired if name.startswith("shift/") else own)[name] for name in own}


def _question(row: Row) -> tuple[int, str]:
    return row["seed"], row["question"]
