"""Estimate measures that only some rows have: answers that could not be read are left out, and counted elsewhere."""

from collections.abc import Callable, Mapping, Sequence

from afintro.evaluation.intervals import Estimate
from afintro.study.asking.queries import SYSTEMS
from afintro.study.results import ResultRow
from afintro.study.scoring.estimates import Measure, compare


def compare_where(
    rows: Sequence[ResultRow], has_measure: Callable[[ResultRow], bool], measures: Mapping[str, Measure], seed: int
) -> dict[str, Estimate]:
    """Estimate measures like :func:`afintro.study.scoring.estimates.compare`, from the rows that have them.

    The value of each system covers all of its rows that have the measure. The shift covers the questions on which both
    systems have it: otherwise it would also be a difference between questions.

    Args:
        rows: Rows of both systems.
        has_measure: Whether a row counts.
        measures: Measures by name.
        seed: Seeds the resamples.

    Returns:
        For each measure ``<name>/adapter``, ``<name>/base`` and ``shift/<name>``.
    """
    counted = [row for row in rows if has_measure(row)]
    questions = [{_question(row) for row in counted if row["system"] == system} for system in SYSTEMS]
    shared = set.intersection(*questions)
    of_each_system = compare(counted, measures, seed)
    of_shared_questions = compare([row for row in counted if _question(row) in shared], measures, seed)
    return {
        name: (of_shared_questions if name.startswith("shift/") else of_each_system)[name] for name in of_each_system
    }


def _question(row: ResultRow) -> tuple[int, str]:
    return row["seed"], row["question"]
