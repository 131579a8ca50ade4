"""Generate without kept keys and values: every step reads whole sequences anew.

This is slow. It serves models whose attention the engine cannot replace
(:func:`afintro.lm.padded.supports_packed_attention`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from afintro.lm.engine import Continuation, Job
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import Intervention, at_rows
from afintro.lm.sampling import RowDraws, Sampling


def generate_uncached(
    model: nn.Module,
    jobs: Sequence[Job],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    batch_size: int,
    done: Callable[[list[Job]], Any],
    sampling: Sampling | None = None,
) -> None:
    """Finish all jobs as :class:`afintro.lm.engine.Engine` does.

    Args:
        model: A causal LM in eval mode.
        jobs: At least one.
        max_new_tokens: Largest number of new tokens of a continuation; at least 1.
        eos_ids: Token ids before which a continuation ends.
        batch_size: Number of continuations that are read together.
        done: Called with the jobs just finished.
        sampling: How tokens are drawn; None chooses the most likely.
    """
    rows = [(job, continuation) for job in jobs for continuation in job.continuations]
    left = Counter({job: len(job.continuations) for job in jobs})
    for start in range(0, len(rows), batch_size):
        alive = group = rows[start : start + batch_size]
        while alive:
            tokens = _choose(_last_logits(model, alive).float(), [row for _, row in alive], sampling)
            going_on = [(row, token) for row, token in zip(alive, tokens, strict=True) if token not in eos_ids]
            for (_, continuation), token in going_on:
                continuation.tokens.append(token)
            alive = [row for row, _ in going_on if len(row[1].tokens) < max_new_tokens]
        left.subtract(job for job, _ in group)
        if finished := [job for job in dict.fromkeys(job for job, _ in group) if not left[job]]:
            done(finished)


def _choose(logits: Tensor, rows: Sequence[Continuation], sampling: Sampling | None) -> list[int]:
    """Return the next token of each row, for logits ``[R, vocabulary]``."""
    if sampling is None:
        return list(logits.argmax(-1).tolist())
    draws = RowDraws(sampling, len(rows), logits.device)
    draws.put([row.stream for row in rows], [len(row.tokens) for row in rows])
    return list(draws.next(logits).tolist())


def _last_logits(model: nn.Module, rows: Sequence[tuple[Job, Continuation]]) -> Tensor:
    """Return the logits ``[R, vocabulary]`` after each row's prompt and new tokens."""
    device = next(model.parameters()).device
    sequences = [[*job.prompt, *continuation.tokens] for job, continuation in rows]
    bounds = torch.tensor([0, *map(len, sequences)], device=device).cumsum(0)
    ids = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    changes = at_rows([_changes(job, continuation) for job, continuation in rows], bounds[:-1].tolist())
    return packed_logits(model, ids, bounds.int(), bounds[1:] - 1, changes)


def _changes(job: Job, continuation: Continuation) -> list[Intervention]:
    """Return all interventions on a row so far, positions counted in the row."""
    last = len(job.prompt) - 1
    new = [_at(change, last + 1 + i) for i in range(len(continuation.tokens)) for change in continuation.later]
    return [*job.changes, *(_at(change, last) for change in continuation.first), *new]


def _at(change: Intervention, position: int) -> Intervention:
    return replace(change, positions=torch.full_like(change.positions, position))
