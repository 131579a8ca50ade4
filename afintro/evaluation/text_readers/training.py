"""What text readers learn from: training examples, their kinds of answers, and a draw where there is too much to read."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afintro.data.batch import Example
from afintro.evaluation.answers import expected_verdict

log = logging.getLogger(__name__)

KINDS = 32  # largest number of different answers that a reader tells apart
SEED = 0
Probabilities = NDArray[np.float64]
"""``[items, kinds]``: the probability of each kind of answer."""


@dataclass(frozen=True)
class Taught:
    """Hold training examples with the kinds of their answers.

    Args:
        examples: n training examples.
        labels: ``[n]`` int64, the kind of each answer.
        answers: The answer that stands for each kind.
    """

    examples: Sequence[Example]
    labels: NDArray[np.int64]
    answers: tuple[str, ...]

    @property
    def kinds(self) -> int:
        """Number of kinds of answers."""
        return len(self.answers)


def teach(examples: Sequence[Example]) -> Taught:
    """Assign a number to each kind of training answer; every answer carries a verdict.

    Beyond 32 different answers, e.g. where answers are free text, a rare answer counts as the commonest answer of its verdict.

    Args:
        examples: Training examples of one question.
    """
    counts = Counter(example.answer for example in examples)
    ranked = sorted(counts, key=lambda answer: (-counts[answer], answer))
    verdicts = {answer: expected_verdict(answer).changed for answer in ranked}
    commonest = {
        changed: next(answer for answer in ranked if verdicts[answer] == changed) for changed in verdicts.values()
    }
    others = [answer for answer in ranked if answer not in commonest.values()]
    answers = tuple(sorted([*commonest.values(), *others[: KINDS - len(commonest)]]))
    kinds = {answer: kind for kind, answer in enumerate(answers)}
    labels = [kinds.get(example.answer, kinds[commonest[verdicts[example.answer]]]) for example in examples]
    return Taught(examples, np.array(labels, dtype=np.int64), answers)


def draw(name: str, taught: Taught, sizes: Sequence[int], bound: int) -> Taught:
    """Draw training examples at random up to a bound on their size, and say so in the log.

    Args:
        name: Name of the reader.
        taught: The training examples.
        sizes: Size of each, e.g. its number of characters.
        bound: Largest sum of the sizes.

    Returns:
        The drawn examples in the order of training, or all of them where they are small enough.
    """
    if sum(sizes) <= bound:
        return taught
    order = np.random.default_rng(SEED).permutation(len(sizes))
    count = max(1, int((np.cumsum(np.array(sizes)[order]) <= bound).sum()))
    rows = np.sort(order[:count])
    log.warning("%s learns from %d of %d training prompts, drawn at random", name, count, len(sizes))
    return Taught([taught.examples[row] for row in rows], taught.labels[rows], taught.answers)
