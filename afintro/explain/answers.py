"""Answer a few questions: the written answer, its verdict, how probable it is, and the answer without the vector."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from afintro.data.batch import Example, collate
from afintro.errors import UserError
from afintro.evaluation.answers import parse_two_branch
from afintro.explain.confidence import Confidence
from afintro.explainer.answering import spelled, write_tokens
from afintro.explainer.forward import changed_probabilities
from afintro.explainer.module import ExplainerModule
from afintro.lm.generate import reached_limit

DIGITS = 6  # of probabilities and log-probabilities; the digits after them depend on how a batch is arranged


@torch.no_grad()
def answered(
    module: ExplainerModule,
    examples: Sequence[Example],
    batch_size: int,
    confidence: Confidence,
    zero_vector: bool = True,
    on_done: Callable[[int], Any] | None = None,
    on_token: Callable[[int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Answer questions, and say how sure the answers are.

    Args:
        module: The explainer, its weights loaded.
        examples: The questions; the answers in them are not looked at.
        batch_size: Number of questions in a forward pass.
        confidence: Calibration of P(changed).
        zero_vector: Whether questions with a vector are also answered with a vector of zeros in its place.
        on_done: Called with the number of questions whose answer was just written, for progress.
        on_token: Called with every new token of the answers, for a person who reads along.

    Returns:
        One object a question: ``uid``, ``question_type``, ``answer``, ``truncated``, ``verdict`` (``changed``, ``unchanged``, or
        None), ``p_changed``, ``confidence``, ``mean_logprob`` in nats a token, and ``answer_zero_vector``.

    Raises:
        UserError: A prompt is longer than the base model reads.
    """
    check_lengths(module, examples)
    limit = module.answer_limit
    tokens = write_tokens(module, examples, limit, batch_size, on_done, on_token)
    without = _zero_vector_answers(module, examples, batch_size) if zero_vector else [None] * len(examples)
    changed, means = _measured(module, examples, tokens, batch_size)
    rows = []
    for place, (example, ids, p_changed, mean) in enumerate(zip(examples, tokens, changed, means, strict=True)):
        text = spelled(module, ids)
        parsed = parse_two_branch(text) if example.branches is not None else None
        verdict = None if parsed is None else ("changed" if parsed.changed else "unchanged")
        sure = confidence.of(p_changed, verdict)
        rows.append(
            {
                "uid": example.uid,
                "question_type": example.question_type,
                "answer": text,
                "truncated": reached_limit(ids, limit),
                "verdict": verdict,
                "p_changed": None if p_changed is None else round(p_changed, DIGITS),
                "confidence": None if sure is None else round(sure, DIGITS),
                "mean_logprob": round(mean, DIGITS),
                "answer_zero_vector": without[place],
            }
        )
    return rows


def _zero_vector_answers(module: ExplainerModule, examples: Sequence[Example], batch_size: int) -> list[str | None]:
    """Return each answer to a vector of zeros; questions that differ in nothing but their vectors are answered once."""
    asked: dict[Any, Example] = {}
    kinds = []
    for example in examples:
        slot = example.slot
        kinds.append(None if slot is None else (example.prompt_ids, slot.position, slot.layer, slot.scale, slot.space))
        if slot is not None:
            zeros = replace(slot, vector=np.zeros_like(slot.vector))
            asked.setdefault(kinds[-1], replace(example, slot=zeros))
    written = write_tokens(module, list(asked.values()), module.answer_limit, batch_size) if asked else []
    texts = {kind: spelled(module, ids) for kind, ids in zip(asked, written, strict=True)}
    return [None if kind is None else texts[kind] for kind in kinds]


def _measured(
    module: ExplainerModule, examples: Sequence[Example], tokens: Sequence[Sequence[int]], batch_size: int
) -> tuple[list[float | None], list[float]]:
    """Return P(changed) of each question, and the mean log-probability of each answer's tokens, its end included."""
    end, limit = module.tokenizer.eos_token_id, module.answer_limit
    assert isinstance(end, int)
    written = [
        # Numbers in place of the uids, which rows of a user may share.
        replace(example, uid=str(place), answer_ids=(*ids, *(() if reached_limit(ids, limit) else (end,))))
        for place, (example, ids) in enumerate(zip(examples, tokens, strict=True))
    ]
    changed: dict[str, float] = {}
    means: list[float] = []
    with module.evaluating():
        for start in range(0, len(written), batch_size):
            some = written[start : start + batch_size]
            nll, _ = module.answer_nll(collate(some).to(module.device))
            means += (-nll).tolist()
            changed |= changed_probabilities(module.answer_nll, some, module.device)
    return [changed.get(example.uid) for example in written], means


def check_lengths(module: ExplainerModule, examples: Sequence[Example]) -> None:
    """Refuse a question that the base model cannot read; an answer goes on as far as that of ``predict`` does.

    Args:
        module: The explainer; its weights need not be loaded.
        examples: The questions.

    Raises:
        UserError: A prompt is longer than the context; names the question.
    """
    context = module.context_length
    for example in examples:
        if context is not None and len(example.prompt_ids) >= context:
            raise UserError(
                f"has a prompt of {len(example.prompt_ids)} tokens, but the explainer reads {context} with the answer",
                where=f"question {example.uid}",
                remedy="shorten the text",
            )
