"""Nearest neighbour among feature vectors: the baseline that a reader of vectors must beat."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors


def nearest_by_cosine(
    queries: NDArray[np.float32], blocks: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> NDArray[np.int64]:
    """The nearest vector to each query by cosine, over blocks, so that they never lie in memory together.

    Args:
        queries: ``[m, width]``.
        blocks: Numbers ``[b]`` of the vectors of a block and the vectors ``[b, width]``.

    Returns:
        Number of the nearest vector ``[m]``, -1 where there was no block; of equally near ones the first.
    """
    best = np.full(len(queries), -1, dtype=np.int64)
    distance = np.full(len(queries), np.inf)
    for numbers, vectors in blocks:
        index = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(vectors)
        found, rows = index.kneighbors(queries)
        nearer = found[:, 0] < distance
        best[nearer] = numbers[rows[nearer, 0]]
        distance[nearer] = found[nearer, 0]
    return best
