"""What a study found, in sentences: each is put together from numbers, and says what it is beside."""

from collections.abc import Sequence

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Analysis, Detection
from afintro.study.report.shifts import UNTAUGHT, Difference, Shift
from afintro.study.report.tables import number, percent
from afintro.study.scoring.items import CONTROLS, SELF_REPORTS


def findings(analysis: Analysis) -> str:
    """A paragraph a variant that has shifts or detection."""
    lines = []
    for variant in analysis.plan.evaluations:
        parts = [*_shift(analysis, variant), *_controls(analysis, variant), *_categories(analysis, variant)]
        parts += _detection(analysis, variant)
        if parts:
            lines.append(f"- **{variant}**: {' '.join(parts)}")
    return "\n".join(lines) + "\n" if lines else "Nothing to say yet.\n"


def excludes_zero(estimate: Estimate) -> bool:
    """Whether the interval leaves 0 out."""
    return (
        estimate.ci_low is not None and estimate.ci_high is not None and not estimate.ci_low <= 0.0 <= estimate.ci_high
    )


def _one(shifts: Sequence[Shift], variant: str, group: str) -> Shift | None:
    return next((one for one in shifts if (one.variant, one.group) == (variant, group)), None)


def _shift(analysis: Analysis, variant: str) -> list[str]:
    """What moved, and of what kind it is."""
    own, beside = (_one(analysis.overall, variant, group) for group in (SELF_REPORTS, CONTROLS))
    if own is None:
        return []
    parts = [f"P(yes) on self-reports moves by {number(own.worded.estimate)}"]
    if own.corrected.estimate.n:
        parts.append(f"polarity corrected {number(own.corrected.estimate)}, yes bias {number(own.bias)}")
    if beside is not None:
        at_edge = beside.floor + beside.ceiling
        parts.append(
            f"on controls {number(beside.worded.estimate)}"
            + (f", of which {at_edge} of {beside.worded.estimate.n} started at floor or ceiling" if at_edge else "")
        )
    text = "; ".join(parts) + "."
    if not own.interpretable:
        return [text, f"**Not interpretable**: {percent(own.low_mass)} of the items have low mass."]
    return [text, *_kind(own, beside)]


def _kind(own: Shift, beside: Shift | None) -> list[str]:
    """A claim, a habit of saying yes, a shift of everything, or none that the intervals show."""
    moved, claimed, biased = (excludes_zero(one) for one in (own.worded.estimate, own.corrected.estimate, own.bias))
    found = []
    if moved and biased and not claimed:
        found.append("What moves is how often it says yes, not what it says about itself.")
    elif moved and claimed and biased:
        found.append("Both the claim and a tendency to say yes move.")
    elif moved and claimed:
        found.append("The claim moves, whichever way it is worded.")
    elif claimed:
        found.append("The claim moves once polarity is corrected for.")
    elif not moved:
        found.append("No shift is told apart from 0.")
    if beside is not None and beside.interpretable and excludes_zero(beside.worded.estimate):
        found.append("Controls move too.")
    return found


def _controls(analysis: Analysis, variant: str) -> list[str]:
    """Self-reports beside the control variants."""
    own = [one for one in analysis.differences if (one.variant, one.group) == (variant, SELF_REPORTS)]
    if not own:
        return ["No control variant to stand beside it."] if _one(analysis.overall, variant, SELF_REPORTS) else []
    text = ", ".join(f"{one.control} {number(one.worded.estimate)}" for one in own)
    told = [one.control for one in own if _told(one)]
    rest = [one.control for one in own if not _told(one)]
    verdict = f"told apart from {', '.join(told) or 'none'}" + (f", not from {', '.join(rest)}" if rest else "")
    return [f"Minus its controls, on the same items: {text}; {verdict}."]


def _told(one: Difference) -> bool:
    """After adjustment for all differences."""
    return one.interpretable and one.worded.found


def _categories(analysis: Analysis, variant: str) -> list[str]:
    own = [one for one in analysis.by_category if one.variant == variant]
    if not own:
        return []
    moved = [f"{one.group} ({one.worded.estimate.value:+.2f})" for one in own if one.worded.found and one.interpretable]
    claimed = [one.group for one in own if one.corrected.found and one.interpretable]
    text = f"Categories that move after adjustment: {', '.join(moved) or 'none'} of {len(own)}"
    return [f"{text}; polarity corrected: {', '.join(claimed) or 'none'}."]


def _detection(analysis: Analysis, variant: str) -> list[str]:
    """Held-out vectors, beside the base and the variants that were taught nothing."""
    found = _held_out(analysis, variant)
    if found is None:
        return []
    upper, base, mass = (found.metrics.get(name) for name in ("auroc_upper/adapter", "auroc/base", "mass/adapter"))
    beside = [f"base {number(base, signed=False)}"]
    for name in UNTAUGHT:
        control = _held_out(analysis, name)
        if control is not None and name != variant:
            beside.append(f"{name} {number(control.metrics.get('auroc/adapter'), signed=False)}")
    text = f"Steering by held-out vectors is detected with AUROC {number(found.metrics.get('auroc/adapter'), signed=False)}"
    text += f" (upper half of the doses {number(upper, signed=False)}; {', '.join(beside)})."
    collapsed = f"**Mass collapse**: both answers together have probability {number(mass, signed=False)}."
    return [text] if found.interpretable else [text, collapsed]


def _held_out(analysis: Analysis, variant: str) -> Detection | None:
    wanted = (variant, "detection", "held_out")
    return next((one for one in analysis.detections if (one.variant, one.evaluation, one.side) == wanted), None)
