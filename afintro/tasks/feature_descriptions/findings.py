"""What the table of a run shows, and what it does not: the warnings, and the sentence that the run ends with."""

from collections.abc import Mapping, Sequence
from typing import Any

from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction
from afintro.tasks.base import EXPLAINER
from afintro.tasks.feature_descriptions.scorer import CHANCE
from afintro.tasks.feature_descriptions.splits import UNSEEN_CLUSTER
from afintro.tasks.vectors import SHUFFLED

REFERENCE, NEGATED = "reference", "negated_vector"
AUROC = "functional_auroc"
KINDS = {UNSEEN_CLUSTER: "features of unseen clusters"}
MANY = 0.1  # more near-duplicates than that are no rarity
CONTROLS = {
    SHUFFLED: "shuffling the vectors costs less than the interval: the explainer is not reading them",
    NEGATED: "negating the vectors costs less than the interval: the explainer does not tell a feature from its opposite",
}


def warnings(
    answers: Sequence[Prediction],
    leads: Mapping[str, Any],
    metrics: Sequence[str],
    scored: Sequence[str],
    near: Mapping[str, float],
) -> list[str]:
    """Warn of what would mislead a reader of the table.

    Args:
        answers: The explainer's answers.
        leads: Differences as ``summary.json`` holds them.
        metrics: The metrics of which changed vectors must cost something.
        scored: Names of the scores that answers should have.
        near: Share of features whose vector nearly equals a training vector, by question type.

    Returns:
        Warnings: where shuffled or negated vectors cost nothing, of many near-duplicates of training vectors, and of answers
        that could not be scored.
    """
    found = []
    for metric in metrics:
        for control, text in CONTROLS.items():
            cost = leads.get(f"lead/{metric}/{control}")
            if cost is not None and (cost["ci_low"] is None or cost["ci_low"] <= 0):
                found.append(f"{metric}: {text}")
    for kind, share in near.items():
        if share > MANY:
            found.append(f"{100 * share:.0f} % of {kind} vectors nearly equal a training vector: a neighbor knows them")
    for name in scored:
        unknown = sum(prediction.scores.get(name) is None for prediction in answers)
        if unknown:
            found.append(f"{name}: {unknown} of {len(answers)} answers have no score; left out of its means")
    return found


def conclusion(
    table: Mapping[str, Mapping[str, Estimate]], leads: Mapping[str, Any], metric: str, primary: str
) -> str | None:
    """Say what the run showed, and what it did not.

    Args:
        table: Estimates by system and metric.
        leads: Differences as ``summary.json`` holds them.
        metric: The metric that decides.
        primary: The question type that the metric is of.

    Returns:
        One or two sentences: whether the explainer is ahead of everything that needs no trained reader of vectors, and how
        well descriptions predict activations beside the labels themselves; None where the metric is not known.
    """
    lead, score = leads.get(f"lead/{metric}"), table[EXPLAINER].get(metric)
    if lead is None or score is None or score.value is None or lead["ci_low"] is None:
        return None
    items = KINDS.get(primary, "unseen features of known clusters")
    range_ = f"{lead['value']:+.3f} [{lead['ci_low']:+.3f}, {lead['ci_high']:+.3f}]"
    shuffled = leads.get(f"lead/{metric}/{SHUFFLED}")
    reads = shuffled is not None and (shuffled["ci_low"] or 0) > 0
    if lead["ci_low"] > 0:
        first = f"is ahead of the best rival ({lead['against']}) by {range_}"
    elif lead["ci_high"] < 0:
        first = f"is behind {lead['against']}, which needs no trained explainer, by {range_}"
    else:
        first = f"is not shown to be ahead of {lead['against']}, which needs no trained explainer: {range_}"
    reading = "reads its vectors and" if reads else "is not shown to read its vectors and"
    return f"On {score.n} {items}, the explainer ({metric} {score.value:.3f}) {reading} {first}.{_functional(table)}"


def _functional(table: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Say how well descriptions tell activating texts from others, beside what the labels themselves reach."""
    own, labels = (table.get(name, {}).get(AUROC) for name in (EXPLAINER, REFERENCE))
    if own is None or labels is None or own.value is None or labels.value is None:
        return ""
    said = f" Its descriptions tell activating from other texts with AUROC {own.value:.3f}, the labels with {labels.value:.3f}"
    if labels.ci_low is not None and labels.ci_low <= CHANCE:
        return f"{said}, not shown to be better than chance: the scorer cannot judge descriptions of these features."
    return f"{said}."
