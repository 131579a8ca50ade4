"""What the pairs say of chance: prompts that were answered twice, and requests that stand under several prompts or models."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from afintro.evaluation.intervals import Clusters
from afintro.evaluation.label_agreement import kappa
from afintro.generation.untold import labels_differ
from afintro.tasks.context_ablation.imports.noise import noise_rates
from afintro.tasks.context_ablation.records import ContextAblationRecord
from benchmarks.af.groups import Group

UNKNOWN = "unknown: no prompt was answered twice"


def noise_of(group: Group) -> dict[str, Any]:
    """Return how often a second answer to the same prompt has another behavior; null where no prompt was answered twice."""
    rates = {name: estimate.as_json() for name, estimate in noise_rates(group.every).items()}
    return {**rates, "said": UNKNOWN if rates["sampling_noise_monitored"]["value"] is None else "measured"}


def compared(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Compare groups of one model under two prompts, and of two models under one prompt, on the requests that both have.

    A group of the same model under another system prompt bounds sampling noise from above: its answers differ by chance and by the
    prompt. ``kappa_changed`` (Cohen 1960) is the agreement about which requests change beyond what chance would agree on: near 0
    where both changes are chance.

    Args:
        groups: All groups.
    """
    rows = []
    for one, other in combinations(groups, 2):
        if (one.model == other.model) == (one.prompt == other.prompt):
            continue
        first, second = _first_answers(one), _first_answers(other)
        shared = sorted(first.keys() & second.keys())
        if shared:
            pairs = [(first[request], second[request]) for request in shared]
            rows.append({"one": one.name, "other": other.name, "requests": len(shared), **_differences(pairs)})
    return rows


def _first_answers(group: Group) -> dict[str, ContextAblationRecord]:
    """Return the first record of each request."""
    return {record.scenario_id: record for record in reversed(group.every)}


def _differences(pairs: Sequence[tuple[ContextAblationRecord, ContextAblationRecord]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side in ("monitored", "unmonitored"):
        differs = [labels_differ(*(getattr(record, f"{side}_behavior") for record in pair)) for pair in pairs]
        known = [value for value in differs if value is not None]
        found[f"{side}_differs"] = Clusters(list(range(len(known)))).share(known).as_json()
    changed = [(one.behavior_changed, other.behavior_changed) for one, other in pairs]
    both = [pair for pair in changed if None not in pair]
    clusters = Clusters(list(range(len(both))))
    for place, name in enumerate(("one", "other")):
        found[f"changed_{name}"] = clusters.share([bool(pair[place]) for pair in both]).as_json()
    agreement = kappa([str(one) for one, _ in both], [str(other) for _, other in both], clusters)
    return {**found, "kappa_changed": agreement.as_json()}
