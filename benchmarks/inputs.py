"""Examples that every system of a benchmark gets: lengths as in real records, and tokens worth learning."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from math import log

from afintro.data.batch import Example, PackedBatch, collate
from benchmarks.shapes import Lengths

SPREAD = 0.35
RESERVED = 10
"""Ids below this number are never drawn, because configurations give them to padding, begin and end."""


def stream(lengths: Lengths, vocabulary: int, seed: int) -> Iterator[Example]:
    """Yield endless examples, which depend on the seed alone.

    Tokens are drawn with a skew (density falling as id^(-2/3)): uniform tokens would leave nothing to learn, and equal
    losses of two systems would not show that their gradients agree.

    Args:
        lengths: Lengths of prompts and answers in tokens.
        vocabulary: Number of token ids.
        seed: Seed of the examples.
    """
    rng = random.Random(seed)
    for index in count():
        prompt = int(min(lengths.longest, max(lengths.shortest, rng.lognormvariate(log(lengths.prompt), SPREAD))))
        answer = rng.randint(*lengths.answer)
        ids = [RESERVED + int((vocabulary - RESERVED) * rng.random() ** 3) for _ in range(prompt + answer)]
        # Weighted by answer tokens, the mean over examples is the mean over tokens, which the peers minimize.
        yield Example(str(index), "", "", "", "", tuple(ids[:prompt]), tuple(ids[prompt:]), weight=answer)


def take(examples: Iterator[Example], number: int) -> list[Example]:
    """Take the next examples of a stream."""
    return list(islice(examples, number))


def at_least(examples: Iterator[Example], tokens: int) -> list[Example]:
    """Take examples of a stream until they have the given number of tokens together."""
    drawn: list[Example] = []
    total = 0
    while total < tokens:
        drawn.append(next(examples))
        total += len(drawn[-1])
    return drawn


def grouped(examples: Iterable[Example], budget: int, rest: bool = False) -> Iterator[list[Example]]:
    """Group examples in order.

    Args:
        examples: The examples.
        budget: Largest number of tokens of a group.
        rest: Whether the last group is yielded too, which may be unfinished.
    """
    group: list[Example] = []
    for example in examples:
        if group and sum(map(len, group)) + len(example) > budget:
            yield group
            group = []
        group.append(example)
    if rest and group:
        yield group


def token_mean(group: Sequence[Example]) -> PackedBatch:
    """Make a packed batch whose loss is the mean over answer tokens, as in the peers."""
    return collate(group, denominator=sum(len(example.answer_ids) for example in group))


def with_answer(example: Example, answer: Sequence[int]) -> Example:
    """Return the example with another expected answer."""
    return replace(example, answer_ids=tuple(answer))
