"""Name what looks like detection of steering and is not: a push to one answer, answers to anything, one polarity alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afintro.evaluation.detection_metrics import MEASURES
from afintro.evaluation.intervals import Estimate
from afintro.study.results import ResultRow
from afintro.study.scoring.equivalence import CHANCE, MARGIN, equivalence, side_of
from afintro.study.scoring.estimates import bootstrap, compare
from afintro.study.scoring.strata import measure_of, odds_of, reversed_polarity, within_strata

HELD_OUT = "held_out"


def of_controls(rows: Sequence[ResultRow], condition: str, seed: int) -> dict[str, Estimate]:
    """Compare the answers to control questions with and without steering.

    ``auroc_controls`` is that of yes, and 0.5 where steering moves no answer to anything; ``odds_controls`` says by how many nats
    steering moves the log-odds of yes. ``auroc_controls_right`` is that of
    the right answer: below 0.5 where steering makes answers of any kind worse.

    Args:
        rows: Rows about control questions, of one condition and unsteered.
        condition: The condition.
        seed: Seeds the resamples.
    """
    if not rows:
        return {}
    measures = {
        f"auroc_controls/{condition}": measure_of("auroc"),
        f"odds_controls/{condition}": measure_of("difference"),
        f"auroc_controls_right/{condition}": measure_of("auroc", _odds_of_right_answer),
    }
    return compare(rows, measures, seed)


def _odds_of_right_answer(row: ResultRow) -> float:
    return odds_of(row) if row["expected"] == "yes" else -odds_of(row)


def near_chance(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Test whether the AUROC is equivalent to chance; return the content of an :class:`Equivalence`.

    Args:
        rows: Rows of one system.
        seed: Seeds the resamples.
    """
    measure = measure_of("auroc")
    resampled = bootstrap(rows, seed).resample({"": measure.of(rows)}, measure.bounds)[""]
    return equivalence(resampled, CHANCE, MARGIN).as_json()


def one_seed_each(rows: Sequence[ResultRow]) -> dict[str, float]:
    """Compute the AUROC, over both polarities, of each trained seed. A seed without a value is left out.

    Args:
        rows: Rows of one system.
    """
    by_seed = {}
    for seed in sorted({row["seed"] for row in rows}):
        of_seed = [row for row in rows if row["seed"] == seed]
        value = float(within_strata(MEASURES["auroc"], of_seed)(np.ones((1, len(of_seed))))[0])
        if np.isfinite(value):
            by_seed[str(seed)] = value
    return by_seed


def pushes(native: Sequence[ResultRow], metrics: Mapping[str, Estimate]) -> list[str]:
    """Return warnings about what passes for detection on held-out vectors.

    Args:
        native: Rows about steering, answered with the pair that the variant was trained with.
        metrics: The metrics of :func:`afintro.study.scoring.detection_summary.summarize`.
    """
    if not native:
        return []
    if not any(map(reversed_polarity, native)):
        return [
            "one polarity: the same answer always means steered, so that a push to that answer passes for detection"
        ]
    original, reverse, controls = (
        metrics.get(f"{name}/{HELD_OUT}/adapter") for name in ("auroc_original", "auroc_reversed", "auroc_controls")
    )
    warnings = []
    if {side_of(original), side_of(reverse)} == {-1, 1}:
        warnings.append(
            "PUSH TO ONE ANSWER: under steering the adapter gives one answer more often, whichever answer means steered (AUROC "
            f"{_value(original)} where yes means steered, {_value(reverse)} where no does): this is not detection"
        )
    if side_of(controls):
        warnings.append(
            "CONTROLS MOVE: under steering the adapter also answers control questions, which are not about steering, with "
            f"{'yes' if side_of(controls) > 0 else 'no'} more often (AUROC {_value(controls)}, without a push 0.5)"
        )
    return warnings


def _value(estimate: Estimate | None) -> str:
    assert estimate is not None, "an estimate without a value has no side"
    return f"{estimate.value:.3f}"
