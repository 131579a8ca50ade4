"""The functional score: a description is as good as the texts it tells apart."""

import pytest

from afintro.evaluation.judges import ACTIVATES, Judge, Tfidf
from afintro.tasks.feature_descriptions.scorer import Detection, functional_auroc


class Told(Judge):
    """Says what it was told to of each text, and keeps what it was asked."""

    name = "told"

    def __init__(self, **said):
        self.said = said
        self.calls = []

    def score(self, pairs, rubric=None):
        self.calls.append((list(pairs), rubric))
        return [self.said[text] for _, text in pairs]


def test_auroc_by_hand_with_ties_and_all_items_in_one_call():
    scorer = Told(a=1.0, b=0.5, c=0.5, d=0.0)
    items = [
        Detection("good", ("a", "b"), ("c", "d")),  # pairs won: a>c, a>d, b>d; b=c counts half
        Detection("inverted", ("d",), ("a", "b")),
        Detection("perfect", ("a",), ("d", "d", "c")),
    ]
    assert functional_auroc(items, scorer) == [3.5 / 4, 0.0, 1.0]
    [(pairs, rubric)] = scorer.calls
    assert rubric is ACTIVATES
    assert pairs == [(item.description, text) for item in items for text in (*item.activating, *item.non_activating)]


def test_texts_without_a_score_are_left_out():
    """None is not 0: counted as 0, the unread activating text would halve the first score."""
    scorer = Told(a=1.0, d=0.0, unread=None)
    items = [
        Detection("x", ("a", "unread"), ("d",)),
        Detection("x", ("unread",), ("d",)),
        Detection("x", ("a",), ("unread", "unread")),
        Detection("x", ("a",), ("d", "unread")),
    ]
    assert functional_auroc(items, scorer) == [1.0, None, None, 1.0]


def test_a_side_without_texts_is_none_and_does_not_shift_the_others():
    scorer = Told(a=1.0, d=0.0)
    items = [
        Detection("x", (), ("d",)),
        Detection("x", ("d",), ("a",)),
        Detection("x", ("a",), ()),
        Detection("", (), ("a",)),
    ]
    assert functional_auroc(items, scorer) == [None, 0.0, None, None]
    assert scorer.calls[0][0] == [("x", "d"), ("x", "a")]


@pytest.mark.parametrize("description", ["", " \n"])
def test_an_empty_description_is_chance_whatever_the_scorer_says(description):
    """An embedding of nothing still lies nearer to some texts than to others."""
    scorer = Told(a=1.0, d=0.0)
    items = [Detection(description, ("a",), ("d",)), Detection("x", ("a",), ("d",))]
    assert functional_auroc(items, scorer) == [0.5, 1.0]
    assert scorer.calls[0][0] == [("x", "a"), ("x", "d")]


def test_a_description_of_the_words_tells_texts_apart_with_tfidf():
    activating = ("sheep give wool", "wool is warm")
    others = ("rivers are long", "a river of France", "France is large")
    right, wrong = Detection("mentions of wool", activating, others), Detection("rivers of France", activating, others)
    scores = functional_auroc([right, wrong], Tfidf())
    assert scores[0] == 1.0
    assert scores[1] < 0.5


def test_nothing_to_score():
    assert functional_auroc([], Tfidf()) == []
