"""Answers that need no language model: the most frequent label, and the label of the nearest training vector."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from afintro.tasks.feature_descriptions.splits import FeatureSplit

Floats = NDArray[np.float32]
BLOCK = 8192  # training vectors that are in memory at once
OPPOSED = 0.7  # two vectors are opposed from this cosine of one to the negative of the other
MOST_OPPOSED = 1000  # vectors of a label whose negatives are looked for
DUPLICATE = 0.95  # vectors of a larger cosine are nearly the same


def nearest_by_cosine(
    queries: NDArray[np.float32], blocks: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> NDArray[np.int64]:
    """Find the vector with the largest cosine to each query, one block at a time.

    Args:
        queries: ``[m, width]``.
        blocks: For each block the numbers of its vectors ``[b]`` and the vectors ``[b, width]``.

    Returns:
        Number of the nearest vector of each query ``[m]``, or -1 where there was no block. Of vectors that are equally
        near, the first one counts.
    """
    best = np.full(len(queries), -1, dtype=np.int64)
    smallest = np.full(len(queries), np.inf)
    for numbers, vectors in blocks:
        index = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(vectors)
        distances, rows = index.kneighbors(queries)
        nearer = distances[:, 0] < smallest
        best[nearer] = numbers[rows[nearer, 0]]
        smallest[nearer] = distances[nearer, 0]
    return best


def baseline_labels(train: FeatureSplit, split: FeatureSplit, block: int = BLOCK) -> dict[str, list[str]]:
    """Label the features of a split by the most frequent label and by nearest neighbors.

    Args:
        train: Training features.
        split: Features to label.
        block: Training vectors that are in memory at once.

    Returns:
        Labels of the split's features, in order: ``majority`` is the most frequent training label, ``nearest`` the label
        of the training vector with the largest cosine, ``nearest_in_layer`` the same among vectors of the feature's layer
        (the most frequent label where training has none of that layer). ``nearest_by_sign`` takes the training vector that is
        nearest up to sign; if it points the other way, its label is that of another feature, and what is said is the label
        that training vectors have which point against vectors of this label (the label itself where there are none, which is
        what a reader says who does not see the sign).
    """
    counts = train.table.label_counts(train.indices)
    majority = min(counts, key=lambda label: (-counts[label], label))
    neighbors = Neighbors(train, block)
    vectors = split.table.vectors(split.indices)
    anywhere = neighbors.nearest(vectors)
    within = np.full(len(split.indices), -1, dtype=np.int64)
    layers, trained_layers = split.table.layer(split.indices), train.table.layer(train.indices)
    for layer in np.unique(layers):
        here = layers == layer
        within[here] = Neighbors(train.at(np.flatnonzero(trained_layers == layer)), block).nearest(vectors[here])
    return {
        "majority": [majority] * len(split.indices),
        "nearest": neighbors.labels(anywhere),
        "nearest_in_layer": [majority if index < 0 else train.table.feature(index).label for index in within.tolist()],
        "nearest_by_sign": neighbors.labels_by_sign(vectors, anywhere),
    }


class Neighbors:
    """Find the nearest training features of vectors.

    Args:
        train: Training features.
        block: Training vectors that are in memory at once.
    """

    def __init__(self, train: FeatureSplit, block: int = BLOCK) -> None:
        self.train, self.block = train, block

    def nearest(self, vectors: Floats) -> NDArray[np.int64]:
        """Return the feature, as an index into the table, whose vector has the largest cosine to each vector ``[m, width]``."""
        table, indices = self.train.table, self.train.indices
        parts = (indices[at : at + self.block].astype(np.int64) for at in range(0, len(indices), self.block))
        return nearest_by_cosine(vectors, ((part, table.vectors(part)) for part in parts))

    def labels(self, features: NDArray[np.int64]) -> list[str]:
        """Return the labels of features."""
        return [self.train.table.feature(index).label for index in features]

    def cosines(self, vectors: Floats, features: NDArray[np.int64]) -> Floats:
        """Return the cosine of each vector ``[m, width]`` to the vector of a feature ``[m]``."""
        cosines: Floats = (normalize(vectors) * normalize(self.train.table.vectors(features))).sum(1)
        return cosines

    def labels_by_sign(self, vectors: Floats, nearest: NDArray[np.int64]) -> list[str]:
        """Return the label that the nearest feature up to sign speaks for, see :func:`baseline_labels`.

        Args:
            vectors: ``[m, width]``.
            nearest: The nearest feature of each vector.
        """
        said = self.labels(nearest)
        against = self.nearest(-vectors)
        opposed = self.cosines(-vectors, against) > self.cosines(vectors, nearest)
        opposites: dict[str, str | None] = {}
        for place in np.flatnonzero(opposed):
            label = self.train.table.feature(against[place]).label
            if label not in opposites:
                opposites[label] = self.opposite(label)
            said[place] = opposites[label] or label
        return said

    def opposite(self, label: str) -> str | None:
        """Return the commonest label of training vectors that point against vectors of a label; None without any."""
        own = self.train.table.labeled(self.train.indices, [label])[:MOST_OPPOSED]
        vectors = self.train.table.vectors(own)
        partners = self.nearest(-vectors)
        counts = Counter(self.labels(partners[self.cosines(-vectors, partners) > OPPOSED]))
        return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def near_duplicates(train: FeatureSplit, split: FeatureSplit, block: int = BLOCK) -> dict[str, float]:
    """Return, by question type, the share of features of a split whose vector nearly equals a training vector.

    Args:
        train: Training features.
        split: Evaluated features.
        block: Training vectors that are in memory at once.
    """
    neighbors, vectors = Neighbors(train, block), split.table.vectors(split.indices)
    near = neighbors.cosines(vectors, neighbors.nearest(vectors)) > DUPLICATE
    kinds = np.array(split.kinds)
    return {str(kind): float(near[kinds == kind].mean()) for kind in np.unique(kinds)}
