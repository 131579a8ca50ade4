"""The functional score: a description is as good as the texts it tells apart."""

import pytest

from afintro.evaluation.judges import ACTIVATES, Judge, Tfidf
from afintro.tasks.feature_descriptions.functional import Reading, functional_auroc


class ExplainerSpec(Judge):
    """Says what it was told to of each text, and keeps what it was asked."""

    name = "reader"

    def __init__(self, **said):
        self.said = said
        self.calls = []

    def score(self, pairs, rubric=None):
        self.calls.append((list(pairs), rubric))
        return [self.said[text] for _, text in pairs]


def test_auroc_by_hand_with_ties_and_all_items_in_one_call():
    reader = ExplainerSpec(a=1.0, b=0.5, c=0.5, d=0.0)
    items = [
        Reading("good", ("a", "b"), ("c", "d")),  # pairs won: a>c, a>d, b>d; b=c counts half
        Reading("inverted", ("d",), ("a", "b")),
        Reading("perfect", ("a",), ("d", "d", "c")),
    ]
    assert functional_auroc(items, reader) == [3.5 / 4, 0.0, 1.0]
    [(pairs, rubric)] = reader.calls
    assert rubric is ACTIVATES
    assert pairs == [(item.description, text) for item in items for text in (*item.firing, *item.silent)]


def test_texts_without_a_score_are_left_out():
    """None is not 0: counted as 0, the unread firing text would halve the first score."""
    reader = ExplainerSpec(a=1.0, d=0.0, unread=None)
    items = [
        Reading("x", ("a", "unread"), ("d",)),
        Reading("x", ("unread",), ("d",)),
        Reading("x", ("a",), ("unread", "unread")),
        Reading("x", ("a",), ("d", "unread")),
    ]
    assert functional_auroc(items, reader) == [1.0, None, None, 1.0]


def test_a_side_without_texts_is_none_and_does_not_shift_the_others():
    reader = ExplainerSpec(a=1.0, d=0.0)
    items = [Reading("x", (), ("d",)), Reading("x", ("d",), ("a",)), Reading("x", ("a",), ()), Reading("", (), ("a",))]
    assert functional_auroc(items, reader) == [None, 0.0, None, None]
    assert reader.calls[0][0] == [("x", "d"), ("x", "a")]


@pytest.mark.parametrize("description", ["", " \n"])
def test_an_empty_description_is_chance_whatever_the_reader_says(description):
    """An embedding of nothing still lies nearer to some texts than to others."""
    reader = ExplainerSpec(a=1.0, d=0.0)
    items = [Reading(description, ("a",), ("d",)), Reading("x", ("a",), ("d",))]
    assert functional_auroc(items, reader) == [0.5, 1.0]
    assert reader.calls[0][0] == [("x", "a"), ("x", "d")]


def test_a_description_of_the_words_tells_texts_apart_with_tfidf():
    firing = ("sheep give wool", "wool is warm")
    silent = ("rivers are long", "a river of France", "France is large")
    right, wrong = Reading("mentions of wool", firing, silent), Reading("rivers of France", firing, silent)
    scores = functional_auroc([right, wrong], Tfidf())
    assert scores[0] == 1.0
    assert scores[1] < 0.5


def test_nothing_to_score():
    assert functional_auroc([], Tfidf()) == []
