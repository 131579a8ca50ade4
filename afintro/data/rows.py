"""Which examples stand in which packed row: so many a row, or as many as a budget of tokens takes."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from afintro.data.batch import Example, PackedBatch, collate

Indices = NDArray[np.int32]

OPEN_ROWS = 64  # a row is filled from about so many rows' worth of examples: more fills little better, fewer worse
ATTEMPTS = 8
CHUNK = 65536  # millions of ints as Python objects are costly at once


@dataclass(frozen=True)
class Rows:
    """Examples by row.

    Args:
        order: ``[n]`` indices of examples, row after row.
        bounds: ``[R + 1]`` where each row begins in ``order``, and n.
    """

    order: Indices
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Indices:
        return self.order[self.bounds[row] : self.bounds[row + 1]]

    def sums(self, values: NDArray[np.int32]) -> NDArray[np.int64]:
        """Sum over each row's examples of ``values [number of examples]``: ``[R]``."""
        return np.add.reduceat(values[self.order].astype(np.int64), self.bounds[:-1])

    def arranged(self, rows: NDArray[np.int64]) -> "Rows":
        """The same rows in another order."""
        sizes = np.diff(self.bounds)[rows]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        return Rows(self.order[np.repeat(self.bounds[rows] - bounds[:-1], sizes) + np.arange(bounds[-1])], bounds)

    def split(self, count: int) -> "Rows":
        """At least ``count`` rows, or one an example: those of most examples are halved, ever again if need be."""
        bounds = self.bounds
        while len(bounds) - 1 < min(count, len(self.order)):
            sizes = np.diff(bounds)
            most = np.argsort(-sizes, kind="stable")[: count - len(sizes)]
            most = most[sizes[most] > 1]
            bounds = np.sort(np.concatenate([bounds, bounds[most] + sizes[most] // 2]))
        return Rows(self.order, bounds)


def sizes_of(examples: Sequence[Example]) -> NDArray[np.int32]:
    """Tokens of each example's prompt and answer ``[n, 2]``; a sequence that knows them as ``sizes`` is not gone through."""
    known: NDArray[np.int32] | None = getattr(examples, "sizes", None)
    if known is not None:
        return known
    flat = (len(ids) for example in examples for ids in (example.prompt_ids, example.answer_ids))
    return np.fromiter(flat, np.int32, 2 * len(examples)).reshape(-1, 2)


def by_number(order: Indices, count: int, processes: int = 1) -> Rows:
    """Rows of ``count`` examples each, in the order given; those of the last step may be shorter.

    Processes take a step together, a row each. What is left for the last step is spread over all of them, so that every
    step has the examples that one process would take in a row of ``count * processes``.
    """
    last = max(0, len(order) - 1) // (count * processes) * (count * processes)
    spread = np.linspace(last, len(order), processes + 1).astype(np.int64)
    return Rows(order, np.unique(np.concatenate([np.arange(0, last, count), spread])))


def in_turn(order: Indices, lengths: NDArray[np.int32], budget: int) -> Rows:
    """Rows of consecutive examples, each of as many as ``budget`` tokens take (a longer example is alone)."""
    bounds, used = [0], 0
    for place, length in enumerate(_chunked(lengths[order])):
        if used + length > budget and place > bounds[-1]:
            bounds.append(place)
            used = 0
        used += length
    return Rows(order, np.array([*bounds, len(order)]))


def best_fit(order: Indices, lengths: NDArray[np.int32], budget: int) -> Rows:
    """Rows of at most ``budget`` tokens: each example goes into the fullest open row that has room for it.

    At most :data:`OPEN_ROWS` are open at once, so a row's examples are near one another in ``order`` and a random order
    gives random rows.

    Args:
        order: ``[n]`` indices of examples.
        lengths: Tokens of each example; none above ``budget``.
        budget: In tokens.
    """
    room: list[int] = []  # of the open rows, ascending
    rows: list[list[int]] = []  # what stands in each
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
    return Rows(np.array(placed, dtype=np.int32), np.array(bounds))


def _chunked(values: NDArray[np.int32]) -> Iterator[int]:
    return (value for start in range(0, len(values), CHUNK) for value in values[start : start + CHUNK].tolist())


class PackedRows(Dataset[PackedBatch]):
    """Rows as batches, made when they are asked for."""

    def __init__(self, examples: Sequence[Example], rows: Rows) -> None:
        self.examples, self.rows = examples, rows
        self.denominator: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> PackedBatch:
        return self.batch(self.rows[row])

    def batch(self, indices: Iterable[int]) -> PackedBatch:
        """Some examples as one row."""
        return collate([self.examples[int(index)] for index in indices], self.denominator)

    def set_epoch(self, epoch: int) -> None:
        """The same rows in every epoch."""


class EpochRows(PackedRows):
    """Shuffled rows of each epoch, which depend on seed and epoch alone, so that a resumed run sees those of the whole one.

    With a budget the heaviest rows of the first epoch (most tokens, then most answer tokens) come first, one a process, so
    that memory runs out in step one or never. Every epoch has as many rows as the first, as Lightning asks once: an epoch
    whose examples happen to take more is shuffled again, and at last takes the first epoch's rows in another order; one
    whose examples take fewer has some rows halved.

    Args:
        examples: All of them are in every epoch once.
        batch_size: Examples a row, where there is no budget.
        max_tokens: Budget of a row in tokens; no example is longer.
        seed: Of the order.
        processes: The number of rows is a multiple of it, so that all processes get equally many.

    Attributes:
        denominator: Of the loss, the same for all rows, so that an example weighs the same in whichever row: ``batch_size``,
            or the mean number of examples a row.
    """

    def __init__(
        self, examples: Sequence[Example], batch_size: int, max_tokens: int | None, seed: int, processes: int = 1
    ) -> None:
        self._batch_size, self._max_tokens, self._seed, self._processes = batch_size, max_tokens, seed, processes
        self.examples, self._epoch = examples, 0
        first = self._packed(torch.Generator().manual_seed(self._seed_of(0)))
        # From shuffle to shuffle the number of rows that a budget makes varies by less than one in 500.
        count = len(first) + (0 if max_tokens is None else len(first) // 500)
        first = first.split(-(-count // processes) * processes)
        super().__init__(examples, first if max_tokens is None else first.arranged(self._heaviest_first(first)))
        self._first = self.rows
        self.denominator = batch_size if max_tokens is None else len(examples) / len(first)

    @cached_property
    def _sizes(self) -> NDArray[np.int32]:
        return sizes_of(self.examples)

    @cached_property
    def _lengths(self) -> NDArray[np.int32]:
        return self._sizes.sum(1, dtype=np.int32)

    def heaviest(self, rank: int = 0) -> PackedBatch:
        """With a budget: what one process takes its first step on."""
        return self.batch(self._first[rank])

    def _seed_of(self, epoch: int) -> int:
        return self._seed * 1_000_003 + epoch

    def _heaviest_first(self, rows: Rows) -> NDArray[np.int64]:
        weight = np.lexsort((-rows.sums(self._sizes[:, 1]), -rows.sums(self._lengths)))
        front = weight[: self._processes]
        return np.concatenate([front, np.setdiff1d(np.arange(len(rows)), front)])

    def _packed(self, generator: torch.Generator) -> Rows:
        """The examples in the generator's next order, as rows in its next order."""
        order = torch.randperm(len(self.examples), generator=generator, dtype=torch.int32).numpy()
        if self._max_tokens is None:
            return by_number(order, self._batch_size, self._processes)
        return _shuffled(best_fit(order, self._lengths, self._max_tokens), generator)

    def set_epoch(self, epoch: int) -> None:
        """Pack the examples for an epoch."""
        if epoch == self._epoch:
            return
        self._epoch, count = epoch, len(self._first)
        if epoch == 0:
            self.rows = self._first
            return
        generator = torch.Generator().manual_seed(self._seed_of(epoch))
        found = (self._packed(generator) for _ in range(ATTEMPTS))
        rows = next((rows for rows in found if len(rows) <= count), None)
        self.rows = _shuffled(self._first, generator) if rows is None else rows.split(count)


def _shuffled(rows: Rows, generator: torch.Generator) -> Rows:
    return rows.arranged(torch.randperm(len(rows), generator=generator).numpy())
