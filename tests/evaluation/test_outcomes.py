"""What processes found is put together as one process would have found it."""

from dataclasses import replace

import pytest

from afintro.data.batch import Example
from afintro.evaluation.outcomes import Outcome, answer_limit, gathered
from afintro.ranks import ALONE, Ranks


def item(uid: str, prompt: int, answer: int = 2) -> Example:
    return Example(uid, "s", "generative_explanation", "p", f"answer {uid}", (7,) * prompt, (8,) * answer)


ITEMS = [item("long", 9), item("short", 2, 5), item("middle", 5), item("late", 5)]


def outcome(example: Example) -> Outcome:
    return Outcome(example, len(example) / 10, example.uid != "middle", None if example.uid == "late" else 0.25)


def test_an_answer_is_followed_past_the_longest_right_one():
    assert answer_limit(ITEMS) == 13
    assert answer_limit([]) == 8


def test_alone_nothing_changes():
    found = [outcome(ITEMS[2]), outcome(ITEMS[0])]
    assert gathered(found, ITEMS, ALONE) == found


def test_every_item_once_in_the_order_of_one_process(monkeypatch):
    """Two processes of which the second evaluated one item again, so that both had as many steps."""
    first, second = [outcome(ITEMS[1]), outcome(ITEMS[3])], [outcome(ITEMS[2]), outcome(ITEMS[0]), outcome(ITEMS[1])]
    told = []

    def all_gather(self, values):
        told.append(values)
        other = [(own.example.uid, own.nll, own.exact, own.p_changed) for own in second]
        return [*values, *other]

    monkeypatch.setattr(Ranks, "gathered", all_gather)
    found = gathered(first, ITEMS, Ranks(0, 2))
    assert found == [outcome(example) for example in sorted(ITEMS, key=len)]
    assert [row[0] for row in told[0]] == ["short", "late"]  # plain values travel, not examples


@pytest.mark.parametrize("written", ["what it said", None])
def test_prediction(written):
    prediction = outcome(ITEMS[2]).prediction(written)
    assert (prediction.uid, prediction.predicted, prediction.exact_match) == ("middle", written, False)
    assert prediction.p_changed == 0.25
    assert replace(outcome(ITEMS[0]), exact=True).prediction("x").exact_match
