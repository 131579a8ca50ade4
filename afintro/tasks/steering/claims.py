"""What a steering run may claim: controls, intervals over directions, warnings about rivals, and the sentence at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from afintro.data.batch import Example
from afintro.data.splits import stable_hash
from afintro.evaluation.answers import expected_verdict, parse_two_branch
from afintro.evaluation.baselines import READERS
from afintro.evaluation.crossed import Crossed
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction
from afintro.evaluation.report import cell, difference
from afintro.evaluation.statistic import Scores
from afintro.tasks.base import TEXT_ONLY, VECTOR_ONLY
from afintro.tasks.steering.spans import UNSEEN
from afintro.tasks.vectors import SHUFFLED, ZERO

SHUFFLED_PROMPT = "shuffled_prompt"
CONTROLS = (ZERO, SHUFFLED, SHUFFLED_PROMPT)
"""The trained explainer on changed items: no rivals, since they cannot be better than the explainer but by chance."""
TEXT_ALONE = ("cell_majority", "always_unchanged", "tfidf_nearest", *READERS, TEXT_ONLY)
VECTOR_ALONE = ("direction_majority", "vector_probe", "nearest_vector", VECTOR_ONLY)
BOTH = ("direction_x_text", "ridge", "boosting")
KINDS = {
    "the text alone": TEXT_ALONE,
    "the vector alone": VECTOR_ALONE,
    "vector and text without a language model": BOTH,
}
METRIC = "twin_accuracy"


def with_other_prompts(items: Sequence[Example], seed: int) -> list[Example]:
    """Return every item with the prompt of an item of another scenario, of the same layer and strength if there is one.

    The vector stays, so that an explainer that reads the vector alone answers as before.

    Args:
        items: Items with vectors.
        seed: Decides, with the uids, which items exchange prompts.
    """
    cells: dict[tuple[int, float], list[Example]] = {}
    for item in sorted(items, key=lambda item: stable_hash(f"{seed} prompt {item.uid}")):
        cells.setdefault((item.notes["layer"], item.notes["alpha"]), []).append(item)
    changed = {}
    for members in cells.values():
        for place, item in enumerate(members):
            others = [*members[place + 1 :], *members[:place]]
            donor = next((other for other in others if other.scenario_id != item.scenario_id), item)
            assert item.slot is not None
            assert donor.slot is not None
            slot = replace(item.slot, position=donor.slot.position)
            changed[item.uid] = replace(item, prompt=donor.prompt, prompt_ids=donor.prompt_ids, slot=slot)
    return [changed[item.uid] for item in items]


def over_directions(scores: Scores, predictions: Sequence[Prediction]) -> Scores:
    """Return metrics whose intervals are over scenarios and over directions; jittered copies of one count as one.

    Args:
        scores: Metrics over scenarios.
        predictions: The predictions, whose group is the family of the direction.
    """
    shared = {prediction.uid: (prediction.scenario_id, prediction.group) for prediction in predictions}

    def crossed(uids: Sequence[str]) -> Crossed:
        scenarios, directions = (tuple(shared[uid][side] for uid in uids) for side in (0, 1))
        return Crossed({"scenario": scenarios, "direction": directions})

    return {name: (statistic, crossed(statistic.uids)) for name, (statistic, _) in scores.items()}


def by_direction(predictions: Sequence[Prediction], residuals: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Count the twins of each family of directions, and how many of them are right.

    Args:
        predictions: The explainer's predictions.
        residuals: Residual of each direction that training never saw.
    """
    right: dict[str, list[bool]] = {}
    for prediction in predictions:
        verdict = parse_two_branch(prediction.predicted or "", prediction.cut)
        if prediction.twins:
            hit = verdict is not None and verdict.changed == expected_verdict(prediction.expected).changed
            right.setdefault(prediction.group, []).append(hit)
    return {
        name: {"n": len(hits), METRIC: sum(hits) / len(hits)}
        | ({"residual": round(residuals[name], 4)} if name in residuals else {})
        for name, hits in sorted(right.items())
    }


def _ahead(lead: Mapping[str, Any] | None) -> bool:
    return lead is not None and lead["ci_low"] is not None and lead["ci_low"] > 0


def reading_warnings(leads: Mapping[str, Any]) -> list[str]:
    """Warn if shuffling the vectors or the prompts costs next to nothing.

    Args:
        leads: Differences as ``summary.json`` holds them.
    """
    warnings = []
    for control, what in ((SHUFFLED, "vectors"), (SHUFFLED_PROMPT, "prompts")):
        cost = leads.get(f"lead/{METRIC}/{control}")
        if cost is not None and not _ahead(cost):
            warnings.append(f"shuffling the {what} costs less than the interval: the explainer is not reading them")
    return warnings


def rival_warnings(leads: Mapping[str, Any], unseen: str) -> list[str]:
    """Warn of every kind of rival that the explainer is not ahead of on twins.

    Args:
        leads: Differences as ``summary.json`` holds them.
        unseen: The question type of unseen directions.
    """
    warnings = []
    for metric, of in ((METRIC, "known directions"), (f"{METRIC}/{unseen}", "unseen directions")):
        for kind, names in KINDS.items():
            compared = {name: leads[f"lead/{metric}/{name}"] for name in names if f"lead/{metric}/{name}" in leads}
            level = [f"{name} {difference(lead)}" for name, lead in compared.items() if not _ahead(lead)]
            if level:
                warnings.append(f"{of}: {kind} does as well on twins: the explainer minus {', '.join(level)}")
    return warnings


def conclusion_of(
    explained: Mapping[str, Estimate], leads: Mapping[str, Any], unseen: str, directions: int
) -> str | None:
    """Return the sentence that says whether the explainer is ahead of every rival on twins.

    Args:
        explained: Estimates of the explainer by metric.
        leads: Differences as ``summary.json`` holds them.
        unseen: The question type of unseen directions.
        directions: Number of unseen directions that have twins; jittered copies of one count as one.
    """
    metric = f"{METRIC}/{unseen}"
    of = (
        f"Of twins of {directions} unseen directions, each with more than {UNSEEN:g} of its norm outside of the span of the "
        "training directions,"
    )
    if metric not in explained:
        metric, of = METRIC, "No direction is unseen. Of twins of known directions in other scenarios,"
    lead = leads.get(f"lead/{metric}")
    if metric not in explained or lead is None:
        return None
    share = f"{of} the explainer is right in {cell(explained[metric])}"
    if _ahead(lead):
        return (
            f"{share}, ahead of the best rival ({lead['against']}) by {difference(lead)}: it predicts the effect better than "
            "any reader of vector, text or both that this run compares with."
        )
    return f"{share}; there is no lead over {lead['against']} ({difference(lead)}), so that reading the organism is not shown."
