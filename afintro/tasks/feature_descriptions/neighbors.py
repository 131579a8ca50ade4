"""Answers that need no language model: the most frequent label, and the label of the nearest training vector."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from afintro.tasks.feature_descriptions.records import Indices
from afintro.tasks.feature_descriptions.splits import FeatureSplit

BLOCK = 8192  # training vectors that are in memory at once


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
    """Label the features of a split by three baselines.

    Args:
        train: Training features.
        split: Features to label.
        block: Training vectors that are in memory at once.

    Returns:
        Labels of the split's features, in order: ``majority`` is the most frequent training label, ``nearest`` the label
        of the training vector with the largest cosine, ``nearest_in_layer`` the same among vectors of the feature's layer
        (the most frequent label where training has none of that layer).
    """
    counts = train.table.label_counts(train.indices)
    majority = min(counts, key=lambda label: (-counts[label], label))
    anywhere = _nearest(train, train.indices, split, split.indices, block)
    within = np.full(len(split.indices), -1, dtype=np.int64)
    layers, trained_layers = split.table.layer(split.indices), train.table.layer(train.indices)
    for layer in np.unique(layers):
        here = layers == layer
        within[here] = _nearest(train, train.indices[trained_layers == layer], split, split.indices[here], block)
    return {
        "majority": [majority] * len(split.indices),
        **{
            name: [train.table.feature(index).label if index >= 0 else majority for index in nearest]
            for name, nearest in (("nearest", anywhere), ("nearest_in_layer", within))
        },
    }


def _nearest(
    train: FeatureSplit, among: Indices, split: FeatureSplit, wanted: Indices, block: int
) -> NDArray[np.int64]:
    parts = (among[start : start + block].astype(np.int64) for start in range(0, len(among), block))
    return nearest_by_cosine(split.table.vectors(wanted), ((part, train.table.vectors(part)) for part in parts))
