"""Render a study's tables as Markdown."""

from collections.abc import Mapping, Sequence

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Analysis
from afintro.study.report.shifts import Difference, Read, Shift, Tested
from afintro.study.scoring.equivalence import Equivalence

FEW_SEEDS = 5  # with fewer seeds their number is named beside a shift


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, or a sentence if there are no rows."""
    if not rows:
        return "Nothing to show yet.\n"
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def folded(title: str, text: str) -> str:
    """Return a part of a page that opens on a click."""
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def number(estimate: Estimate | None, signed: bool = True) -> str:
    """Return a value with its interval, such as ``+0.310 [+0.220, +0.400]``.

    Args:
        estimate: The estimate. None gives a dash, and an estimate without a value gives ``null``.
        signed: Whether positive numbers have a sign.
    """
    if estimate is None:
        return "-"
    if estimate.value is None:
        return "null"
    form = "+.3f" if signed else ".3f"
    if estimate.ci_low is None or estimate.ci_high is None:
        return f"{estimate.value:{form}} [no interval]"
    return f"{estimate.value:{form}} [{estimate.ci_low:{form}}, {estimate.ci_high:{form}}]"


def percent(share: float) -> str:
    """Return a share in percent, such as ``12 %``."""
    return f"{100 * share:.0f} %"


def probability(p: float | None) -> str:
    """Return a p-value, such as ``0.013`` or ``< 0.001``, or a dash for None."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def coverage(analysis: Analysis) -> str:
    """Return the number of seeds that have rows by variant and evaluation, or a dash where an evaluation does not apply."""
    names = analysis.plan.names
    rows = []
    for variant, applicable in analysis.plan.evaluations.items():
        seeds = len(analysis.plan.seeds_for(variant))
        counts = [f"{len(analysis.done[variant, name])}/{seeds}" if name in applicable else "-" for name in names]
        steps = sorted({step for key, step in analysis.steps.items() if key[0] == variant and step is not None})
        rows.append([variant, *counts, ", ".join(map(str, steps)) or "-"])
    return table(["variant", *names, "step"], rows)


def missing(analysis: Analysis) -> str:
    """Return a list of what is missing and why. Evaluations with the same reason share a line."""
    grouped: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (variant, evaluation, seed), reason in analysis.missing.items():
        grouped.setdefault((variant, reason), {}).setdefault(evaluation, []).append(str(seed))
    lines = []
    for (variant, reason), evaluations in grouped.items():
        named = "; ".join(f"{evaluation} (seed {', '.join(seeds)})" for evaluation, seeds in evaluations.items())
        lines.append(f"- **{variant}**: {named}: {reason}")
    return "\n".join(lines) + "\n" if lines else "Nothing is missing.\n"


def _unreadable(group: Read) -> list[str]:
    warnings = [] if group.interpretable else ["**not interpretable**"]
    return [*warnings, "**saturated: nothing can be said**"] if group.saturated else warnings


def warnings_about(shift: Shift) -> str:
    """Return what a reader has to know before reading the numbers of a shift."""
    warnings = _unreadable(shift)
    seeds = shift.units.get("seed", 0)
    if seeds == 1:
        warnings.append("one seed, no variance between seeds")
    elif seeds < FEW_SEEDS:
        warnings.append(f"{seeds} seeds")
    return "; ".join(warnings) or "-"


def overall(shifts: Sequence[Shift]) -> str:
    """Return a table of the shifts of self-reports, controls and items trained on."""
    header = [
        "variant",
        "items",
        "n",
        "as worded",
        "P(yes), as worded",
        "polarity corrected",
        "yes bias",
        "reversed twins",
    ]
    header += ["P(yes), whole vocabulary", "expected answer", "low mass", "at floor or ceiling", "warnings"]
    rows = [
        [
            shift.variant,
            shift.group,
            str(shift.worded.estimate.n),
            number(shift.worded.estimate),
            number(shift.probability),
            number(shift.corrected.estimate),
            number(shift.bias.estimate),
            number(shift.reversed),
            number(shift.whole),
            "-" if shift.expected.n == 0 else number(shift.expected),
            percent(shift.low_mass),
            percent(shift.at_edge),
            warnings_about(shift),
        ]
        for shift in shifts
    ]
    return table(header, rows)


def seeds(shifts: Sequence[Shift]) -> str:
    """Return a table of sign tests over trained seeds, and of whether claim and yes bias are shown to be near 0."""
    header = ["variant", "items", "as worded", "polarity corrected", "yes bias"]
    header += ["claim near 0", "yes bias near 0"]
    rows = [
        [
            shift.variant,
            shift.group,
            *(tested.seeds.text for tested in (shift.worded, shift.corrected, shift.bias)),
            *(
                near(tested.none) if shift.readable else "nothing can be said"
                for tested in (shift.corrected, shift.bias)
            ),
        ]
        for shift in shifts
    ]
    return table(header, rows)


def near(equivalence: Equivalence | None) -> str:
    """Return whether a value is shown to be near its value without an effect, such as ``shown, p = 0.012``."""
    if equivalence is None or equivalence.p is None:
        return "-"
    return f"{'shown' if equivalence.shown else 'not shown'}, p = {equivalence.p:.2g}"


def edges(shifts: Sequence[Shift]) -> str:
    """Return a table of items with room to move, and of items at floor or ceiling in base or adapter."""
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
            shift.variant,
            shift.group,
            str(shift.floor),
            str(shift.ceiling),
            str(shift.room.n),
            "none" if shift.room.n == 0 else number(shift.room),
            "none" if shift.edge.n == 0 else number(shift.edge),
        ]
        for shift in shifts
    ]
    return table(header, rows)


def star(tested: Tested, readable: bool) -> str:
    """Return the value without its interval. ``*`` marks a discovery, ``†`` a group with low mass or without room."""
    value = tested.estimate.value
    if value is None:
        return "null"
    return f"{value:+.2f}" + ("†" if not readable else "\\*" if tested.found else "")


def category_grid(shifts: Sequence[Shift], corrected: bool) -> str:
    """Return a table of variants by categories, with values alone.

    Args:
        shifts: Shifts by variant and category.
        corrected: Whether to show shifts with corrected polarity, instead of shifts as worded.
    """
    names = list(dict.fromkeys(shift.group for shift in shifts))
    variants = list(dict.fromkeys(shift.variant for shift in shifts))
    cells = {}
    for shift in shifts:
        tested = shift.corrected if corrected else shift.worded
        cells[shift.variant, shift.group] = star(tested, shift.readable)
    return table(["variant", *names], [[v, *(cells.get((v, name), "-") for name in names)] for v in variants])


def category_details(shifts: Sequence[Shift]) -> str:
    """Return all numbers by variant and category, folded by variant."""
    header = ["category", "n", "as worded", "p", "adjusted", "polarity corrected", "p", "adjusted", "yes bias"]
    header += ["floor, ceiling", "low mass", "warnings"]
    parts = []
    for variant in dict.fromkeys(shift.variant for shift in shifts):
        rows = []
        for shift in [shift for shift in shifts if shift.variant == variant]:
            cells = [shift.group, str(shift.worded.estimate.n), *_tested(shift.worded), *_tested(shift.corrected)]
            cells += [number(shift.bias.estimate), f"{shift.floor}, {shift.ceiling}"]
            rows.append([*cells, percent(shift.low_mass), warnings_about(shift)])
        parts.append(folded(variant, table(header, rows)))
    return "\n".join(parts)


def _tested(tested: Tested) -> list[str]:
    return [number(tested.estimate), probability(tested.p), probability(tested.adjusted)]


def differences(compared: Sequence[Difference]) -> str:
    """Return a table of variants minus controls on the same items."""
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
        "warnings",
    ]
    rows = []
    for minus_control in compared:
        tested = [*_tested(minus_control.worded), *_tested(minus_control.corrected)]
        warning = "; ".join(_unreadable(minus_control)) or "-"
        names = [minus_control.variant, minus_control.control, minus_control.group]
        rows.append([*names, str(minus_control.worded.estimate.n), *tested, warning])
    return table(header, rows)


def with_base(metrics: Mapping[str, Estimate], name: str) -> str:
    """Return the adapter's estimate with its interval and the base's value in brackets, or a difference with its interval.

    Args:
        metrics: Estimates by name.
        name: The metric without the system, or ``shift/<metric>``. Metrics named ``odds...`` have a sign.
    """
    if name.startswith("shift/"):
        return number(metrics.get(name))
    base, signed = metrics.get(f"{name}/base"), name.startswith("odds")
    form = "+.3f" if signed else ".3f"
    text = "" if base is None else " (null)" if base.value is None else f" ({base.value:{form}})"
    return number(metrics.get(f"{name}/adapter"), signed) + text


def primary_metrics(by_variant: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Return a table of one evaluation's metrics by variant, with the base's values in brackets."""
    names = dict.fromkeys(
        name.removesuffix("/adapter")
        for metrics in by_variant.values()
        for name in metrics
        if name.endswith("/adapter")
    )
    rows = [[variant, *(with_base(metrics, name) for name in names)] for variant, metrics in by_variant.items()]
    return table(["variant", *names], rows) if names else "No metric covers both systems.\n"
