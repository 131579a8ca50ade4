"""Compute a measure of detection within each trained seed and polarity of the question, and average it over them."""

from collections.abc import Callable, Sequence

import numpy as np

from afintro.evaluation import detection_metrics
from afintro.evaluation.detection_metrics import MEASURES, SHARE, Bools
from afintro.evaluation.hierarchical import UNBOUNDED
from afintro.evaluation.intervals import Floats, Weighted, ratio
from afintro.study.results import ResultRow
from afintro.study.scoring.estimates import Measure

Odds = Callable[[ResultRow], float]


def odds_of(row: ResultRow) -> float:
    """Return the log-odds in favor of "steered"; of a control question, in favor of yes."""
    return float(row["odds"])


def reversed_polarity(row: ResultRow) -> bool:
    """Return whether the row is about a reversed twin, whose right answer under steering is no."""
    return row.get("reversed_of") is not None


def difference(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Compute the mean odds of steered items minus those of unsteered items, in nats.

    An AUROC has no scale: where training has made all answers alike, a push of hundredths of a nat moves it far from chance.
    Arguments and result: see :mod:`afintro.evaluation.detection_metrics`.
    """
    sides = steered.astype(np.float64), (~steered).astype(np.float64)
    high, low = (ratio(weights @ (odds * side), weights @ side) for side in sides)
    return high - low


def measure_of(name: str, odds: Odds = odds_of) -> Measure:
    """Return a measure of signal detection that is computed within strata, see :func:`within_strata`.

    Args:
        name: A key of :data:`afintro.evaluation.detection_metrics.MEASURES`, or ``difference``.
        odds: Reads a row's log-odds in favor of "steered".
    """
    bounds = UNBOUNDED if name in ("d_prime", "difference") else SHARE
    return Measure(lambda rows: within_strata({**MEASURES, "difference": difference}[name], rows, odds), bounds)


def within_strata(measure: detection_metrics.Measure, rows: Sequence[ResultRow], odds: Odds = odds_of) -> Weighted:
    """Return a statistic that computes a measure for each polarity in each trained seed.

    Odds of two trainings have no common scale, and a habit of saying yes moves the odds of both polarities apart, so neither
    is compared across strata. Both polarities count alike: a system that merely says yes under steering is as far above chance
    in one polarity as below in the other.

    Args:
        measure: Computes the measure from odds, labels and weights.
        rows: Rows of one system. Where all have one polarity, that polarity alone counts.
        odds: Reads a row's log-odds in favor of "steered".

    Returns:
        The statistic: the mean over polarities within a seed, and over seeds with the seeds' weights. A seed in which a polarity
        is undefined is left out.
    """
    seeds = np.array([row["seed"] for row in rows])
    twins = np.array([reversed_polarity(row) for row in rows], dtype=bool)
    numbers = np.array([odds(row) for row in rows])
    steered = np.array([bool(row["steered"]) for row in rows], dtype=bool)
    polarities = np.unique(twins)
    parts = [
        [np.flatnonzero((seeds == seed) & (twins == polarity)) for polarity in polarities] for seed in np.unique(seeds)
    ]

    def statistic(weights: Floats) -> Floats:
        values = np.array(
            [np.mean([measure(numbers[at], steered[at], weights[:, at]) for at in strata], axis=0) for strata in parts]
        ).reshape(-1, len(weights))
        shares = np.array([sum(weights[:, at].sum(-1) for at in strata) for strata in parts]).reshape(-1, len(weights))
        defined = np.isfinite(values)
        return ratio((np.where(defined, values, 0) * shares).sum(0), (shares * defined).sum(0))

    return statistic
