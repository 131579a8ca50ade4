"""What an evaluation's rows amount to: measures of adapter and base, and their paired difference, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from afintro.evaluation.hierarchical import LEVELS, UNBOUNDED, HierarchicalBootstrap
from afintro.evaluation.intervals import Estimate, Floats, Weighted, mean_of
from afintro.study.asking.session import SYSTEMS, Row

SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Measure:
    """A number that a system's rows have.

    Args:
        of: Rows of one system to the statistic.
        bounds: What it cannot leave.
    """

    of: Callable[[Sequence[Row]], Weighted]
    bounds: tuple[float, float] = UNBOUNDED


def mean(of: Callable[[Row], float], bounds: tuple[float, float] = SHARE) -> Measure:
    """The mean over rows of a number of each."""
    return Measure(lambda rows: mean_of([float(of(row)) for row in rows]), bounds)


def bootstrap(rows: Sequence[Row], seed: int) -> HierarchicalBootstrap:
    """Over the trained seeds, contexts, vectors and questions of rows."""
    return HierarchicalBootstrap({level: [row.get(level) for row in rows] for level in LEVELS}, seed)


def compare(rows: Sequence[Row], measures: Mapping[str, Measure], seed: int) -> dict[str, Estimate]:
    """Each measure of both systems (``<name>/adapter``, ``<name>/base``), and adapter minus base (``shift/<name>``).

    All are from the same resamples, so that the difference is paired.

    Args:
        rows: Of both systems; a measure of a system without any has no value.
        measures: By name.
        seed: Of the resamples.
    """
    places = {name: [at for at, row in enumerate(rows) if row["system"] == name] for name in SYSTEMS}
    statistics: dict[str, Weighted] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for name, measure in measures.items():
        parts = {system: _at(at, measure.of([rows[index] for index in at])) for system, at in places.items()}
        low, high = measure.bounds
        for system, part in parts.items():
            statistics[f"{name}/{system}"], bounds[f"{name}/{system}"] = part, (low, high)
        statistics[f"shift/{name}"] = _difference(parts["adapter"], parts["base"])
        bounds[f"shift/{name}"] = low - high, high - low
    found = bootstrap(rows, seed).resample(statistics)
    sizes = {name: len(places.get(name.rsplit("/", 1)[-1], places["adapter"])) for name in statistics}
    return {
        name: replace(replace(resampled, bounds=bounds[name]).estimate, n=sizes[name])
        for name, resampled in found.items()
    }


def _at(places: Sequence[int], statistic: Weighted) -> Weighted:
    """A statistic of some rows, as one of the weights of all."""
    columns = np.array(places, dtype=np.int64)
    return lambda weights: statistic(weights[:, columns])


def _difference(one: Weighted, other: Weighted) -> Weighted:
    def statistic(weights: Floats) -> Floats:
        return one(weights) - other(weights)

    return statistic


def summary(
    rows: Sequence[Row], metrics: Mapping[str, Estimate], warnings: Sequence[str], **tables: Any
) -> dict[str, Any]:
    """An evaluation's ``summary.json``.

    Args:
        rows: That it is about.
        metrics: By name; one without a value gets a warning.
        warnings: That there are already.
        tables: Whatever else it holds.
    """
    missing = [
        f"{name} cannot be computed from {found.n} items" for name, found in metrics.items() if found.value is None
    ]
    return {
        "metrics": as_json(metrics),
        "warnings": [*warnings, *missing],
        "fixed_levels": list(bootstrap(rows, 0).fixed),
        **tables,
    }


def as_json(metrics: Mapping[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    """Estimates as plain values."""
    return {name: found.as_json() for name, found in metrics.items()}


def of_system(rows: Sequence[Row], system: str) -> list[Row]:
    """Those of one system."""
    return [row for row in rows if row["system"] == system]
