"""Greedy generation in batches that does not depend on how the batch was made up."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from afintro.lm.interventions import Intervention, at_rows, intervene

Prompt = Sequence[int]


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
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        changes = [interventions[i] for i in rows] if interventions is not None else [()] * len(rows)
        continued = _continue([prompts[i] for i in rows], changes, model, max_new_tokens, eos_ids)
        for row, tokens in zip(rows, continued, strict=True):
            results[row] = tokens
        if on_done is not None:
            on_done(len(rows))
    return results


def _continue(
    prompts: Sequence[Prompt],
    interventions: Sequence[Sequence[Intervention]],
    model: nn.Module,
    max_new_tokens: int,
    eos_ids: Sequence[int],
) -> list[list[int]]:
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    eos = torch.tensor(sorted(eos_ids), device=device)
    cache = DynamicCache(config=model.config)  # type: ignore[arg-type]
    alive = list(range(len(prompts)))  # result row of each row still in the batch
    results: list[list[int]] = [[] for _ in prompts]
    # Left padding: a prompt's first token stands behind it.
    on_prompt = at_rows(interventions, [row * longest + longest - len(prompt) for row, prompt in enumerate(prompts)])
    for step in range(max_new_tokens):
        with intervene(model, on_prompt if step == 0 else []):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        tokens = output.logits[:, -1].float().argmax(-1)
        going = (tokens[:, None] != eos).all(1)
        for row, token, goes in zip(alive, tokens.tolist(), going.tolist(), strict=True):
            if goes:
                results[row].append(token)
        if not bool(going.any()):
            break
        if not bool(going.all()):  # finished rows leave the batch
            keep = going.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
            alive = [alive[i] for i in keep.tolist()]
        ids = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
    return results
