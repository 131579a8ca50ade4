"""Generation without kept keys and values: every step reads whole sequences anew.

Slow, for the models whose attention the engine cannot replace (:func:`afintro.lm.padded.takes_packed_rows`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from afintro.lm.engine import Job, Row
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import Intervention, at_rows


def reread(
    model: nn.Module,
    jobs: Sequence[Job],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    slots: int,
    done: Callable[[list[Job]], Any],
) -> None:
    """Finish all jobs as :class:`afintro.lm.engine.Engine` does, ``slots`` rows at a time; the same arguments."""
    rows = [(job, row) for job in jobs for row in job.rows]
    left = Counter({job: len(job.rows) for job in jobs})
    for start in range(0, len(rows), slots):
        alive = group = rows[start : start + slots]
        while alive:
            tokens = _last_logits(model, alive).float().argmax(-1).tolist()
            alive = [
                (job, row)
                for (job, row), token in zip(alive, tokens, strict=True)
                if token not in eos_ids and len(_taking(row, token).tokens) < max_new_tokens
            ]
        left.subtract(job for job, _ in group)
        if finished := [job for job in dict.fromkeys(job for job, _ in group) if not left[job]]:
            done(finished)


def _taking(row: Row, token: int) -> Row:
    row.tokens.append(token)
    return row


def _last_logits(model: nn.Module, rows: Sequence[tuple[Job, Row]]) -> Tensor:
    """``[R, vocabulary]`` after each row's prompt and new tokens."""
    device = next(model.parameters()).device
    sequences = [[*job.prompt, *row.tokens] for job, row in rows]
    bounds = torch.tensor([0, *map(len, sequences)], device=device).cumsum(0)
    ids = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    changes = at_rows([_changes(job, row) for job, row in rows], bounds[:-1].tolist())
    return packed_logits(model, ids, bounds.int(), bounds[1:] - 1, changes)


def _changes(job: Job, row: Row) -> list[Intervention]:
    """All interventions on a row so far, positions counted in it."""
    last = len(job.prompt) - 1
    new = [_at(change, last + 1 + index) for index in range(len(row.tokens)) for change in row.later]
    return [*job.changes, *(_at(change, last) for change in row.first), *new]


def _at(change: Intervention, position: int) -> Intervention:
    return replace(change, positions=torch.full_like(change.positions, position))
