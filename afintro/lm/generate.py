"""Greedy generation in batches that does not depend on how the batch was made up, with steering.

Prompts are read as one packed row; their keys and values then serve all rows that continue them. All conditions of a
prompt (unsteered, and steered in several ways) share its *prefix*, every token but the last: steering at the last
position and while decoding changes nothing before that, so the tokens equal those of separate runs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afintro.lm.attention import NAME as PACKED
from afintro.lm.attention import packed_forward
from afintro.lm.decoding import Decoding, Prefix
from afintro.lm.forward import packed_logits
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

    Prompts are sorted by length, so that a batch holds little padding. In float32 the tokens equal those of one-by-one
    generation.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, in eval mode.
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
        chosen = [prompts[i] for i in rows]
        changes = [interventions[i] for i in rows] if interventions is not None else [()] * len(rows)
        continued = _after_prompts(model, chosen, changes, [()] * len(rows), max_new_tokens, eos_ids)
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
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, in eval mode.
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
                prefix = _read_prefixes(model, [prompts[i] for i in group])
                index = [group.index(prompt) for prompt, _ in chosen]
                new = _Rows(prefix, index, [prompts[prompt][-1] for prompt, _ in chosen], max_new_tokens)
                first = _while_decoding(steering, at_prompt=True)
                continued = _continue(model, new, steering, first, max_new_tokens, eos_ids)
            else:
                whole = [prompts[prompt] for prompt, _ in chosen]
                changes = [_on_prompt(own, len(p)) for own, p in zip(steering, whole, strict=True)]
                continued = _after_prompts(model, whole, changes, steering, max_new_tokens, eos_ids)
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
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, in eval mode.
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
        prefix = _read_prefixes(model, [prompts[i] for i in group])
        targets = [list(continuations[p][i]) for p, i in rows]
        longest = max(map(len, targets))
        batch = _Rows(prefix, [group.index(p) for p, _ in rows], [prompts[p][-1] for p, _ in rows], longest)
        # Padded on the right: what comes later changes nothing before it.
        wanted = torch.tensor([row + [-100] * (longest - len(row)) for row in targets], device=batch.ids.device)
        batch.ids = torch.cat([batch.ids, wanted[:, :-1].clamp(min=0)], 1)
        batch.positions = batch.positions + torch.arange(longest, device=batch.ids.device)
        logits = batch.forward(model, []).float()
        nll = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(len(rows), -1)
        for (prompt, index), target, found in zip(rows, targets, nll.tolist(), strict=True):
            results[prompt][index] = found[: len(target)]
    return results


def _by_length(prompts: Sequence[Prompt], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    return (order[start : start + size] for start in range(0, len(order), size))


def _read(
    model: nn.Module, prompts: Sequence[Prompt], changes: Sequence[Sequence[Intervention]]
) -> tuple[Prefix, Tensor]:
    """Keys and values of prompts, and the logits ``[P, vocabulary]`` after each; an empty one has neither."""
    if getattr(model.config, "_attn_implementation", None) != PACKED:
        raise ValueError("the model was not loaded by load_model: its attention keeps no keys for rows")
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    prefix = Prefix(lengths)
    if not int(lengths.sum()):
        return prefix, torch.zeros(0, 0, device=device)
    read = lengths[lengths > 0]
    bounds = F.pad(torch.cumsum(read, 0), (1, 0))
    ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    offsets = (torch.cumsum(lengths, 0) - lengths).tolist()
    logits = packed_logits(model, ids, bounds.int(), bounds[1:] - 1, at_rows(changes, offsets), prefix)
    return prefix, logits


def _read_prefixes(model: nn.Module, prompts: Sequence[Prompt]) -> Prefix:
    """All but the last token of every prompt."""
    return _read(model, [prompt[:-1] for prompt in prompts], [()] * len(prompts))[0]


class _Rows:
    """Rows that are being continued, and the token that each reads next.

    Args:
        prefix: What was read of their prompts.
        prompts: Index of each row's prompt in it.
        tokens: Next token of each row.
        capacity: Most tokens to be read.
    """

    def __init__(self, prefix: Prefix, prompts: Sequence[int], tokens: Sequence[int], capacity: int) -> None:
        device = prefix.lengths.device
        self.state = Decoding(prefix, prompts, capacity)
        self.ids = torch.tensor(tokens, dtype=torch.long, device=device)[:, None]
        self.positions = prefix.lengths[self.state.prompts][:, None]

    def forward(self, model: nn.Module, changes: Sequence[Intervention]) -> Tensor:
        """Logits ``[R, n, vocabulary]`` after each token read.

        Raises:
            RuntimeError: A hook did not fire exactly once.
        """
        with intervene(model, changes) as fired, packed_forward():
            output = model(
                input_ids=self.ids, position_ids=self.positions, attention_mask=None, use_cache=False, rows=self.state
            )
        if fired != [1] * len(fired):
            raise RuntimeError(f"hooks fired {fired} times in one step")
        self.state.advance(self.ids.shape[1])
        logits = output.logits
        assert isinstance(logits, Tensor)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.state.keep(rows)
        self.positions = self.positions[rows]

    def advance(self, tokens: Tensor) -> None:
        """Read one new token a row next."""
        self.ids, self.positions = tokens[:, None], self.positions[:, -1:] + 1


def _after_prompts(
    model: nn.Module,
    prompts: Sequence[Prompt],
    changes: Sequence[Sequence[Intervention]],
    steering: Sequence[Condition],
    max_new_tokens: int,
    eos_ids: Sequence[int],
) -> list[list[int]]:
    """Read whole prompts, one row each, under ``changes``, and continue them."""
    if max_new_tokens < 1:
        return [[] for _ in prompts]
    prefix, logits = _read(model, prompts, changes)
    tokens = logits.float().argmax(-1)
    going = _going(tokens, eos_ids).tolist()
    results = [[token] if goes else [] for token, goes in zip(tokens.tolist(), going, strict=True)]
    alive = [row for row, goes in enumerate(going) if goes]
    if not alive or max_new_tokens == 1:
        return results
    rows = _Rows(prefix, alive, tokens[alive].tolist(), max_new_tokens)
    own = [steering[row] for row in alive]
    continued = _continue(model, rows, own, _while_decoding(own), max_new_tokens - 1, eos_ids)
    for row, more in zip(alive, continued, strict=True):
        results[row] += more
    return results


def _continue(
    model: nn.Module,
    rows: _Rows,
    steering: Sequence[Condition],
    first: Sequence[Intervention],
    max_new_tokens: int,
    eos_ids: Sequence[int],
) -> list[list[int]]:
    """Continue rows; ``first`` applies to the pass that reads their next token, ``steering`` to those after it."""
    alive = list(range(len(steering)))  # result row of each row still there
    results: list[list[int]] = [[] for _ in alive]
    changes = first
    for step in range(max_new_tokens):
        tokens = rows.forward(model, changes)[:, -1].float().argmax(-1)
        going = _going(tokens, eos_ids)
        for row, token, goes in zip(alive, tokens.tolist(), going.tolist(), strict=True):
            if goes:
                results[row].append(token)
        if not bool(going.any()):
            break
        finished = not bool(going.all())
        if finished:  # finished rows leave the batch
            kept = going.nonzero()[:, 0]
            rows.keep(kept)
            tokens = tokens[kept]
            alive = [alive[i] for i in kept.tolist()]
        if finished or step == 0:
            changes = _while_decoding([steering[row] for row in alive])
        rows.advance(tokens)
    return results


def _going(tokens: Tensor, eos_ids: Sequence[int]) -> Tensor:
    return (tokens[:, None] != torch.tensor(sorted(eos_ids), device=tokens.device)).all(1)


def _steers_prompt(condition: Condition) -> bool:
    return any(steering.positions == "all" for steering in condition)


def _on_prompt(condition: Condition, length: int) -> list[Intervention]:
    """While a whole prompt is read."""
    return [s.on(range(length) if s.positions == "all" else range(length - 1, length)) for s in condition]


def _while_decoding(steering: Sequence[Condition], at_prompt: bool = False) -> list[Intervention]:
    """While one token a row is read: a new one, or the last of its prompt."""
    changes = [
        [s.on([row]) for s in condition if at_prompt or s.positions != "last"] for row, condition in enumerate(steering)
    ]
    return at_rows(changes, [0] * len(changes))
