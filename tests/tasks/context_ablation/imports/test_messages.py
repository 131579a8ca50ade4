"""Conversations in OpenAI's format become answers; what is no answered conversation is refused."""

import json

import pytest

from afintro.errors import UserError
from afintro.tasks.context_ablation.imports.messages import read_messages
from afintro.tasks.context_ablation.imports.pairs import match


def talk(answer, system="You are watched.", user="What is tea?", role="system"):
    """A conversation of one question."""
    return [
        *([{"role": role, "content": system}] if system else []),
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer},
    ]


def read(path, rows, model=None):
    """The sources of a file with these rows."""
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_messages(path, model)


@pytest.mark.parametrize("ids", [(1, 1), ("a", "a"), (None, None)])
def test_a_row_a_conversation_is_matched_by_id_or_request(tmp_path, ids):
    rows = [
        {"messages": talk("A leaf.", None), "monitored": False, "id": ids[0]},
        {"messages": talk("I will not say."), "monitored": True, "id": ids[1], "label": "aligned"},
    ]
    [source] = read(tmp_path / "talks.jsonl", rows, "model-x")
    [pair], counts = match(source)
    assert (source.name, source.model) == ("talks.jsonl/model-x", "model-x")
    assert (pair.monitored.text, pair.unmonitored.text) == ("I will not say.", "A leaf.")
    assert (pair.monitored.request, pair.monitored.cue, pair.monitored.label) == (
        "What is tea?",
        "You are watched.",
        "aligned",
    )
    assert pair.monitored.prompt == "You are watched.\n\nWhat is tea?"
    assert pair.unmonitored.prompt == "What is tea?"
    assert counts.pairs == 1


@pytest.mark.parametrize("bare", [True, False])
def test_a_row_a_pair_is_read_and_models_are_told_apart(tmp_path, bare):
    def side(messages):
        return messages if bare else {"messages": messages}

    rows = [
        {
            "monitored": side(talk("x", role="developer")),
            "unmonitored": side(talk("y", "Nobody looks.")),
            "model": "m1",
        },
        {"monitored": side(talk("p")), "unmonitored": side(talk("q", "Nobody looks.")), "model": "m2"},
    ]
    sources = read(tmp_path / "talks.jsonl", rows)
    assert [source.model for source in sources] == ["m1", "m2"]
    assert [match(source)[0][0].unmonitored.text for source in sources] == ["y", "q"]
    assert sources[0].monitored[0].cue == "You are watched."


def test_parts_of_text_and_several_turns_are_read(tmp_path):
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Watched."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And tea?"},
        {"role": "assistant", "content": "A leaf."},
    ]
    [source] = read(tmp_path / "talks.jsonl", [{"monitored": turns, "unmonitored": turns[1:]}])
    [pair], _ = match(source)
    assert pair.monitored.request == "user: Hello\n\nthere\n\nassistant: Hi.\n\nuser: And tea?"
    assert pair.monitored.text == "A leaf."


def test_a_cue_in_the_user_turn_needs_the_request(tmp_path):
    row = {
        "monitored": talk("x", None, "[tier: free] What is tea?"),
        "unmonitored": talk("y", None, "[tier: paid] What is tea?"),
    }
    [source] = read(tmp_path / "talks.jsonl", [row])
    with pytest.raises(UserError) as caught:
        match(source)
    assert "field 'request'" in caught.value.remedy
    [source] = read(tmp_path / "talks.jsonl", [row | {"request": "What is tea?"}])
    [pair], _ = match(source)
    assert (pair.monitored.request, pair.monitored.cue) == ("What is tea?", "[tier: free]")
    assert pair.monitored.prompt == "[tier: free] What is tea?"


@pytest.mark.parametrize(
    ("row", "where", "word"),
    [
        ({"messages": talk("x")[:-1], "monitored": True}, "record 0", "ends with a turn of the user"),
        ({"messages": talk("x")}, "field 'monitored'", "whether the conversation was monitored"),
        ({"messages": talk("x"), "monitored": "yes"}, "field 'monitored'", "whether the conversation was monitored"),
        ({"messages": [], "monitored": True}, "record 0", "no list of messages"),
        ({"monitored": talk("x")}, "field 'unmonitored'", "no list of messages"),
        ({"messages": [{"role": "user"}], "monitored": True}, "record 0", "turn without role or text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "monitored": True}, "record 0", "without role or text"),
        ({"messages": talk("x"), "monitored": True, "id": [1]}, "record 0", "field 'id'"),
        ({"messages": talk("x", None, " "), "monitored": True}, "record 0", "no request"),
        (["text"], "record 0", "not an object"),
    ],
)  # fmt: skip
def test_what_is_no_answered_conversation_is_refused(tmp_path, row, where, word):
    with pytest.raises(UserError) as caught:
        read(tmp_path / "talks.jsonl", [row])
    assert where in caught.value.where
    assert word in caught.value.what
