"""Plot the matrix as dots with intervals, and the curve over labeled names with bands."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.privileged.plan import FROM_SCRATCH, NO_POLICY, TEXT, A, B, Plan
from benchmarks.privileged.summary import NAMES, UNDERFIT, Row, shown_of

# Okabe & Ito 2008: people who do not see all colors can tell these apart.
COLORS = {A: "#0072B2", B: "#D55E00", NO_POLICY: "#009E73", TEXT: "#666666", FROM_SCRATCH: "#CC79A7"}
CHANCE = 0.5


def figure(cells: Sequence[Row], plan: Plan) -> Figure:
    """Plot all cells.

    Args:
        cells: Rows of :func:`benchmarks.privileged.summary.rows_of`.
        plan: The size of the measurement.
    """
    drawn = Figure(figsize=(12.5, 5.4), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(1.25, 1))
    _matrix(left, [row for row in cells if row["names"] == plan.labeled], plan.about)
    _curve(right, [row for row in cells if row["about"] == A and row["system"] != B], plan.fitted - UNDERFIT)
    left.set_title(
        f"Labels of {plan.labeled} names: each system asked about {' and about '.join(plan.about)}", fontsize=11
    )
    right.set_title("Asked about the new names of A", fontsize=11)
    return drawn


def _matrix(axes: Axes, cells: Sequence[Row], abouts: Sequence[str]) -> None:
    systems = shown_of(cells)
    lines = [(about, system) for about in abouts for system in systems]
    seeds = list(dict.fromkeys(row["seed"] for row in cells))
    for row in cells:
        place = lines.index((row["about"], row["system"])) + 0.55 * (row["about"] == B)
        offset = 0.5 * ((seeds.index(row["seed"]) + 0.5) / len(seeds) - 0.5)
        color = COLORS[row["system"]]
        _whisker(axes, place + offset - 0.2, row["new"], color, True)
        _whisker(axes, place + offset * 0.6 + 0.28, row["labeled"], color, False)
        if row["underfit"]:
            axes.text(1.02, place + offset, "underfit", color=color, fontsize=7, va="center")
    ticks = [number + 0.55 * (about == B) for number, (about, _) in enumerate(lines)]
    axes.set_yticks(ticks, [fill(NAMES[system], 22) for _, system in lines], fontsize=9)
    for about in abouts:
        middle = sum(tick for tick, (of, _) in zip(ticks, lines, strict=True) if of == about) / len(systems)
        axes.text(
            -0.015,
            middle,
            f"asked about {about}",
            rotation=90,
            va="center",
            ha="right",
            fontsize=10,
            weight="bold",
            transform=axes.get_yaxis_transform(),
        )
    axes.set_ylim(ticks[-1] + 0.65, -0.65)
    axes.set_xlim(-0.02, 1.12)
    if len(abouts) > 1:
        axes.axhline(len(systems) - 0.5 + 0.275, color="black", linewidth=0.8)
    axes.axvline(CHANCE, color="black", linewidth=0.8, linestyle=":")
    axes.tick_params(axis="y", pad=22, length=0)
    axes.set_xlabel("exact match with 95 % interval over names; one mark a seed")
    axes.grid(axis="x", alpha=0.3)
    marks = [
        Line2D([], [], color="black", marker="o", label="new names"),
        Line2D(
            [],
            [],
            color="black",
            marker="o",
            markerfacecolor="white",
            linewidth=0.8,
            label="labeled names, new wordings",
        ),
    ]
    axes.legend(handles=marks, loc="upper left", fontsize=8)


def _whisker(axes: Axes, place: float, estimate: Mapping[str, Any], color: str, filled: bool) -> None:
    """Draw a value, and its interval if it has one."""
    if estimate["ci_low"] is not None:
        width = 1.6 if filled else 0.8
        axes.plot([estimate["ci_low"], estimate["ci_high"]], [place, place], color=color, linewidth=width)
    face = color if filled else "white"
    axes.plot(estimate["value"], place, "o", color=color, markersize=5 if filled else 4, markerfacecolor=face)


def _curve(axes: Axes, cells: Sequence[Row], learned: float) -> None:
    """Draw a line for each system and seed; a point is hollow where the labeled names were learned less well than ``learned``."""
    for system in dict.fromkeys(row["system"] for row in cells):
        for seed in dict.fromkeys(row["seed"] for row in cells):
            own = sorted(
                (row for row in cells if (row["system"], row["seed"]) == (system, seed)), key=lambda row: row["names"]
            )
            counts, values = [row["names"] for row in own], [row["new"]["value"] for row in own]
            ends = [[row["new"][end] for row in own] for end in ("ci_low", "ci_high")]
            axes.plot(counts, values, color=COLORS[system], linewidth=1.3)
            for row, count, value in zip(own, counts, values, strict=True):
                face = COLORS[system] if row["labeled"]["value"] >= learned else "white"
                axes.plot(count, value, "o", color=COLORS[system], markersize=4.5, markerfacecolor=face)
            if None not in ends[0]:
                axes.fill_between(counts, ends[0], ends[1], color=COLORS[system], alpha=0.13, linewidth=0)
    counts = sorted({row["names"] for row in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.axhline(CHANCE, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("labeled names")
    axes.set_ylabel("exact match on new names, 95 % bands; one line a seed")
    axes.grid(alpha=0.3)
    marks = [Line2D([], [], color=COLORS[system], marker="o", label=NAMES[system]) for system in shown_of(cells)]
    hollow = f"hollow: labeled names in new wordings below {learned:.2f}"
    marks.append(Line2D([], [], color="black", marker="o", linestyle="", markerfacecolor="white", label=hollow))
    axes.legend(handles=marks, loc="lower right", fontsize=8)
