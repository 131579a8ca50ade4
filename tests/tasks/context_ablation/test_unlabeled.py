"""Scenarios without outputs are asked as labeled records are."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from afintro.data.cue import MONITORED_SYSTEM
from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.tasks.context_ablation.task import PRIMARY, ContextAblation
from afintro.tasks.context_ablation.unlabeled import GROUND_TRUTH, questions
from afintro.tasks.unlabeled import Inputs
from tests.conftest import write_records


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerFast) -> Any:
    return SimpleNamespace(name="small", slot_token=None, revision=None, tokenizer=tokenizer, context_length=2048)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "train.json", 12, 0)
    write_records(tmp_path / "validation.json", 6, 1, held_out_wording=True)
    return tmp_path


def ask(reader: Any, source: Path | str, rows: Any = None) -> list[Any]:
    asked = questions(ContextAblation(), Inputs(str(source), rows), None)
    asked.check()
    return asked.encoded(reader)(0, len(asked))


def without_outputs(folder: Path) -> list[dict[str, Any]]:
    rows = json.loads((folder / "validation.json").read_text())
    return [{name: value for name, value in row.items() if name not in GROUND_TRUTH} for row in rows]


def shown(example: Any) -> Any:
    return example.uid, example.scenario_id, example.prompt, tuple(example.prompt_ids), example.branches


def test_records_without_outputs_are_asked_as_labeled_ones(folder: Path, reader: Any) -> None:
    data = ContextAblation(train_path=str(folder / "train.json"), validation_path=str(folder / "validation.json"))
    labeled = [item for item in data.read_examples("validation", reader) if item.question_type == PRIMARY]
    rows = without_outputs(folder)
    assert not any("behavior" in name or "output" in name for name in rows[0])
    write_json(folder / "input.json", rows)
    found = ask(reader, folder / "input.json")
    assert [shown(item) for item in found] == [shown(item) for item in labeled]
    assert {item.answer_ids for item in found} == {(reader.tokenizer.eos_token_id,)}
    assert [shown(item) for item in ask(reader, folder / "validation.json")] == [shown(item) for item in labeled]


@pytest.mark.parametrize("form", ["behavior", "text", "rate"])
def test_no_form_of_answers_needs_an_output(form: Any, reader: Any) -> None:
    """Also questions about rates, whose answers are made of samples, are asked of a text alone."""
    asked = questions(ContextAblation(answer_form=form), Inputs("questions", ["Help me."]), None)
    (item,) = asked.encoded(reader)(0, 1)
    assert item.prompt.startswith(f"{MONITORED_SYSTEM}\n\nHelp me.\n\n")


def test_a_text_is_asked_as_the_record_of_the_same_text(folder: Path, reader: Any) -> None:
    rows = without_outputs(folder)
    texts = [row["original_user_prompt"] for row in rows]
    assert [shown(item)[2:] for item in ask(reader, "questions", texts)] == [
        shown(item)[2:] for item in ask(reader, "questions", rows)
    ]
    (item,) = ask(reader, "questions", [{"Text": "Help me.", "system_prompt": "Be watched."}])
    assert item.prompt.startswith("Be watched.\n\nHelp me.\n\n")
    (item,) = ask(reader, "questions", ["Help me."])
    assert item.prompt.startswith(f"{MONITORED_SYSTEM}\n\nHelp me.\n\n")


def test_prompts_are_made_when_they_are_asked_for(reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions(ContextAblation(), Inputs("questions", [f"Text {number}." for number in range(9)]), None)
    encode = asked.encoded(reader)
    assert [item.prompt.split("\n\n")[1] for item in encode(3, 5)] == ["Text 3.", "Text 4."]
    assert len(asked) == 9
    assert encode(8, 20)[0].prompt == encode(8, 9)[0].prompt


def test_the_key_tells_questions_apart() -> None:
    def key(*rows: Any) -> str:
        return questions(ContextAblation(), Inputs("questions", list(rows)), None).key

    assert key("a", "b") == key("a", "b")
    assert len({key("a", "b"), key("b", "a"), key("ab"), key({"text": "ab", "system_prompt": "x"})}) == 4


@pytest.mark.parametrize(("row", "word"), [({"label": "aligned"}, "text"), (3, "object"), (" ", "empty")])
def test_wrong_rows_are_refused_by_their_place(row: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        questions(ContextAblation(), Inputs("questions", ["A text.", row]), None)
    assert caught.value.where == "questions, record 1"


@pytest.mark.parametrize(
    ("settings", "where"),
    [({"directions": ["a.npy"]}, "--direction"), ({"layers": [1]}, "--layer"), ({"alphas": [1.0]}, "--alpha")],
)
def test_settings_that_say_nothing_are_refused(settings: Any, where: str) -> None:
    with pytest.raises(UserError) as caught:
        questions(ContextAblation(), Inputs("questions", ["A text."], **settings), None)
    assert caught.value.where == where
    with pytest.raises(UserError, match="no question"):
        questions(ContextAblation(), Inputs("questions", []), None)
