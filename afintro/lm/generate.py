"""Greedy generation that does not depend on how batches are made up, with steering.

All conditions of a prompt (unsteered, and steered in several ways) share its *prefix*, every token but the last:
steering at the last position and while decoding changes nothing before that, so the tokens equal those of separate runs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from afintro.lm.attention import uses_packed_attention
from afintro.lm.engine import Engine, Job, Prompt, Row
from afintro.lm.interventions import Intervention, Steering
from afintro.lm.uncached import reread

Condition = Sequence[Steering]
"""How one row is steered; empty for not at all."""


@torch.inference_mode()
def generate_greedy(
    model: nn.Module,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    batch_size: int,
    interventions: Sequence[Sequence[Intervention]] | None = None,
    on_done: Callable[[int], Any] | None = None,
) -> list[list[int]]:
    """Continue every prompt by its most likely tokens.

    In float32 the tokens equal those of one-by-one generation.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, in eval mode.
        prompts: Token ids, special tokens included.
        max_new_tokens: At most so many tokens each.
        eos_ids: Generation of a row stops before one of these.
        batch_size: Rows that are continued together; the next prompt takes the place of one that has ended.
        interventions: On each prompt, positions counted in it; applied while the prompt is read.
        on_done: Called with the number of prompts just finished, for progress.

    Returns:
        The new tokens of each prompt, in the order of the prompts.
    """
    rows, jobs = [], []
    for index, prompt in enumerate(prompts):
        before, last = _split(interventions[index] if interventions is not None else (), len(prompt) - 1)
        rows.append(Row(first=last))
        jobs.append(Job(prompt, rows[-1:], before))
    _run(model, [[job] for job in jobs], max_new_tokens, eos_ids, batch_size, on_done)
    return [row.tokens for row in rows]


@torch.inference_mode()
def generate_steered(
    model: nn.Module,
    prompts: Sequence[Prompt],
    conditions: Sequence[Sequence[Condition]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    batch_size: int,
    share_prefix: bool = True,
    on_done: Callable[[int], Any] | None = None,
) -> list[list[list[int]]]:
    """Continue every prompt under each of its conditions.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, in eval mode.
        prompts: Token ids, special tokens included.
        conditions: Those of each prompt; steering of the positions ``all`` reads the prompt for itself.
        max_new_tokens: At most so many tokens each.
        eos_ids: Generation of a row stops before one of these.
        batch_size: Rows that are continued together. Conditions that share a prompt start together, also where they are
            more than that.
        share_prefix: False reads the prompt once for every condition: the same tokens, for comparison.
        on_done: Called with the number of prompts just finished, for progress.

    Returns:
        The new tokens by prompt and condition.

    Raises:
        RuntimeError: A hook did not fire exactly once a step.
    """
    rows, jobs = [], []
    for prompt, asked in zip(prompts, conditions, strict=True):
        own = [_row(condition) for condition in asked]
        together: list[Row] = []
        prompt_jobs = []
        for row, condition in zip(own, asked, strict=True):
            if share_prefix and not any(steering.positions == "all" for steering in condition):
                together.append(row)
            else:
                prompt_jobs.append(Job(prompt, [row], _on_prefix(condition, len(prompt) - 1)))
        rows.append(own)
        jobs.append([*prompt_jobs, *([Job(prompt, together)] if together else [])])
    _run(model, jobs, max_new_tokens, eos_ids, batch_size, on_done)
    return [[row.tokens for row in own] for own in rows]


def _run(
    model: nn.Module,
    jobs: Sequence[Sequence[Job]],
    max_new_tokens: int,
    eos_ids: Sequence[int],
    slots: int,
    on_done: Callable[[int], Any] | None,
) -> None:
    """Finish the jobs of every prompt."""
    report: Callable[[int], Any] = on_done if on_done is not None else lambda _: None
    left = Counter({prompt: len(own) for prompt, own in enumerate(jobs) if own and max_new_tokens > 0})
    prompt_of = {job: prompt for prompt, own in enumerate(jobs) if left[prompt] for job in own}

    def done(finished: list[Job]) -> None:
        left.subtract(prompt_of[job] for job in finished)
        whole = sum(left[prompt] == 0 for prompt in {prompt_of[job] for job in finished})
        if whole:
            report(whole)

    if nothing := len(jobs) - len(+left):
        report(nothing)
    if prompt_of:
        asked: Any = {"max_new_tokens": max_new_tokens, "eos_ids": eos_ids, "slots": slots, "done": done}
        if uses_packed_attention(model):
            Engine(model, list(prompt_of), **asked).run()
        else:
            reread(model, list(prompt_of), **asked)


def _split(changes: Sequence[Intervention], last: int) -> tuple[list[Intervention], list[Intervention]]:
    """What changes before the last position of a prompt, and what changes there."""
    before, there = [], []
    for change in changes:
        here = change.positions == last
        vectors = change.vectors[here]
        if len(vectors):
            # Where one position is named twice, vectors add up, or the last replaces those before.
            one = vectors.sum(0, keepdim=True) if change.mode == "add" else vectors[-1:]
            there.append(Intervention(change.layer, change.mode, change.positions[here][:1], one, change.relative))
        if len(vectors) < len(change.positions):
            before.append(
                Intervention(change.layer, change.mode, change.positions[~here], change.vectors[~here], change.relative)
            )
    return before, there


def _row(condition: Condition) -> Row:
    """Every steering is on the last token of the prompt; all but ``last`` go on."""
    return Row([s.on([0]) for s in condition], [s.on([0]) for s in condition if s.positions != "last"])


def _on_prefix(condition: Condition, length: int) -> list[Intervention]:
    """Steering while all but the last token of a prompt, so many, are read."""
    return [steering.on(range(length)) for steering in condition if steering.positions == "all"]
