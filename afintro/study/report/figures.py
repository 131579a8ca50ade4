"""Plot a study's figures: shift by variant, the cross-token matrix, psychometric curves."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Curve, PairCell
from afintro.study.report.shifts import Shift
from afintro.study.scoring.items import CONTROLS, SELF_REPORTS

# Okabe & Ito 2008: people who do not see all colors can tell these apart.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PANELS = 7  # psychometric panels in a row
NOT_READABLE = "hollow: low mass, or saturated: nothing can be said"


def forest_figure(overall: Sequence[Shift]) -> Figure:
    """Plot the shift in log-odds by variant with intervals: self-reports as worded and polarity corrected, and controls.

    Args:
        overall: Shifts. Those of groups other than :data:`SELF_REPORTS` and :data:`CONTROLS` are not drawn.
    """
    variants = list(dict.fromkeys(shift.variant for shift in overall))
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(variants)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=0.8)
    for shift in overall:
        row = variants.index(shift.variant)
        if shift.group == SELF_REPORTS:
            _whisker(axes, row - 0.24, shift.worded.estimate, BLUE, "o", shift.readable)
            _whisker(axes, row, shift.corrected.estimate, ORANGE, "D", shift.readable)
        elif shift.group == CONTROLS:
            _whisker(axes, row + 0.24, shift.worded.estimate, GREEN, "s", shift.readable)
    for row in range(0, len(variants), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0)
    axes.set_yticks(range(len(variants)), variants)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlabel("shift of the log-odds of yes, adapter minus base, with 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    marks = [
        ("self-reports as worded", BLUE, "o"),
        ("self-reports, polarity corrected", ORANGE, "D"),
        ("controls as worded", GREEN, "s"),
    ]
    handles = [Line2D([], [], color=color, marker=mark, linestyle="-", label=label) for label, color, mark in marks]
    handles.append(Line2D([], [], color="grey", marker="o", linestyle="", fillstyle="none", label=NOT_READABLE))
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def _whisker(axes: Axes, row: float, estimate: Estimate, color: str, mark: str, filled: bool) -> None:
    """Draw a value, and its interval if it has one. A value that could not be computed is not drawn."""
    if estimate.value is None:
        return
    if estimate.ci_low is not None and estimate.ci_high is not None:
        axes.plot([estimate.ci_low, estimate.ci_high], [row, row], color=color, linewidth=1.6)
    axes.plot(
        estimate.value, row, marker=mark, color=color, markersize=5.5, markerfacecolor=color if filled else "white"
    )


def matrix_figure(pairs: Mapping[tuple[str, str], PairCell]) -> Figure:
    """Plot AUROC on held-out vectors by variant and answer pair. A frame marks the pair that a variant was trained with."""
    variants, names = (list(dict.fromkeys(key[place] for key in pairs)) for place in (0, 1))
    names.sort()
    figure = Figure(figsize=(3.4 + 1.15 * len(names), 1.8 + 0.36 * len(variants)), layout="constrained")
    axes = figure.add_subplot()
    colors = colormaps["RdBu_r"].with_extremes(bad="#dddddd")
    values = np.full((len(variants), len(names)), np.nan)
    for (variant, pair), cell in pairs.items():
        row, column = variants.index(variant), names.index(pair)
        if cell.auroc.value is not None:
            values[row, column] = cell.auroc.value
            text = f"{cell.auroc.value:.2f}" + ("" if cell.interpretable else " †")
            dark = abs(cell.auroc.value - 0.5) > 0.32
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        if cell.native:
            frame = Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor="black", linewidth=1.8)
            axes.add_patch(frame)
    image = axes.imshow(values, cmap=colors, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), [name.replace("_", " / ") for name in names], rotation=30, ha="right")
    axes.set_yticks(range(len(variants)), variants)
    title = "AUROC on held-out vectors by answer pair\nframe: trained with it; †: low mass; grey: missing"
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="AUROC (0.5 is chance)", shrink=0.8)
    return figure


def psychometric_figure(curves: Sequence[Curve], measure: str, chance: Mapping[str, float]) -> Figure:
    """Plot detection by strength: a panel for each variant, a line for each range of layers, with intervals.

    Args:
        curves: Curves of one condition.
        measure: ``tpr`` or ``auroc``.
        chance: The value of a variant that detects nothing, by variant: its false positive rate, or 0.5. It is drawn as a
            dashed line.
    """
    variants = list(dict.fromkeys(curve.variant for curve in curves))
    columns = min(PANELS, len(variants))
    rows = math.ceil(len(variants) / columns)
    figure = Figure(figsize=(max(6.0, 0.8 + 2.1 * columns), 1.1 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    ranges = sorted({curve.layers for curve in curves})
    colors = dict(zip(ranges, colormaps["viridis"](np.linspace(0, 0.85, len(ranges))), strict=True))
    for panel, variant in zip(panels, variants, strict=False):
        strengths = sorted({s for curve in curves if curve.variant == variant for s in curve.strengths})
        if variant in chance:
            panel.axhline(chance[variant], color="black", linewidth=1, linestyle="--")
        for curve in curves:
            if curve.variant == variant:
                offset = 0.08 * (ranges.index(curve.layers) - (len(ranges) - 1) / 2)
                _curve(panel, curve, measure, colors[curve.layers], strengths, offset)
        panel.set_xticks(range(len(strengths)), [f"{strength:g}" for strength in strengths])
        panel.set_title(variant, fontsize=9)
        panel.set_ylim(-0.04, 1.04)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in panels[len(variants) :]:
        panel.set_axis_off()
    for panel in panels[: len(variants)][-columns:]:
        panel.set_xlabel("strength", fontsize=9)
    name = "AUROC" if measure == "auroc" else "true positive rate"
    figure.supylabel(f"{name}, with 95 % interval", fontsize=10)
    handles = [Line2D([], [], color=colors[layers], marker="o", label=_layers(layers)) for layers in ranges]
    line = "chance" if measure == "auroc" else "false positive rate"
    handles.append(Line2D([], [], color="black", linestyle="--", label=line))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), fontsize=9)
    return figure


def _layers(layers: tuple[int, int]) -> str:
    start, stop = layers
    return f"layer {start}" if stop - start == 1 else f"layers {start} to {stop - 1}"


def _curve(
    axes: Axes, curve: Curve, measure: str, color: Sequence[float], strengths: Sequence[float], offset: float
) -> None:
    """Draw one line, moved a little to the side so that intervals of other lines stay visible."""
    estimates = curve.auroc if measure == "auroc" else curve.tpr
    places, values = [], []
    for strength, estimate in zip(curve.strengths, estimates, strict=True):
        if estimate.value is None:
            continue
        places.append(strengths.index(strength) + offset)
        values.append(estimate.value)
        if estimate.ci_low is not None and estimate.ci_high is not None:
            axes.plot([places[-1], places[-1]], [estimate.ci_low, estimate.ci_high], color=color, linewidth=1)
    axes.plot(places, values, color=color, marker="o", markersize=3)
