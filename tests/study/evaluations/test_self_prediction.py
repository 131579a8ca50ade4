"""Self-prediction: what is asked, planted answers and predictions come out as what they are, format failures apart."""

import json
from collections import Counter

import numpy as np
import pytest

from afintro.data.introspection_texts import read_self_prediction
from afintro.study.evaluations import self_prediction
from afintro.study.evaluations.self_prediction import TASKS
from afintro.study.settings import Scale

TEXTS = read_self_prediction()
PROMPTS = [prompt for prompt in TEXTS.prompts if prompt.task in TASKS]
BY_TEXT = {prompt.text: prompt for prompt in PROMPTS}
ASK = {task.id: task.ask for task in TEXTS.tasks}
BY_QUESTION = {ASK[prompt.task].replace("{prompt}", prompt.text): prompt for prompt in PROMPTS}
assert len(BY_QUESTION) == len(BY_TEXT) == 60


def number(prompt):
    """From 0, within its task."""
    return int(prompt.id.split("-")[1]) - 1


def answers(answer, prediction):
    """A system that writes ``answer(system, prompt)``, and ``prediction(system, prompt)`` when asked about it."""

    def writes(system, query):
        assert query.context is query.steering is None
        assert query.prefix == ""
        prompt = BY_TEXT.get(query.question)
        return answer(system, prompt) if prompt else prediction(system, BY_QUESTION[query.question])

    return writes


def own(prompt):
    """An answer that depends on the prompt: nine of twelve begin with T, or name the first option."""
    if not prompt.options:
        return "Oak." if number(prompt) >= 9 else "Tea."
    return f"I say {prompt.options[number(prompt) >= 9]}."


def knows(prompt):
    """The prediction that is right of :func:`own`."""
    late = number(prompt) >= 9
    if prompt.task == "first_character":
        return "'O'" if late else "T"
    if prompt.task == "starts_with_vowel":
        return "Yes" if late else "No."
    return prompt.options[late]


def always(prompt):
    """The commonest property, whatever the prompt."""
    return {"first_character": "t", "starts_with_vowel": "no"}.get(prompt.task) or prompt.options[0]


def value(summary, name):
    return summary["metrics"][name]["value"]


def test_a_system_that_knows_itself_beside_one_that_always_says_the_same(planted):
    """Balanced accuracy tells them apart where the commonest answer does well."""
    session = planted(
        writes=answers(lambda _, prompt: own(prompt), lambda system, p: knows(p) if system == "base" else always(p))
    )
    rows = self_prediction.measure(session)
    found = self_prediction.summarize(rows, 0)
    for name in ("", *(f"/{task}" for task in TASKS)):
        assert value(found, f"right{name}/base") == 1.0
        assert value(found, f"right{name}/adapter") == value(found, f"mode_right{name}/adapter") == 0.75
        assert value(found, f"over_mode{name}/adapter") == 0.0
        assert value(found, f"over_mode{name}/base") == 0.25
        assert value(found, f"balanced_accuracy{name}/adapter") == 0.5
        assert value(found, f"balanced_accuracy{name}/base") == 1.0
        assert value(found, f"shift/right{name}") == -0.25
        assert value(found, f"parsed{name}/adapter") == value(found, f"parsed{name}/base") == 1.0
    assert found["warnings"] == []
    assert found["classes"]["base"]["first_character"] == {"o": 3, "t": 9}
    assert found["classes"]["adapter"]["ethical_stance_rule"] == {"option 1": 9, "option 2": 3}
    assert found["metrics"]["right/adapter"]["n"] == 60
    low, high = found["metrics"]["right/adapter"]["ci_low"], found["metrics"]["right/adapter"]["ci_high"]
    assert 0.55 < low < 0.75 < high < 0.9


def test_each_system_is_held_to_its_own_answer(planted):
    """The adapter answers otherwise than the base and predicts what the base answers: it is never right."""
    swapped = {"Tea.": "Oak.", "Oak.": "Tea."}

    def answer(system, prompt):
        if system == "base":
            return own(prompt)
        return swapped.get(own(prompt)) or f"I say {prompt.options[number(prompt) < 9]}."

    found = self_prediction.summarize(
        self_prediction.measure(planted(writes=answers(answer, lambda _, p: knows(p)))), 0
    )
    assert value(found, "right/base") == 1.0
    assert value(found, "right/adapter") == value(found, "balanced_accuracy/adapter") == 0.0
    assert value(found, "mode_right/adapter") == 0.75


def test_what_cannot_be_read_is_no_agreement_and_no_disagreement(planted):
    def prediction(system, prompt):
        if system == "adapter" and number(prompt) < 4:
            return "I could not say."
        return knows(prompt)

    def answer(system, prompt):
        unclear = system == "base" and prompt.task == "among_options" and number(prompt) == 11
        return "Neither." if unclear else own(prompt)

    rows = self_prediction.measure(planted(writes=answers(answer, prediction)))
    found = self_prediction.summarize(rows, 0)
    assert value(found, "right/adapter") == 1.0
    assert found["metrics"]["right/adapter"]["n"] == 40
    assert value(found, "right_of_all/adapter") == value(found, "parsed/adapter") == pytest.approx(2 / 3)
    assert value(found, "parsed_prediction/adapter") == pytest.approx(2 / 3)
    assert value(found, "parsed_answer/adapter") == 1.0
    assert value(found, "parsed_answer/base") == pytest.approx(59 / 60)
    # The shift is over questions that both have.
    limit = pytest.approx(
        2.024394**2 / (39 + 2.024394**2)
    )  # Tango's interval of no discordant item in 39, of Student's quantile
    shift = found["metrics"]["shift/right"]
    assert (shift["value"], -shift["ci_low"], shift["ci_high"], shift["n"]) == (0.0, limit, limit, 39)
    assert value(found, "shift/right_of_all") == pytest.approx(40 / 60 - 59 / 60)
    unread = [row for row in rows if not row["parsed"]]
    assert len(unread) == 21
    assert not any(row["right"] for row in unread)
    assert next(row for row in unread if row["system"] == "base")["mode_right"] is None
    assert found["warnings"] == [
        "format failures of the adapter: 20 of 60 predictions and 0 of 60 answers cannot be read",
        "format failures of the base: 0 of 60 predictions and 1 of 60 answers cannot be read",
    ]


def test_two_that_cannot_be_read_do_not_agree(planted):
    found = self_prediction.summarize(
        self_prediction.measure(planted(writes=answers(lambda *_: "...", lambda *_: "..."))), 0
    )
    assert value(found, "right_of_all/adapter") == value(found, "parsed/adapter") == 0.0
    for name in ("right/adapter", "mode_right/base", "balanced_accuracy/among_options/base", "shift/right"):
        assert value(found, name) is None
        assert any(warning.startswith(f"{name} cannot be computed") for warning in found["warnings"])


def test_answers_of_one_class_are_warned_of(planted):
    session = planted(writes=answers(lambda _, p: own(p) if p.options else "Tea", lambda _, p: knows(p)))
    found = self_prediction.summarize(self_prediction.measure(session), 0)
    assert [warning.split(":")[0] for warning in found["warnings"]] == ["first_character", "starts_with_vowel"] * 2
    assert value(found, "mode_right/first_character/adapter") == 1.0


def test_balanced_accuracy_by_hand():
    outcomes = [("a", "x", 1), ("a", "x", 1), ("a", "x", 0), ("a", "y", 0), ("b", "x", 1)]
    rows = [{"task": task, "actual_class": name, "right": bool(right)} for task, name, right in outcomes]
    statistic = self_prediction.balanced_accuracy(rows)
    weights = [[1, 1, 1, 1, 1], [2, 0, 0, 1, 0], [0, 0, 0, 0, 3], [0, 0, 0, 0, 0]]
    by_hand = [((2 / 3 + 0) / 2 + 1) / 2, 0.5, 1.0]
    assert statistic(np.array(weights, dtype=float))[:3] == pytest.approx(by_hand)


def test_modes_are_of_one_system_and_one_training(planted):
    """Ties go to the first name, so that nothing depends on the order of the prompts."""
    session = planted(
        writes=answers(lambda system, p: own(p) if system == "base" else ("Zoo", "Bay")[number(p) % 2], lambda *_: "b"),
        scale=Scale(items=4),
    )
    rows = [row for row in self_prediction.measure(session) if row["task"] == "first_character"]
    assert [(row["actual"], row["mode_right"]) for row in rows] == [
        ("z", False), ("b", True), ("z", False), ("b", True), ("t", True), ("t", True), ("t", True), ("t", True),
    ]  # fmt: skip


def test_rows(planted):
    session = planted(writes=answers(lambda _, p: own(p), lambda _, p: knows(p)), seed=3)
    rows = self_prediction.measure(session)
    assert Counter((row["system"], row["task"]) for row in rows) == {
        (system, task): 12 for system in ("adapter", "base") for task in TASKS
    }
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert (row["seed"], row["context"], row["vector"]) == (3, None, None)
        assert BY_TEXT[row["prompt"]].id == row["question"]
    whole, turned = (self_prediction.summarize(given, 0)["metrics"] for given in (rows, rows[::-1]))
    for name, estimate in whole.items():
        assert estimate == pytest.approx(turned[name])


def test_no_rows():
    found = self_prediction.summarize([], 0)
    assert value(found, "right/adapter") is None
    assert len(found["warnings"]) == len(found["metrics"])


@pytest.mark.slow
def test_a_model_and_the_number_of_answers_at_once(open_session):
    scale = {"items": 2, "new_tokens": 6}
    rows = self_prediction.measure(open_session(scale=Scale(**scale, batch_size=8)))
    assert self_prediction.measure(open_session(scale=Scale(**scale, batch_size=1))) == rows
    adapter, base = rows[:10], rows[10:]
    assert [row["answer"] for row in adapter] != [row["answer"] for row in base]
    assert all(row["answer"] and row["prediction"] for row in rows)
    assert all(row["answer"] != row["prediction"] for row in rows)
    json.dumps(self_prediction.summarize(rows, 0), allow_nan=False)
