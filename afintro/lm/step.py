"""One decode step: the forward pass that reads a token of every row, changes of the residual stream in it, the choice.

On CUDA a step is recorded once a number of rows and then replayed. So all that differs between steps lies in tensors
that stay where they are: tokens, lengths, keys and values, and the vectors that are added.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afintro.lm.attention import packed_forward
from afintro.lm.decoding import Decoding
from afintro.lm.interventions import Intervention, intervene


class Plane:
    """At most one intervention a row at one layer, in the forward pass that reads one token of each row.

    Args:
        like: One of them: its layer, and the width and dtype of its vector.
        rows: Number of row slots.
        device: Where the model is.
    """

    def __init__(self, like: Intervention, rows: int, device: torch.device) -> None:
        self.layer, self.empty = like.layer, True
        dtype = torch.promote_types(like.vectors.dtype, torch.float32)
        self.vectors = torch.zeros(rows, like.vectors.shape[1], dtype=dtype, device=device)
        self.relative = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.replaces = torch.zeros(rows, 1, dtype=torch.bool, device=device)

    def fill(self, changes: dict[int, Intervention]) -> None:
        """Set the intervention of every row slot; those not named have none."""
        self.empty = not changes
        for tensor in (self.vectors, self.relative, self.replaces):
            tensor.zero_()
        if changes:
            device = self.vectors.device
            rows = torch.tensor(list(changes), device=device)
            self.vectors[rows] = torch.cat([c.vectors for c in changes.values()]).to(self.vectors)
            self.relative[rows, 0] = torch.tensor([c.relative for c in changes.values()], device=device)
            self.replaces[rows, 0] = torch.tensor([c.mode == "replace" for c in changes.values()], device=device)

    def apply(self, hidden: Tensor) -> Tensor:
        """Return a changed copy of ``hidden [R, 1, hidden]``."""
        if self.empty and not hidden.is_cuda:  # there the step may be replayed when it is not empty
            return hidden
        rows = len(hidden)
        flat, vectors = hidden[:, 0], self.vectors[:rows]
        norm = flat.norm(dim=-1, keepdim=True, dtype=vectors.dtype)
        vectors = torch.where(self.relative[:rows], vectors * norm, vectors).to(hidden.dtype)
        return torch.where(self.replaces[:rows], vectors, flat + vectors)[:, None]


def planes_of(
    changes: Iterable[Sequence[Intervention]], rows: int, device: torch.device
) -> dict[tuple[int, int], Plane]:
    """Empty planes for interventions of every row that will ever be there: the k-th of a row at a layer by ``(k, layer)``.

    Args:
        changes: The interventions of each row, in the order in which they act.
        rows: Number of row slots.
        device: Where the model is.
    """
    first: dict[tuple[int, int], Intervention] = {}
    for own in changes:
        for key, change in _numbered(own):
            first.setdefault(key, change)
    return {key: Plane(first[key], rows, device) for key in sorted(first)}


def fill(planes: dict[tuple[int, int], Plane], changes: Sequence[Sequence[Intervention]]) -> None:
    """Set the interventions of every row slot, from the first."""
    rows: dict[tuple[int, int], dict[int, Intervention]] = {key: {} for key in planes}
    for row, own in enumerate(changes):
        for key, change in _numbered(own):
            rows[key][row] = change
    for key, plane in planes.items():
        if rows[key] or not plane.empty:
            plane.fill(rows[key])


def _numbered(changes: Sequence[Intervention]) -> Iterable[tuple[tuple[int, int], Intervention]]:
    """Each with how many came before it at its layer, and the layer."""
    before: Counter[int] = Counter()
    for change in changes:
        yield (before[change.layer], change.layer), change
        before[change.layer] += 1


class Step:
    """Reads the next token of every row and chooses the one after it.

    Args:
        model: The model.
        state: Keys and values.
        planes: Interventions.
    """

    def __init__(self, model: nn.Module, state: Decoding, planes: Sequence[Plane]) -> None:
        self.model, self.state, self.planes = model, state, planes
        self.ids = torch.zeros(state.own.count, 1, dtype=torch.long, device=state.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._seen: set[int] = set()
        self._cuda: Any = None  # a stream, and the memory that graphs share

    def put(self, tokens: Sequence[int]) -> None:
        """Set the tokens to be read, from the first row slot."""
        self.ids[: len(tokens), 0] = torch.tensor(tokens, dtype=torch.long, device=self.ids.device)

    def __call__(self, rows: int) -> list[int]:
        """Go through so many row slots; the tokens chosen are read next.

        Raises:
            RuntimeError: A hook did not fire exactly once.
        """
        if self.state.device.type != "cuda":
            self._forward(rows)
        elif rows in self._graphs:
            self._graphs[rows].replay()
        else:
            # A stream and a graph belong to the device that is current when they are made, which need not be the model's:
            # under torchrun every process but the first would record nothing.
            with torch.cuda.device(self.state.device):
                self._on_stream(rows)
        tokens: list[int] = self.ids[:rows, 0].tolist()
        return tokens

    def _forward(self, rows: int) -> None:
        positions = self.state.prepare(rows)
        with intervene(self.model, self.planes) as fired, packed_forward():
            output: Any = self.model(
                input_ids=self.ids[:rows], position_ids=positions, attention_mask=None, use_cache=False, rows=self.state
            )
        if fired != [1] * len(fired):
            raise RuntimeError(f"hooks fired {fired} times in one step")
        self.ids[:rows] = output.logits.float().argmax(-1)
        self.state.advance()

    def _on_stream(self, rows: int) -> None:
        """The first step of so many rows runs as it is, and warms up; the second is recorded where that can be."""
        if self._cuda is None:
            self._cuda = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        stream, pool = self._cuda
        if rows in self._seen and self.state.capturable:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self._forward(rows)
            self._graphs[rows] = graph
            graph.replay()
            return
        self._seen.add(rows)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(rows)
        torch.cuda.current_stream().wait_stream(stream)
