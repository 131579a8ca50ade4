"""Say in sentences whether steering was detected, and what else could have looked like detection."""

from collections.abc import Mapping

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Analysis, Detection
from afintro.study.report.shifts import NOTHING_TO_DETECT, UNTAUGHT
from afintro.study.report.tables import number
from afintro.study.scoring.equivalence import CHANCE, Equivalence, side_of, sign_test


def detection(analysis: Analysis, variant: str) -> list[str]:
    """Say how well held-out vectors are detected, beside the base, the untaught variants, and what is not detection.

    Args:
        analysis: What the report says.
        variant: The variant.

    Returns:
        Sentences; none if the variant has no detection.
    """
    held_out = _held_out(analysis, variant)
    if held_out is None:
        return []
    metrics = held_out.metrics
    compared = [f"base {_number(metrics, 'auroc/base')}"]
    for name in UNTAUGHT:
        control = _held_out(analysis, name)
        if control is not None and name != variant:
            compared.append(f"{name} {_number(control.metrics, 'auroc/adapter')}")
    polarities = "over both polarities" if "auroc_reversed/adapter" in metrics else "in the one polarity that was asked"
    text = f"Steering by held-out vectors, {polarities}: AUROC {_number(metrics, 'auroc/adapter')}"
    text += f" (upper half of the strengths {_number(metrics, 'auroc_upper/adapter')}; {', '.join(compared)})."
    if not held_out.interpretable:
        mass = _number(metrics, "mass/adapter")
        return [text, f"**Mass collapse**: both answers together have probability {mass}."]
    return [text, *_polarities(held_out), *_beside(held_out), *_odd(held_out), *_near_chance(held_out)]


def _polarities(found: Detection) -> list[str]:
    """Say whether it holds in both polarities, or is a push to one answer."""
    original, reverse = (found.metrics.get(f"{name}/adapter") for name in ("auroc_original", "auroc_reversed"))
    if original is None or reverse is None:
        return ["One answer always means steered: a push to that answer cannot be told from detection."]
    values = f"{number(original, signed=False)} where yes means steered, {number(reverse, signed=False)} where no does"
    sides = side_of(original), side_of(reverse)
    if sides == (1, 1):
        verdict = "both above chance: not merely a push to one answer"
    elif sides == (-1, -1):
        verdict = "both below chance: steering is told, and answered the wrong way round"
    elif set(sides) == {1, -1}:
        verdict = "**a push to one answer under steering, not detection**"
    elif sides == (0, 0):
        verdict = "neither is told apart from chance"
    else:
        verdict = "only one is told apart from chance, so that detection cannot be told from a push to one answer"
    return [f"{values}: {verdict}."]


def _beside(found: Detection) -> list[str]:
    """Say what steering does to answers to control questions, and what a reader of norms alone would reach."""
    sentences = []
    controls, right = (found.metrics.get(f"auroc_{name}/adapter") for name in ("controls", "controls_right"))
    if controls is not None:
        nats = number(found.metrics.get("odds_controls/adapter"))
        moves = {1: ": **steering moves yes there too**", -1: ": **steering moves no there too**", 0: ""}[
            side_of(controls)
        ]
        near = "" if side_of(controls) else _shown(found.equivalence.get("auroc_controls"))
        text = (
            f"Control questions under the same steering: AUROC of yes {number(controls, signed=False)}, by {nats} nats"
        )
        sentences.append(f"{text}{moves}{near}.")
    if right is not None and side_of(right):
        worse = "less" if side_of(right) < 0 else "more"
        sentences.append(f"Under steering they are answered {worse} correctly (AUROC {number(right, signed=False)}).")
    norms = found.metrics.get("auroc_norms/adapter")
    if norms is not None:
        sentences.append(f"A probe on the norms of the context's activations reaches {number(norms, signed=False)}.")
    return sentences


def _odd(found: Detection) -> list[str]:
    """Say what becomes of contexts that are odd and not steered."""
    names = ("fpr_odd/adapter", "fpr/adapter", "auroc_odd/adapter", "auroc_among_odd/adapter")
    odd, plain, against, among = (_number(found.metrics, name) for name in names)
    if odd == "-":
        return []
    text = f"Odd contexts that were not steered are called steered at a rate of {odd}, plain ones {plain} (both polarities)"
    return [
        f"{text}; steered plain against unsteered odd contexts AUROC {against}, steered against unsteered odd ones {among}."
    ]


def _near_chance(found: Detection) -> list[str]:
    """Say whether seeds agree; of a variant that was taught nothing, also whether it is shown to be near chance."""
    sentences = []
    values = list(found.by_seed.get("auroc", {}).values())
    if len(values) > 1:
        seeds = ", ".join(f"{value:.3f}" for value in values)
        sentences.append(f"By seed {seeds}: {sign_test(values, CHANCE).text}.")
    elif values:
        sentences.append("One seed: nothing is known about other trainings.")
    near = found.equivalence.get("auroc")
    if found.variant in NOTHING_TO_DETECT:
        sentences.append(f"It was taught no detection{_shown(near)}.")
    elif near is not None and near.shown:
        sentences.append(f"It is near chance{_shown(near)}.")
    return sentences


def _shown(near: Equivalence | None) -> str:
    """Return whether a value is shown to be within the margin of its value without an effect."""
    if near is None:
        return ""
    p = "no p-value" if near.p is None else f"p = {near.p:.2g}"
    verdict = "shown" if near.shown else "not shown"
    return f"; within {near.margin:g} of {near.center:g}: {verdict} (two one-sided tests, {p})"


def _number(metrics: Mapping[str, Estimate], name: str) -> str:
    return number(metrics.get(name), signed=False)


def _held_out(analysis: Analysis, variant: str) -> Detection | None:
    for found in analysis.detections:
        if (found.variant, found.evaluation, found.condition) == (variant, "detection", "held_out"):
            return found
    return None
