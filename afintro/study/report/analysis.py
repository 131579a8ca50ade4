"""All numbers of a study's tables, from what its folder holds; a cell that is not there stays missing, with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afintro.evaluation.intervals import Estimate
from afintro.study.report.shifts import Difference, Shift, adjusted, differences, shift
from afintro.study.results import LOGPROBS, Cell, Plan, StudyResults
from afintro.study.scoring.items import LOW_MASS, YES_NO, Item, categories, groups, paired_items

DETECTIONS = ("detection", "neutral_detection")


@dataclass(frozen=True)
class Detection:
    """How well one variant detects the vectors of one side.

    Args:
        variant: The variant.
        evaluation: ``detection`` or ``neutral_detection``.
        side: ``held_in``, ``held_out`` or ``swap``.
        metrics: By name without the side: ``auroc/adapter``, ``auroc/base``, ``shift/auroc``, ``fpr_odd/adapter``, ...
    """

    variant: str
    evaluation: str
    side: str
    metrics: Mapping[str, Estimate]

    @property
    def interpretable(self) -> bool:
        """Whether the adapter's two answers have at least half of its probability."""
        return readable(self.metrics.get("mass/adapter"))


@dataclass(frozen=True)
class PairCell:
    """Detection of held-out vectors by one variant when it is to answer with one pair of words."""

    native: bool
    auroc: Estimate
    mass: Estimate

    @property
    def interpretable(self) -> bool:
        return readable(self.mass)


@dataclass(frozen=True)
class Curve:
    """Detection by dose, of one variant, side and range of layers.

    Args:
        variant: The variant.
        side: Of the vectors.
        layers: First and one past last.
        doses: Ascending.
        tpr: At each dose.
        auroc: At each dose, against all unsteered contexts.
    """

    variant: str
    side: str
    layers: tuple[int, int]
    doses: Sequence[float]
    tpr: Sequence[Estimate]
    auroc: Sequence[Estimate]


@dataclass(frozen=True)
class Analysis:
    """What there is to report.

    Args:
        plan: What there was to be.
        done: Seeds by variant and evaluation.
        missing: Cells that are not there, and why.
        steps: Optimiser step of each cell's checkpoint.
        overall: Shifts of self-reports, of controls, and of items trained on, by variant.
        by_category: Shifts by variant and category, p-values adjusted over all of them.
        differences: Shifts of variants minus those of their controls, p-values adjusted over all of them.
        detections: By evaluation, variant and side.
        pairs: The cross-token matrix, by variant and pair.
        curves: Psychometric curves.
        headlines: By evaluation, variant and metric (``<metric>/adapter``, ``<metric>/base``, ``shift/<metric>``).
        warnings: Of the evaluations and of the reading.
    """

    plan: Plan
    done: Mapping[tuple[str, str], Sequence[int]]
    missing: Mapping[Cell, str]
    steps: Mapping[Cell, int | None]
    overall: Sequence[Shift]
    by_category: Sequence[Shift]
    differences: Sequence[Difference]
    detections: Sequence[Detection]
    pairs: Mapping[tuple[str, str], PairCell]
    curves: Sequence[Curve]
    headlines: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    warnings: Sequence[str]


def analyse(folder: Path, plan: Plan, seed: int = 0) -> Analysis:
    """Read a study's folder and compute its tables.

    Args:
        folder: ``results/<study>``.
        plan: Variants, seeds and evaluations to look for.
        seed: Seeds the bootstrap.
    """
    results = StudyResults(folder, plan)
    items, warnings = _items(results)
    summaries = _summaries(results)
    for (variant, evaluation), content in summaries.items():
        warnings += [f"{variant}, {evaluation}: {warning}" for warning in content.get("warnings", [])]
    overall = [shift(v, name, own, seed) for v, found in items.items() for name, own in groups(found).items()]
    cells = [shift(v, name, own, seed) for v, found in items.items() for name, own in categories(found).items()]
    return Analysis(
        plan=plan,
        done={(v, name): results.done(v, name) for v, applied in plan.evaluations.items() for name in applied},
        missing={cell: results.missing[cell] for cell in plan.cells if cell in results.missing},
        steps=results.steps,
        overall=overall,
        by_category=adjusted(cells),
        differences=differences(items, seed),
        detections=[one for (v, name), content in summaries.items() for one in _detections(v, name, content)],
        pairs=_pairs(summaries),
        curves=_curves(summaries),
        headlines=_headlines(summaries),
        warnings=[*results.warnings, *warnings],
    )


def _items(results: StudyResults) -> tuple[dict[str, list[Item]], list[str]]:
    """Paired self-report items of the variants that have any."""
    found: dict[str, list[Item]] = {}
    warnings = []
    for variant, applied in results.plan.evaluations.items():
        if LOGPROBS not in applied:
            continue
        rows = results.logprobs(variant)
        items, left_out = paired_items(rows)
        if items:
            found[variant] = items
        elif rows and not left_out:
            warnings.append(f"{variant}, {LOGPROBS}: nothing was answered with {YES_NO}; left out of the tables")
        if left_out:
            warnings.append(f"{variant}, {LOGPROBS}: {left_out} items left out, not answered once by both systems")
    return found, warnings


def _summaries(results: StudyResults) -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for variant, applied in results.plan.evaluations.items():
        for evaluation in applied:
            content = results.summary(variant, evaluation)
            if content is not None:
                found[variant, evaluation] = content
    return found


def _detections(variant: str, evaluation: str, content: Mapping[str, Any]) -> list[Detection]:
    """One a side; measures of unsteered contexts, which have no side, are in each."""
    if evaluation not in DETECTIONS:
        return []
    metrics = {name: Estimate(**value) for name, value in content["metrics"].items()}
    sides = {name.split("/")[1] for name in metrics if name.startswith("auroc/")}
    found = []
    for side in [side for side in ("held_out", "held_in", "swap") if side in sides]:
        own = {
            name.replace(f"/{side}", ""): value
            for name, value in metrics.items()
            if f"/{side}" in name or not any(f"/{other}" in name for other in sides)
        }
        found.append(Detection(variant, evaluation, side, own))
    return found


def _pairs(summaries: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[tuple[str, str], PairCell]:
    found = {}
    for (variant, evaluation), content in summaries.items():
        for pair, cell in content.get("cross_token", {}).items() if evaluation == "detection" else ():
            auroc, mass = (Estimate(**cell["metrics"][f"{name}/adapter"]) for name in ("auroc", "mass"))
            found[variant, pair] = PairCell(cell["native"], auroc, mass)
    return found


def _curves(summaries: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Curve]:
    found = []
    for (variant, evaluation), content in summaries.items():
        points = content.get("conditions", []) if evaluation == "detection" else []
        for side, *layers in sorted({(point["side"], *point["layers"]) for point in points}):
            own = [point for point in points if (point["side"], *point["layers"]) == (side, *layers)]
            own.sort(key=lambda point: point["dose"])
            tpr, auroc = (
                [Estimate(**point["metrics"][f"{name}/adapter"]) for point in own] for name in ("tpr", "auroc")
            )
            doses = [point["dose"] for point in own]
            found.append(Curve(variant, side, (layers[0], layers[1]), doses, tpr, auroc))
    return found


def _headlines(
    summaries: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Metrics without further division (``<metric>/<system>``) of the evaluations that have no table of their own."""
    found: dict[str, dict[str, dict[str, Estimate]]] = {}
    for (variant, evaluation), content in summaries.items():
        if evaluation in (*DETECTIONS, LOGPROBS):
            continue
        metrics = {name: Estimate(**value) for name, value in content["metrics"].items()}
        names = [name.removesuffix("/adapter") for name in metrics if name.endswith("/adapter")]
        short = [name for name in names if "/" not in name] or names
        found.setdefault(evaluation, {})[variant] = {
            name: value
            for name, value in metrics.items()
            if name.removeprefix("shift/") in short or name.rpartition("/")[0] in short
        }
    return found


def readable(mass: Estimate | None) -> bool:
    """Whether at least half of the probability is on the two answers; also where the mass is not known."""
    return mass is None or mass.value is None or mass.value >= LOW_MASS
