"""Confidence intervals: bootstrap over items, or over clusters of items where several items share a scenario."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], Floats]
"""A statistic: maps item weights ``[draws, n]`` to values ``[draws]``, NaN where the statistic is undefined."""
RESAMPLES = 1000
CHUNK = 2**21  # number of weights that a statistic is given at once


@dataclass(frozen=True)
class Estimate:
    """Hold a value with its 95 % interval and the number of items behind it; None stands for what cannot be computed."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        """Return the estimate as ``summary.json`` holds it."""
        return {"value": self.value, "ci_low": self.ci_low, "ci_high": self.ci_high, "n": self.n}


class Bootstrap:
    """Hold one set of resamples, shared by all systems that are compared on the same items.

    A weight is the number of times an item was drawn. Because all systems see the same resamples, the difference of two
    systems has a paired interval (Efron & Tibshirani 1993, ch. 8 and 13: percentile intervals, resampling whole clusters).

    Args:
        clusters: The cluster of each item, e.g. its scenario.
        seed: Seed of the draws.
    """

    def __init__(self, clusters: Sequence[str], seed: int = 0) -> None:
        names = sorted(set(clusters))
        index = {name: i for i, name in enumerate(names)}
        members = np.array([index[cluster] for cluster in clusters], dtype=np.int64)
        self.n = len(clusters)
        self.weights: Floats = np.zeros((RESAMPLES, 0))
        if names:
            rng = np.random.default_rng(seed)
            draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
            self.weights = draws[:, members].astype(np.float64)

    def estimate(self, statistic: Weighted) -> Estimate:
        """Compute a statistic on the items and its percentile interval over the resamples on which it is defined."""
        if self.n == 0:
            return Estimate(None, None, None, 0)
        [value] = statistic(np.ones((1, self.n)))
        if not np.isfinite(value):
            return Estimate(None, None, None, self.n)
        size = max(1, CHUNK // self.n)
        draws = [statistic(self.weights[start : start + size]) for start in range(0, len(self.weights), size)]
        low, high = np.nanpercentile(np.concatenate(draws), [2.5, 97.5])
        return Estimate(float(value), float(low), float(high), self.n)

    def mean(self, values: Sequence[float]) -> Estimate:
        """Estimate the mean of one number per item."""
        return self.estimate(mean_of(values))

    def share(self, hits: Sequence[float], among: Sequence[float]) -> Estimate:
        """Estimate the share of hits among some of the items.

        Args:
            hits: ``[n]``, 1 for an item that is a hit, else 0.
            among: ``[n]``, 1 for an item that counts, else 0.

        Returns:
            The estimate; its ``n`` is the number of items that count.
        """
        base = np.asarray(among, dtype=np.float64)
        if not base.any():
            return Estimate(None, None, None, 0)
        both = np.asarray(hits, dtype=np.float64) * base
        estimate = self.estimate(lambda weights: ratio(weights @ both, weights @ base))
        return replace(estimate, n=int(base.sum()))


def mean_of(values: Sequence[float] | Floats) -> Weighted:
    """Make a statistic of the weighted mean of one number per item; its value is NaN where all weights are 0."""
    numbers = np.asarray(values, dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        return ratio(weights @ numbers, weights.sum(-1))

    return statistic


def ratio(above: Floats, below: Floats) -> Floats:
    """Divide elementwise; the quotient is NaN where the denominator is 0."""
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)
