"""Lay out examples in packed rows (by number, or by a budget of tokens), and load each process's rows, also after a resume."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from afintro.data.batch import Example, PackedBatch, collate, sizes_of

Indices = NDArray[np.int32]

OPEN_ROWS = 64  # rows that are being filled at once: more fill little better, fewer fill worse
ATTEMPTS = 8
CHUNK = 65536  # millions of numbers as Python objects at once would take much memory


@dataclass(frozen=True)
class RowLayout:
    """Which examples each row holds.

    Args:
        order: ``[n]`` int32, indices of examples, row after row.
        bounds: ``[R + 1]`` int64, where each row begins in ``order``, and n.
    """

    order: Indices
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Indices:
        return self.order[self.bounds[row] : self.bounds[row + 1]]

    def sums(self, values: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the sum over each row's examples of ``values [number of examples]``: ``[R]``."""
        return np.add.reduceat(values[self.order].astype(np.int64), self.bounds[:-1])

    def arranged(self, rows: NDArray[np.int64]) -> "RowLayout":
        """Return the same rows in the order ``rows [R]``."""
        sizes = np.diff(self.bounds)[rows]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        return RowLayout(self.order[np.repeat(self.bounds[rows] - bounds[:-1], sizes) + np.arange(bounds[-1])], bounds)

    def split(self, count: int) -> "RowLayout":
        """Return a layout of at least ``count`` rows (or of one example a row), by halving the rows of most examples."""
        bounds = self.bounds
        while len(bounds) - 1 < min(count, len(self.order)):
            sizes = np.diff(bounds)
            most = np.argsort(-sizes, kind="stable")[: count - len(sizes)]
            most = most[sizes[most] > 1]
            bounds = np.sort(np.concatenate([bounds, bounds[most] + sizes[most] // 2]))
        return RowLayout(self.order, bounds)


def by_number(order: Indices, count: int, processes: int = 1) -> RowLayout:
    """Lay out rows of ``count`` examples each, in the order given; the rows of the last step may be shorter.

    The processes take a step together, one row each. The examples left for the last step are spread over all processes, so
    that every step has the examples that one process would take in a row of ``count * processes``.

    Args:
        order: ``[n]`` indices of examples.
        count: Number of examples in a row.
        processes: Number of processes.
    """
    last = max(0, len(order) - 1) // (count * processes) * (count * processes)
    spread = np.linspace(last, len(order), processes + 1).astype(np.int64)
    return RowLayout(order, np.unique(np.concatenate([np.arange(0, last, count), spread])))


def in_turn(order: Indices, lengths: NDArray[np.int32], budget: int) -> RowLayout:
    """Lay out rows of consecutive examples, each of as many examples as the budget allows.

    Args:
        order: ``[n]`` indices of examples.
        lengths: Number of tokens of each example; an example longer than the budget is alone in its row.
        budget: Largest number of tokens in a row.
    """
    bounds, used = [0], 0
    for place, length in enumerate(_chunked(lengths[order])):
        if used + length > budget and place > bounds[-1]:
            bounds.append(place)
            used = 0
        used += length
    return RowLayout(order, np.array([*bounds, len(order)]))


def best_fit(order: Indices, lengths: NDArray[np.int32], budget: int) -> RowLayout:
    """Put each example into the fullest open row that has room for it.

    At most :data:`OPEN_ROWS` rows are open at once, so the examples of a row are near one another in ``order``, and a random
    order gives random rows.

    Args:
        order: ``[n]`` indices of examples.
        lengths: Number of tokens of each example; none is larger than the budget.
        budget: Largest number of tokens in a row.
    """
    room: list[int] = []  # tokens left in each open row, ascending
    rows: list[list[int]] = []  # the examples in each open row
    placed, bounds = array("i"), [0]

    def close(row: list[int]) -> None:
        placed.extend(row)
        bounds.append(len(placed))

    for index, length in zip(_chunked(order), _chunked(lengths[order]), strict=True):
        place = bisect_left(room, length)
        if place < len(room):
            left, row = room.pop(place) - length, rows.pop(place)
        else:
            left, row = budget - length, []
            if len(room) == OPEN_ROWS:
                room.pop(0)
                close(rows.pop(0))
        row.append(index)
        place = bisect_left(room, left)
        room.insert(place, left)
        rows.insert(place, row)
    for row in rows:
        close(row)
    return RowLayout(np.array(placed, dtype=np.int32), np.array(bounds))


def _chunked(values: NDArray[np.int32]) -> Iterator[int]:
    return (value for start in range(0, len(values), CHUNK) for value in values[start : start + CHUNK].tolist())


class PackedRows(Dataset[PackedBatch]):
    """Rows of examples, each packed into a batch when it is asked for.

    Args:
        examples: The examples.
        layout: Which examples each row holds.
    """

    def __init__(self, examples: Sequence[Example], layout: RowLayout) -> None:
        self.examples, self.layout = examples, layout
        self.denominator: float | None = None

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, row: int) -> PackedBatch:
        return self.batch(self.layout[row])

    def batch(self, indices: Iterable[int]) -> PackedBatch:
        """Pack the examples of the given indices into one row."""
        return collate([self.examples[int(index)] for index in indices], self.denominator)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the rows are the same in every epoch."""


class EpochRows(PackedRows):
    """Shuffled rows of each epoch, which depend on seed and epoch alone, so that a resumed run sees the whole run's rows.

    With a budget the heaviest rows of the first epoch (most tokens, then most answer tokens) come first, one a process, so
    that a run that does not fit into memory fails in its first step. Lightning asks for the number of rows once, so every
    epoch has as many as the first. An epoch that takes more rows is shuffled again, and after :data:`ATTEMPTS` attempts takes
    the first epoch's rows in another order. In an epoch that takes fewer, some rows are halved.

    Args:
        examples: Every epoch holds each of them once.
        batch_size: Number of examples in a row, if there is no budget.
        max_tokens: Largest number of tokens in a row, at least the length of the longest example; None for no budget.
        seed: Seed of the order.
        processes: Number of processes. The number of rows is a multiple of it, so that all processes get equally many.

    Attributes:
        denominator: Denominator of the loss, the same for all rows, so that an example weighs the same in every row:
            ``batch_size``, or the mean number of examples in a row.
    """

    def __init__(
        self, examples: Sequence[Example], batch_size: int, max_tokens: int | None, seed: int, processes: int = 1
    ) -> None:
        self._batch_size, self._max_tokens, self._seed, self._processes = batch_size, max_tokens, seed, processes
        self.examples, self._epoch = examples, 0
        first = self._packed(torch.Generator().manual_seed(self._seed_of(0)))
        # From shuffle to shuffle the number of rows of a budget varies by less than one in 500.
        count = len(first) + (0 if max_tokens is None else len(first) // 500)
        first = first.split(-(-count // processes) * processes)
        super().__init__(examples, first if max_tokens is None else first.arranged(self._heaviest_first(first)))
        self._first = self.layout
        self.denominator = batch_size if max_tokens is None else len(examples) / len(first)

    @cached_property
    def _sizes(self) -> NDArray[np.int32]:
        return sizes_of(self.examples)

    @cached_property
    def _lengths(self) -> NDArray[np.int32]:
        return self._sizes.sum(1, dtype=np.int32)

    def heaviest(self, rank: int = 0) -> PackedBatch:
        """Return the row of a process's first step, which with a budget is its heaviest row."""
        return self.batch(self._first[rank])

    def _seed_of(self, epoch: int) -> int:
        return self._seed * 1_000_003 + epoch

    def _heaviest_first(self, layout: RowLayout) -> NDArray[np.int64]:
        weight = np.lexsort((-layout.sums(self._sizes[:, 1]), -layout.sums(self._lengths)))
        front = weight[: self._processes]
        return np.concatenate([front, np.setdiff1d(np.arange(len(layout)), front)])

    def _packed(self, generator: torch.Generator) -> RowLayout:
        """Lay out the examples in the generator's next order, and with a budget the rows in the order after that."""
        order = torch.randperm(len(self.examples), generator=generator, dtype=torch.int32).numpy()
        if self._max_tokens is None:
            return by_number(order, self._batch_size, self._processes)
        return _shuffled(best_fit(order, self._lengths, self._max_tokens), generator)

    def set_epoch(self, epoch: int) -> None:
        """Lay out the rows of an epoch."""
        if epoch == self._epoch:
            return
        self._epoch, self.layout, count = epoch, self._first, len(self._first)
        if epoch == 0:
            return
        generator = torch.Generator().manual_seed(self._seed_of(epoch))
        attempts = (self._packed(generator) for _ in range(ATTEMPTS))
        layout = next((layout for layout in attempts if len(layout) <= count), None)
        self.layout = _shuffled(self._first, generator) if layout is None else layout.split(count)


def _shuffled(layout: RowLayout, generator: torch.Generator) -> RowLayout:
    return layout.arranged(torch.randperm(len(layout), generator=generator).numpy())


class RankRows(DistributedSampler[int]):
    """The rows of one process: every ``processes``-th row, without the rows that a resumed run has done before.

    It is a DistributedSampler also for a single process: Lightning replaces any other sampler by one that repeats examples.

    Args:
        rows: The rows of all processes; for training their number is a multiple of ``processes``.
        rank: Rank of the process, from 0.
        processes: Number of processes.
    """

    def __init__(self, rows: PackedRows, rank: int = 0, processes: int = 1) -> None:
        super().__init__(rows, processes, rank, shuffle=False)
        self.rows, self.skip = rows, 0

    def set_epoch(self, epoch: int) -> None:
        """Lay out the rows of an epoch; Lightning calls this when an epoch begins."""
        self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        # Steps of processes wait for each other, so all get equally many rows: surplus places repeat the first rows.
        places = range(self.rank + self.skip * self.num_replicas, len(self) * self.num_replicas, self.num_replicas)
        return (place % len(self.rows) for place in places)


def row_loader(rows: PackedRows, rank: int = 0, processes: int = 1) -> DataLoader[PackedBatch]:
    """Return a loader of one process's rows.

    Args:
        rows: The rows of all processes.
        rank: Rank of the process, from 0.
        processes: Number of processes.
    """
    return DataLoader(rows, batch_size=None, sampler=RankRows(rows, rank, processes))  # a row is a batch already


class ResumableLoader(DataLoader[PackedBatch]):
    """A loader of training rows; a run that was stopped within an epoch continues with the next row."""

    sampler: RankRows
    _done = 0
    _resume_at = 0

    def __iter__(self) -> Any:
        """Yield the rows of the epoch, without the rows done before a resume."""
        self._done, self._resume_at = self._resume_at, 0
        self.sampler.skip = self._done
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of this epoch were handed out."""
        return {"batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken; a state from the end of an epoch begins the next epoch."""
        self._resume_at = state["batches"] % len(self)
