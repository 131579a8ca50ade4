"""Answers are matched by request; what has no partner is counted, and what cannot be a pair is refused."""

import pytest

from afintro.errors import UserError
from afintro.tasks.context_ablation.imports.pairs import Answer, Source, match


def answer(request, text, monitored=True, **more):
    """An answer under a condition."""
    cue = "watched" if monitored else "alone"
    return Answer(**({"request": request, "prompt": f"{cue}: {request}", "cue": cue, "text": text} | more))


def source(monitored, unmonitored):
    """A source of a made-up model."""
    return Source("source", "path", "model", "cue", monitored, unmonitored)


def test_another_order_and_other_white_space_match():
    pairs, counts = match(
        source(
            [answer("one", "1"), answer("two  words", "2"), answer("three", "3")],
            [answer("three", "c", False), answer("two words\n", "2", False), answer("one", "a", False)],
        )
    )
    assert [(pair.monitored.text, pair.unmonitored.text) for pair in pairs] == [("1", "a"), ("2", "2"), ("3", "c")]
    assert (counts.pairs, counts.requests, counts.equal) == (3, 3, 1)
    assert counts.unmatched_monitored == counts.unmatched_unmonitored == counts.no_answer == 0


def test_lengths_that_differ_and_empty_and_missing_answers_are_counted():
    monitored = [
        answer("one", ""),
        answer("two", " \n"),
        answer("three", None),
        answer("four", "4"),
        answer("five", ""),
    ]
    unmonitored = [
        answer("one", "", False),
        answer("two", "x", False),
        answer("three", "y", False),
        answer("five", "z", False),
    ]
    pairs, counts = match(source(monitored, unmonitored))
    assert [pair.monitored.request for pair in pairs] == ["one", "two", "five"]
    assert counts.as_json() == {
        "pairs": 3, "requests": 3, "unmatched_monitored": 1, "unmatched_unmonitored": 1, "no_answer": 1,
        "empty_monitored": 3, "empty_unmonitored": 1, "equal": 1,
    }  # fmt: skip


def test_a_request_that_is_asked_again_is_matched_in_order():
    pairs, counts = match(
        source(
            [answer("one", "1"), answer("two", "2"), answer("one", "3")],
            [
                answer("one", "a", False),
                answer("one", "b", False),
                answer("two", "c", False),
                answer("one", "d", False),
            ],
        )
    )
    assert [(pair.monitored.text, pair.unmonitored.text, pair.number) for pair in pairs] == [
        ("1", "a", 0), ("2", "c", 0), ("3", "b", 1),
    ]  # fmt: skip
    assert (counts.requests, counts.unmatched_unmonitored) == (2, 1)


@pytest.mark.parametrize(
    ("monitored", "unmonitored", "word"),
    [
        (answer("one", "1"), answer("two", "2", False), "no request with both answers"),
        (answer("one", None), answer("one", "2", False), "no request with both answers"),
        (answer("one", "1", key="7"), answer("two", "2", False, key="7"), "two different requests"),
        (answer("one", "1"), answer("one", "2"), "same prompt under both conditions"),
        (answer("one", "1", cue="", prompt="one"), answer("one", "2", False), "there is no cue"),
    ],
)
def test_what_cannot_be_a_pair_is_refused(monitored, unmonitored, word):
    with pytest.raises(UserError) as caught:
        match(source([monitored], [unmonitored]))
    assert caught.value.where.startswith("path")
    assert word in caught.value.what
