"""How well steering was detected: the summary of rows that :mod:`afintro.study.asking.conditions` made."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from afintro.evaluation.detection_metrics import MEASURES, SHARE
from afintro.evaluation.detection_metrics import Measure as Detection
from afintro.evaluation.hierarchical import UNBOUNDED
from afintro.evaluation.intervals import Estimate, Floats, Weighted, ratio
from afintro.study.asking.conditions import SIDES
from afintro.study.asking.session import SYSTEMS, Row
from afintro.study.scoring.estimates import Measure, as_json, compare, mean, of_system, summary
from afintro.tasks.introspection.trials import PAIRS

COLLAPSED = 0.5  # mean probability of both answers together, below which the figures say little


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Detection of steering by adapter and base.

    The headline is of plain contexts and the native pair. Odd contexts that were not steered are counted apart: they tell
    a detector of steering from a detector of strangeness. Every measure is taken within each trained seed, since the odds
    of two trainings have no common scale, and averaged over seeds.

    Returns:
        ``metrics``: by side of the vectors ``auroc``, ``auroc_upper`` (upper half of the doses), ``tpr``,
        ``balanced_accuracy``, ``d_prime``, ``auroc_odd`` (against odd contexts), and ``fpr``, ``fpr_odd``, ``mass``.
        ``conditions``: the same by layers and dose. ``cross_token``: by pair, on held-out vectors. ``lens``: AUROC by layer.
    """
    native = [row for row in rows if row["native"]]
    plain = [row for row in native if row["kind"] == "plain"]
    metrics = {**_unsteered(native, plain, seed), **compare(native, {"mass": mean(_mass)}, seed)}
    for side in sorted({row["side"] for row in native} - {"none"}):
        metrics |= _of_side(native, plain, side, seed)
    return summary(
        rows,
        metrics,
        collapses(native),
        conditions=_conditions(plain, seed),
        cross_token=_cross_token(rows, seed),
        lens=_lens(plain, seed),
    )


def collapses(native: Sequence[Row]) -> list[str]:
    """A warning for a pair that the adapter puts little probability on: its answers are no longer answers."""
    warnings = []
    for pair in sorted({row["pair"] for row in native}):
        masses = [_mass(row) for row in of_system(native, "adapter") if row["pair"] == pair]
        if masses and np.mean(masses) < COLLAPSED:
            named = f"{PAIRS[pair].a} and {PAIRS[pair].b}" if pair in PAIRS else pair
            warnings.append(
                f"MASS COLLAPSE: the adapter gives {named} a mean probability of {np.mean(masses):.3f} together"
            )
    return warnings


def _mass(row: Row) -> float:
    return float(row["mass"])


def _unsteered(native: Sequence[Row], plain: Sequence[Row], seed: int) -> dict[str, Estimate]:
    odd = [row for row in native if row["kind"] == "odd" and not row["steered"]]
    return {
        **compare([row for row in plain if not row["steered"]], {"fpr": _measure("fpr")}, seed),
        **compare(odd, {"fpr_odd": _measure("fpr")}, seed),
    }


def _of_side(native: Sequence[Row], plain: Sequence[Row], side: str, seed: int) -> dict[str, Estimate]:
    steered = [row for row in plain if row["side"] == side]
    left_alone = [row for row in plain if not row["steered"]]
    odd = [row for row in native if row["kind"] == "odd" and not row["steered"]]
    wanted = {f"{name}/{side}": _measure(name) for name in ("auroc", "tpr", "balanced_accuracy", "d_prime")}
    found = compare([*steered, *left_alone], wanted, seed)
    if any(row["dose"] is not None for row in steered):
        upper = upper_doses(steered)
        strong = [row for row in steered if row["dose"] in upper]
        found |= compare([*strong, *left_alone], {f"auroc_upper/{side}": _measure("auroc")}, seed)
    return found | compare([*steered, *odd], {f"auroc_odd/{side}": _measure("auroc")}, seed)


def upper_doses(rows: Sequence[Row]) -> list[float]:
    """The upper half of the doses, the middle one of an odd number among them."""
    doses = sorted({row["dose"] for row in rows if row["dose"] is not None})
    return doses[len(doses) // 2 :]


def _conditions(plain: Sequence[Row], seed: int) -> list[dict[str, Any]]:
    """True positive rate and AUROC of each side, layer range and dose, against the same unsteered readings."""
    left_alone = [row for row in plain if not row["steered"]]
    groups: dict[tuple[str, tuple[int, ...], float], list[Row]] = {}
    for row in plain:
        if row["side"] in SIDES and row["dose"] is not None:
            groups.setdefault((row["side"], tuple(row["layers"]), row["dose"]), []).append(row)
    wanted = {name: _measure(name) for name in ("tpr", "auroc")}
    return [
        {
            "side": side,
            "layers": list(layers),
            "dose": dose,
            "metrics": as_json(compare([*steered, *left_alone], wanted, seed)),
        }
        for (side, layers, dose), steered in sorted(groups.items())
    ]


def _cross_token(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Held-out vectors, asked with each pair: does detection go with the words that it was trained with?"""
    plain = [row for row in rows if row["kind"] == "plain" and row["side"] in ("held_out", "none")]
    wanted = {**{name: _measure(name) for name in ("auroc", "tpr", "fpr")}, "mass": mean(_mass)}
    found = {}
    for pair in sorted({row["pair"] for row in plain}):
        own = [row for row in plain if row["pair"] == pair]
        found[pair] = {"native": own[0]["native"], "metrics": as_json(compare(own, wanted, seed))}
    return found


def _lens(plain: Sequence[Row], seed: int) -> dict[str, Any]:
    """AUROC of the log-odds as each layer has them, first layer first, by side and system; None where none were read."""
    seen = [row for row in plain if row["lens"] is not None]
    if not seen:
        return {}
    layers = range(len(seen[0]["lens"]))
    wanted = {str(layer): _measure("auroc", _layer(layer)) for layer in layers}
    found: dict[str, Any] = {}
    for side in sorted({row["side"] for row in seen} - {"none"}):
        metrics = compare([row for row in seen if row["side"] in (side, "none")], wanted, seed)
        found[side] = {name: [metrics[f"{layer}/{name}"].as_json() for layer in layers] for name in SYSTEMS}
    return found


def _odds(row: Row) -> float:
    return float(row["odds"])


def _layer(layer: int) -> Callable[[Row], float]:
    return lambda row: float(row["lens"][layer])


def _measure(name: str, odds: Callable[[Row], float] = _odds) -> Measure:
    """A measure of detection, with what it cannot leave."""
    bounds = UNBOUNDED if name == "d_prime" else SHARE
    return Measure(lambda rows: within_seeds(MEASURES[name], rows, odds), bounds)


def within_seeds(measure: Detection, rows: Sequence[Row], odds: Callable[[Row], float] = _odds) -> Weighted:
    """A measure in each trained seed, averaged with the seeds' weights; seeds in which it is undefined left out."""
    seeds = np.array([row["seed"] for row in rows])
    numbers, steered = (
        np.array([odds(row) for row in rows]),
        np.array([bool(row["steered"]) for row in rows], dtype=bool),
    )
    parts = [np.flatnonzero(seeds == one) for one in np.unique(seeds)]

    def statistic(weights: Floats) -> Floats:
        values = np.array([measure(numbers[at], steered[at], weights[:, at]) for at in parts]).reshape(-1, len(weights))
        shares = np.array([weights[:, at].sum(-1) for at in parts]).reshape(-1, len(weights))
        defined = np.isfinite(values)
        return ratio((np.where(defined, values, 0) * shares).sum(0), (shares * defined).sum(0))

    return statistic
