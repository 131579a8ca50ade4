"""Steer the first tokens of sequences in a packed row: one vector a sequence, after each of a range of layers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afintro.lm.interventions import Intervention


@dataclass(frozen=True)
class SpanSteering:
    """How a span of one sequence is steered.

    Args:
        vector: ``[hidden]`` float32 of norm 1.
        layers: First decoder layer after which the span is steered, and the layer behind the last (0-based).
        size: Norm of the added vector, at each layer and position.
        relative: Whether ``size`` is in units of the hidden state's own norm at each position.
        mode: ``add`` adds the vector to the hidden states, ``replace`` puts the vector in their place, both in ``size``.
    """

    vector: NDArray[np.float32] = field(compare=False, repr=False)
    layers: tuple[int, int]
    size: float
    relative: bool = False
    mode: Literal["add", "replace"] = "add"

    def __post_init__(self) -> None:
        start, stop = self.layers
        if not 0 <= start < stop:
            raise ValueError(f"layers {self.layers} are not a range")

    def on(self, length: int, device: torch.device) -> list[Intervention]:
        """Return the interventions on the first ``length`` tokens of a prompt, one vector a position, on ``device``."""
        vectors = (self.size * torch.from_numpy(self.vector)).to(device).expand(length, -1)
        positions = torch.arange(length, device=device)
        return [Intervention(layer, self.mode, positions, vectors, self.relative) for layer in range(*self.layers)]


@dataclass(frozen=True)
class Spans:
    """The steering of several spans after one decoder layer, as one change that holds each vector once.

    Args:
        layer: 0-based decoder layer.
        mode: See :class:`SpanSteering`.
        positions: ``[n]`` int64, flat positions of all tokens of all spans.
        rows: ``[n]`` int64, the index in ``vectors`` of each position's vector.
        vectors: ``[S, hidden]`` float32, one vector a span, of the norm ``size``.
        relative: See :class:`SpanSteering`.
    """

    layer: int
    mode: Literal["add", "replace"]
    positions: Tensor
    rows: Tensor
    vectors: Tensor
    relative: bool

    def written_out(self) -> Intervention:
        """Return the same change with one vector a position."""
        return Intervention(self.layer, self.mode, self.positions, self.vectors[self.rows], self.relative)

    def apply(self, hidden: Tensor) -> Tensor:
        """Return a changed copy of ``hidden [rows, length, hidden]``."""
        return self.written_out().apply(hidden)


Located = Intervention | Spans
"""A change of the residual stream that names its positions."""


def spans(
    steerings: Sequence[SpanSteering | None], starts: Sequence[int], lengths: Sequence[int], device: torch.device
) -> list[Spans]:
    """Merge the steering of sequences that lie in one row into one change a layer, mode and unit.

    Args:
        steerings: The steering of each sequence; None for a sequence that is left alone.
        starts: Position in the row of each sequence's first token.
        lengths: How many tokens of each sequence are steered, from its first token on.
        device: Device of the row.

    Returns:
        The changes, by ascending layer.
    """
    alike: dict[tuple[int, Any, bool], list[int]] = {}
    for index, steering in enumerate(steerings):
        if steering is not None and lengths[index]:
            for layer in range(*steering.layers):
                alike.setdefault((layer, steering.mode, steering.relative), []).append(index)
    changes = []
    for (layer, mode, relative), chosen in sorted(alike.items()):
        positions = [torch.arange(starts[i], starts[i] + lengths[i]) for i in chosen]
        rows = torch.arange(len(chosen)).repeat_interleave(torch.tensor([lengths[i] for i in chosen]))
        alike_steerings = [steerings[i] for i in chosen]
        vectors = torch.stack([s.size * torch.from_numpy(s.vector) for s in alike_steerings if s is not None])
        places = torch.cat(positions).to(device)
        changes.append(Spans(layer, mode, places, rows.to(device), vectors.to(device), relative))
    return changes
