"""What a checkpoint keeps for questions without ground truth: how long an answer may be, and how often P(changed) was right."""

from collections.abc import Mapping, Sequence
from typing import Any

from afintro.evaluation.answers import expected_verdict
from afintro.evaluation.outcomes import Outcome
from afintro.tasks.base import TaskData

ASKING = "afintro_asking"
OLDER_LIMIT = 320
"""Number of tokens of an answer for checkpoints that do not say it: an output of 256 tokens, and the words around it."""
PAIRS = 2000  # most items of validation that a checkpoint remembers


def asking_of(data: TaskData, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return what a checkpoint keeps, as plain values.

    Args:
        data: The data module, its training examples read.
        outcomes: Outcomes of the validation items by the weights of the checkpoint; empty if they were not measured.

    Returns:
        ``answer_limit``, the number of tokens to generate; and ``validation``, P(changed) and whether the behavior changed (0
        or 1) of the validation items of the primary question type.
    """
    asked = [
        outcome
        for outcome in outcomes
        if outcome.p_changed is not None
        and data.primary in data.verdict_types
        and outcome.example.question_type == data.primary
    ]
    every = -(-len(asked) // PAIRS) or 1
    pairs = [
        [float(outcome.p_changed or 0.0), int(expected_verdict(outcome.example.answer).changed)]
        for outcome in asked[::every]
    ]
    return {"answer_limit": data.answer_limit, "validation": pairs}


def limit_of(asking: Mapping[str, Any] | None) -> int:
    """Return the number of tokens to generate for an answer, :data:`OLDER_LIMIT` for a checkpoint that does not say it."""
    return int((asking or {}).get("answer_limit") or OLDER_LIMIT)
