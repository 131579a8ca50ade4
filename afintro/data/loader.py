"""Loaders of packed rows: each process its share, and a run that was stopped within an epoch goes on where it stopped."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from afintro.data.batch import PackedBatch
from afintro.data.rows import PackedRows


class RankRows(DistributedSampler[int]):
    """The rows of one process: every ``processes``-th of them, less those that a resumed run did before.

    A DistributedSampler also for a single process: Lightning replaces any other by one that repeats examples.

    Args:
        rows: The rows of all processes; their number is a multiple of ``processes`` for training.
        rank: Of this process, from 0.
        processes: How many there are.
    """

    def __init__(self, rows: PackedRows, rank: int = 0, processes: int = 1) -> None:
        super().__init__(rows, processes, rank, shuffle=False)
        self.rows, self.skip = rows, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of an epoch."""
        self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        # Equally many in every process, as their steps wait for each other: what is left over does the first rows again.
        places = range(self.rank + self.skip * self.num_replicas, len(self) * self.num_replicas, self.num_replicas)
        return (place % len(self.rows) for place in places)


def row_loader(rows: PackedRows, rank: int = 0, processes: int = 1) -> DataLoader[PackedBatch]:
    """A loader of one process's rows. (``batch_size`` None: a row is a batch already.)"""
    return DataLoader(rows, batch_size=None, sampler=RankRows(rows, rank, processes))


class ResumableLoader(DataLoader[PackedBatch]):
    """A loader of training rows that a run stopped within an epoch goes on with at the row where it stopped."""

    sampler: RankRows
    _done = 0
    _resume_at = 0

    def __iter__(self) -> Any:
        """Rows of the sampler's epoch, less those done before a resume."""
        self._done, self._resume_at = self._resume_at, 0
        self.sampler.skip = self._done
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches of this epoch that were handed out."""
        return {"batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """A checkpoint at the end of an epoch starts the next one at its first batch."""
        self._resume_at = state["batches"] % len(self)
