"""Attend over a packed row, through the attention interface of transformers.

Sequences lie end to end in one row without padding; ``cu_seq_lens_q`` says where each begins, and no token sees another
sequence. On CUDA one variable-length kernel (``torch.nn.attention.varlen``) computes the attention; elsewhere each sequence
runs through scaled-dot-product attention on its own. Rows that are being continued attend as :mod:`afintro.lm.decoding`
describes. Any other forward pass falls through to the sdpa attention of transformers, so one loaded model serves all passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from afintro.lm.decoding import Decoding, PrefixWriter

NAME = "afintro_packed"
# The kernel reads grouped heads without repeating them; torch before 2.12 has no argument for that.
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen.varlen_attn).parameters else {}

LOST = "packed attention was called without the lengths of its sequences: a layer of this architecture drops them"

_packed: ContextVar[bool] = ContextVar("afintro_packed_forward", default=False)


def uses_packed_attention(model: nn.Module) -> bool:
    """Return whether the model attends by this module, which :func:`afintro.lm.load.load_model` sets wherever it can."""
    return getattr(model.config, "_attn_implementation", None) == NAME


@contextmanager
def packed_forward() -> Iterator[None]:
    """Mark the forward pass inside as packed, so that no ``[T, T]`` mask is built for it."""
    token = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(token)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


def _segment(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Return the causal attention of one sequence; all tensors are ``[heads, n, d]``, key and value heads grouped."""
    length = query.shape[1]
    mask = None
    if window is not None and length > window:
        ahead = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
        mask = (ahead >= 0) & (ahead < window)
    if softcap is None:
        output = F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        return output[0]
    return _softcapped(query, key, value, mask, scaling, softcap)


# Compiled code would be made anew for every number of sequences, which takes minutes.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_sequence(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *settings: Any) -> Tensor:
    """Return the attention of a packed row ``[1, T, heads, d]``, one sequence after the other."""
    # Not slices, because the gradient of each slice would be a tensor of the whole row.
    lengths = starts.diff().tolist()
    queries, keys, values = (whole[0].split(lengths, dim=1) for whole in (query, key, value))
    parts = [_segment(*segment, *settings) for segment in zip(queries, keys, values, strict=True)]
    return torch.cat(parts, dim=1).transpose(0, 1)[None].contiguous()  # some architectures view it in another shape


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    """Return attention with soft-capped scores (Gemma 2, arXiv:2408.00118) ``[..., heads, n, d]``; sdpa does not offer it."""
    groups = query.shape[-3] // key.shape[-3]
    scores = query @ key.repeat_interleave(groups, -3).mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:  # causal; a single query sees every key
        new, seen = scores.shape[-2:]
        mask = torch.ones(new, seen, dtype=torch.bool, device=query.device).tril(seen - new)
    # Not -inf: a row of left padding sees no key, and its weights must not become NaN.
    scores = scores.float().masked_fill(~mask, torch.finfo(torch.float32).min)
    weights = scores.softmax(-1).to(query.dtype)
    return weights @ value.repeat_interleave(groups, -3)


def _varlen_cuda(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    back = -1 if window is None else window - 1
    output = varlen.varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=(back, 0), **GROUPED
    )
    assert isinstance(output, Tensor)
    return output


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast queries, keys and values to the dtype of autocast, as autocast itself does for sdpa attention: float64 stays.

    Rotary embeddings leave queries and keys in float32 where the weights are float32, and the kernel takes no float32.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind) or tensors[0].dtype == torch.float64:
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(kind)) for t in tensors)


def _index(module: nn.Module) -> int:
    index = module.layer_idx
    assert isinstance(index, int)
    return index


# State and layer index stay outside of compiled code, which would otherwise be compiled anew for every layer and state.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _continued(rows: Decoding, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *settings: Any) -> Tensor:
    return rows.attend(_index(module), query, key, value, *settings)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _collect(prefix: PrefixWriter, module: nn.Module, key: Tensor, value: Tensor) -> None:
    prefix.collect(_index(module), key, value)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    rows: Decoding | None = None,
    prefix: PrefixWriter | None = None,
    detached: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' ``AttentionInterface`` asks.

    Additional arguments of a call of the model arrive here.

    Args:
        module: The attention module of a layer; its ``layer_idx`` is the 0-based index of the layer.
        query: ``[1, heads, T, d]``; ``[R, heads, n, d]`` if rows are continued.
        key: ``[1, key heads, T, d]``; ``[R, key heads, n, d]`` if rows are continued.
        value: The shape of ``key``; heads may have another width than those of ``key`` (latent attention of DeepSeek).
        attention_mask: The mask of transformers; only used if the row is not packed.
        scaling: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Dropout probability; only used if the row is not packed.
        cu_seq_lens_q: ``[B + 1]`` int32, where each sequence of a packed row begins, and T; None if the row is not packed.
        max_length_q: Number of tokens of the longest sequence of a packed row.
        sliding_window: Width of the sliding window, in tokens; None for full attention.
        softcap: Bound of the scores; None for no bound.
        rows: The rows that are being continued; None if there are none.
        prefix: Writes the keys and values of a packed row to slots.
        detached: ``[T]`` bool, the positions through whose keys and values no gradient flows.
        **kwargs: Passed on to sdpa attention.

    Returns:
        ``[1, T, heads, d]`` (``[R, n, heads, d]``) in the dtype of ``query`` or of autocast, with the width ``d`` of ``value``, and
        None for the attention weights.

    Raises:
        RuntimeError: The pass is packed, but the architecture does not say where sequences begin, or has a mask of its own:
            sequences would see each other, or would not see what they should.
    """
    packed = rows is not None or cu_seq_lens_q is not None
    if packed and attention_mask is not None:
        raise RuntimeError("packed attention was given a mask, which it does not apply")
    if not packed and not torch.compiler.is_compiling() and _packed.get():
        raise RuntimeError(LOST)
    if rows is not None:
        return _continued(rows, module, query, key, value, scaling, sliding_window, softcap), None
    if prefix is not None:
        _collect(prefix, module, key, value)
    if detached is not None:
        key, value = (torch.where(detached[:, None], tensor.detach(), tensor) for tensor in (key, value))
    if cu_seq_lens_q is None:
        if softcap is not None:
            return _softcapped(query, key, value, attention_mask, scaling, softcap).transpose(1, 2), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    query, key, value = _autocast(query, key, value)
    same_width = query.shape[-1] == value.shape[-1]  # the kernel takes no other
    if query.is_cuda and softcap is None and same_width and query.dtype in (torch.bfloat16, torch.float16):
        assert max_length_q is not None
        flat = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
        return _varlen_cuda(*flat, cu_seq_lens_q, max_length_q, scaling, sliding_window)[None], None
    return _by_sequence(query, key, value, cu_seq_lens_q, scaling, sliding_window, softcap), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)
