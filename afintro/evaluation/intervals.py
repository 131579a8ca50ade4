"""Intervals: bootstrap over items, or over clusters of items where several share a scenario."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], Floats]
"""A statistic: item weights ``[draws, n]`` to its values ``[draws]``, NaN where it is undefined."""
RESAMPLES = 1000
CHUNK = 2**21  # weights that a statistic gets at once


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and the number of items behind it; None where it cannot be computed."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        """As in ``summary.json``."""
        return {"value": self.value, "ci_low": self.ci_low, "ci_high": self.ci_high, "n": self.n}


class Bootstrap:
    """One set of resamples, shared by everything that is compared on the same items.

    A weight is how often an item was drawn. As all systems see the same resamples, the difference of two of them has a
    paired interval (Efron & Tibshirani 1993, ch. 8 and 13: percentile intervals, resampling whole clusters).

    Args:
        clusters: The cluster of each item, e.g. its scenario.
        seed: Seeds the draws.
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
        """Value on the items themselves, and the percentile interval over resamples (those it is undefined on left out)."""
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
        """Mean of one number an item."""
        return self.estimate(mean_of(values))

    def share(self, hits: Sequence[float], among: Sequence[float]) -> Estimate:
        """Share of the items of ``among`` (0 or 1 each) that are ``hits`` (0 or 1 each); ``n`` counts the former."""
        base = np.asarray(among, dtype=np.float64)
        if not base.any():
            return Estimate(None, None, None, 0)
        both = np.asarray(hits, dtype=np.float64) * base
        found = self.estimate(lambda weights: ratio(weights @ both, weights @ base))
        return replace(found, n=int(base.sum()))


def mean_of(values: Sequence[float] | Floats) -> Weighted:
    """The weighted mean of one number an item, as a statistic; NaN where no weight is left."""
    numbers = np.asarray(values, dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        return ratio(weights @ numbers, weights.sum(-1))

    return statistic


def ratio(above: Floats, below: Floats) -> Floats:
    """NaN where the denominator is 0."""
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)
