"""Readers of label parts: what is linear in a vector is found, and what the layer alone tells."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from afintro.tasks.feature_descriptions import readers
from afintro.tasks.feature_descriptions.readers import PartsReader, by_layer

PLACES, ACTS = ("Paris", "Rome", "Bonn", "Oslo"), ("asks", "wants", "sings", "waits")
DIRECTIONS = np.random.default_rng(1).standard_normal((8, 24))


def features(pairs, seed, noise=0.2):
    """A vector and a label of each pair of a place and an act, with noise."""
    drawn = np.random.default_rng(seed).standard_normal((len(pairs), 24))
    vectors = np.stack([DIRECTIONS[place] + DIRECTIONS[4 + act] for place, act in pairs]) + noise * drawn
    return by_layer(vectors.astype(np.float32), np.zeros(len(pairs)), np.zeros(1)), [
        f"{PLACES[place]}, {ACTS[act]}" for place, act in pairs
    ]


def test_combinations_that_training_lacks_are_composed():
    pairs = [(place, act) for place in range(4) for act in range(4)]
    new = [(place, place) for place in range(4)]
    taught, labels = features([pair for pair in pairs if pair not in new] * 6, 0)
    asked, expected = features(new * 5, 1)
    assert PartsReader(taught, labels).say(asked, unseen=True) == expected


def test_the_penalty_is_chosen_for_what_is_asked(monkeypatch: pytest.MonkeyPatch):
    """Vectors of a label are nearly one vector: learned by heart they tell a known label, and nothing of a new one."""
    pairs = [(place, act) for place in range(4) for act in range(4)] * 6
    taught, labels = features(pairs, 0, noise=2.0)
    heart = np.eye(16, dtype=np.float32)[[4 * place + act for place, act in pairs]]
    reader = PartsReader(np.hstack([heart, taught]), labels)
    assert reader.chosen(unseen=False)[0] < reader.chosen(unseen=True)[0]
    monkeypatch.setattr(readers, "MOST_TRIED", 3)
    assert reader.chosen(unseen=True) == (1.0, (0.5, 1)), "too few labels for folds"


def test_a_part_of_each_layer_and_a_shared_part():
    vectors = np.array([[3, 4], [0, 2], [1, 0]], np.float32)
    found = by_layer(vectors, np.array([5, 9, 7]), np.array([5, 9]))
    np.testing.assert_allclose(
        found,
        [[0.6, 0.8, 0.6, 0.8, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0]],
        atol=1e-6,
    )
    np.testing.assert_allclose(by_layer(vectors, np.full(3, 5), np.array([5])), [[0.6, 0.8], [0, 1], [1, 0]], atol=1e-6)


def test_of_too_many_columns_the_shared_part_and_the_layer_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "MOST_COLUMNS", 5)
    found = by_layer(np.array([[3, 4], [0, 2]], np.float32), np.array([5, 9]), np.array([5, 9]))
    np.testing.assert_allclose(found, [[0.6, 0.8, 1, 0], [0, 1, 0, 1]], atol=1e-6)


def test_one_part_alone_is_read_too():
    assert (
        PartsReader(np.eye(3, dtype=np.float32), ["same"] * 3).say(np.eye(3, dtype=np.float32), False) == ["same"] * 3
    )


def test_scores_are_those_of_ridge_regression():
    taught, labels = features([(0, 1), (1, 0), (2, 3), (3, 2)] * 8, 0)
    reader = PartsReader(taught, labels)
    penalty, rule = reader.chosen(unseen=False)
    scores = Ridge(penalty).fit(taught, reader.has).predict(taught)
    assert reader.say(taught, unseen=False) == reader.parts.say(scores.astype(np.float32), rule)
