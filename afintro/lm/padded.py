"""Pad sequences to one length, for models that cannot read packed rows.

These are architectures whose attention cannot be replaced, that carry more than keys and values from token to token
(state-space and linear-attention layers), or that nobody has compared with transformers yet.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from afintro.lm.attention import NAME as PACKED
from afintro.lm.interventions import intervene
from afintro.lm.rope import rotate_each_sequence, thresholds
from afintro.lm.spans import Located

PACKABLE = {"full_attention", "sliding_attention"}

# Values of ``model_type``. A test compares each in packed rows with transformers, sequence by sequence; whoever adds a name here
# adds its tiny configuration to ``benchmarks/architectures``. An architecture may say that its attention can be replaced and
# still drop the lengths (Nemotron), attend twice in a layer (DiffLlama) or change the mask (Doge).
VERIFIED = {
    "afmoe", "apertus", "arcee", "bitnet", "cohere", "cohere2", "cwm", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text",
    "gemma4", "gemma4_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neox", "granite",
    "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "jetmoe", "llama",
    "longcat_flash", "minicpm3", "minimax_m2", "ministral", "ministral3", "mistral", "mistral3", "mixtral", "nanochat",
    "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phi4_multimodal", "phimoe", "qwen2",
    "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_text", "seed_oss", "smollm3",
    "solar_open", "starcoder2", "vaultgemma", "youtu",
}  # fmt: skip


def supports_packed_attention(model: Any) -> bool:
    """Return whether each layer of a transformers model mixes tokens by plain attention alone, which can be replaced.

    Attention sinks (GPT-OSS) are learned scores that packed attention does not have.
    """
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
    known = {model.config.model_type, text.model_type} <= VERIFIED
    return known and bool(model._supports_attention_backend) and kinds <= PACKABLE and not sinks


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Let a model attend over packed rows if its architecture can, and rotate each sequence by its own length.

    Returns:
        Whether the model now uses packed attention; otherwise it reads padded batches.
    """
    rotate_each_sequence(model)
    packed = supports_packed_attention(model)
    if packed:
        model.set_attn_implementation(PACKED)
    return packed


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
    # Some architectures take no positions; those whose rotation depends on the length must not count the padding.
    given = {"position_ids": real.cumsum(1).sub(1) * real} if thresholds(model) else {}
    with intervene(model, moved):
        output: Any = model(input_ids=ids, attention_mask=real.long(), use_cache=False, **given)
    logits: Tensor = output.logits.flatten(0, 1)[places[positions]]
    return logits
