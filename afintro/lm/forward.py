"""Compute the logits of chosen positions of a packed row, with interventions: the one forward path of the package."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afintro.lm.attention import packed_forward, uses_packed_attention
from afintro.lm.decoding import PrefixWriter
from afintro.lm.interventions import intervene
from afintro.lm.padded import padded_logits
from afintro.lm.spans import Located


def packed_positions(cu_seqlens: Tensor) -> Tensor:
    """Return the position of every token within its own sequence: ``cu_seqlens [B + 1]`` to ``[T]`` int64."""
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens[1:].long() - starts
    total = int(cu_seqlens[-1])
    return torch.arange(total, device=cu_seqlens.device) - torch.repeat_interleave(starts, lengths)


def packed_logits(
    model: nn.Module,
    input_ids: Tensor,
    cu_seqlens: Tensor,
    positions: Tensor,
    interventions: Sequence[Located] = (),
    prefix: PrefixWriter | None = None,
    detached: Tensor | None = None,
) -> Tensor:
    """Return next-token logits at chosen positions; the vocabulary matrix is applied to these positions alone.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`. A model without packed attention reads a padded batch.
        input_ids: ``[T]`` int64, B sequences end to end.
        cu_seqlens: ``[B + 1]`` int32, where each sequence begins, and T.
        positions: ``[A]`` int64 positions in the row; the logits predict the token after each.
        interventions: Interventions during the pass, positions counted in the row.
        prefix: Writes the keys and values of the sequences to slots.
        detached: ``[T]`` bool, the positions through whose keys and values no gradient flows: later tokens read them as they
            would read a cache that was made without gradient.

    Returns:
        ``[A, vocabulary]`` in the model's compute dtype.

    Raises:
        ValueError: ``detached`` is given and the model does not use packed attention.
    """
    if not uses_packed_attention(model):
        if detached is not None:
            raise ValueError("a model without packed attention cannot stop gradients at its keys and values")
        return padded_logits(model, input_ids, cu_seqlens, positions, interventions)
    longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
    with intervene(model, interventions), packed_forward():
        output = model(
            input_ids=input_ids[None],
            position_ids=packed_positions(cu_seqlens)[None],
            attention_mask=None,
            use_cache=False,
            logits_to_keep=positions,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=longest,
            max_length_k=longest,
            **{name: value for name, value in {"prefix": prefix, "detached": detached}.items() if value is not None},
        )
    logits = output.logits[0]
    assert isinstance(logits, Tensor)
    return logits
