"""Run one decode step: read a token of every row, change the residual stream, choose the next tokens.

On CUDA a step is recorded once for each number of rows and then replayed. Everything that differs between steps therefore
lies in tensors that stay at their addresses: tokens, lengths, keys and values, the vectors of interventions, and what is
drawn next.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afintro.lm.attention import packed_forward
from afintro.lm.decoding import Decoding
from afintro.lm.interventions import Intervention, intervene
from afintro.lm.rope import thresholds
from afintro.lm.sampling import RowDraws


class RowInterventions:
    """Hold at most one intervention a row at one layer, for the forward pass that reads one token of each row.

    Args:
        like: Any of the interventions; gives the layer, and the width and dtype of the vectors.
        rows: Number of row slots.
        device: Device of the model.
    """

    def __init__(self, like: Intervention, rows: int, device: torch.device) -> None:
        self.layer, self.empty = like.layer, True
        dtype = torch.promote_types(like.vectors.dtype, torch.float32)
        self.vectors = torch.zeros(rows, like.vectors.shape[1], dtype=dtype, device=device)
        self.relative = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.replaces = torch.zeros(rows, 1, dtype=torch.bool, device=device)

    def fill(self, changes: dict[int, Intervention]) -> None:
        """Set the interventions, by row slot; a slot that is not a key has no intervention."""
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
        if self.empty and not hidden.is_cuda:  # on CUDA the recorded step may be replayed when there are interventions
            return hidden
        rows = len(hidden)
        flat, vectors = hidden[:, 0], self.vectors[:rows]
        norm = flat.norm(dim=-1, keepdim=True, dtype=vectors.dtype)
        vectors = torch.where(self.relative[:rows], vectors * norm, vectors).to(hidden.dtype)
        return torch.where(self.replaces[:rows], vectors, flat + vectors)[:, None]


def room_for(
    changes: Iterable[Sequence[Intervention]], rows: int, device: torch.device
) -> dict[tuple[int, int], RowInterventions]:
    """Make room for the interventions of all continuations of a run.

    Args:
        changes: The interventions on one token of each continuation, in the order in which they act.
        rows: Number of row slots.
        device: Device of the model.

    Returns:
        Empty interventions by ``(k, layer)``: the room for the k-th intervention of a row at that layer.
    """
    first: dict[tuple[int, int], Intervention] = {}
    for of_row in changes:
        for key, change in _numbered(of_row):
            first.setdefault(key, change)
    return {key: RowInterventions(first[key], rows, device) for key in sorted(first)}


def set_rows(room: dict[tuple[int, int], RowInterventions], changes: Sequence[Sequence[Intervention]]) -> None:
    """Set the interventions of every row slot.

    Args:
        room: As :func:`room_for` made it.
        changes: The interventions of each row slot, from the first slot on.
    """
    by_key: dict[tuple[int, int], dict[int, Intervention]] = {key: {} for key in room}
    for row, of_row in enumerate(changes):
        for key, change in _numbered(of_row):
            by_key[key][row] = change
    for key, interventions in room.items():
        if by_key[key] or not interventions.empty:
            interventions.fill(by_key[key])


def _numbered(changes: Sequence[Intervention]) -> Iterable[tuple[tuple[int, int], Intervention]]:
    """Yield each intervention with its key: how many interventions came before it at its layer, and the layer."""
    before: Counter[int] = Counter()
    for change in changes:
        yield (before[change.layer], change.layer), change
        before[change.layer] += 1


class DecodeStep:
    """Read the next token of every row and choose the token after it.

    Args:
        model: A causal LM that uses packed attention, in eval mode.
        state: Keys and values of the rows.
        interventions: Interventions on the rows.
        draws: How the tokens of the rows are drawn; None chooses the likeliest.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Decoding,
        interventions: Sequence[RowInterventions],
        draws: RowDraws | None = None,
    ) -> None:
        self.model, self.state, self.interventions, self.draws = model, state, interventions, draws
        self.ids = torch.zeros(state.row_slots.count, 1, dtype=torch.long, device=state.device)
        # A rotation that depends on lengths is chosen by the host, which a recorded step would not do again.
        self._records = not thresholds(model)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._seen: set[int] = set()
        self._cuda: Any = None  # a stream, and the memory that graphs share

    def put(self, tokens: Sequence[int]) -> None:
        """Set the tokens that the next step reads, from the first row slot on."""
        self.ids[: len(tokens), 0] = torch.tensor(tokens, dtype=torch.long, device=self.ids.device)

    def __call__(self, rows: int) -> list[int]:
        """Go through the first ``rows`` row slots and return the tokens chosen, which the next step reads.

        Raises:
            RuntimeError: A hook did not fire exactly once.
        """
        if self.state.device.type != "cuda":
            self._forward(rows)
        elif rows in self._graphs:
            self._graphs[rows].replay()
        else:
            # A stream and a graph belong to the device that is current when they are made, which need not be the model's
            # device: under torchrun every process but the first would record nothing.
            with torch.cuda.device(self.state.device):
                self._on_stream(rows)
        tokens: list[int] = self.ids[:rows, 0].tolist()
        return tokens

    def _forward(self, rows: int) -> None:
        positions = self.state.prepare(rows)
        with intervene(self.model, self.interventions) as fired, packed_forward():
            output: Any = self.model(
                input_ids=self.ids[:rows], position_ids=positions, attention_mask=None, use_cache=False, rows=self.state
            )
        if fired != [1] * len(fired):
            raise RuntimeError(f"hooks fired {fired} times in one step")
        logits = output.logits.float()
        self.ids[:rows] = logits.argmax(-1) if self.draws is None else self.draws.next(logits[:, 0])[:, None]
        self.state.advance()

    def _on_stream(self, rows: int) -> None:
        """Run the first step of each number of rows as a warm-up; record the second if a step can be recorded."""
        if self._cuda is None:
            self._cuda = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        stream, pool = self._cuda
        if rows in self._seen and self._records and self.state.capturable:
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
