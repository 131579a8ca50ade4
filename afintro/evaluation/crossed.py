"""Metrics of items that share a scenario and, across scenarios, something else, such as the direction of their steering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from afintro.evaluation.detection_metrics import auroc
from afintro.evaluation.hierarchical import UNBOUNDED, HierarchicalBootstrap
from afintro.evaluation.intervals import CHUNK, SHARE, Clusters, Estimate, Floats, Weighted, mean_of, ratio
from afintro.evaluation.statistic import DIFFERENCE, Statistic

CLOSED = "calibration"
"""The kind of metric that has no weighted form; its interval is the widest of those over each level alone."""


@dataclass(frozen=True)
class Crossed:
    """Name the units of several crossed levels that each item belongs to, e.g. its scenario and its direction.

    Intervals are those of :class:`~afintro.evaluation.hierarchical.HierarchicalBootstrap`: the units of every level are drawn
    anew, so that an interval speaks of other scenarios *and* of other directions.

    Args:
        levels: For each level the unit of every item, ``[n]``.
    """

    levels: Mapping[str, tuple[str, ...]]

    def restricted(self, rows: Sequence[int]) -> "Crossed":
        """Return the levels of some of the items."""
        return Crossed({level: tuple(units[row] for row in rows) for level, units in self.levels.items()})

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of units of each level."""
        return {level: len(set(units)) for level, units in self.levels.items()}

    def estimate(self, statistic: Statistic) -> Estimate:
        """Estimate a metric with its 95 % interval over all levels; there is no interval where no level has two units."""
        if statistic.kind == CLOSED:
            estimates = [statistic.estimate(Clusters(units)) for units in self.levels.values()]
            return max(estimates, key=lambda estimate: (estimate.ci_high or 0.0) - (estimate.ci_low or 0.0))
        return self._of(weighted(statistic), SHARE)

    def lead(self, statistic: Statistic, other: Statistic) -> Estimate:
        """Estimate how far a metric is above another system's metric on the same items, paired, over all levels."""
        one, two = weighted(statistic), weighted(other)
        return self._of(lambda weights: one(weights) - two(weights), DIFFERENCE)

    def _of(self, statistic: Weighted, bounds: tuple[float, float] = UNBOUNDED) -> Estimate:
        found = _bootstrap(tuple(self.levels.items())).estimate(statistic, bounds)
        if found.value is None or found.ci_low is None or found.ci_high is None:
            return found
        return Estimate(found.value, min(found.ci_low, found.value), max(found.ci_high, found.value), found.n)


class _Kept(HierarchicalBootstrap):
    """A bootstrap that keeps its weights, where they are few: all metrics of all systems are computed from the same."""

    def __init__(self, levels: Mapping[str, Sequence[str | int | None]]) -> None:
        super().__init__(levels)
        self._kept: dict[tuple[int, int, tuple[str, ...] | None], Floats] = {}

    def weights(self, start: int, stop: int, levels: Sequence[str] | None = None) -> Floats:
        """Return how often each item was drawn, see :meth:`HierarchicalBootstrap.weights`."""
        key = start, stop, None if levels is None else tuple(levels)
        if key in self._kept:
            return self._kept[key]
        weights = super().weights(start, stop, levels)
        if self.n * self.resamples <= CHUNK:
            self._kept[key] = weights
        return weights


@lru_cache(maxsize=8)
def _bootstrap(levels: tuple[tuple[str, tuple[str, ...]], ...]) -> _Kept:
    return _Kept(dict(levels))


def weighted(statistic: Statistic) -> Weighted:
    """Return a metric as a function of the items' weights; its value is NaN where the metric is undefined.

    Args:
        statistic: A metric of kind ``mean``, ``f1`` or ``auroc``.

    Raises:
        ValueError: The metric is of another kind.
    """
    first = statistic.values[:, 0]
    if statistic.kind == "mean":
        return mean_of(first)
    second = statistic.values[:, 1]
    if statistic.kind == "f1":
        return lambda weights: _weighted_f1(weights, first, second)
    if statistic.kind == "auroc":
        return lambda weights: auroc(first, second > 0, weights)
    raise ValueError(f"a metric of kind {statistic.kind!r} has no weighted form")


def _weighted_f1(weights: Floats, expected: Floats, predicted: Floats) -> Floats:
    parts = []
    for verdict in (0, 1):
        true, said = (expected == verdict).astype(np.float64), (predicted == verdict).astype(np.float64)
        parts.append(ratio(2 * weights @ (true * said), weights @ (true + said)))
    return (parts[0] + parts[1]) / 2
