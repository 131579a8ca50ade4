"""What is asked of a system, and what it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afintro.data.introspection_texts.items import Context
from afintro.lm.spans import SpanSteering
from afintro.tasks.introspection.trials import PREFIX

SYSTEMS = ("adapter", "base")


@dataclass(frozen=True)
class Query:
    """One question to a system.

    Args:
        context: The dialogue that is read before the question. None if the question stands alone.
        steering: Steering of the context. None if nothing is steered.
        question: The user's turn after the context.
        prefix: The beginning of the answer, which the system continues.
    """

    context: Context | None
    steering: SpanSteering | None
    question: str
    prefix: str = PREFIX


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer that a system wrote.

    Args:
        text: The answer without special tokens.
        cut: Whether the answer reached the largest length before it ended. It may have been about to end there.
    """

    text: str
    cut: bool


def next_tokens(answers: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """Map every beginning of some answer, the empty one included, to the tokens that follow it in some answer.

    A system reads each beginning once for all answers that share it.
    """
    following: dict[tuple[int, ...], dict[int, None]] = {}
    for answer in answers:
        for length, token in enumerate(answer):
            following.setdefault(answer[:length], {})[token] = None
    return {beginning: list(tokens) for beginning, tokens in following.items()}


def in_query_order(positions: Sequence[Sequence[int]], grouped: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """Put the values of grouped queries back into the order of the queries.

    Args:
        positions: For each group, the index of each member among the queries.
        grouped: For each group, the value of each member.
        count: Number of queries.
    """
    ordered: list[Any] = [None] * count
    for members, values in zip(positions, grouped, strict=True):
        for index, value in zip(members, values, strict=True):
            ordered[index] = value
    return ordered
