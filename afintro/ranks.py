"""The processes of one run: which of them this one is, and what they tell each other."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from afintro.errors import UserError

T = TypeVar("T")

# The first process may wait for another run's end, or generate for hours. One that dies is noticed at once all the same:
# its connections break.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """Processes that do one thing together, each of them the same calls in the same order.

    Args:
        rank: Of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def gathered(self, values: Sequence[T]) -> list[T]:
        """What all processes found, in every one of them: that of rank 0, then that of rank 1, and so on."""
        if self.size == 1:
            return list(values)
        parts: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, list(values))
        return [value for part in parts for value in part]

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives in rank 0, which alone calls it, in every process.

        Raises:
            UserError: ``make`` raised it; in every process.
        """
        if self.size == 1:
            return make()
        found: list[T | UserError | None] = [None]
        if self.rank == 0:
            try:
                found = [make()]
            except UserError as error:
                found = [error]
        dist.broadcast_object_list(found, src=0)
        if isinstance(found[0], UserError):
            raise found[0]
        return found[0]  # type: ignore[return-value]


ALONE = Ranks()


def present() -> Ranks:
    """The processes that a Trainer's strategy, or :func:`join`, has brought together; otherwise this one alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


def join() -> Ranks:
    """Meet the other processes that ``torchrun`` started; this one alone where it was started otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return present()
