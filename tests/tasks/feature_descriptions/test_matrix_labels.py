"""Labels beside an activation matrix give the selectivity that lists of active features give."""

import json

import numpy as np
import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.activations import Activations, activation_matrix, selectivity
from afintro.tasks.feature_descriptions.matrix_labels import matrix_selectivity, read_labels

WORDS = ["alignment_faking", "hard_negative", "alignment_faking", "aligned"]
LABELS = ["alignment_faking", "aligned", "alignment_faking", "aligned"]


def write(folder, content, name="labels.json"):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"name": "benchmark", "labels": WORDS, "unique_labels": ["alignment_faking", "hard_negative"]}, "a.json"),
        (WORDS, "a.json"),
        ([{"text": "a", "label": word} for word in WORDS], "a.json"),
        ({"data": [{"label": word, "labels": 3} for word in WORDS]}, "a.json"),
        ("label\n" + "\n".join(WORDS), "a.csv"),
        ({"labels": [1, 0, True, False]}, "a.json"),
    ],
    ids=str,
)
def test_read_labels(tmp_path, content, name):
    assert read_labels(write(tmp_path, content, name)) == LABELS


def test_labels_behind_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"labels": WORDS}), encoding="utf-16")
    assert read_labels(str(tmp_path / "a.json")) == LABELS


def test_names_of_numbers(tmp_path):
    assert read_labels(write(tmp_path, {"labels": [0, 1]}), label_names=["scheming", "honest"]) == LABELS[:2]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"labels": ["aligned", None]}, ", record 1"),
        ({"labels": ["aligned", ["a"]]}, ", record 1"),
        ([{"text": "a"}], ", record 0"),
        ({"labels": "aligned"}, ""),
    ],
)
def test_wrong_labels(tmp_path, content, where):
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_labels(path)
    assert caught.value.where == f"{path}{where}"


def test_the_same_selectivity_as_of_lists(tmp_path):
    count, width = 600, 7  # more than two blocks
    rng = np.random.default_rng(0)
    labels = tuple(rng.choice(["alignment_faking", "aligned", "unknown"], count))
    fired = {str(feature): frozenset(np.flatnonzero(rng.random(count) < 0.3).tolist()) for feature in range(width - 1)}
    listed = Activations(tuple(map(str, range(count))), labels, fired)
    activation_matrix(listed, width, tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.load(tmp_path / "a.npy") * rng.uniform(0.1, 9, (count, width)))
    for name in ("a.npy", "b.npy"):
        np.testing.assert_allclose(matrix_selectivity(tmp_path / name, labels, "l"), selectivity(listed, width))


def test_by_hand(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0.5, 0, 1], [0, 0, 1], [2, -1, 1], [0, 3, 1]], np.float32))
    np.testing.assert_array_equal(matrix_selectivity(tmp_path / "a.npy", LABELS, "l"), [1, -0.5, 0])


@pytest.mark.parametrize(
    ("matrix", "labels", "where", "words"),
    [
        (np.eye(3), LABELS, "labels.json", "4 labels"),
        (np.eye(4), ["aligned"] * 4, "label of the samples", "alignment_faking"),
        (np.ones((4, 2)), LABELS, "a.npy", "equally often"),
        (np.full((4, 2), np.nan), LABELS, "a.npy", ""),
    ],
)
def test_what_does_not_belong_together(tmp_path, matrix, labels, where, words):
    np.save(tmp_path / "a.npy", matrix)
    with pytest.raises(UserError, match=words) as caught:
        matrix_selectivity(tmp_path / "a.npy", labels, "labels.json")
    assert where in caught.value.where
