"""The nearest neighbor by cosine, against the whole matrix of cosines."""

import numpy as np
import pytest

from afintro.tasks.feature_descriptions.neighbors import nearest_by_cosine

DRAWN = np.random.default_rng(0)
VECTORS = (DRAWN.standard_normal((57, 6)) * DRAWN.uniform(0.1, 90, (57, 1))).astype(np.float32)
QUERIES = (DRAWN.standard_normal((23, 6)) * DRAWN.uniform(0.1, 90, (23, 1))).astype(np.float32)
NUMBERS = DRAWN.permutation(500)[:57]


def blocks(size, vectors=VECTORS, numbers=NUMBERS):
    return ((numbers[i : i + size], vectors[i : i + size]) for i in range(0, len(vectors), size))


def unit(rows):
    return rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


@pytest.mark.parametrize("size", [1, 2, 10, 56, 57, 1000])
def test_as_the_whole_matrix_says_for_any_block_size(size):
    expected = NUMBERS[(unit(QUERIES) @ unit(VECTORS).T).argmax(1)]
    assert nearest_by_cosine(QUERIES, blocks(size)).tolist() == expected.tolist()


def test_length_does_not_count_and_direction_does():
    vectors = np.array([[10, 10], [1, 0], [-5, 0]], np.float32)
    queries = np.array([[100, 1], [-0.01, 0], [3, 2]], np.float32)
    assert nearest_by_cosine(queries, blocks(3, vectors, np.array([4, 5, 6]))).tolist() == [5, 6, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_of_equally_near_ones_the_first(size):
    vectors = np.array([[0, 1], [1, 0], [2, 0], [0, 2], [1, 0], [4, 0]], np.float32)
    found = nearest_by_cosine(np.array([[3, 0], [0, 3]], np.float32), blocks(size, vectors, np.arange(10, 16)))
    assert found.tolist() == [11, 10]


def test_no_block_has_no_neighbor():
    assert nearest_by_cosine(QUERIES, iter(())).tolist() == [-1] * 23


def test_a_zero_vector_has_some_neighbor():
    """A control gives zero vectors: no NaN, no error."""
    assert nearest_by_cosine(np.zeros((2, 6), np.float32), blocks(10)).tolist() == [NUMBERS[0]] * 2
