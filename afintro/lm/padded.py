"""Pad sequences to one length, for models that cannot read packed rows.

These are architectures whose attention cannot be replaced, or that carry more than keys and values from token to token
(state-space and linear-attention layers).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from afintro.lm.interventions import intervene
from afintro.lm.spans import Located

PACKABLE = {"full_attention", "sliding_attention"}


def supports_packed_attention(model: Any) -> bool:
    """Return whether each layer of a transformers model mixes tokens by plain attention alone, which can be replaced.

    Attention sinks (GPT-OSS) are learned scores that packed attention does not have.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
    return bool(model._supports_attention_backend) and kinds <= PACKABLE and not sinks


def padded_logits(
    model: nn.Module,
    input_ids: Tensor,
    cu_seqlens: Tensor,
    positions: Tensor,
    interventions: Sequence[Located] = (),
) -> Tensor:
    """Return what :func:`afintro.lm.forward.packed_logits` returns, by a batch that is padded on the right.

    Args:
        model: A causal LM.
        input_ids: ``[T]`` int64, B sequences end to end.
        cu_seqlens: ``[B + 1]`` int32, where each sequence begins, and T.
        positions: ``[A]`` int64, positions in the row.
        interventions: Interventions during the pass, positions counted in the row.

    Returns:
        ``[A, vocabulary]`` in the model's compute dtype.
    """
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    real = torch.arange(int(lengths.max()), device=input_ids.device) < lengths[:, None]
    ids = torch.zeros(real.shape, dtype=torch.long, device=input_ids.device).masked_scatter(real, input_ids)
    places = real.flatten().nonzero()[:, 0]  # the place in the padded batch of each token of the row
    moved = [replace(change, positions=places[change.positions.to(places.device)]) for change in interventions]
    with intervene(model, moved):
        output: Any = model(input_ids=ids, attention_mask=real.long(), use_cache=False)
    logits: Tensor = output.logits.flatten(0, 1)[places[positions]]
    return logits
