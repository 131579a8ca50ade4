"""Take labels apart into parts, and make a label of the parts that a reader finds."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SEPARATOR = re.compile(r"\s*[,;，；、،]\s*")
WORD = re.compile(r"\w+")
MOST_PARTS = 2000  # the most frequent ones; a part that is named once cannot be learned
LISTS = 0.5  # from this share of labels whose parts all recur in other labels, labels are lists
THRESHOLDS = (*np.linspace(0.1, 0.9, 9).tolist(), float("inf"))
LONGEST = 4  # parts that are named in any case, at most

Rule = tuple[float, int]
"""Which parts a list has: those whose score is above a threshold, and in any case so many of the highest scores."""


def pieces(label: str) -> list[str]:
    """Return the parts of a label that is a list, as between commas or semicolons; at least one."""
    return [piece for piece in SEPARATOR.split(label.strip()) if piece] or [label]


def words(label: str) -> list[str]:
    """Return the words of a label, without case; the label itself if it has none."""
    return WORD.findall(label.lower()) or [label]


class LabelParts:
    """The parts of training labels.

    Labels are lists where the pieces between commas recur in other labels. A label is then composed of the pieces that a
    reader finds, also where no training label has just these pieces. Other labels are sentences, whose parts are words: the
    training label that fits the words best is chosen.

    Args:
        labels: The training labels, at least one; a label that occurs several times counts once.

    Attributes:
        lists: Whether labels are lists.
        names: The parts, the most frequent first.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(dict.fromkeys(labels))
        counts = Counter(piece for label in self.labels for piece in set(pieces(label)))
        recurring = [all(counts[piece] > 1 for piece in pieces(label)) for label in self.labels]
        self.lists = float(np.mean(recurring)) >= LISTS
        self.split: Callable[[str], list[str]] = pieces if self.lists else words
        if not self.lists:
            counts = Counter(word for label in self.labels for word in set(words(label)))
        self.names = sorted(counts, key=lambda name: (-counts[name], name))[:MOST_PARTS]
        self._columns = {name: column for column, name in enumerate(self.names)}
        self._candidates = self.matrix(self.labels)
        # A word that most labels share tells them apart less than a rare word: inverse document frequency.
        self._rarity = np.log((1 + len(self.labels)) / (1 + self._candidates.sum(0))).astype(np.float32) + 1
        self._before, self._places = self._order()
        separators = Counter(found for label in self.labels for found in SEPARATOR.findall(label))
        self._separator = max(separators, key=lambda found: separators[found], default=", ")

    def matrix(self, labels: Sequence[str]) -> Floats:
        """Return which parts each label has: ``[labels, parts]`` float32 of zeros and ones."""
        has = np.zeros((len(labels), len(self.names)), np.float32)
        for row, label in enumerate(labels):
            has[row, [self._columns[part] for part in self.split(label) if part in self._columns]] = 1
        return has

    def _order(self) -> tuple[Counter[tuple[str, str]], dict[str, float]]:
        """Count which part stands before which, and where in a label a part stands on average."""
        before: Counter[tuple[str, str]] = Counter()
        places: defaultdict[str, list[float]] = defaultdict(list)
        for label in self.labels if self.lists else ():
            parts = pieces(label)
            for place, part in enumerate(parts):
                places[part].append((place + 0.5) / len(parts))
                before.update((part, later) for later in parts[place + 1 :])
        return before, {part: float(np.mean(found)) for part, found in places.items()}

    @property
    def rules(self) -> list[Rule]:
        """Return the rules that a reader may choose from."""
        if not self.lists:
            return [(THRESHOLDS[0], 1)]
        longest = min(max(len(pieces(label)) for label in self.labels), LONGEST, len(self.names))
        return [(threshold, least) for threshold in THRESHOLDS for least in range(1, longest + 1)]

    def found(self, scores: Floats, rule: Rule) -> Floats:
        """Return the parts that a reader finds, as :meth:`matrix` does those of labels.

        Args:
            scores: ``[items, parts]`` float32, about 1 for a part that the label has and 0 for a part that it has not.
            rule: Which parts a list has; at least one.
        """
        if not self.lists:
            return self._candidates[self._fitting(scores)]
        threshold, least = rule
        floor = np.partition(scores, -least, axis=1)[:, -least, None]  # the lowest of the highest scores
        return ((scores > threshold) | (scores >= floor)).astype(np.float32)

    def say(self, scores: Floats, rule: Rule) -> list[str]:
        """Return a label for each row of scores, see :meth:`found`."""
        if not self.lists:
            return [self.labels[row] for row in self._fitting(scores)]
        rows = self.found(scores, rule)
        return [self._compose([self.names[column] for column in np.flatnonzero(row)]) for row in rows]

    def _fitting(self, scores: Floats) -> NDArray[np.int64]:
        """Return the training label whose words fit each row of scores best, by cosine."""
        weighted = self._candidates * self._rarity
        lengths = np.maximum(np.linalg.norm(weighted, axis=1), 1e-9)
        return ((scores * self._rarity) @ weighted.T / lengths).argmax(1)

    def _compose(self, parts: Sequence[str]) -> str:
        """Write parts in the order in which training labels name them."""

        def rank(part: str) -> tuple[int, float, str]:
            ahead = sum(self._before[part, other] > self._before[other, part] for other in parts)
            behind = sum(self._before[other, part] > self._before[part, other] for other in parts)
            return behind - ahead, self._places[part], part

        return self._separator.join(sorted(parts, key=rank))


def agreement(first: Floats, second: Floats) -> float:
    """Return the mean F1 of the parts of labels ``[items, parts]``, in 0..1."""
    return float((2 * (first * second).sum(1) / np.maximum(first.sum(1) + second.sum(1), 1)).mean())
