"""Say what a study found in sentences. Each is made from numbers, and compares them with controls."""

from collections.abc import Sequence

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Analysis, Detection
from afintro.study.report.shifts import UNTAUGHT, Difference, Shift
from afintro.study.report.tables import number, percent
from afintro.study.scoring.items import CONTROLS, SELF_REPORTS


def findings(analysis: Analysis) -> str:
    """Return a paragraph for each variant that has shifts or detection."""
    lines = []
    for variant in analysis.plan.evaluations:
        parts = [*_shift(analysis, variant), *_controls(analysis, variant), *_categories(analysis, variant)]
        parts += _detection(analysis, variant)
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
    parts = [f"P(yes) on self-reports moves by {number(reports.worded.estimate)}"]
    if reports.corrected.estimate.n:
        parts.append(f"polarity corrected {number(reports.corrected.estimate)}, yes bias {number(reports.bias)}")
    if controls is not None:
        at_edge = controls.floor + controls.ceiling
        parts.append(
            f"on controls {number(controls.worded.estimate)}"
            + (f", of which {at_edge} of {controls.worded.estimate.n} started at floor or ceiling" if at_edge else "")
        )
    text = "; ".join(parts) + "."
    if not reports.interpretable:
        return [text, f"**Not interpretable**: {percent(reports.low_mass)} of the items have low mass."]
    return [text, *_kind(reports, controls)]


def _kind(reports: Shift, controls: Shift | None) -> list[str]:
    """Say whether the intervals show a claim, a habit of saying yes, a shift of everything, or none of them."""
    moved, claimed = excludes_zero(reports.worded.estimate), excludes_zero(reports.corrected.estimate)
    biased = excludes_zero(reports.bias)
    sentences = []
    if moved and biased and not claimed:
        sentences.append("What moves is how often it says yes, not what it says about itself.")
    elif moved and claimed and biased:
        sentences.append("Both the claim and a tendency to say yes move.")
    elif moved and claimed:
        sentences.append("The claim moves, whichever way it is worded.")
    elif claimed:
        sentences.append("The claim moves once polarity is corrected for.")
    elif not moved:
        sentences.append("No shift is told apart from 0.")
    if controls is not None and controls.interpretable and excludes_zero(controls.worded.estimate):
        sentences.append("Controls move too.")
    return sentences


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
    distinct = [minus.control for minus in compared if _distinct(minus)]
    rest = [minus.control for minus in compared if not _distinct(minus)]
    verdict = f"told apart from {', '.join(distinct) or 'none'}" + (f", not from {', '.join(rest)}" if rest else "")
    return [f"Minus its controls, on the same items: {text}; {verdict}."]


def _distinct(minus_control: Difference) -> bool:
    """Return whether a variant differs from a control after adjustment for all differences."""
    return minus_control.interpretable and minus_control.worded.found


def _categories(analysis: Analysis, variant: str) -> list[str]:
    shifts = [shift for shift in analysis.by_category if shift.variant == variant]
    if not shifts:
        return []
    readable = [shift for shift in shifts if shift.interpretable]
    moved = [f"{shift.group} ({shift.worded.estimate.value:+.2f})" for shift in readable if shift.worded.found]
    claimed = [shift.group for shift in readable if shift.corrected.found]
    text = f"Categories that move after adjustment: {', '.join(moved) or 'none'} of {len(shifts)}"
    return [f"{text}; polarity corrected: {', '.join(claimed) or 'none'}."]


def _detection(analysis: Analysis, variant: str) -> list[str]:
    """Say how well held-out vectors are detected, compared with the base and the variants that were taught nothing."""
    held_out = _held_out(analysis, variant)
    if held_out is None:
        return []
    upper, base, mass = (held_out.metrics.get(name) for name in ("auroc_upper/adapter", "auroc/base", "mass/adapter"))
    compared = [f"base {number(base, signed=False)}"]
    for name in UNTAUGHT:
        control = _held_out(analysis, name)
        if control is not None and name != variant:
            compared.append(f"{name} {number(control.metrics.get('auroc/adapter'), signed=False)}")
    auroc = number(held_out.metrics.get("auroc/adapter"), signed=False)
    text = f"Steering by held-out vectors is detected with AUROC {auroc}"
    text += f" (upper half of the strengths {number(upper, signed=False)}; {', '.join(compared)})."
    collapsed = f"**Mass collapse**: both answers together have probability {number(mass, signed=False)}."
    return [text] if held_out.interpretable else [text, collapsed]


def _held_out(analysis: Analysis, variant: str) -> Detection | None:
    for detection in analysis.detections:
        if (detection.variant, detection.evaluation, detection.condition) == (variant, "detection", "held_out"):
            return detection
    return None
