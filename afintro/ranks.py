"""Know the processes of one run: which of them this process is, and how they exchange values."""

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from afintro.errors import UserError

T = TypeVar("T")

# The first process may wait until another run has ended, or generate for hours. The timeout need not detect a process that
# dies: its connections break at once.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """The processes that work together; all of them make the same calls in the same order.

    Args:
        rank: Rank of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def gathered(self, values: Sequence[T]) -> list[T]:
        """Return, in every process, the values of all processes: those of rank 0, then those of rank 1, and so on."""
        if self.size == 1:
            return list(values)
        parts: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, list(values))
        return [value for part in parts for value in part]

    def from_first(self, make: Callable[[], T]) -> T:
        """Call ``make`` in rank 0 alone, and return its result in every process.

        Raises:
            UserError: ``make`` raised this error in rank 0; every process raises it.
        """
        if self.size == 1:
            return make()
        result: list[T | UserError | None] = [None]
        if self.rank == 0:
            try:
                result = [make()]
            except UserError as error:
                result = [error]
        dist.broadcast_object_list(result, src=0)
        if isinstance(result[0], UserError):
            raise result[0]
        return result[0]  # type: ignore[return-value]


ALONE = Ranks()


def present() -> Ranks:
    """Return the processes that a Trainer's strategy, or :func:`join`, has connected; otherwise this process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


def join() -> Ranks:
    """Connect to the other processes that ``torchrun`` started; without ``torchrun``, return this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
        # Threads of a group that the interpreter takes down itself may abort the process, whose exit code is then lost.
        atexit.register(dist.destroy_process_group)
    return present()
