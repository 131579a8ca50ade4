"""Examples that every system of a benchmark gets: lengths as people's records have them, tokens worth learning."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from math import log

from afintro.data.batch import Example, PackedBatch, collate
from benchmarks.shapes import Lengths

SPREAD = 0.35
RESERVED = 10
"""Ids below this one are never drawn: configurations give them to padding, begin and end."""


def stream(lengths: Lengths, vocabulary: int, seed: int) -> Iterator[Example]:
    """Endless examples, the same for a seed whoever reads them.

    Tokens are drawn with a skew (density falling as id^(-2/3)): uniform ones would leave nothing to learn, and equal
    losses of two systems would say nothing of their gradients.
    """
    rng = random.Random(seed)
    for index in count():
        prompt = int(min(lengths.longest, max(lengths.shortest, rng.lognormvariate(log(lengths.prompt), SPREAD))))
        answer = rng.randint(*lengths.answer)
        ids = [RESERVED + int((vocabulary - RESERVED) * rng.random() ** 3) for _ in range(prompt + answer)]
        # Weighted by its answer tokens, the mean over examples is the mean over tokens, which is what the peers minimise.
        yield Example(str(index), "", "", "", "", tuple(ids[:prompt]), tuple(ids[prompt:]), weight=answer)


def take(examples: Iterator[Example], number: int) -> list[Example]:
    """The next examples of a stream."""
    return list(islice(examples, number))


def at_least(examples: Iterator[Example], tokens: int) -> list[Example]:
    """The next examples of a stream that together have so many tokens."""
    drawn: list[Example] = []
    total = 0
    while total < tokens:
        drawn.append(next(examples))
        total += len(drawn[-1])
    return drawn


def grouped(examples: Iterable[Example], budget: int, rest: bool = False) -> Iterator[list[Example]]:
    """Groups of examples in order, each as many as fit into ``budget`` tokens; with ``rest`` also the unfinished last."""
    group: list[Example] = []
    for example in examples:
        if group and sum(map(len, group)) + len(example) > budget:
            yield group
            group = []
        group.append(example)
    if rest and group:
        yield group


def token_mean(group: Sequence[Example]) -> PackedBatch:
    """A packed batch whose loss is the mean over answer tokens, as the peers' is."""
    return collate(group, denominator=sum(len(example.answer_ids) for example in group))


def with_answer(example: Example, answer: Sequence[int]) -> Example:
    """The same prompt with another expected answer."""
    return replace(example, answer_ids=tuple(answer))
