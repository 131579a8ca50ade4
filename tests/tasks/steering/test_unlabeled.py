"""Vectors of unknown effect are asked about as labeled records are: by records without outputs, or by texts and files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from afintro.data.cue import MONITORED_SYSTEM
from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.lm.injection import VectorSpace
from afintro.tasks.steering.direction_files import read_direction
from afintro.tasks.steering.task import SteeringPrediction
from afintro.tasks.steering.unlabeled import GROUND_TRUTH, questions
from afintro.tasks.unlabeled import Inputs
from tests.conftest import write_steering_records
from tests.tasks.steering.test_patches import WIDTH as PATCH_WIDTH
from tests.tasks.steering.test_patches import patch_row

SPACE = VectorSpace(24, (1, 2))
TEXT = "A nurse asks for help."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data; nobody writes here."""
    found = tmp_path_factory.mktemp("steering")
    write_steering_records(found, counts=(6, 3))
    np.save(found / "bare.npy", np.arange(24.0) + 1)
    return found


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerFast) -> Any:
    return SimpleNamespace(name="small", slot_token="<|slot|>", tokenizer=tokenizer, context_length=2048)


def task(folder: Path, **settings: Any) -> SteeringPrediction:
    return SteeringPrediction(
        train_path=str(folder / "train.json"), validation_path=str(folder / "validation.json"), **settings
    )


def ask(data: Any, reader: Any, source: str, space: VectorSpace = SPACE, **settings: Any) -> list[Any]:
    asked = questions(data, Inputs(source, **settings), space)
    asked.check()
    return asked.encoded(reader)(0, len(asked))


def shown(example: Any) -> Any:
    vector = example.slot.vector
    return (
        example.prompt,
        example.prompt_ids,
        example.slot.position,
        example.slot.layer,
        vector.dtype,
        vector.tobytes(),
        example.branches,
        example.group,
        dict(example.notes),
    )


def without_outputs(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text())
    return [{name: value for name, value in row.items() if name not in GROUND_TRUTH} for row in rows]


def compared(data: Any, reader: Any, found: list[Any]) -> int:
    """Compare with all questions that predict asks, by uid; returns their number."""
    by_uid = {item.uid: item for item in found}
    labeled = list(data.read_examples("validation", reader))
    assert len(by_uid) == len(found)
    for item in labeled:
        assert shown(by_uid[item.uid]) == shown(item)
        assert by_uid[item.uid].scenario_id == item.scenario_id
    return len(labeled)


def test_records_without_outputs_are_asked_as_labeled_ones(folder: Path, tmp_path: Path, reader: Any) -> None:
    rows = without_outputs(folder / "validation.json")
    assert not GROUND_TRUTH & set(rows[0])
    assert "alpha" in rows[0]
    write_json(tmp_path / "input.json", rows)
    found = ask(task(folder), reader, str(tmp_path / "input.json"))
    assert len(found) == len(rows)
    assert [item.notes["direction"] for item in found] == [row["direction"] for row in rows]
    assert {item.answer_ids for item in found} == {(reader.tokenizer.eos_token_id,)}
    data = task(folder)
    assert compared(data, reader, found) > 10


def test_outputs_of_records_are_not_looked_at(folder: Path, tmp_path: Path, reader: Any) -> None:
    whole = ask(task(folder), reader, str(folder / "validation.json"))
    bare = ask(task(folder), reader, "questions", rows=without_outputs(folder / "validation.json"))
    assert [(item.uid, *shown(item)) for item in whole] == [(item.uid, *shown(item)) for item in bare]


def test_no_training_file_is_needed(folder: Path, tmp_path: Path, reader: Any) -> None:
    data = SteeringPrediction(train_path=str(tmp_path / "absent" / "train.json"))
    found = ask(data, reader, str(folder / "validation.json"))  # the directions lie beside the input
    assert [item.uid for item in found] == [
        item.uid for item in ask(task(folder), reader, str(folder / "validation.json"))
    ]


def test_texts_are_asked_about_every_direction_layer_and_alpha(folder: Path, reader: Any) -> None:
    paths = [str(folder / "directions" / "alignment_faking.safetensors"), str(folder / "bare.npy")]
    asked = {"directions": paths, "layers": (1, 2), "alphas": (0.5, 2.0)}
    found = ask(task(folder), reader, "questions", rows=[TEXT, {"text": "Other."}], **asked)
    assert [tuple(item.notes.values()) for item in found[:8]] == [
        (name, layer, alpha) for name in ("alignment_faking", "bare") for layer in (1, 2) for alpha in (0.5, 2.0)
    ]
    assert len(found) == len({item.uid for item in found}) == 16
    for item in found:
        name, layer, alpha = item.notes.values()
        path = paths[name == "bare"]
        assert (item.slot.vector == read_direction(path).at(layer)).all()
        assert item.slot.layer == layer
        assert f"If {alpha:g} times the vector <|slot|> were added at layer {layer}," in item.prompt
    assert found[0].prompt.startswith(f"{MONITORED_SYSTEM}\n\n{TEXT}\n\n")


def test_a_text_is_asked_as_the_record_of_the_same_text(folder: Path, reader: Any) -> None:
    (row, *_) = without_outputs(folder / "validation.json")
    (record,) = ask(task(folder), reader, "questions", rows=[row])
    path = str(folder / "directions" / f"{row['direction'].replace('/', '-')}.safetensors")
    asked = {"directions": [path], "layers": row["layer"], "alphas": [row["alpha"]]}
    (text,) = ask(task(folder), reader, "questions", rows=[row["scenario"]], **asked)
    assert shown(text) == shown(record)


def test_a_direction_is_asked_about_at_its_own_layers(folder: Path, reader: Any) -> None:
    path = str(folder / "directions" / "topic-harmful.safetensors")
    found = ask(task(folder), reader, "questions", rows=[TEXT], directions=[path], alphas=[1.0])
    assert [item.slot.layer for item in found] == [1, 2]
    narrow = VectorSpace(24, (2,))
    found = ask(task(folder), reader, "questions", narrow, rows=[TEXT], directions=[path], alphas=[1.0])
    assert [item.slot.layer for item in found] == [2]


def test_rows_may_say_a_part_and_flags_the_rest(folder: Path, reader: Any) -> None:
    row = {"text": TEXT, "direction": "topic/harmful", "layer": 2, "uid": "x", "label": 1}
    found = ask(task(folder), reader, "questions", rows=[row], alphas=[1.0, 5.0])
    assert [item.uid for item in found] == ["x/topic/harmful/2/1", "x/topic/harmful/2/5"]


def test_patches_bring_their_vectors(tmp_path: Path, reader: Any) -> None:
    rows = [patch_row(number, number % 2 == 0) for number in range(40)]
    write_json(tmp_path / "train.json", rows[:20])
    write_json(tmp_path / "validation.json", rows[20:])
    bare = [{name: value for name, value in row.items() if name not in GROUND_TRUTH} for row in rows[20:]]
    assert "original_continuation" not in bare[0]
    absent = SteeringPrediction(train_path=str(tmp_path / "absent.json"))
    found = ask(absent, reader, "questions", VectorSpace(PATCH_WIDTH, (0,)), rows=bare)
    assert [item.slot.vector.tolist() for item in found] == [
        np.float32(row["patch_position"]["intervention_vector"]).tolist() for row in bare
    ]
    assert compared(task(tmp_path), reader, found) > 5


def test_variants_are_asked_as_they_were_trained(folder: Path, reader: Any) -> None:
    for variant in ({"zero_vectors": True}, {"without_text": True}):
        data = task(folder).for_another_explainer(**variant)
        compared(data, reader, ask(data, reader, str(folder / "validation.json")))


def test_the_key_tells_questions_apart(folder: Path, tmp_path: Path) -> None:
    def key(path: Path, **settings: Any) -> str:
        asked = {"directions": [str(path)], "layers": (1,), "alphas": (1.0,), **settings}
        return questions(task(folder), Inputs("questions", [TEXT], **asked), SPACE).key

    np.save(tmp_path / "bare.npy", np.r_[np.arange(23.0) + 1, 25])
    keys = [key(folder / "bare.npy"), key(tmp_path / "bare.npy"), key(folder / "bare.npy", layers=(2,))]
    assert len({*keys, key(folder / "bare.npy", alphas=(2.0,))}) == 4
    assert key(folder / "bare.npy") == keys[0]


@pytest.mark.parametrize(
    ("row", "settings", "word"),
    [
        (TEXT, {"alphas": [1.0]}, "no direction"),
        (TEXT, {"directions": ["bare.npy"], "layers": [1]}, "no alpha"),
        (TEXT, {"directions": ["bare.npy"], "alphas": [1.0]}, "names no layer"),
        (TEXT, {"directions": ["bare.npy"], "layers": [7], "alphas": [1.0]}, "layer 7"),
        (TEXT, {"directions": ["narrow.npy"], "layers": [1], "alphas": [1.0]}, "width 5"),
        ({"text": TEXT, "direction": "unknown", "layer": 1, "alpha": 1.0}, {}, "'unknown'"),
        ({"text": TEXT, "direction": "tier/paid", "layer": 1, "alpha": 1.0}, {"alphas": [2.0]}, "own alpha"),
        ({"text": TEXT, "direction": "tier/paid", "layer": 1, "alpha": 1.0}, {"layers": [2]}, "own layer"),
        ({"text": TEXT, "direction": "tier/paid", "layer": 1, "alpha": "x"}, {}, "'alpha'"),
        ({"text": TEXT, "direction": "tier/paid", "layer": "x", "alpha": 1.0}, {}, "'layer'"),
        ({"text": TEXT, "direction": "tier/paid", "layer": 1, "alpha": float("nan")}, {}, "finite"),
        ({"direction": "tier/paid", "layer": 1, "alpha": 1.0}, {}, "text"),
        (patch_row(0), {"alphas": [1.0]}, "own vector"),
        (patch_row(0), {}, f"width {PATCH_WIDTH}"),
    ],
)
def test_wrong_rows_are_refused_by_their_place(folder: Path, row: Any, settings: Any, word: str) -> None:
    np.save(folder / "narrow.npy", np.ones(5))
    settings = {**settings, "directions": [str(folder / name) for name in settings.get("directions", ())]}
    with pytest.raises(UserError, match=word) as caught:
        questions(task(folder), Inputs("questions", [row], **settings), SPACE)
    assert str(caught.value.where).startswith("questions, record 0") or word == "'layer'"


def test_wrong_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no question"):
        questions(task(folder), Inputs("questions", []), SPACE)
    with pytest.raises(UserError, match="vectors"):
        questions(task(folder), Inputs("questions", [TEXT]), None)
    with pytest.raises(UserError, match="two directions") as caught:
        questions(task(folder), Inputs("questions", [TEXT], [str(folder / "bare.npy")] * 2, (1,), (1.0,)), SPACE)
    assert caught.value.where == "--direction"
    absent = SteeringPrediction(train_path=str(tmp_path / "train.json"))
    row = {"text": TEXT, "direction": "a", "layer": 1, "alpha": 1.0}
    with pytest.raises(UserError, match="no vectors"):
        questions(absent, Inputs(str(tmp_path / "x.json"), [row]), SPACE)
