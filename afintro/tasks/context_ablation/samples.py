"""Several sampled answers to one prompt: what a record holds of them, and which answer stands for all."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afintro.errors import UserError
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.score_intervals import clopper_pearson
from afintro.generation.behavior import Behavior
from afintro.generation.reasoning import Reply
from afintro.generation.untold import Labels, is_told

FIELDS: dict[str, tuple[type, ...]] = {
    "output": (str,),
    "truncated": (bool, type(None)),
    "behavior": (str, type(None)),
    "rule": (str, type(None)),
}
Answers = list[dict[str, Any]]
"""The answers of a condition, each with ``output``, ``truncated``, ``behavior`` and ``rule``."""


def check_samples(samples: Any, where: str) -> None:
    """Refuse samples of a record that are not as a record holds them.

    Args:
        samples: The field, as read from JSON.
        where: File and record, for the message.

    Raises:
        UserError: A condition has no answers, or an answer lacks a field.
    """
    whole = isinstance(samples, dict) and all(
        isinstance(answers, list) and answers and all(_is_answer(answer) for answer in answers)
        for answers in (samples.get("monitored"), samples.get("unmonitored"), *samples.values())
    )
    if not whole:
        raise UserError(
            f"field 'samples' does not hold answers of both conditions, each with {', '.join(FIELDS)}",
            where=where,
            remedy="make the file with scripts/generate_af_context_ablation.py --samples, or leave the field out",
        )


def _is_answer(answer: Any) -> bool:
    return isinstance(answer, dict) and all(
        name in answer and isinstance(answer[name], kinds) for name, kinds in FIELDS.items()
    )


def majority(labels: Labels) -> int:
    """Return which sample stands for all: the first with the behavior that most samples have.

    Samples whose behavior cannot be told count only where there are no others. Of behaviors that equally many samples have, the
    behavior of the earliest sample counts: a fair draw, since samples are exchangeable.

    Args:
        labels: The behavior of each sample, at least one.
    """
    told = [label for label in labels if is_told(label)] or list(labels)
    counts = Counter(told)
    most = max(counts.values())
    return next(index for index, label in enumerate(labels) if label in counts and counts[label] == most)


def labels_of(answers: Answers) -> Labels:
    """Return the behavior of each answer of a condition."""
    return [answer["behavior"] for answer in answers]


def as_answers(replies: Sequence[Reply], label: Callable[[Reply], Behavior]) -> Answers:
    """Return what a record holds of the replies of a condition.

    Args:
        replies: The replies, in the order of the samples.
        label: Labels a reply.
    """
    return [
        {"output": reply.text, "truncated": reply.truncated, "behavior": behavior.label, "rule": behavior.rule}
        for reply in replies
        for behavior in [label(reply)]
    ]


def relabeled(answers: Answers, behaviors: Sequence[Behavior]) -> Answers:
    """Return answers with other labels.

    Args:
        answers: The answers of a condition.
        behaviors: Their new labels, in the same order.
    """
    return [
        {**answer, "behavior": behavior.label, "rule": behavior.rule}
        for answer, behavior in zip(answers, behaviors, strict=True)
    ]


def representative_fields(samples: Mapping[str, Answers], labeled: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a record that hold one answer of each condition, see :func:`majority`.

    Args:
        samples: The answers by condition.
        labeled: The conditions whose behavior the record has in fields of its own.
    """
    fields: dict[str, Any] = {}
    for condition, answers in samples.items():
        chosen = answers[majority(labels_of(answers))]
        fields |= {f"{condition}_output": chosen["output"], f"{condition}_truncated": chosen["truncated"]}
        if condition in labeled:
            fields |= {f"{condition}_behavior": chosen["behavior"], f"{condition}_behavior_rule": chosen["rule"]}
    return fields


def rates_of(labels: Labels) -> dict[str, float]:
    """Return the share of each behavior among the samples whose behavior can be told, the most frequent first.

    Equally frequent behaviors stand in the order of their first samples, so that the first is that of :func:`majority`.
    """
    told = [label for label in labels if label is not None and is_told(label)]
    return {label: count / len(told) for label, count in Counter(told).most_common()}


def rate_estimates(samples: Mapping[str, Answers]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Estimate P(behavior) of one scenario by condition, with the exact interval of independent samples.

    A behavior that only the other condition shows has the rate 0 and an interval too.

    Args:
        samples: The answers by condition.

    Returns:
        By condition and behavior ``value``, ``ci_low``, ``ci_high`` and ``n``, as ``summary.json`` holds an estimate; ``n`` is
        the number of samples whose behavior can be told.
    """
    shown = {condition: rates_of(labels_of(answers)) for condition, answers in samples.items()}
    behaviors = sorted({behavior for rates in shown.values() for behavior in rates})
    estimates: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for condition, answers in samples.items():
        n = sum(is_told(label) for label in labels_of(answers))
        estimates[condition] = {}
        for behavior in behaviors if n else ():
            hits = sum(label == behavior for label in labels_of(answers))
            estimates[condition][behavior] = Estimate(hits / n, *clopper_pearson(hits, n), n).as_json()
    return estimates
