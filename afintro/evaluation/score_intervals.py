"""Ends of 95 % intervals in closed form, from a value and the number of independent items that it is worth.

All of them ask which true values would make the observed value unsurprising, with the variance that the *true* value would
have (score intervals). None of them therefore has width 0 where everything that was seen agrees.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import chndtr
from scipy.stats import binomtest, norm

Ends = tuple[float, float]
TAIL = 0.025
NORMAL = float(norm.ppf(1 - TAIL))
NEARLY_NORMAL = (
    1e9  # observations, in units of chance, from which a noncentral chi-squared distribution is no longer computed
)
HALVINGS = 40  # to a precision of 1e-12


def wilson(share: float, count: float, quantile: float = NORMAL) -> Ends:
    """Compute the interval of a share (Wilson 1927, Journal of the American Statistical Association 22(158)).

    With a whole count and the normal quantile the interval equals ``binomtest(...).proportion_ci(method="wilson")`` of
    scipy, which takes no other counts. The effective count of a clustered sample and Student's quantile are allowed, as Dean
    & Pagano (2015, Journal of Survey Statistics and Methodology 3(4)) recommend for shares of clusters.

    Args:
        share: The observed share.
        count: Number of independent items that the share is worth, above 0.
        quantile: Quantile of the standardized difference.
    """
    square = quantile**2
    center = (share + square / (2 * count)) / (1 + square / count)
    half = quantile * np.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    # Rounding must not leave out a share of 0 or 1.
    return float(min(max(center - half, 0.0), share)), float(max(min(center + half, 1.0), share))


@cache  # a run has few counts, each many times
def clopper_pearson(hits: int, count: int) -> Ends:
    """Compute the exact interval of a share of independent trials (Clopper & Pearson 1934, Biometrika 26(4)).

    It covers at least 95 % whatever the true share; Wilson's covers 95 % in the mean over true shares, and as little as 84 % at
    a share near 0 of ten trials, which is where behaviors of a single scenario lie.

    Args:
        hits: Number of hits.
        count: Number of trials, at least 1.
    """
    ends = binomtest(hits, count).proportion_ci(1 - 2 * TAIL, method="exact")
    return float(ends.low), float(ends.high)


def paired(first_alone: float, second_alone: float, count: float, quantile: float = NORMAL) -> Ends:
    """Compute the interval of the difference of two shares of the same items.

    Source: Tango (1998, Statistics in Medicine 17(8), 891-908). Where both systems agree on all ``n``
    items the ends are ``-+ z ** 2 / (n + z ** 2)``.

    Args:
        first_alone: Number of items on which the first system alone is right; need not be whole.
        second_alone: Number of items on which the second system alone is right.
        count: Number of items.
        quantile: Quantile of the standardized difference.
    """

    def excess(difference: float) -> float:
        """Compute how far a difference is beyond what the observation allows; negative where it is allowed."""
        linear = -first_alone - second_alone + (2 * count - first_alone + second_alone) * difference
        constant = -second_alone * difference * (1 - difference)
        likeliest = (np.sqrt(max(linear**2 - 8 * count * constant, 0.0)) - linear) / (4 * count)
        variance = count * (2 * likeliest + difference * (1 - difference))
        return float((first_alone - second_alone - count * difference) ** 2 - quantile**2 * max(variance, 0.0))

    observed = (first_alone - second_alone) / count
    return _outermost(excess, observed, -1.0), _outermost(excess, observed, 1.0)


def auroc_variance(value: float, positives: float, negatives: float) -> float:
    """Compute the variance of an AUROC of independent items (Newcombe 2006, see :func:`auroc_ends`, equation of method 5)."""
    mean = (positives + negatives) / 2 - 1
    spread = 1 + mean * ((1 - value) / (2 - value) + value / (1 + value))
    return value * (1 - value) * spread / (positives * negatives)


def auroc_ends(
    value: float, positives: float, negatives: float, inflation: float = 1.0, quantile: float = NORMAL
) -> Ends:
    """Compute the interval of an AUROC.

    Source: Newcombe (2006, Statistics in Medicine 25(4), 559-573), method 5: the variance of Hanley & McNeil (1982) at the
    true value instead of the observed value.

    Args:
        value: The observed AUROC.
        positives: Number of items of the one class.
        negatives: Number of items of the other class.
        inflation: Factor of the variance, see :meth:`afintro.evaluation.statistic.Statistic.ends`.
        quantile: Quantile of the standardized difference.
    """

    def excess(true: float) -> float:
        return (value - true) ** 2 - quantile**2 * inflation * auroc_variance(true, positives, negatives)

    return _outermost(excess, value, 0.0), _outermost(excess, value, 1.0)


def _outermost(excess: Callable[[float], float], inside: float, bound: float) -> float:
    """Find how far towards a bound ``excess`` stays at or below 0, from a value at which it is 0 or less, by bisection.

    A root finder would stop at the value itself, where ``excess`` is 0 if all items agree.
    """
    if excess(bound) <= 0:
        return bound
    outside = bound
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
    return inside


def difference(first: float, first_ends: Ends, second: float, second_ends: Ends, correlation: float) -> Ends:
    """Compute the interval of the difference of two values from their own intervals ("square and add").

    Source: Zou & Donner (2008, Statistics in Medicine 27(10), 1693-1702); for AUROCs of the same items Zou & Yue (2013,
    Statistics in Medicine 32(29), 5077-5090).

    Args:
        first: The first value.
        first_ends: Its interval.
        second: The second value.
        second_ends: Its interval.
        correlation: Correlation of both values over samples.
    """

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(max(one**2 + other**2 - 2 * correlation * one * other, 0.0)))

    below = reach(first - first_ends[0], second_ends[1] - second)
    above = reach(first_ends[1] - first, second - second_ends[0])
    return first - second - below, first - second + above


def noncentral_ends(observed: float, unit: float, freedom: float) -> Ends:
    """Compute the interval of a sum of squares from its observation, which chance makes larger.

    The observation divided by ``unit`` follows the noncentral chi-squared distribution, whose noncentrality is the true sum
    divided by ``unit``. The ends are the noncentralities at which the observation is at the upper and lower 2.5 %
    (Johnson, Kotz & Balakrishnan 1995, Continuous Univariate Distributions 2, ch. 29).

    Args:
        observed: The observed sum of squares.
        unit: Scale of the distribution, above 0.
        freedom: Degrees of freedom; need not be whole.
    """

    def end(below: float, scaled: float) -> float:
        def excess(noncentrality: float) -> float:
            return float(chndtr(scaled, freedom, noncentrality)) - below

        if scaled > NEARLY_NORMAL:  # the root is then normal with variance 1, and the distribution overflows
            return float(np.sqrt(scaled) + norm.ppf(1 - below)) ** 2 * unit
        if excess(0.0) <= 0:
            return 0.0
        far = scaled + 10 * NORMAL * (np.sqrt(scaled) + 1) + 50
        return float(brentq(excess, 0.0, far, xtol=1e-9)) * unit

    # An observation smaller than chance alone would make it says nothing that the expectation does not say.
    return end(1 - TAIL, observed / unit), end(TAIL, max(observed / unit, freedom))
