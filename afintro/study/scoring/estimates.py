"""Estimate measures of adapter and base from an evaluation's rows, and their paired difference, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from afintro.evaluation.hierarchical import LEVELS, UNBOUNDED, HierarchicalBootstrap
from afintro.evaluation.intervals import Estimate, Floats, Weighted, mean_of
from afintro.study.asking.queries import SYSTEMS
from afintro.study.results import ResultRow

SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Measure:
    """A number that is computed from a system's rows.

    Args:
        of: Makes the statistic from the rows of one system.
        bounds: Smallest and largest possible value.
    """

    of: Callable[[Sequence[ResultRow]], Weighted]
    bounds: tuple[float, float] = UNBOUNDED


def mean(of: Callable[[ResultRow], float], bounds: tuple[float, float] = SHARE) -> Measure:
    """Return the measure that is the mean over rows of a number of each row.

    Args:
        of: Computes the number of a row.
        bounds: Smallest and largest possible value.
    """
    return Measure(lambda rows: mean_of([float(of(row)) for row in rows]), bounds)


def bootstrap(rows: Sequence[ResultRow], seed: int) -> HierarchicalBootstrap:
    """Return a bootstrap over the trained seeds, contexts, vectors and questions of the rows."""
    return HierarchicalBootstrap({level: [row.get(level) for row in rows] for level in LEVELS}, seed)


def compare(rows: Sequence[ResultRow], measures: Mapping[str, Measure], seed: int) -> dict[str, Estimate]:
    """Estimate each measure for both systems, and their difference, from the same resamples.

    Args:
        rows: Rows of both systems. A measure of a system without rows has no value.
        measures: Measures by name.
        seed: Seeds the resamples.

    Returns:
        For each measure ``<name>/adapter``, ``<name>/base`` and the paired difference ``shift/<name>``, adapter minus
        base.
    """
    positions = {name: [index for index, row in enumerate(rows) if row["system"] == name] for name in SYSTEMS}
    statistics: dict[str, Weighted] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for name, measure in measures.items():
        by_system = {
            system: _of_all_weights(indices, measure.of([rows[index] for index in indices]))
            for system, indices in positions.items()
        }
        low, high = measure.bounds
        for system, statistic in by_system.items():
            statistics[f"{name}/{system}"], bounds[f"{name}/{system}"] = statistic, (low, high)
        statistics[f"shift/{name}"] = _difference(by_system["adapter"], by_system["base"])
        bounds[f"shift/{name}"] = low - high, high - low
    resampled_by_name = bootstrap(rows, seed).resample(statistics)
    counts = {name: len(positions.get(name.rsplit("/", 1)[-1], positions["adapter"])) for name in statistics}
    return {
        name: replace(replace(resampled, bounds=bounds[name]).estimate, n=counts[name])
        for name, resampled in resampled_by_name.items()
    }


def _of_all_weights(indices: Sequence[int], statistic: Weighted) -> Weighted:
    """Turn a statistic of some rows into one that takes the weights of all rows."""
    columns = np.array(indices, dtype=np.int64)
    return lambda weights: statistic(weights[:, columns])


def _difference(first: Weighted, second: Weighted) -> Weighted:
    def statistic(weights: Floats) -> Floats:
        return first(weights) - second(weights)

    return statistic


def summary(
    rows: Sequence[ResultRow], metrics: Mapping[str, Estimate], warnings: Sequence[str], **tables: Any
) -> dict[str, Any]:
    """Return the content of an evaluation's ``summary.json``.

    Args:
        rows: The rows that the summary covers.
        metrics: Estimates by name. An estimate without a value adds a warning.
        warnings: Warnings that exist already.
        tables: Further entries, by name.
    """
    missing = [
        f"{name} cannot be computed from {estimate.n} items"
        for name, estimate in metrics.items()
        if estimate.value is None
    ]
    return {
        "metrics": as_json(metrics),
        "warnings": [*warnings, *missing],
        "fixed_levels": list(bootstrap(rows, 0).fixed),
        **tables,
    }


def as_json(metrics: Mapping[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    """Return estimates as plain values."""
    return {name: estimate.as_json() for name, estimate in metrics.items()}


def of_system(rows: Sequence[ResultRow], system: str) -> list[ResultRow]:
    """Return the rows of one system."""
    return [row for row in rows if row["system"] == system]
