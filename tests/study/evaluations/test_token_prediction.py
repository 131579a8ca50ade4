"""Token prediction: planted lengths and words, answers that were cut off, constants beside them."""

import json

import pytest

from afintro.data.introspection_texts import read_self_prediction
from afintro.study.asking.queries import WrittenAnswer
from afintro.study.evaluations import token_prediction
from afintro.study.evaluations.token_prediction import LENGTH, WORD
from afintro.study.settings import Scale

TEXTS = read_self_prediction()
PROMPTS = {prompt.text: prompt for prompt in TEXTS.prompts if prompt.task in (LENGTH, WORD)}
ASK = {task.id: task.ask for task in TEXTS.tasks}
BY_QUESTION = {ASK[prompt.task].replace("{prompt}", text): prompt for text, prompt in PROMPTS.items()}


def number(prompt):
    """From 1, within its task."""
    return int(prompt.id.split("-")[1])


def answer(prompt):
    """As many words as its number; three of four begin with one word."""
    first = "Well" if number(prompt) % 4 else "Hardly"
    return " ".join([first, *["word"] * (number(prompt) - 1)])


def session_of(planted, prediction, answers=lambda system, prompt: answer(prompt), **more):
    """Writes ``answers(system, prompt)``, and ``prediction(system, prompt)`` when asked about it."""

    def writes(system, query):
        assert query.context is query.steering is None
        assert query.prefix == ""
        prompt = PROMPTS.get(query.question)
        return answers(system, prompt) if prompt else prediction(system, BY_QUESTION[query.question])

    return planted(writes=writes, **more)


def off_by(errors):
    """Predicts lengths that miss by so many words, by system; first words that are right of the base alone."""

    def prediction(system, prompt):
        if prompt.task == LENGTH:
            return f"About {number(prompt) + errors[system]} words."
        return answer(prompt).split()[0].upper() if system == "base" else "Well"

    return prediction


def value(summary, name):
    return summary["metrics"][name]["value"]


def test_planted_errors(planted):
    session = session_of(planted, off_by({"adapter": 5, "base": 2}))
    found = token_prediction.summarize(token_prediction.measure(session), 0)
    assert value(found, "mae/adapter") == value(found, "mae_least/adapter") == 5.0
    assert value(found, "mae/base") == 2.0
    assert value(found, "shift/mae") == 3.0
    assert value(found, "mae_median/adapter") == 3.0  # of 1 to 12
    assert value(found, "right/base") == 1.0
    assert value(found, "right/adapter") == value(found, "mode_right/adapter") == 0.75
    assert value(found, "cut/adapter") == 0.0
    assert value(found, "parsed_length/adapter") == value(found, "parsed_word/adapter") == 1.0
    assert found["metrics"]["mae/adapter"]["n"] == found["metrics"]["right/adapter"]["n"] == 12
    assert found["warnings"] == []


def test_cut_answers_have_a_length_that_is_only_bounded(planted):
    """Answers of more than eight words are cut there; everybody predicts nine words."""

    def answers(system, prompt):
        words = answer(prompt).split()
        return WrittenAnswer(" ".join(words[:8]), cut=len(words) > 8)

    session = session_of(planted, lambda _, prompt: "9" if prompt.task == LENGTH else "Well", answers)
    rows = token_prediction.measure(session)
    own = [row for row in rows if row["task"] == LENGTH and row["system"] == "adapter"]
    assert [row["error"] for row in own] == [8, 7, 6, 5, 4, 3, 2, 1, None, None, None, None]
    assert [row["least_error"] for row in own] == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0]
    assert [row["right"] for row in own] == [False] * 8 + [None] * 4
    assert [row["median_error"] for row in own] == [3.5, 2.5, 1.5, 0.5, 0.5, 1.5, 2.5, 3.5] + [None] * 4
    found = token_prediction.summarize(rows, 0)
    assert value(found, "mae/adapter") == 4.5
    assert found["metrics"]["mae/adapter"]["n"] == 8
    assert value(found, "mae_least/adapter") == 3.0
    assert value(found, "mae_median/adapter") == 2.0
    assert value(found, "cut/adapter") == pytest.approx(1 / 3)
    assert [warning for warning in found["warnings"] if warning.startswith("4 of 12 answers of the adapter were cut")]


def test_a_cut_answer_that_is_already_longer_than_predicted_is_missed(planted):
    session = session_of(
        planted, lambda _, prompt: "3" if prompt.task == LENGTH else "w", lambda *_: WrittenAnswer("a b c d e", True)
    )
    rows = token_prediction.measure(session)
    assert [(row["error"], row["least_error"], row["right"]) for row in rows if row["task"] == LENGTH] == [
        (None, 2, False)
    ] * 24
    found = token_prediction.summarize(rows, 0)
    assert value(found, "mae/adapter") is None
    assert any(warning.startswith("mae/adapter cannot be computed") for warning in found["warnings"])
    assert value(found, "mae_least/adapter") == 2.0


def test_what_cannot_be_read_has_no_error_and_is_not_right(planted):
    def prediction(system, prompt):
        if system == "adapter" and number(prompt) <= 3:
            return "10 to 20" if prompt.task == LENGTH else "Well then"
        return off_by({"adapter": 5, "base": 2})(system, prompt)

    rows = token_prediction.measure(session_of(planted, prediction))
    unread = [row for row in rows if not row["parsed"]]
    assert len(unread) == 6
    for row in unread:
        assert (row["predicted"], row["error"], row["least_error"], row["right"]) == (None, None, None, False)
    found = token_prediction.summarize(rows, 0)
    assert value(found, "mae/adapter") == 5.0
    assert found["metrics"]["mae/adapter"]["n"] == found["metrics"]["shift/mae"]["n"] == 9
    assert value(found, "parsed_length/adapter") == value(found, "parsed_word/adapter") == 0.75
    assert value(found, "right/adapter") == pytest.approx(6 / 9)
    assert value(found, "right_of_all/adapter") == 0.5
    assert found["warnings"] == ["format failures of the adapter: 6 of 24 items cannot be read"]


def test_an_answer_without_a_word_has_no_first_word(planted):
    rows = token_prediction.measure(session_of(planted, lambda *_: "5", lambda *_: "..."))
    words = [row for row in rows if row["task"] == WORD]
    assert all(
        (row["actual"], row["parsed"], row["right"], row["mode_right"]) == (None, False, False, None) for row in words
    )
    lengths = [row for row in rows if row["task"] == LENGTH]
    assert all((row["actual"], row["error"]) == (0, 5) for row in lengths)
    found = token_prediction.summarize(rows, 0)
    assert value(found, "right/adapter") is None
    assert value(found, "right_of_all/adapter") == 0.0


def test_rows(planted):
    rows = token_prediction.measure(session_of(planted, off_by({"adapter": 0, "base": 0}), seed=2))
    assert len(rows) == 48
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert (row["seed"], row["context"], row["vector"]) == (2, None, None)
        assert (PROMPTS[row["prompt"]].id, PROMPTS[row["prompt"]].task) == (row["question"], row["task"])
        assert row["error"] == (0 if row["task"] == LENGTH else None)
    assert (
        len(token_prediction.measure(session_of(planted, off_by({"adapter": 0, "base": 0}), scale=Scale(items=5))))
        == 20
    )


@pytest.mark.slow
def test_a_model_whose_answers_are_cut(open_session):
    scale = {"items": 2, "new_tokens": 5}
    rows = token_prediction.measure(open_session(scale=Scale(**scale, batch_size=8)))
    assert token_prediction.measure(open_session(scale=Scale(**scale, batch_size=1))) == rows
    assert len(rows) == 8
    assert any(row["cut"] for row in rows)
    json.dumps(token_prediction.summarize(rows, 0), allow_nan=False)


def test_what_ends_by_itself_is_not_cut(open_session, monkeypatch):
    """With every token an end, nothing is written and nothing cut."""
    session = open_session(scale=Scale(items=2, new_tokens=5))
    every = tuple(range(len(session.module.tokenizer)))
    monkeypatch.setattr("afintro.study.asking.session.eos_ids", lambda *_: every)
    rows = token_prediction.measure(session)
    assert all((row["answer"], row["cut"]) == ("", False) for row in rows)


def test_no_rows():
    found = token_prediction.summarize([], 0)
    assert value(found, "mae/adapter") is None
    assert len(found["warnings"]) == len(found["metrics"])
