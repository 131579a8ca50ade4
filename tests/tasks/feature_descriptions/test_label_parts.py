"""Parts of labels: lists are composed, sentences are chosen by their words."""

import numpy as np
import pytest

from afintro.tasks.feature_descriptions.label_parts import LabelParts, agreement

LISTS = [
    "Paris, asks, gold",
    "Rome, asks",
    "Rome, gold",
    "Paris, wants",
    "wants, gold",
    "Rome, wants",
    "Paris, asks, gold",
]
SENTENCES = ["Fires on cats and dogs.", "The word rain, in spring", "A knife that is sharp", "Names of old towns"]


def scores(parts: LabelParts, **wanted: float) -> np.ndarray:
    return np.array([[wanted.get(name, 0.0) for name in parts.names]], np.float32)


def test_lists_are_seen_as_lists_and_sentences_as_words():
    lists, sentences = LabelParts(LISTS), LabelParts(SENTENCES)
    assert lists.lists
    assert sorted(lists.names) == ["Paris", "Rome", "asks", "gold", "wants"]
    assert not sentences.lists
    assert {"cats", "rain", "towns"} < set(sentences.names)
    assert not LabelParts(["one, two", "three, four", "five"]).lists, "no piece recurs: commas alone make no list"


def test_the_matrix_names_the_parts_of_labels_and_passes_over_unknown_ones():
    parts = LabelParts(LISTS)
    found = parts.matrix(["Rome; gold", "Athens, wants", ""])
    named = [{parts.names[column] for column in np.flatnonzero(row)} for row in found]
    assert named == [{"Rome", "gold"}, {"wants"}, set()]


def test_a_list_is_composed_in_the_order_of_training_also_where_no_label_has_these_parts():
    parts = LabelParts(LISTS)
    assert parts.say(scores(parts, gold=0.9, asks=0.8, Rome=0.7), (0.5, 1)) == ["Rome, asks, gold"]
    assert parts.say(scores(parts, gold=0.9, asks=0.8, Rome=0.7), (0.75, 1)) == ["asks, gold"]
    assert parts.say(scores(parts, wants=0.2), (0.5, 1)) == ["wants"], "at least the likeliest part"


def test_a_sentence_is_chosen_by_its_words():
    parts = LabelParts(SENTENCES)
    assert parts.say(scores(parts, sharp=0.4, cats=0.1), (0.5, 1)) == [SENTENCES[2]]
    # A rare word says more than words of many labels.
    repeated = LabelParts(
        [f"the text is about {word}" for word in ("cats", "rain", "knives", "towns")] + ["the moon is up"]
    )
    assert repeated.say(scores(repeated, the=0.3, moon=0.5, about=0.3), (0.5, 1)) == ["the moon is up"]


@pytest.mark.parametrize("labels", [LISTS, SENTENCES])
def test_what_is_said_has_the_parts_that_are_found(labels):
    parts = LabelParts(labels)
    drawn = np.random.default_rng(0).random((20, len(parts.names))).astype(np.float32)
    for rule in parts.rules:
        found = parts.found(drawn, rule)
        np.testing.assert_array_equal(parts.matrix(parts.say(drawn, rule)), found)
        assert agreement(found, found) == 1.0


def test_a_list_has_so_many_parts_in_any_case():
    parts = LabelParts(LISTS)
    assert {least for _, least in parts.rules} == {1, 2, 3}
    assert parts.say(scores(parts, gold=0.3, asks=0.2, Rome=0.1), (float("inf"), 2)) == ["asks, gold"]
    assert parts.say(scores(parts, gold=0.9, asks=0.8, Rome=0.7), (0.5, 2)) == ["Rome, asks, gold"]
    assert len(LabelParts(SENTENCES).rules) == 1


def test_agreement_is_the_mean_f1_of_parts():
    first = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    second = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    assert agreement(first, second) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_labels_of_other_scripts_and_without_words():
    parts = LabelParts(["巴黎、问", "罗马、要", "巴黎、要", "罗马、问"])
    assert parts.lists
    assert parts.say(scores(parts, 巴黎=1.0, 要=0.9), (0.5, 1)) == ["巴黎、要"]
    assert LabelParts([",", ";"]).say(np.ones((1, 2), np.float32), (0.5, 1))[0] in (",", ";")
    assert LabelParts(["!!!", "?"]).names == ["!!!", "?"]
