"""Say how much of a change between sampled answers is chance: what a second answer to the same prompt changes."""

from collections.abc import Sequence

from afintro.evaluation.intervals import Clusters, Estimate
from afintro.generation.untold import labels_differ
from afintro.tasks.context_ablation.imports.pairs import SAMPLED, UNKNOWN
from afintro.tasks.context_ablation.records import ContextAblationRecord

DIFFERENCE = (-1.0, 1.0)
Repeated = list[tuple[ContextAblationRecord, ContextAblationRecord]]


def repeated_answers(records: Sequence[ContextAblationRecord]) -> Repeated:
    """Return records in pairs of the same source and request, each record in one pair at most: the same prompts, answered twice."""
    waiting: dict[tuple[object, str | None, str | None], ContextAblationRecord] = {}
    pairs: Repeated = []
    for record in records:
        key = (record.provenance.get("source"), record.monitored_prompt, record.unmonitored_prompt)
        earlier = waiting.pop(key, None)
        if earlier is None:
            waiting[key] = record
        else:
            pairs.append((earlier, record))
    return pairs


def noise_rates(records: Sequence[ContextAblationRecord]) -> dict[str, Estimate]:
    """Estimate how often a second answer to the same prompt has another behavior, and what the cue changes beyond that.

    Both are over the requests that were answered twice or more and whose four labels are known. ``change_above_noise`` is the
    mean over both pairs of answers of "the conditions differ", less the mean over both conditions of "the answers differ":
    0 where the conditions do not matter, whatever the sampling.

    Args:
        records: Labeled records.
    """
    pairs = repeated_answers(records)
    rows = []
    for one, other in pairs:
        row = (
            labels_differ(one.monitored_behavior, other.monitored_behavior),
            labels_differ(one.unmonitored_behavior, other.unmonitored_behavior),
            labels_differ(one.monitored_behavior, one.unmonitored_behavior),
            labels_differ(other.monitored_behavior, other.unmonitored_behavior),
        )
        rows.append(None if None in row else [float(bool(differs)) for differs in row])
    known = [(one.scenario_id, row) for (one, _), row in zip(pairs, rows, strict=True) if row is not None]
    scenarios = Clusters([scenario for scenario, _ in known])
    above = [(row[2] + row[3] - row[0] - row[1]) / 2 for _, row in known]
    return {
        "sampling_noise_monitored": scenarios.share([row[0] for _, row in known]),
        "sampling_noise_unmonitored": scenarios.share([row[1] for _, row in known]),
        "change_above_noise": scenarios.mean(above, DIFFERENCE),
    }


def sampling_warnings(records: Sequence[ContextAblationRecord], where: str = "") -> list[str]:
    """Warn that labels of sampled answers hold noise; about greedy answers of this project's own scripts nothing is said.

    Args:
        records: Labeled records.
        where: The file of the records, for the message; "" for the records of a summary.
    """
    decodings = {record.provenance.get("decoding") for record in records}
    if not decodings & {SAMPLED, UNKNOWN}:
        return []
    of = f" of {where}" if where else ""
    how = (
        "were sampled" if SAMPLED in decodings else "may have been sampled (the files do not say how they were decoded)"
    )
    said = f"the answers{of} {how}: part of the change, and of what any explainer misses, is chance"
    noise = noise_rates(records)
    sides = [noise[f"sampling_noise_{side}"] for side in ("monitored", "unmonitored")]
    if sides[0].value is None or sides[1].value is None:
        return [f"{said}; how much is unknown, since no prompt was answered twice"]
    shares = " and ".join(f"{100 * (side.value or 0.0):.1f} %" for side in sides)
    return [
        f"{said}; of {sides[0].n} prompts that were answered twice, the second answer has another behavior in {shares} "
        "(monitored and unmonitored)"
    ]
