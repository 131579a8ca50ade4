"""Examples of several tasks as one sequence, in which every example is made when it is asked for."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.batch import Example, sizes_of


def joined_uid(name: str, uid: str) -> str:
    """Return what a task's item is called among the items of all tasks."""
    return f"{name}/{uid}"


@dataclass(frozen=True)
class Part:
    """The examples of one task.

    Args:
        examples: The examples.
        copies: How often each stands in the sequence.
        factor: What the weight of each in the loss is multiplied by.
    """

    examples: Sequence[Example]
    copies: int = 1
    factor: float = 1.0

    def __len__(self) -> int:
        return self.copies * len(self.examples)


class JoinedExamples(Sequence[Example]):
    """Examples of all tasks, one task after the other; an example is called by its task's name and its own uid.

    Args:
        parts: The examples of each task, by name.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = dict(parts)
        self._names = list(parts)
        self._starts = [0, *accumulate(len(part) for part in parts.values())]

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """Tokens of prompt and answer ``[n, 2]``, see :func:`afintro.data.batch.sizes_of`."""
        return np.concatenate([np.tile(sizes_of(part.examples), (part.copies, 1)) for part in self.parts.values()])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        at = bisect_right(self._starts, index) - 1
        name = self._names[at]
        part = self.parts[name]
        example = part.examples[(index - self._starts[at]) % len(part.examples)]
        return replace(example, uid=joined_uid(name, example.uid), weight=example.weight * part.factor)

    def places_of(self, places: Sequence[int]) -> dict[str, list[int]]:
        """Return the places in each task's own examples of some places of the sequence, which holds every example once."""
        found: dict[str, list[int]] = {name: [] for name in self._names}
        for place in places:
            at = bisect_right(self._starts, place) - 1
            found[self._names[at]].append(place - self._starts[at])
        return found


def mixed(examples: Mapping[str, Sequence[Example]], weights: Mapping[str, float]) -> JoinedExamples:
    """Return the training examples of all tasks, each task with its share of the loss.

    The task that has most examples for its weight stands in the sequence once. The examples of the others are repeated, by the
    whole number that comes nearest to their share, and what is missing to the share, or too much, is made up by the weight of
    their examples in the loss. The mean of these factors over all examples is 1.

    Args:
        examples: The training examples of each task, at least one.
        weights: The weight of each task, above 0; the share of a task is its weight divided by the sum of all.
    """
    most = max(len(own) / weights[name] for name, own in examples.items())
    copies = {name: max(1, round(weights[name] * most / len(own))) for name, own in examples.items()}
    total, sum_of_weights = sum(copies[name] * len(own) for name, own in examples.items()), sum(weights.values())
    return JoinedExamples(
        {
            name: Part(own, copies[name], weights[name] / sum_of_weights * total / (copies[name] * len(own)))
            for name, own in examples.items()
        }
    )
