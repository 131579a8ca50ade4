"""A study's tables as Markdown."""

from collections.abc import Mapping, Sequence

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Analysis, Detection
from afintro.study.report.shifts import Difference, Shift, Tested

FEW_SEEDS = 5
SIDES = {"held_out": "held out", "held_in": "held in", "swap": "real activations"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; "nothing to show" without rows."""
    if not rows:
        return "Nothing to show yet.\n"
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def folded(title: str, text: str) -> str:
    """A part that opens when it is asked for."""
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def number(estimate: Estimate | None, signed: bool = True) -> str:
    """``+0.31 [+0.22, +0.40]``; ``null`` for what could not be computed, a dash for what was not measured."""
    if estimate is None:
        return "-"
    if estimate.value is None:
        return "null"
    form = "+.3f" if signed else ".3f"
    if estimate.ci_low is None or estimate.ci_high is None:
        return f"{estimate.value:{form}} [no interval]"
    return f"{estimate.value:{form}} [{estimate.ci_low:{form}}, {estimate.ci_high:{form}}]"


def percent(share: float) -> str:
    """``12 %``."""
    return f"{100 * share:.0f} %"


def probability(p: float | None) -> str:
    """``0.013``, ``< 0.001``; a dash for None."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def coverage(analysis: Analysis) -> str:
    """Seeds that are there, by variant and evaluation; a dash where an evaluation does not apply."""
    names, seeds = analysis.plan.names, len(analysis.plan.seeds)
    rows = []
    for variant, applied in analysis.plan.evaluations.items():
        counts = [f"{len(analysis.done[variant, name])}/{seeds}" if name in applied else "-" for name in names]
        steps = sorted({step for cell, step in analysis.steps.items() if cell[0] == variant and step is not None})
        rows.append([variant, *counts, ", ".join(map(str, steps)) or "-"])
    return table(["variant", *names, "step"], rows)


def missing(analysis: Analysis) -> str:
    """What is not there and why, cells of one reason together."""
    grouped: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (variant, evaluation, seed), reason in analysis.missing.items():
        grouped.setdefault((variant, reason), {}).setdefault(evaluation, []).append(str(seed))
    lines = []
    for (variant, reason), cells in grouped.items():
        named = "; ".join(f"{evaluation} (seed {', '.join(seeds)})" for evaluation, seeds in cells.items())
        lines.append(f"- **{variant}**: {named}: {reason}")
    return "\n".join(lines) + "\n" if lines else "Nothing is missing.\n"


def remarks(one: Shift) -> str:
    """What a reader has to know before reading the number."""
    found = [] if one.interpretable else ["**not interpretable**"]
    seeds = one.units.get("seed", 0)
    if seeds == 1:
        found.append("one seed, no variance between seeds")
    elif seeds < FEW_SEEDS:
        found.append(f"{seeds} seeds")
    return "; ".join(found) or "-"


def overall(shifts: Sequence[Shift]) -> str:
    """Shifts of self-reports, controls and items trained on."""
    header = ["variant", "items", "n", "as worded", "polarity corrected", "yes bias", "reversed twins"]
    header += ["P(yes), whole vocabulary", "expected answer", "low mass", "remarks"]
    rows = [
        [
            one.variant,
            one.group,
            str(one.worded.estimate.n),
            number(one.worded.estimate),
            number(one.corrected.estimate),
            number(one.bias),
            number(one.reversed),
            number(one.whole),
            "-" if one.expected.n == 0 else number(one.expected),
            percent(one.low_mass),
            remarks(one),
        ]
        for one in shifts
    ]
    return table(header, rows)


def edges(shifts: Sequence[Shift]) -> str:
    """Items with room to move, beside those that had none on one side."""
    header = [
        "variant",
        "items",
        "at floor",
        "at ceiling",
        "with room",
        "shift, with room",
        "shift, at floor or ceiling",
    ]
    rows = [
        [
            one.variant,
            one.group,
            str(one.floor),
            str(one.ceiling),
            str(one.room.n),
            "none" if one.room.n == 0 else number(one.room),
            "none" if one.edge.n == 0 else number(one.edge),
        ]
        for one in shifts
    ]
    return table(header, rows)


def star(tested: Tested, interpretable: bool) -> str:
    """The value alone; ``*`` among the discoveries, ``†`` not interpretable."""
    value = tested.estimate.value
    if value is None:
        return "null"
    return f"{value:+.2f}" + ("†" if not interpretable else "\\*" if tested.found else "")


def category_grid(shifts: Sequence[Shift], corrected: bool) -> str:
    """Variants by categories, values alone."""
    names = list(dict.fromkeys(one.group for one in shifts))
    found = {
        (one.variant, one.group): star(one.corrected if corrected else one.worded, one.interpretable) for one in shifts
    }
    variants = list(dict.fromkeys(one.variant for one in shifts))
    return table(["variant", *names], [[v, *(found.get((v, name), "-") for name in names)] for v in variants])


def category_details(shifts: Sequence[Shift]) -> str:
    """All there is by variant and category, folded by variant."""
    header = ["category", "n", "as worded", "p", "adjusted", "polarity corrected", "p", "adjusted", "yes bias"]
    header += ["floor, ceiling", "low mass", "remarks"]
    parts = []
    for variant in dict.fromkeys(one.variant for one in shifts):
        rows = []
        for one in shifts:
            if one.variant != variant:
                continue
            tested = [
                text
                for each in (one.worded, one.corrected)
                for text in (number(each.estimate), probability(each.p), probability(each.adjusted))
            ]
            edge = f"{one.floor}, {one.ceiling}"
            count = str(one.worded.estimate.n)
            rows.append([one.group, count, *tested, number(one.bias), edge, percent(one.low_mass), remarks(one)])
        parts.append(folded(variant, table(header, rows)))
    return "\n".join(parts)


def differences(found: Sequence[Difference]) -> str:
    """Variants minus controls on the same items."""
    header = [
        "variant",
        "minus",
        "items",
        "n",
        "as worded",
        "p",
        "adjusted",
        "polarity corrected",
        "p",
        "adjusted",
        "remarks",
    ]
    rows = []
    for one in found:
        tested = [
            text
            for each in (one.worded, one.corrected)
            for text in (number(each.estimate), probability(each.p), probability(each.adjusted))
        ]
        remark = "-" if one.interpretable else "**not interpretable**"
        rows.append([one.variant, one.control, one.group, str(one.worded.estimate.n), *tested, remark])
    return table(header, rows)


def detections(found: Sequence[Detection]) -> str:
    """The measures of detection, the base's in brackets behind."""
    columns = {
        "auroc": "AUROC", "shift/auroc": "AUROC, adapter minus base", "auroc_upper": "AUROC, upper half of doses",
        "tpr": "TPR", "fpr": "FPR", "fpr_odd": "FPR, odd contexts", "auroc_odd": "AUROC against odd contexts",
        "balanced_accuracy": "balanced accuracy", "d_prime": "d'", "mass": "mass",
    }  # fmt: skip
    rows = []
    for one in found:
        cells = [beside(one.metrics, name) for name in columns]
        remark = "-" if one.interpretable else "**not interpretable** (mass collapse)"
        rows.append([one.variant, SIDES.get(one.side, one.side), *cells, remark])
    return table(["variant", "vectors", *columns.values(), "remarks"], rows)


def beside(metrics: Mapping[str, Estimate], name: str) -> str:
    """The adapter's measure with its interval, and the base's value; a difference as it is."""
    if name.startswith("shift/"):
        return number(metrics.get(name))
    base = metrics.get(f"{name}/base")
    text = "" if base is None else " (null)" if base.value is None else f" ({base.value:.3f})"
    return number(metrics.get(f"{name}/adapter"), signed=False) + text


def pair_matrix(analysis: Analysis) -> str:
    """AUROC by variant and answer pair."""
    names = sorted({pair for _, pair in analysis.pairs})
    rows = []
    for variant in dict.fromkeys(variant for variant, _ in analysis.pairs):
        cells = []
        for name in names:
            cell = analysis.pairs.get((variant, name))
            text = "-" if cell is None else number(cell.auroc, signed=False)
            text += "" if cell is None or cell.interpretable else " †"
            cells.append(f"**{text}**" if cell is not None and cell.native else text)
        rows.append([variant, *cells])
    return table(["variant", *names], rows)


def curves(analysis: Analysis) -> str:
    """Detection by dose, folded by variant."""
    parts = []
    for variant in dict.fromkeys(curve.variant for curve in analysis.curves):
        rows = [
            [
                SIDES.get(curve.side, curve.side),
                f"{curve.layers[0]} to {curve.layers[1] - 1}",
                f"{dose:g}",
                number(tpr, signed=False),
                number(auroc, signed=False),
            ]
            for curve in analysis.curves
            if curve.variant == variant
            for dose, tpr, auroc in zip(curve.doses, curve.tpr, curve.auroc, strict=True)
        ]
        parts.append(folded(variant, table(["vectors", "layers", "dose", "TPR", "AUROC"], rows)))
    return "\n".join(parts) if parts else table([], [])


def headline(by_variant: Mapping[str, Mapping[str, Estimate]]) -> str:
    """One evaluation's metrics, adapter and in brackets base, by variant."""
    names = dict.fromkeys(
        name.removesuffix("/adapter")
        for metrics in by_variant.values()
        for name in metrics
        if name.endswith("/adapter")
    )
    rows = [[variant, *(beside(metrics, name) for name in names)] for variant, metrics in by_variant.items()]
    return table(["variant", *names], rows) if names else "No metric of both systems.\n"
