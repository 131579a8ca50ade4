"""Signal detection with item weights, so that every measure goes into a bootstrap.

All functions take ``odds [n]`` (log odds that the answer says "steered"), ``steered [n]`` (the truth) and ``weights
[draws, n]``, and give ``[draws]``; NaN where a class that they need has no weight. Weights of one give the plain measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from afintro.evaluation.hierarchical import HierarchicalBootstrap
from afintro.evaluation.intervals import Estimate, Floats, Weighted, ratio

SHARE = (0.0, 1.0)  # what none but d' can leave
Bools = NDArray[np.bool_]
Measure = Callable[[Floats, Bools, Floats], Floats]


def auroc(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Probability that a steered item has higher odds than an unsteered one, ties counted half (Hanley & McNeil 1982)."""
    positive, negative = np.flatnonzero(steered), np.flatnonzero(~steered)
    negative = negative[np.argsort(odds[negative], kind="stable")]
    below = np.zeros((len(weights), len(negative) + 1))  # weight of the lowest unsteered items, of none to all
    np.cumsum(np.take(weights, negative, axis=1), axis=1, out=below[:, 1:])
    left, right = (np.searchsorted(odds[negative], odds[positive], side) for side in ("left", "right"))
    own = np.take(weights, positive, axis=1)
    beaten = np.einsum("dn,dn->d", own, np.take(below, left, axis=1))
    tied_too = np.einsum("dn,dn->d", own, np.take(below, right, axis=1))
    return ratio((beaten + tied_too) / 2, own.sum(1) * below[:, -1])


def true_positive_rate(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Share of steered items that the answer says so of: odds above 0, so that even odds are no detection."""
    return ratio(weights @ (steered & (odds > 0)), weights @ steered.astype(np.float64))


def false_positive_rate(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Share of unsteered items that the answer calls steered."""
    return true_positive_rate(odds, ~steered, weights)


def balanced_accuracy(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Mean of the shares of both classes that are answered rightly."""
    return (true_positive_rate(odds, steered, weights) + 1 - false_positive_rate(odds, steered, weights)) / 2


def d_prime(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Distance of both classes in standard deviations, ``z(hit rate) - z(false alarm rate)``.

    With the log-linear correction, half an item added to each count and one to each class, which keeps it finite at rates
    of 0 and 1 (Hautus 1995, Behavior Research Methods, Instruments, & Computers 27(1), 46-51).
    """
    said = odds > 0
    hits, false_alarms = weights @ (steered & said), weights @ (~steered & said)
    total, unsteered = weights @ steered.astype(np.float64), weights @ (~steered).astype(np.float64)
    found = norm.ppf((hits + 0.5) / (total + 1)) - norm.ppf((false_alarms + 0.5) / (unsteered + 1))
    return np.where((total > 0) & (unsteered > 0), found, np.nan)


MEASURES: dict[str, Measure] = {
    "auroc": auroc,
    "tpr": true_positive_rate,
    "fpr": false_positive_rate,
    "balanced_accuracy": balanced_accuracy,
    "d_prime": d_prime,
}


def statistic(measure: Measure, odds: Floats, steered: Bools) -> Weighted:
    """A measure on these items as a function of weights alone."""
    return lambda weights: measure(odds, steered, weights)


@dataclass(frozen=True)
class Point:
    """One dose of a psychometric curve: true positive rate, AUROC against all unsteered items, number of steered ones."""

    dose: float
    tpr: Estimate
    auroc: Estimate
    n: int


def psychometric_curve(
    odds: Floats, steered: Bools, doses: Sequence[float | None], bootstrap: HierarchicalBootstrap
) -> list[Point]:
    """Detection by dose, in ascending order.

    Args:
        odds: ``[n]``.
        steered: ``[n]``.
        doses: ``[n]``; not read for unsteered items, which are the same negatives for every dose. A steered item without
            one is on no point.
        bootstrap: Over these items.
    """
    found = sorted({dose for dose, steer in zip(doses, steered, strict=True) if steer and dose is not None})
    at = {
        dose: np.array([bool(steer) and other == dose for other, steer in zip(doses, steered, strict=True)])
        for dose in found
    }

    def measured(measure: Measure, here: Bools) -> Weighted:
        rows = np.flatnonzero(here | ~steered)
        return lambda weights: measure(odds[rows], steered[rows], weights[:, rows])

    wanted = {"tpr": true_positive_rate, "auroc": auroc}
    statistics = {f"{name} {dose}": measured(wanted[name], at[dose]) for dose in found for name in wanted}
    drawn = bootstrap.resample(statistics, SHARE)
    return [
        Point(dose, drawn[f"tpr {dose}"].estimate, drawn[f"auroc {dose}"].estimate, int(at[dose].sum()))
        for dose in found
    ]
