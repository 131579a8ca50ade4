"""Measures of signal detection that take item weights, so that a bootstrap can use every measure.

All measures share their arguments. ``odds`` is ``[n]`` float64: log odds that the answer says "steered". ``steered`` is
``[n]`` bool: the truth. ``weights`` is ``[draws, n]`` float64; weights of one give the plain measure. Every measure returns
``[draws]`` float64, NaN where a class that the measure needs has no weight.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from afintro.evaluation.intervals import Floats, Weighted, ratio

SHARE = (0.0, 1.0)  # bounds of every measure except d'
Bools = NDArray[np.bool_]
Measure = Callable[[Floats, Bools, Floats], Floats]


def auroc(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Compute the probability that a steered item has higher odds than an unsteered item; ties count half.

    Source: Hanley & McNeil (1982), Radiology 143(1). Arguments and result: see the module.
    """
    positive, negative = np.flatnonzero(steered), np.flatnonzero(~steered)
    negative = negative[np.argsort(odds[negative], kind="stable")]
    below = np.zeros((len(weights), len(negative) + 1))  # weight of the lowest unsteered items, of none to all
    np.cumsum(np.take(weights, negative, axis=1), axis=1, out=below[:, 1:])
    left, right = (np.searchsorted(odds[negative], odds[positive], side) for side in ("left", "right"))
    positive_weights = np.take(weights, positive, axis=1)
    beaten = np.einsum("dn,dn->d", positive_weights, np.take(below, left, axis=1))
    beaten_or_tied = np.einsum("dn,dn->d", positive_weights, np.take(below, right, axis=1))
    return ratio((beaten + beaten_or_tied) / 2, positive_weights.sum(1) * below[:, -1])


def placements(odds: Floats, steered: Bools) -> Floats:
    """Compute for each item the share of the other class that is on the right side of the item; ties count half.

    The mean of either class is the AUROC; the spread gives the variance of the AUROC (DeLong, DeLong & Clarke-Pearson 1988,
    Biometrics 44(3), 837-845, "structural components").

    Args:
        odds: See the module.
        steered: See the module; both classes must be there.

    Returns:
        ``[n]`` float64 in 0..1.
    """
    placed = np.empty(len(odds))
    for truth, sign in ((True, 1.0), (False, -1.0)):
        own, others = sign * odds[steered == truth], np.sort(sign * odds[steered != truth])
        below, not_above = (np.searchsorted(others, own, side) for side in ("left", "right"))
        placed[steered == truth] = (below + not_above) / (2 * len(others))
    return placed


def true_positive_rate(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Compute the share of steered items whose answer says "steered" (odds above 0; even odds do not count).

    Arguments and result: see the module.
    """
    return ratio(weights @ (steered & (odds > 0)), weights @ steered.astype(np.float64))


def false_positive_rate(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Compute the share of unsteered items whose answer says "steered".

    Arguments and result: see the module.
    """
    return true_positive_rate(odds, ~steered, weights)


def balanced_accuracy(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Compute the mean of the shares of steered and of unsteered items that are answered correctly.

    Arguments and result: see the module.
    """
    return (true_positive_rate(odds, steered, weights) + 1 - false_positive_rate(odds, steered, weights)) / 2


def d_prime(odds: Floats, steered: Bools, weights: Floats) -> Floats:
    """Compute the distance of both classes in standard deviations, ``z(hit rate) - z(false alarm rate)``.

    The log-linear correction adds half an item to each count and one item to each class, which keeps d' finite at rates of
    0 and 1 (Hautus 1995, Behavior Research Methods, Instruments, & Computers 27(1), 46-51). Arguments and result: see the
    module.
    """
    says_steered = odds > 0
    hits, false_alarms = weights @ (steered & says_steered), weights @ (~steered & says_steered)
    total, unsteered = weights @ steered.astype(np.float64), weights @ (~steered).astype(np.float64)
    distance = ndtri((hits + 0.5) / (total + 1)) - ndtri((false_alarms + 0.5) / (unsteered + 1))
    return np.where((total > 0) & (unsteered > 0), distance, np.nan)


MEASURES: dict[str, Measure] = {
    "auroc": auroc,
    "tpr": true_positive_rate,
    "fpr": false_positive_rate,
    "balanced_accuracy": balanced_accuracy,
    "d_prime": d_prime,
}


def statistic(measure: Measure, odds: Floats, steered: Bools) -> Weighted:
    """Fix the items of a measure, which leaves a function of weights alone.

    Args:
        measure: A measure of this module.
        odds: ``[n]`` float64, see the module.
        steered: ``[n]`` bool, see the module.
    """
    return lambda weights: measure(odds, steered, weights)
