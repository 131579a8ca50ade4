"""Compute all numbers of a study's tables from its folder. A missing cell stays missing, with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from afintro.evaluation.intervals import Estimate
from afintro.study.report.shifts import Difference, Shift, adjusted, differences, shift
from afintro.study.results import LOGPROBS, EvaluationKey, Plan, StudyResults
from afintro.study.scoring.equivalence import Equivalence
from afintro.study.scoring.items import LOW_MASS, YES_NO, Item, categories, groups, paired_items

Value = TypeVar("Value")
DETECTIONS = ("detection", "neutral_detection")


@dataclass(frozen=True)
class Detection:
    """How well one variant detects steering in one condition.

    Args:
        variant: The variant.
        evaluation: ``detection`` or ``neutral_detection``.
        condition: ``held_in``, ``held_out`` or ``swap``.
        metrics: Estimates by name without the condition: ``auroc/adapter``, ``auroc/base``, ``shift/auroc``,
            ``fpr_odd/adapter``, ...
        equivalence: Whether ``auroc`` and ``auroc_controls`` of the adapter are shown to be near chance.
        by_seed: ``auroc`` and ``auroc_controls`` of the adapter, of each trained seed.
    """

    variant: str
    evaluation: str
    condition: str
    metrics: Mapping[str, Estimate]
    equivalence: Mapping[str, Equivalence] = field(default_factory=dict)
    by_seed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def interpretable(self) -> bool:
        """Return whether the adapter's two answers have at least half of its probability."""
        return readable(self.metrics.get("mass/adapter"))


@dataclass(frozen=True)
class PairCell:
    """Detection of held-out vectors by one variant when it has to answer with one pair of words.

    Args:
        native: Whether the variant was trained with the pair.
        auroc: AUROC of the adapter.
        mass: Probability of both words together.
    """

    native: bool
    auroc: Estimate
    mass: Estimate

    @property
    def interpretable(self) -> bool:
        """Return whether the two words have at least half of the probability."""
        return readable(self.mass)


@dataclass(frozen=True)
class Curve:
    """Detection by strength of steering, for one variant, condition and range of layers.

    Args:
        variant: The variant.
        condition: ``held_in`` or ``held_out``.
        layers: First layer and one past the last layer.
        strengths: Strengths in ascending order.
        tpr: True positive rate at each strength.
        auroc: AUROC at each strength, against all unsteered contexts.
    """

    variant: str
    condition: str
    layers: tuple[int, int]
    strengths: Sequence[float]
    tpr: Sequence[Estimate]
    auroc: Sequence[Estimate]


@dataclass(frozen=True)
class Analysis:
    """Everything that a report says.

    Args:
        plan: What the study is to consist of.
        done: Seeds that have rows, by variant and evaluation.
        missing: Why evaluations have no rows.
        steps: Optimizer step of the checkpoint of each evaluation.
        overall: Shifts of self-reports, of controls, and of items trained on, by variant.
        by_category: Shifts by variant and category, with p-values adjusted over all of them.
        differences: Shifts of variants minus shifts of their controls, with p-values adjusted over all of them.
        detections: Detection by evaluation, variant and condition.
        pairs: The cross-token matrix, by variant and pair.
        curves: Psychometric curves.
        primary_metrics: Estimates of the other evaluations by evaluation, variant and metric (``<metric>/adapter``,
            ``<metric>/base``, ``shift/<metric>``).
        warnings: Warnings of the evaluations and of the analysis.
    """

    plan: Plan
    done: Mapping[tuple[str, str], Sequence[int]]
    missing: Mapping[EvaluationKey, str]
    steps: Mapping[EvaluationKey, int | None]
    overall: Sequence[Shift]
    by_category: Sequence[Shift]
    differences: Sequence[Difference]
    detections: Sequence[Detection]
    pairs: Mapping[tuple[str, str], PairCell]
    curves: Sequence[Curve]
    primary_metrics: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    warnings: Sequence[str]


def analyze(folder: Path, plan: Plan, seed: int = 0) -> Analysis:
    """Read a study's folder and compute the numbers of its tables.

    Args:
        folder: ``results/<study>``.
        plan: The variants, seeds and evaluations to look for.
        seed: Seeds the bootstrap.
    """
    results = StudyResults(folder, plan)
    items, warnings = _items(results)
    summaries = _summaries(results)
    for (variant, evaluation), content in summaries.items():
        warnings += [f"{variant}, {evaluation}: {warning}" for warning in content.get("warnings", [])]
    overall = [shift(v, name, group, seed) for v in items for name, group in groups(items[v]).items()]
    by_category = [shift(v, name, group, seed) for v in items for name, group in categories(items[v]).items()]
    return Analysis(
        plan=plan,
        done={(v, name): results.done(v, name) for v, names in plan.evaluations.items() for name in names},
        missing={key: results.missing[key] for key in plan.keys if key in results.missing},
        steps=results.steps,
        overall=overall,
        by_category=adjusted(by_category),
        differences=differences(items, seed),
        detections=[detection for key, content in summaries.items() for detection in _detections(*key, content)],
        pairs=_pairs(summaries),
        curves=_curves(summaries),
        primary_metrics=_primary_metrics(summaries),
        warnings=[*results.warnings, *warnings],
    )


def _items(results: StudyResults) -> tuple[dict[str, list[Item]], list[str]]:
    """Return the paired self-report items of the variants that have any, and warnings about the others."""
    by_variant: dict[str, list[Item]] = {}
    warnings = []
    for variant, evaluations in results.plan.evaluations.items():
        if LOGPROBS not in evaluations:
            continue
        rows = results.logprobs(variant)
        items, left_out = paired_items(rows)
        if items:
            by_variant[variant] = items
        elif rows and not left_out:
            warnings.append(f"{variant}, {LOGPROBS}: nothing was answered with {YES_NO}; left out of the tables")
        if left_out:
            warnings.append(f"{variant}, {LOGPROBS}: {left_out} items left out, not answered once by both systems")
    return by_variant, warnings


def _summaries(results: StudyResults) -> dict[tuple[str, str], dict[str, Any]]:
    summaries = {}
    for variant, evaluations in results.plan.evaluations.items():
        for evaluation in evaluations:
            content = results.summary(variant, evaluation)
            if content is not None:
                summaries[variant, evaluation] = content
    return summaries


def _detections(variant: str, evaluation: str, content: Mapping[str, Any]) -> list[Detection]:
    """Return the detection in each condition. Measures of unsteered contexts are part of every condition."""
    if evaluation not in DETECTIONS:
        return []
    metrics = {name: Estimate(**value) for name, value in content["metrics"].items()}
    conditions = {name.split("/")[1] for name in metrics if name.startswith("auroc/")}
    detections = []
    equivalence = {name: Equivalence(**value) for name, value in content.get("equivalence", {}).items()}
    by_seed: Mapping[str, Mapping[str, float]] = content.get("by_seed", {})
    for condition in [name for name in ("held_out", "held_in", "swap") if name in conditions]:
        of_condition = {
            name.replace(f"/{condition}", ""): value
            for name, value in metrics.items()
            if f"/{condition}" in name or not any(f"/{other}" in name for other in conditions)
        }
        near, seeds = _of_condition(equivalence, condition), _of_condition(by_seed, condition)
        detections.append(Detection(variant, evaluation, condition, of_condition, near, seeds))
    return detections


def _of_condition(by_name: Mapping[str, Value], condition: str) -> dict[str, Value]:
    """Return the values of one condition, by name without the condition."""
    ending = f"/{condition}"
    return {name.removesuffix(ending): value for name, value in by_name.items() if name.endswith(ending)}


def _pairs(summaries: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[tuple[str, str], PairCell]:
    pairs = {}
    for (variant, evaluation), content in summaries.items():
        for pair, cell in content.get("cross_token", {}).items() if evaluation == "detection" else ():
            auroc, mass = (Estimate(**cell["metrics"][f"{name}/adapter"]) for name in ("auroc", "mass"))
            pairs[variant, pair] = PairCell(cell["native"], auroc, mass)
    return pairs


def _curves(summaries: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Curve]:
    curves = []
    for (variant, evaluation), content in summaries.items():
        points = content.get("conditions", []) if evaluation == "detection" else []
        for condition, *layers in sorted({(point["side"], *point["layers"]) for point in points}):
            on_curve = [point for point in points if (point["side"], *point["layers"]) == (condition, *layers)]
            on_curve.sort(key=lambda point: point["dose"])
            tpr, auroc = (
                [Estimate(**point["metrics"][f"{name}/adapter"]) for point in on_curve] for name in ("tpr", "auroc")
            )
            strengths = [point["dose"] for point in on_curve]
            curves.append(Curve(variant, condition, (layers[0], layers[1]), strengths, tpr, auroc))
    return curves


def _primary_metrics(
    summaries: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return the undivided metrics (``<metric>/<system>``) of the evaluations that have no table of their own."""
    primary: dict[str, dict[str, dict[str, Estimate]]] = {}
    for (variant, evaluation), content in summaries.items():
        if evaluation in (*DETECTIONS, LOGPROBS):
            continue
        metrics = {name: Estimate(**value) for name, value in content["metrics"].items()}
        names = [name.removesuffix("/adapter") for name in metrics if name.endswith("/adapter")]
        undivided = [name for name in names if "/" not in name] or names
        primary.setdefault(evaluation, {})[variant] = {
            name: value
            for name, value in metrics.items()
            if name.removeprefix("shift/") in undivided or name.rpartition("/")[0] in undivided
        }
    return primary


def readable(mass: Estimate | None) -> bool:
    """Return whether at least half of the probability is on the two answers, or the mass is unknown."""
    return mass is None or mass.value is None or mass.value >= LOW_MASS
