"""Greedy generation in batches that does not depend on how the batch was made up, with steering.

All conditions of a prompt (unsteered, and steered in several ways) share its *prefix*, every token but the last: it is
read once, and its keys and values are repeated for the rows. Steering at the last position and while decoding changes
nothing before that, so the tokens equal those of separate runs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from afintro.lm.interventions import Intervention, Steering, at_rows, intervene

Prompt = Sequence[int]
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

    Prompts are sorted by length, so that a batch holds little padding, and padded on the left with masked tokens and
    explicit positions: in float32 the tokens equal those of one-by-one generation.

    Args:
        model: Any causal LM, in eval mode.
        prompts: Token ids, special tokens included.
        max_new_tokens: At most so many tokens each.
        eos_ids: Generation of a row stops after one of these; it is not part of the result.
        batch_size: Rows a forward pass.
        interventions: On each prompt, positions counted in it; applied while the prompt is read.
        on_done: Called with the number of prompts just finished, for progress.

    Returns:
        The new tokens of each prompt, in the order of the prompts.
    """
    results: list[list[int]] = [[] for _ in prompts]
    for rows in _by_length(prompts, batch_size):
        batch = _whole([prompts[i] for i in rows], model)
        changes = [interventions[i] for i in rows] if interventions is not None else [()] * len(rows)
        continued = _decode(model, batch, [()] * len(rows), batch.at(changes), max_new_tokens, eos_ids)
        for row, tokens in zip(rows, continued, strict=True):
            results[row] = tokens
        if on_done is not None:
            on_done(len(rows))
    return results


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
        model: Any causal LM, in eval mode.
        prompts: Token ids, special tokens included.
        conditions: Those of each prompt; steering of the positions ``all`` is run without a shared prefix.
        max_new_tokens: At most so many tokens each.
        eos_ids: Generation of a row stops after one of these; it is not part of the result.
        batch_size: Rows a forward pass. All conditions of a prompt run together, also where they are more than that.
        share_prefix: False reads the whole prompt once for every condition: the same tokens, for comparison.
        on_done: Called with the number of prompts just finished, for progress.

    Returns:
        The new tokens by prompt and condition.

    Raises:
        RuntimeError: A hook did not fire exactly once a step.
    """
    results: list[list[list[int]]] = [[[] for _ in asked] for asked in conditions]
    rows_a_prompt = max(map(len, conditions), default=1)
    for group in _by_length(prompts, max(1, batch_size // max(1, rows_a_prompt))):
        rows = [(prompt, index) for prompt in group for index in range(len(conditions[prompt]))]
        shared = [row for row in rows if share_prefix and not _steers_prompt(conditions[row[0]][row[1]])]
        alone = [row for row in rows if row not in shared]
        for chosen, share in ((shared, True), (alone, False)):
            if not chosen:
                continue
            steering = [conditions[prompt][index] for prompt, index in chosen]
            if share:
                index = [group.index(prompt) for prompt, _ in chosen]
                batch = _after_prefix([prompts[i] for i in group], index, model)
            else:
                batch = _whole([prompts[prompt] for prompt, _ in chosen], model)
            continued = _decode(model, batch, steering, _at_first(batch, steering), max_new_tokens, eos_ids)
            for (prompt, condition), tokens in zip(chosen, continued, strict=True):
                results[prompt][condition] = tokens
        if on_done is not None:
            on_done(len(group))
    return results


@torch.inference_mode()
def continuation_nll(
    model: nn.Module, prompts: Sequence[Prompt], continuations: Sequence[Sequence[Prompt]], *, batch_size: int
) -> list[list[list[float]]]:
    """How surprising each token of a continuation is to the unsteered model.

    Args:
        model: Any causal LM, in eval mode.
        prompts: Token ids.
        continuations: Those of each prompt, end of sequence included where it was written.
        batch_size: Rows a forward pass; all continuations of a prompt run together.

    Returns:
        Negative log-likelihood of every token, in nats, by prompt and continuation.
    """
    results: list[list[list[float]]] = [[[] for _ in given] for given in continuations]
    rows_a_prompt = max(map(len, continuations), default=1)
    for group in _by_length(prompts, max(1, batch_size // max(1, rows_a_prompt))):
        rows = [(p, i) for p in group for i in range(len(continuations[p])) if len(continuations[p][i])]
        if not rows:
            continue
        batch = _after_prefix([prompts[i] for i in group], [group.index(p) for p, _ in rows], model)
        targets = [list(continuations[p][i]) for p, i in rows]
        longest = max(map(len, targets))
        # Padded on the right: what comes later changes nothing before it.
        wanted = torch.tensor([row + [-100] * (longest - len(row)) for row in targets], device=batch.ids.device)
        batch.ids = torch.cat([batch.ids, wanted[:, :-1].clamp(min=0)], 1)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(rows), longest - 1)], 1)
        batch.positions = batch.positions + torch.arange(longest, device=batch.ids.device)
        logits = _forward(model, batch, [], longest).float()
        nll = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(len(rows), -1)
        for (prompt, index), target, found in zip(rows, targets, nll.tolist(), strict=True):
            results[prompt][index] = found[: len(target)]
    return results


@dataclass
class _Batch:
    """Rows that are being continued.

    Args:
        ids: ``[R, n]`` tokens to be read next; the last column is each row's last token.
        mask: ``[R, seen + n]`` 1 where a token is one.
        positions: ``[R, n]`` position of each in its sequence.
        lengths: Tokens of each row's prompt.
        cache: Keys and values of what was read.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    lengths: list[int]
    cache: DynamicCache

    def at(self, interventions: Sequence[Sequence[Intervention]]) -> list[Intervention]:
        """Interventions on each row's prompt, for a pass that reads all of it."""
        width = self.ids.shape[1]
        return at_rows(interventions, [row * width + width - n for row, n in enumerate(self.lengths)])

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.cache.batch_select_indices(rows)
        self.ids, self.mask, self.positions = self.ids[rows], self.mask[rows], self.positions[rows]

    def advance(self, tokens: Tensor) -> None:
        """Read one new token a row next."""
        self.ids = tokens[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.positions = self.positions[:, -1:] + 1


def _by_length(prompts: Sequence[Prompt], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    return (order[start : start + size] for start in range(0, len(order), size))


def _whole(prompts: Sequence[Prompt], model: nn.Module) -> _Batch:
    """Rows of which nothing was read yet."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)  # type: ignore[arg-type]
    return _Batch(ids.to(device), mask.to(device), positions.to(device), [len(p) for p in prompts], cache)


def _after_prefix(prompts: Sequence[Prompt], rows: Sequence[int], model: nn.Module) -> _Batch:
    """Rows, each of the prompt that ``rows`` names, of which all but the last token was read."""
    whole = _whole(prompts, model)
    last = _Batch(whole.ids[:, -1:], whole.mask, whole.positions[:, -1:], whole.lengths, whole.cache)
    if whole.ids.shape[1] > 1:
        prefix = (whole.ids[:, :-1], whole.mask[:, :-1], whole.positions[:, :-1])
        _forward(model, _Batch(*prefix, whole.lengths, whole.cache), [], 1)
        last.keep(torch.tensor(rows, device=whole.ids.device))
    else:
        index = torch.tensor(rows, device=whole.ids.device)
        last.ids, last.mask, last.positions = last.ids[index], last.mask[index], last.positions[index]
    last.lengths = [whole.lengths[row] for row in rows]
    return last


def _forward(model: nn.Module, batch: _Batch, changes: Sequence[Intervention], keep: int) -> Tensor:
    """Logits of the last ``keep`` columns ``[R, keep, vocabulary]``; the cache grows."""
    with intervene(model, changes) as fired:
        output = model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
    if fired != [1] * len(fired):
        raise RuntimeError(f"hooks fired {fired} times in one step")
    logits = output.logits
    assert isinstance(logits, Tensor)
    return logits


def _decode(
    model: nn.Module,
    batch: _Batch,
    steering: Sequence[Condition],
    first: Sequence[Intervention],
    max_new_tokens: int,
    eos_ids: Sequence[int],
) -> list[list[int]]:
    """Continue rows; ``first`` applies to the pass that reads (the rest of) the prompts, ``steering`` to the others."""
    eos = torch.tensor(sorted(eos_ids), device=batch.ids.device)
    alive = list(range(len(batch.lengths)))  # result row of each row still in the batch
    results: list[list[int]] = [[] for _ in alive]
    changes = first
    for step in range(max_new_tokens):
        tokens = _forward(model, batch, changes, 1)[:, -1].float().argmax(-1)
        going = (tokens[:, None] != eos).all(1)
        for row, token, goes in zip(alive, tokens.tolist(), going.tolist(), strict=True):
            if goes:
                results[row].append(token)
        if not bool(going.any()):
            break
        finished = not bool(going.all())
        if finished:  # finished rows leave the batch
            keep = going.nonzero()[:, 0]
            batch.keep(keep)
            tokens = tokens[keep]
            alive = [alive[i] for i in keep.tolist()]
        if finished or step == 0:
            changes = _while_decoding([steering[row] for row in alive])
        batch.advance(tokens)
    return results


def _steers_prompt(condition: Condition) -> bool:
    return any(steering.positions == "all" for steering in condition)


def _at_first(batch: _Batch, steering: Sequence[Condition]) -> list[Intervention]:
    """On the pass that reads the last token of every prompt, or all of it."""
    width = batch.ids.shape[1]
    ends = list(accumulate([width] * len(steering)))
    changes = []
    for condition, end, length in zip(steering, ends, batch.lengths, strict=True):
        spans = (range(end - length if s.positions == "all" else end - 1, end) for s in condition)
        changes.append([s.on(span) for s, span in zip(condition, spans, strict=True)])
    return at_rows(changes, [0] * len(changes))


def _while_decoding(steering: Sequence[Condition]) -> list[Intervention]:
    """On a pass that reads one new token a row."""
    changes = [[s.on([row]) for s in condition if s.positions != "last"] for row, condition in enumerate(steering)]
    return at_rows(changes, [0] * len(changes))
