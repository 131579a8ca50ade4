"""Rotate queries and keys of each sequence by the sequence's own length, where an architecture goes by the longest of the pass.

LongRoPE (Ding et al. 2024, arXiv:2402.13753; Phi-3) has two sets of frequencies, one for sequences up to the original context
and one for longer sequences. Dynamic NTK scaling has frequencies of their own for every length beyond the original context.
transformers chooses them once a pass, by the largest position. A pass of this package holds many sequences, so the choice is
made for each of them here: a sequence gets the frequencies that it gets in a pass of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def rotate_each_sequence(model: nn.Module) -> None:
    """Let the rotary embeddings of ``model`` choose frequencies for each sequence; most models are left unchanged."""
    for module in model.modules():
        if any(_thresholds(module)):
            module.forward = MethodType(_rotate, module)


@dataclass(frozen=True)
class Threshold:
    """A length beyond which sequences are rotated by other frequencies.

    Args:
        length: Largest number of tokens with the original frequencies.
        two_sets: Whether all longer sequences share one set of frequencies; otherwise each length has its own.
    """

    length: int
    two_sets: bool

    def between(self, first: int, last: int) -> bool:
        """Return whether a sequence that grows from ``first`` to ``last`` tokens changes its frequencies on the way."""
        return first < last and last > self.length and (not self.two_sets or first <= self.length)


def thresholds(model: nn.Module) -> list[Threshold]:
    """Return the thresholds of all rotary embeddings of a model; most models have none."""
    return [threshold for module in model.modules() for threshold in _thresholds(module)]


def sequence_lengths(position_ids: Tensor) -> Tensor:
    """Return for every token how many tokens its sequence has.

    Args:
        position_ids: ``[rows, n]`` int64; a sequence begins at the beginning of a row and at every position 0.

    Returns:
        ``[rows, n]`` int64, the largest position of the token's sequence, and 1.
    """
    begins = position_ids == 0
    begins[:, 0] = True
    sequence = begins.flatten().cumsum(0) - 1
    largest = torch.zeros_like(sequence).scatter_reduce(0, sequence, position_ids.flatten(), "amax")
    return largest[sequence].view_as(position_ids) + 1


def _thresholds(module: nn.Module, layer_type: str | None = None) -> Iterator[Threshold]:
    kinds: Any = getattr(module, "rope_type", None)
    each = kinds.items() if isinstance(kinds, dict) else [(None, kinds)]
    for layers, kind in each:
        if not isinstance(kind, str) or (layer_type is not None and layers != layer_type):
            continue
        config: Any = module.config
        if kind == "longrope":
            settings = config.rope_parameters if layers is None else config.rope_parameters[layers]
            yield Threshold(int(settings["original_max_position_embeddings"]), two_sets=True)
        elif "dynamic" in kind:
            yield Threshold(int(config.max_position_embeddings), two_sets=False)


def _rotate(module: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
    """Return what the rotary embedding returns, for each sequence as in a pass of its own."""
    kwargs = {} if layer_type is None else {"layer_type": layer_type}
    kinds = list(_thresholds(module, layer_type))
    rows = position_ids.reshape(-1, position_ids.shape[-1])
    if not kinds:
        return type(module).forward(module, x, position_ids, **kwargs)
    threshold = kinds[0].length
    lengths = sequence_lengths(rows).view_as(position_ids).clamp(min=threshold)
    if kinds[0].two_sets:
        longer = lengths > threshold
        short = type(module).forward(module, x, position_ids.masked_fill(longer, 0), **kwargs)
        long = type(module).forward(module, x, position_ids.masked_fill(~longer, threshold), **kwargs)
        return _chosen(longer, long, short)
    output: Any = None
    for length in lengths.unique().tolist():
        # Frequencies of longer sequences would otherwise stay for shorter sequences that are beyond the original context.
        _forget(module, layer_type)
        its = lengths == length
        rotated = type(module).forward(module, x, position_ids.masked_fill(~its, 0), **kwargs)
        output = rotated if output is None else _chosen(its, rotated, output)
    return output


def _forget(module: Any, layer_type: str | None) -> None:
    prefix = "" if layer_type is None else f"{layer_type}_"
    original = getattr(module, f"{prefix}original_inv_freq")
    frequencies = getattr(module, f"{prefix}inv_freq")
    module.register_buffer(f"{prefix}inv_freq", original.to(frequencies.device), persistent=False)
    setattr(
        module,
        "max_seq_len_cached" if layer_type is None else f"{prefix}max_seq_len_cached",
        module.original_max_seq_len,
    )


def _chosen(where: Tensor, yes: Any, no: Any) -> Any:
    if isinstance(yes, tuple):
        return tuple(_chosen(where, one, other) for one, other in zip(yes, no, strict=True))
    return torch.where(where[..., None], yes, no)
