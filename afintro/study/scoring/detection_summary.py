"""Summarize how well steering was detected, from the rows of :mod:`afintro.study.asking.conditions`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from afintro.evaluation.intervals import Estimate
from afintro.study.asking.conditions import CONTROL, NORMS, STEERING, VECTOR_SPLITS
from afintro.study.asking.queries import SYSTEMS
from afintro.study.results import ResultRow
from afintro.study.scoring.confounds import near_chance, of_controls, one_seed_each, pushes
from afintro.study.scoring.estimates import as_json, compare, mean, of_system, summary
from afintro.study.scoring.strata import measure_of, reversed_polarity
from afintro.tasks.introspection.trials import PAIRS

COLLAPSED = 0.5
"""Mean probability of both answers together below which the figures say little."""


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize the detection of steering by adapter and base.

    The main metrics cover plain contexts, the native pair and both polarities of the question: in one half of the questions
    "yes" means steered, in their reversed twins "no" does. A measure is computed within each polarity and trained seed, and
    averaged. Unsteered odd contexts are counted apart: they tell a detector of steering from a detector of strangeness.

    Args:
        rows: Rows of both systems.
        seed: Seeds the resamples.

    Returns:
        ``metrics``: for each condition ``auroc``, ``auroc_original`` and ``auroc_reversed`` (one polarity each), ``odds`` (by
        how many nats steering moves the claim), ``auroc_upper`` (upper half of the strengths), ``tpr``,
        ``balanced_accuracy``, ``d_prime``, ``auroc_odd`` (against odd contexts), ``auroc_among_odd`` (odd contexts steered
        against unsteered), ``auroc_controls`` and ``odds_controls`` (does steering move yes on questions about something
        else?), ``auroc_controls_right`` (does it move the right answer to them?), ``auroc_norms`` (a probe on norms of
        activations), and ``fpr``, ``fpr_odd``, ``mass``. ``conditions``: ``tpr`` and ``auroc`` by condition,
        layers and strength. ``cross_token``: metrics by pair, on held-out vectors. ``lens``: AUROC by layer. ``equivalence``:
        whether an AUROC is within 0.1 of chance. ``by_seed``: AUROC of the adapter in each trained seed.
    """
    families = [{**row, "question": row.get("reversed_of") or row["question"]} for row in rows]
    about = {
        name: [row for row in families if row.get("about", STEERING) == name] for name in (STEERING, CONTROL, NORMS)
    }
    asked = about[STEERING]
    native = [row for row in asked if row["native"]]
    plain = _plain(native)
    metrics = {**_of_unsteered(native, plain, seed), **compare(native, {"mass": mean(_mass)}, seed)}
    tested: dict[str, dict[str, Any]] = {}
    seeds: dict[str, dict[str, float]] = {}
    for condition in sorted({row["side"] for row in native} - {"none"}):
        found = _of_condition(native, condition, seed)
        found |= of_controls(_at(_plain(about[CONTROL]), condition), condition, seed)
        found |= _named(_at(_plain(about[NORMS]), condition), condition, {"auroc_norms": "auroc"}, seed)
        metrics |= found
        for name, of_measure in (("auroc", plain), ("auroc_controls", _plain(about[CONTROL]))):
            own = of_system(_at(of_measure, condition), "adapter")
            if own:
                label = f"{name}/{condition}"
                tested[label] = near_chance(own, seed)
                seeds[label] = one_seed_each(own)
    return summary(
        rows,
        metrics,
        [*collapses(native), *pushes(native, metrics)],
        conditions=_by_layers_and_strength(plain, seed),
        cross_token=_cross_token(asked, seed),
        lens=_lens(plain, seed),
        equivalence=tested,
        by_seed=seeds,
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


def _plain(rows: Sequence[ResultRow]) -> list[ResultRow]:
    return [row for row in rows if row["kind"] == "plain"]


def _at(rows: Sequence[ResultRow], condition: str) -> list[ResultRow]:
    """Return the rows that were steered in one condition, and those of the same contexts without steering."""
    return _with_unsteered([row for row in rows if row["side"] == condition], rows)


def _with_unsteered(steered: Sequence[ResultRow], rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Add the unsteered rows of the contexts that were steered: other contexts would differ by more than the steering."""
    contexts = {row["context"] for row in steered}
    return [*steered, *(row for row in _unsteered(rows) if row["context"] in contexts)]


def _unsteered(rows: Sequence[ResultRow]) -> list[ResultRow]:
    return [row for row in rows if not row["steered"]]


def _odd(rows: Sequence[ResultRow]) -> list[ResultRow]:
    return [row for row in rows if row["kind"] == "odd"]


def _named(rows: Sequence[ResultRow], condition: str, measures: Mapping[str, str], seed: int) -> dict[str, Estimate]:
    """Compare measures of signal detection, each under a name of its own, in one condition."""
    named = {f"{name}/{condition}": measure_of(measure) for name, measure in measures.items()}
    return compare(rows, named, seed) if rows else {}


def _of_unsteered(native: Sequence[ResultRow], plain: Sequence[ResultRow], seed: int) -> dict[str, Estimate]:
    return {
        **compare(_unsteered(plain), {"fpr": measure_of("fpr")}, seed),
        **compare(_unsteered(_odd(native)), {"fpr_odd": measure_of("fpr")}, seed),
    }


def _of_condition(native: Sequence[ResultRow], condition: str, seed: int) -> dict[str, Estimate]:
    compared = _at(_plain(native), condition)
    measures = {name: name for name in ("auroc", "tpr", "balanced_accuracy", "d_prime")} | {"odds": "difference"}
    metrics = _named(compared, condition, measures, seed)
    if any(map(reversed_polarity, compared)):
        for name, reverse in (("auroc_original", False), ("auroc_reversed", True)):
            of_polarity = [row for row in compared if reversed_polarity(row) is reverse]
            metrics |= _named(of_polarity, condition, {name: "auroc"}, seed)
    if any(row["dose"] is not None for row in compared):
        upper = upper_strengths(compared)
        strong = [row for row in compared if not row["steered"] or row["dose"] in upper]
        metrics |= _named(strong, condition, {"auroc_upper": "auroc"}, seed)
    odd = _odd(_at(native, condition))
    against_odd = [*(row for row in compared if row["steered"]), *_unsteered(odd)]
    metrics |= _named(against_odd, condition, {"auroc_odd": "auroc"}, seed)
    return metrics | _named(odd, condition, {"auroc_among_odd": "auroc"}, seed)


def upper_strengths(rows: Sequence[ResultRow]) -> list[float]:
    """Return the upper half of the strengths, including the middle one of an odd number."""
    strengths = sorted({row["dose"] for row in rows if row["dose"] is not None})
    return strengths[len(strengths) // 2 :]


def _by_layers_and_strength(plain: Sequence[ResultRow], seed: int) -> list[dict[str, Any]]:
    """Return the true positive rate and AUROC of each combination, against the same contexts without steering."""
    groups: dict[tuple[str, tuple[int, ...], float], list[ResultRow]] = {}
    for row in plain:
        if row["side"] in VECTOR_SPLITS and row["dose"] is not None:
            groups.setdefault((row["side"], tuple(row["layers"]), row["dose"]), []).append(row)
    measures = {name: measure_of(name) for name in ("tpr", "auroc")}
    return [
        {
            "side": condition,
            "layers": list(layers),
            "dose": strength,
            "metrics": as_json(compare(_with_unsteered(steered, plain), measures, seed)),
        }
        for (condition, layers, strength), steered in sorted(groups.items())
    ]


def _cross_token(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Return detection of held-out vectors by pair: does it depend on the words that the variant was trained with?"""
    plain = _at(_plain(rows), "held_out")
    measures = {**{name: measure_of(name) for name in ("auroc", "tpr", "fpr")}, "mass": mean(_mass)}
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
    measures = {str(layer): measure_of("auroc", _odds_at(layer)) for layer in layers}
    by_condition: dict[str, Any] = {}
    for condition in sorted({row["side"] for row in rows} - {"none"}):
        metrics = compare(_at(rows, condition), measures, seed)
        by_condition[condition] = {name: [metrics[f"{layer}/{name}"].as_json() for layer in layers] for name in SYSTEMS}
    return by_condition


def _odds_at(layer: int) -> Callable[[ResultRow], float]:
    return lambda row: float(row["lens"][layer])
