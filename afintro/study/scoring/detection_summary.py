"""Summarize how well steering was detected, from the rows of :mod:`afintro.study.asking.conditions`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from afintro.evaluation import detection_metrics
from afintro.evaluation.detection_metrics import MEASURES, SHARE
from afintro.evaluation.hierarchical import UNBOUNDED
from afintro.evaluation.intervals import Estimate, Floats, Weighted, ratio
from afintro.study.asking.conditions import VECTOR_SPLITS
from afintro.study.asking.queries import SYSTEMS
from afintro.study.results import ResultRow
from afintro.study.scoring.estimates import Measure, as_json, compare, mean, of_system, summary
from afintro.tasks.introspection.trials import PAIRS

COLLAPSED = 0.5
"""Mean probability of both answers together below which the figures say little."""


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize the detection of steering by adapter and base.

    The main metrics cover plain contexts and the native pair. Unsteered odd contexts are counted apart: they tell a
    detector of steering from a detector of strangeness. Every measure is computed within each trained seed, since the odds
    of two trainings have no common scale, and averaged over seeds.

    Args:
        rows: Rows of both systems.
        seed: Seeds the resamples.

    Returns:
        ``metrics``: for each condition ``auroc``, ``auroc_upper`` (upper half of the strengths), ``tpr``,
        ``balanced_accuracy``, ``d_prime``, ``auroc_odd`` (against odd contexts), and ``fpr``, ``fpr_odd``, ``mass``.
        ``conditions``: ``tpr`` and ``auroc`` by condition, layers and strength. ``cross_token``: metrics by pair, on
        held-out vectors. ``lens``: AUROC by layer.
    """
    native = [row for row in rows if row["native"]]
    plain = [row for row in native if row["kind"] == "plain"]
    metrics = {**_of_unsteered(native, plain, seed), **compare(native, {"mass": mean(_mass)}, seed)}
    for condition in sorted({row["side"] for row in native} - {"none"}):
        metrics |= _of_condition(native, plain, condition, seed)
    return summary(
        rows,
        metrics,
        collapses(native),
        conditions=_by_layers_and_strength(plain, seed),
        cross_token=_cross_token(rows, seed),
        lens=_lens(plain, seed),
    )


def collapses(native: Sequence[ResultRow]) -> list[str]:
    """Return a warning for each pair that the adapter gives little probability: its answers are no longer answers."""
    warnings = []
    for pair in sorted({row["pair"] for row in native}):
        masses = [_mass(row) for row in of_system(native, "adapter") if row["pair"] == pair]
        if masses and np.mean(masses) < COLLAPSED:
            named = f"{PAIRS[pair].a} and {PAIRS[pair].b}" if pair in PAIRS else pair
            warnings.append(
                f"MASS COLLAPSE: the adapter gives {named} a mean probability of {np.mean(masses):.3f} together"
            )
    return warnings


def _mass(row: ResultRow) -> float:
    return float(row["mass"])


def _unsteered(rows: Sequence[ResultRow]) -> list[ResultRow]:
    return [row for row in rows if not row["steered"]]


def _unsteered_odd(native: Sequence[ResultRow]) -> list[ResultRow]:
    return [row for row in native if row["kind"] == "odd" and not row["steered"]]


def _of_unsteered(native: Sequence[ResultRow], plain: Sequence[ResultRow], seed: int) -> dict[str, Estimate]:
    return {
        **compare(_unsteered(plain), {"fpr": _measure("fpr")}, seed),
        **compare(_unsteered_odd(native), {"fpr_odd": _measure("fpr")}, seed),
    }


def _of_condition(
    native: Sequence[ResultRow], plain: Sequence[ResultRow], condition: str, seed: int
) -> dict[str, Estimate]:
    steered = [row for row in plain if row["side"] == condition]
    unsteered = _unsteered(plain)
    measures = {f"{name}/{condition}": _measure(name) for name in ("auroc", "tpr", "balanced_accuracy", "d_prime")}
    metrics = compare([*steered, *unsteered], measures, seed)
    if any(row["dose"] is not None for row in steered):
        upper = upper_strengths(steered)
        strongly_steered = [row for row in steered if row["dose"] in upper]
        metrics |= compare([*strongly_steered, *unsteered], {f"auroc_upper/{condition}": _measure("auroc")}, seed)
    odd = [*steered, *_unsteered_odd(native)]
    return metrics | compare(odd, {f"auroc_odd/{condition}": _measure("auroc")}, seed)


def upper_strengths(rows: Sequence[ResultRow]) -> list[float]:
    """Return the upper half of the strengths, including the middle one of an odd number."""
    strengths = sorted({row["dose"] for row in rows if row["dose"] is not None})
    return strengths[len(strengths) // 2 :]


def _by_layers_and_strength(plain: Sequence[ResultRow], seed: int) -> list[dict[str, Any]]:
    """Return the true positive rate and AUROC of each combination, against the same unsteered readings."""
    unsteered = _unsteered(plain)
    groups: dict[tuple[str, tuple[int, ...], float], list[ResultRow]] = {}
    for row in plain:
        if row["side"] in VECTOR_SPLITS and row["dose"] is not None:
            groups.setdefault((row["side"], tuple(row["layers"]), row["dose"]), []).append(row)
    measures = {name: _measure(name) for name in ("tpr", "auroc")}
    return [
        {
            "side": condition,
            "layers": list(layers),
            "dose": strength,
            "metrics": as_json(compare([*steered, *unsteered], measures, seed)),
        }
        for (condition, layers, strength), steered in sorted(groups.items())
    ]


def _cross_token(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Return detection of held-out vectors by pair: does it depend on the words that the variant was trained with?"""
    plain = [row for row in rows if row["kind"] == "plain" and row["side"] in ("held_out", "none")]
    measures = {**{name: _measure(name) for name in ("auroc", "tpr", "fpr")}, "mass": mean(_mass)}
    by_pair = {}
    for pair in sorted({row["pair"] for row in plain}):
        rows_of_pair = [row for row in plain if row["pair"] == pair]
        metrics = as_json(compare(rows_of_pair, measures, seed))
        by_pair[pair] = {"native": rows_of_pair[0]["native"], "metrics": metrics}
    return by_pair


def _lens(plain: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Return the AUROC of each layer's log-odds, first layer first, by condition and system."""
    rows = [row for row in plain if row["lens"] is not None]
    if not rows:
        return {}
    layers = range(len(rows[0]["lens"]))
    measures = {str(layer): _measure("auroc", _odds_at(layer)) for layer in layers}
    by_condition: dict[str, Any] = {}
    for condition in sorted({row["side"] for row in rows} - {"none"}):
        metrics = compare([row for row in rows if row["side"] in (condition, "none")], measures, seed)
        by_condition[condition] = {name: [metrics[f"{layer}/{name}"].as_json() for layer in layers] for name in SYSTEMS}
    return by_condition


def _odds(row: ResultRow) -> float:
    return float(row["odds"])


def _odds_at(layer: int) -> Callable[[ResultRow], float]:
    return lambda row: float(row["lens"][layer])


def _measure(name: str, odds: Callable[[ResultRow], float] = _odds) -> Measure:
    bounds = UNBOUNDED if name == "d_prime" else SHARE
    return Measure(lambda rows: within_seeds(MEASURES[name], rows, odds), bounds)


def within_seeds(
    measure: detection_metrics.Measure, rows: Sequence[ResultRow], odds: Callable[[ResultRow], float] = _odds
) -> Weighted:
    """Return a statistic that computes a measure in each trained seed and averages it with the seeds' weights.

    Args:
        measure: Computes the measure from odds, labels and weights.
        rows: Rows of one system.
        odds: Reads a row's log-odds in favor of "steered".

    Returns:
        The statistic. It leaves out seeds in which the measure is undefined.
    """
    seeds = np.array([row["seed"] for row in rows])
    numbers = np.array([odds(row) for row in rows])
    steered = np.array([bool(row["steered"]) for row in rows], dtype=bool)
    parts = [np.flatnonzero(seeds == seed) for seed in np.unique(seeds)]

    def statistic(weights: Floats) -> Floats:
        values = np.array([measure(numbers[at], steered[at], weights[:, at]) for at in parts]).reshape(-1, len(weights))
        shares = np.array([weights[:, at].sum(-1) for at in parts]).reshape(-1, len(weights))
        defined = np.isfinite(values)
        return ratio((np.where(defined, values, 0) * shares).sum(0), (shares * defined).sum(0))

    return statistic
