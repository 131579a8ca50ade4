"""Steering of the first tokens of sequences in a packed row: one vector a sequence, after each of a range of layers."""

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
    """What is done to a span of one sequence.

    Args:
        vector: ``[hidden]`` float32 of norm 1.
        layers: First decoder layer after which it is done, and the one behind the last (0-based).
        size: Norm of what is added, at each layer and position.
        relative: ``size`` is in units of the hidden state's own norm there, which is that of its root mean square.
        mode: ``add`` to the hidden states, or ``replace`` them by the vector in that size.
    """

    vector: NDArray[np.float32] = field(compare=False, repr=False)
    layers: tuple[int, int]
    size: float
    relative: bool = False
    mode: Literal["add", "replace"] = "add"

    def __post_init__(self) -> None:
        start, stop = self.layers
        if not 0 <= start < stop:
            raise ValueError(f"layers {self.layers} are no range")

    def on(self, length: int, device: torch.device) -> list[Intervention]:
        """The same on the first ``length`` tokens of a prompt, written out position by position, for generation."""
        vectors = (self.size * torch.from_numpy(self.vector)).to(device).expand(length, -1)
        positions = torch.arange(length, device=device)
        return [Intervention(layer, self.mode, positions, vectors, self.relative) for layer in range(*self.layers)]


@dataclass(frozen=True)
class Spans:
    """Several spans' steering after one decoder layer, as one change. A vector is held once, not once a position.

    Args:
        layer: 0-based decoder layer.
        mode: See :class:`SpanSteering`.
        positions: ``[n]`` int64, flat positions of all tokens of all spans.
        rows: ``[n]`` int64, the vector of each position.
        vectors: ``[S, hidden]`` float32, in their size.
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
"""A change of the residual stream at positions that it names."""


def spans(
    steerings: Sequence[SpanSteering | None], starts: Sequence[int], lengths: Sequence[int], device: torch.device
) -> list[Spans]:
    """Steering of sequences that lie in one row, as one change a layer (two, where modes or units differ).

    Args:
        steerings: That of each sequence; None for one that is left alone.
        starts: Where each begins in the row.
        lengths: How many of its tokens are steered, from its first.
        device: Where the row is.
    """
    like: dict[tuple[int, Any, bool], list[int]] = {}
    for index, steering in enumerate(steerings):
        if steering is not None and lengths[index]:
            for layer in range(*steering.layers):
                like.setdefault((layer, steering.mode, steering.relative), []).append(index)
    found = []
    for (layer, mode, relative), chosen in sorted(like.items()):
        positions = [torch.arange(starts[i], starts[i] + lengths[i]) for i in chosen]
        rows = torch.arange(len(chosen)).repeat_interleave(torch.tensor([lengths[i] for i in chosen]))
        given = [steerings[i] for i in chosen]
        vectors = torch.stack([s.size * torch.from_numpy(s.vector) for s in given if s is not None])
        found.append(Spans(layer, mode, torch.cat(positions).to(device), rows.to(device), vectors.to(device), relative))
    return found
