"""Say what a study found in sentences. Each is made from numbers, and compares them with controls."""

from collections.abc import Sequence

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Analysis
from afintro.study.report.detected import detection
from afintro.study.report.shifts import EDGE_SHARE, ODDS_MARGIN, Difference, Read, Shift
from afintro.study.report.tables import number, percent
from afintro.study.scoring.items import CONTROLS, SELF_REPORTS


def findings(analysis: Analysis) -> str:
    """Return a paragraph for each variant that has shifts or detection."""
    lines = []
    for variant in analysis.plan.evaluations:
        parts = [*_shift(analysis, variant), *_controls(analysis, variant), *_categories(analysis, variant)]
        parts += detection(analysis, variant)
        if parts:
            lines.append(f"- **{variant}**: {' '.join(parts)}")
    return "\n".join(lines) + "\n" if lines else "Nothing to say yet.\n"


def excludes_zero(estimate: Estimate) -> bool:
    """Return whether the interval leaves 0 out."""
    return (
        estimate.ci_low is not None and estimate.ci_high is not None and not estimate.ci_low <= 0.0 <= estimate.ci_high
    )


def _find(shifts: Sequence[Shift], variant: str, group: str) -> Shift | None:
    return next((shift for shift in shifts if (shift.variant, shift.group) == (variant, group)), None)


def _shift(analysis: Analysis, variant: str) -> list[str]:
    """Say what moved, and which kind of movement it is."""
    reports, controls = (_find(analysis.overall, variant, group) for group in (SELF_REPORTS, CONTROLS))
    if reports is None:
        return []
    worded = number(reports.worded.estimate)
    parts = [f"Log-odds of yes on self-reports move by {worded} (P(yes) by {number(reports.probability)})"]
    if reports.corrected.estimate.n:
        parts.append(
            f"polarity corrected {number(reports.corrected.estimate)}, yes bias {number(reports.bias.estimate)}"
        )
    if controls is not None:
        edge = f", {percent(controls.at_edge)} of the items at floor or ceiling" if controls.at_edge else ""
        corrected = (
            f", polarity corrected {number(controls.corrected.estimate)}" if controls.corrected.estimate.n else ""
        )
        parts.append(f"on controls {number(controls.worded.estimate)}{corrected}{edge}")
    text = "; ".join(parts) + "."
    if fault := _unreadable(reports):
        return [text, fault]
    return [text, *_kind(reports), *_kind_of_controls(controls), *_seeds(reports)]


def _unreadable(group: Read) -> str:
    """Return why nothing can be said about a group, or an empty string."""
    if not group.interpretable:
        return f"**Not interpretable**: {percent(group.low_mass)} of the items have low mass."
    if group.saturated:
        return (
            f"**Saturated: nothing can be said.** {percent(group.at_edge)} of the items are at floor or ceiling before or after "
            "the training, where a claim would be hidden."
        )
    return ""


def _kind(reports: Shift) -> list[str]:
    """Say whether the intervals show a claim, a habit of saying yes, both, or none of them."""
    claimed, biased = excludes_zero(reports.corrected.estimate), excludes_zero(reports.bias.estimate)
    no_claim, no_bias = reports.corrected.none.shown, reports.bias.none.shown
    less = f"less than {ODDS_MARGIN:g}"
    if claimed and biased:
        return ["Both the claim and a tendency to say yes move."]
    if claimed:
        rest = (
            f"the tendency to say yes moves by {less}" if no_bias else "whether the tendency to say yes moves is open"
        )
        return [f"The claim moves; {rest}."]
    if biased and no_claim:
        return [f"What moves is how often it says yes; what it says about itself moves by {less}."]
    if biased:
        return ["How often it says yes moves; whether what it says about itself moves too is open."]
    if no_claim and no_bias:
        return [f"Neither the claim nor the tendency to say yes moves by as much as {ODDS_MARGIN:g}."]
    if excludes_zero(reports.worded.estimate):
        return ["Something moves; whether it is the claim or the tendency to say yes is open."]
    return [f"No shift is told apart from 0, and one of {ODDS_MARGIN:g} is not ruled out."]


def _kind_of_controls(controls: Shift | None) -> list[str]:
    """Say what moves on questions about something else."""
    if controls is None:
        return []
    if fault := _unreadable(controls):
        return [f"On controls: {fault}"]
    moved = [
        name
        for name, tested in (("as worded", controls.worded), ("polarity corrected", controls.corrected))
        if excludes_zero(tested.estimate)
    ]
    return [f"Controls move too ({', '.join(moved)})."] if moved else []


def _seeds(reports: Shift) -> list[str]:
    """Say whether trained seeds agree."""
    if reports.units.get("seed", 0) < 2:
        return ["One seed: nothing is known about other trainings."]
    return [f"As worded {reports.worded.seeds.text}; polarity corrected {reports.corrected.seeds.text}."]


def _controls(analysis: Analysis, variant: str) -> list[str]:
    """Compare the shift of self-reports with the control variants."""
    compared = [found for found in analysis.differences if (found.variant, found.group) == (variant, SELF_REPORTS)]
    if not compared:
        return (
            ["There is no control variant to compare it with."]
            if _find(analysis.overall, variant, SELF_REPORTS)
            else []
        )
    text = ", ".join(f"{minus.control} {number(minus.worded.estimate)}" for minus in compared)
    unreadable = [minus.control for minus in compared if not minus.readable]
    distinct = [minus.control for minus in compared if _distinct(minus)]
    rest = [minus.control for minus in compared if minus.readable and not _distinct(minus)]
    verdicts = [
        f"told apart from {', '.join(distinct) or 'none'}",
        *([f"not from {', '.join(rest)}"] if rest else []),
        *([f"low mass or saturated, so not comparable, beside {', '.join(unreadable)}"] if unreadable else []),
    ]
    return [f"Minus its controls, on the same items and seeds: {text}; {'; '.join(verdicts)}."]


def _distinct(minus_control: Difference) -> bool:
    """Return whether a variant differs from a control after adjustment for all differences."""
    return minus_control.readable and minus_control.worded.found


def _categories(analysis: Analysis, variant: str) -> list[str]:
    shifts = [shift for shift in analysis.by_category if shift.variant == variant]
    if not shifts:
        return []
    readable = [shift for shift in shifts if shift.readable]
    if not readable:
        return [
            f"None of {len(shifts)} categories can be read (low mass, or more than {percent(EDGE_SHARE)} at an edge)."
        ]
    moved = [f"{shift.group} ({shift.worded.estimate.value:+.2f})" for shift in readable if shift.worded.found]
    claimed = [shift.group for shift in readable if shift.corrected.found]
    text = f"Categories that move after adjustment, of {len(readable)} of {len(shifts)} that can be read"
    return [f"{text}: {', '.join(moved) or 'none'}; polarity corrected: {', '.join(claimed) or 'none'}."]
