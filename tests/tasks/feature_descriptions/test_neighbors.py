"""The nearest neighbor by cosine, against the whole matrix of cosines; and by sign."""

import json

import numpy as np
import pytest

from afintro.tasks.feature_descriptions.features import FeatureFile, write_features
from afintro.tasks.feature_descriptions.neighbors import baseline_labels, near_duplicates, nearest_by_cosine
from afintro.tasks.feature_descriptions.records import FeatureTable
from afintro.tasks.feature_descriptions.splits import FeatureSplit

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


# By sign.

AXES = np.eye(6, dtype=np.float32)
TRAINED = {  # label: vectors of both layers
    "warm": [AXES[0], AXES[1]], "cold": [-AXES[1], 0.1 * AXES[3] - AXES[0] * 0.2], "loud": [AXES[2]], "wet": [AXES[4] - AXES[5]],
}  # fmt: skip


@pytest.fixture
def splits(tmp_path):
    """Makes the training split and a split of vectors that are asked about."""

    def make(asked):
        rows = [(label, vector) for label, vectors in TRAINED.items() for vector in vectors]
        rows += [("asked", np.asarray(vector, np.float32)) for vector in asked]
        write_features(tmp_path / "f", [np.stack([v for _, v in rows])], np.arange(len(rows)), 6, {"layer": "1"})
        file = FeatureFile(tmp_path / "f")
        tables = []
        for name, numbers in (("train", range(6)), ("asked", range(6, len(rows)))):
            described = {
                str(i): {"chosen_label": rows[i][0], "cluster_id": rows[i][0], "all_labels": [rows[i][0]]}
                for i in numbers
            }
            (tmp_path / f"{name}.json").write_text(json.dumps(described))
            tables.append(FeatureTable(str(tmp_path / f"{name}.json"), [file]))
        train = FeatureSplit(tables[0], np.arange(6))
        return train, train.held_out(tables[1], np.arange(len(asked)))

    return make


def test_a_vector_and_its_negative_are_not_the_same_feature(splits):
    """Against axis 0, training has no vector, but vectors of its label point against vectors of another label elsewhere."""
    train, asked = splits([AXES[0] * 3, -AXES[0] + 0.3 * AXES[2], -AXES[2] + 0.1 * AXES[4], AXES[5] - AXES[4]])
    found = baseline_labels(train, asked)
    assert found["nearest"][0] == found["nearest_by_sign"][0] == "warm"
    assert found["nearest"][1] != "warm"
    assert found["nearest_by_sign"][1] == "cold", "learned at axis 1"
    # Nothing points against loud and wet: what a reader says who does not see the sign.
    assert found["nearest_by_sign"][2:] == ["loud", "wet"]
    assert found["nearest"][2] != "loud"
    assert found["nearest"][3] != "wet"


def test_near_duplicates_are_counted_by_kind_and_by_sign(splits):
    train, asked = splits([AXES[0] * 3, -AXES[2], AXES[2] + 0.2 * AXES[3], AXES[2] + 0.5 * AXES[3]])
    assert near_duplicates(train, asked) == {"unseen_cluster": 0.5}
