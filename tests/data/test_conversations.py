"""The request of a conversation is its first turn of the user; what else the conversation holds is named."""

import pytest

from afintro.data.conversations import ANSWER, LATER, SYSTEM_TURN, is_conversation, request_of
from afintro.errors import UserError


def turns(*pairs, names=("role", "content")):
    return [dict(zip(names, pair, strict=True)) for pair in pairs]


@pytest.mark.parametrize(
    ("conversation", "text", "others"),
    [
        (turns(("user", "a")), "a", set()),
        (turns(("system", "s"), ("user", "a")), "a", {SYSTEM_TURN}),
        (turns(("developer", "s"), ("user", "a"), ("assistant", "b")), "a", {SYSTEM_TURN, ANSWER}),
        (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "a", {ANSWER, LATER}),
        (turns(("user", "a"), ("user", "c")), "a", {LATER}),
        (turns(("human", "a"), ("gpt", "b"), names=("from", "value")), "a", {ANSWER}),
        (turns(("System", "s"), ("Human", "a"), names=("from", "value")), "a", {SYSTEM_TURN}),
        (turns(("user", [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}])), "a\nb", set()),
        (turns(("user", [{"text": "a"}, "b"])), "a\nb", set()),
        (turns(("assistant", None), ("user", "a")), "a", {ANSWER}),
    ],
)
def test_request(conversation, text, others):
    assert is_conversation(conversation)
    assert request_of(conversation, "f.json, record 0") == (text, others)


@pytest.mark.parametrize(
    ("conversation", "where", "words"),
    [
        (turns(("system", "s"), ("assistant", "b")), "f.json, record 3", "system, assistant"),
        (turns(("system", "s"), ("user", None)), "f.json, record 3, turn 1", "NoneType"),
        (turns(("user", [{"type": "image_url", "image_url": "x"}])), "f.json, record 3, turn 0", "image_url"),
        (turns(("user", {"text": 3})), "f.json, record 3, turn 0", "not text"),
    ],
)
def test_what_is_no_request(conversation, where, words):
    with pytest.raises(UserError, match=words) as caught:
        request_of(conversation, "f.json, record 3")
    assert caught.value.where == where


@pytest.mark.parametrize("value", [[], "text", None, ["a"], [{"text": "a"}], {"role": "user"}, [{"role": "user"}, "a"]])
def test_what_is_no_conversation(value):
    assert not is_conversation(value)
