"""Models that take no packed rows: their sequences are padded to one length.

For architectures whose attention cannot be replaced, or that carry more than keys and values from token to token (state-space
and linear-attention layers).
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
    """Whether each layer of a transformers model mixes tokens by plain attention alone, which can be replaced.

    Attention sinks (GPT-OSS) are learnt scores that a packed row's attention does not know.
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
    """As :func:`afintro.lm.forward.packed_logits`, by a batch padded on the right."""
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    real = torch.arange(int(lengths.max()), device=input_ids.device) < lengths[:, None]
    ids = torch.zeros(real.shape, dtype=torch.long, device=input_ids.device).masked_scatter(real, input_ids)
    places = real.flatten().nonzero()[:, 0]  # of each token of the row, in the padded batch
    moved = [replace(change, positions=places[change.positions.to(places.device)]) for change in interventions]
    with intervene(model, moved):
        output: Any = model(input_ids=ids, attention_mask=real.long(), use_cache=False)
    logits: Tensor = output.logits.flatten(0, 1)[places[positions]]
    return logits
