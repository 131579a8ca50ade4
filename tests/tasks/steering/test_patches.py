"""Records of activation patching, as the parent framework writes them."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from afintro.errors import UserError
from afintro.evaluation.answers import expected_verdict
from afintro.tasks.steering.directions import Direction
from afintro.tasks.steering.patches import (
    PatchedRecord,
    RecordVectors,
    patched_record,
    patching_row,
    read_any_records,
    text_of,
)
from afintro.tasks.steering.records import SteeringRecord
from afintro.tasks.steering.task import UNSEEN_SCENARIO, SteeringPrediction, SteeringWording
from tests.conftest import write_steering_records

SLOT, WIDTH = "<|slot|>", 8
THINGS = (
    "rivers",
    "engines",
    "birds",
    "treaties",
    "acids",
    "planets",
    "operas",
    "verbs",
    "glaciers",
    "guilds",
    "maps",
    "coins",
)


def patch_row(number: int, changed: bool = True, layers: Any = (0, 1, 2, 3), **fields: Any) -> dict[str, Any]:
    """One row with the tokens of a byte-level tokenizer, as the parent framework writes it."""
    vector = np.random.default_rng(number).normal(size=WIDTH)
    thing = THINGS[number % len(THINGS)]
    return {
        "layer": list(layers),
        "input_tokens": [
            "<|begin_of_text|>", "The", "\u0120old", f"\u0120{thing}", "\u0120of", f"\u0120No{number * 37}", "\u0120is"
        ],
        "original_continuation": ["\u0120Paris"],
        "ablated_continuation": ["\u0120Rome" if changed else "\u0120Paris"],
        "is_different": changed,
        "patch_position": {
            "counterfact_pos": 3, "counterfact_text_token": "\u0120x", "intervention_vector": vector.tolist(), "orig_pos": 3,
            "orig_text_token": f"\u0120{thing}",
        },
        "counterfactual_text": "The new x of y is", "gt_original_target": "Paris", "gt_counterfactual_target": "Rome",
        "layer_hashable": list(layers), "token_type": "Subject Final", "__index_level_0__": number, **fields,
    }  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerFast) -> Any:
    return SimpleNamespace(name="small", slot_token=SLOT, tokenizer=tokenizer, context_length=2048)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["The", "\u0120maker", "\u0120of"], "The maker of"),
        (["caf", "\u00c3\u00a9", "\u010a", "\u0120x"], "caf\u00e9\n x"),
        (["\u00e4\u00b8\u0143", "\u00e6\u0138\u0129"], "\u4e2d\u6587"),
        (["\u2581The", "\u2581maker"], " The maker"),
        ([" Paris"], " Paris"),
        (["caf\u00e9"], "caf\u00e9"),
        (["I cannot help.\n"], "I cannot help.\n"),
        (["P"], "P"),
        ([""], ""),
    ],
)
def test_tokens_are_text(tokens: list[str], text: str) -> None:
    assert text_of(tokens) == text


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_records(tmp_path: Path, suffix: str) -> None:
    rows = [patch_row(0), patch_row(1, False, layers=(7,)), patch_row(2, layers=(5, 4))]
    records = read_any_records(write_rows(tmp_path / f"p.{suffix}", rows))
    assert [record.scenario for record in records] == [
        "The old rivers of No0 is", "The old engines of No37 is", "The old birds of No74 is"
    ]  # fmt: skip
    assert [(r.layer, r.layers) for r in records if isinstance(r, PatchedRecord)] == [
        (0, (0, 1, 2, 3)), (7, (7,)), (4, (4, 5))
    ]  # fmt: skip
    assert [(r.original_output, r.steered_output, r.behavior_changed) for r in records] == [
        (" Paris", " Rome", True), (" Paris", " Paris", False), (" Paris", " Rome", True)
    ]  # fmt: skip
    for row, record in zip(rows, records, strict=True):
        assert isinstance(record, PatchedRecord)
        np.testing.assert_array_equal(record.vector, np.float32(row["patch_position"]["intervention_vector"]))
        assert record.token == " " + record.scenario.split()[2]
    assert len({record.uid for record in records}) == 3


def test_a_prompt_is_patched_at_several_layers_and_tokens_and_stays_one_scenario(tmp_path: Path) -> None:
    """Also by one vector, which is one direction."""
    place = patch_row(0)["patch_position"]
    rows = [patch_row(0), patch_row(0, layers=(4, 5)), patch_row(0, patch_position={**place, "orig_pos": 2})]
    records = read_any_records(write_rows(tmp_path / "p.jsonl", rows))
    assert len({record.uid for record in records}) == 3
    assert len({record.scenario_id for record in records}) == len({record.direction for record in records}) == 1


def data_of(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> SteeringPrediction:
    path = write_rows(tmp_path / "train.jsonl", rows)
    others = write_rows(tmp_path / "validation.jsonl", [patch_row(20, True), patch_row(21, False)])
    return SteeringPrediction(train_path=path, validation_path=others, **settings)


def test_what_is_asked_and_answered(tmp_path: Path, reader: Any) -> None:
    """In the parent framework's words: all layers, the token, the whole text, and the vector in the slot."""
    data = data_of(tmp_path, [patch_row(number, number % 2 == 0) for number in range(12)])
    examples = {split: list(data.read_examples(split, reader)) for split in ("train", "validation")}
    answers = Counter(example.answer for example in examples["train"])
    assert answers == {
        "The most likely output would change to <<< Rome>>>.": 6,
        "The output would remain unchanged from <<< Paris>>>.": 6,
    }
    records = {record.uid: record for record in (*data.records("train"), *data.records("validation"))}
    for example in (*examples["train"], *examples["validation"]):
        record = records[example.uid]
        assert isinstance(record, PatchedRecord)
        assert f"<<<{record.scenario}>>>" in example.prompt
        assert "layer 0, 1, 2, 3" in example.prompt
        assert f"<{record.token}>" in example.prompt
        assert "begin_of_text" not in example.prompt
        assert example.slot is not None
        np.testing.assert_array_equal(example.slot.vector, record.vector)
        assert expected_verdict(example.answer).changed == record.behavior_changed
        assert example.copy_answer == "The output would remain unchanged from <<< Paris>>>."
    assert len({example.prompt.split(" ")[0] for example in examples["train"]}) > 1, "of several wordings"
    assert {example.question_type for example in examples["validation"]} == {UNSEEN_SCENARIO}
    assert data.space is not None
    assert (data.space.width, data.space.layers) == (WIDTH, (0,))


@pytest.mark.parametrize(
    ("user", "begins"),
    [("{layer} {alpha} {slot} {user_prompt}", False), ("At {tokens}, {layer}: {slot} in {user_prompt}?", True)],
)
def test_a_wording_that_does_not_name_the_token_asks_about_steering_alone(
    tmp_path: Path, user: str, begins: bool
) -> None:
    data = data_of(tmp_path, [patch_row(0), patch_row(1, False)], wording=SteeringWording(user=[user]))
    (_, message), _ = data.render(data.records("train")[0], SLOT)
    assert (message["content"] == f"At < rivers>, 0, 1, 2, 3: {SLOT} in The old rivers of No0 is?") == begins
    assert "< rivers>" in message["content"]


def test_patches_of_one_prompt_are_no_twins(tmp_path: Path) -> None:
    """Their questions name a token, so that their texts may differ; as many changed as unchanged are asked about."""
    twice = patch_row(0, False, __index_level_0__=50)
    twice["patch_position"] = patch_row(9)["patch_position"]
    rows = [patch_row(0), twice, patch_row(1), patch_row(2, False), patch_row(3)]
    asked = data_of(tmp_path, rows).asked_records("train")
    assert {item.twins for item in asked} == {""}
    assert Counter(item.record.behavior_changed for item in asked) == {True: 2, False: 2}


def test_without_text_no_token_is_named(tmp_path: Path) -> None:
    data = data_of(tmp_path, [patch_row(0), patch_row(1, False)])
    data.without_text = True
    assert "rivers" not in data.render(data.records("train")[0], SLOT)[0][1]["content"]


@pytest.mark.slow
def test_baselines_and_intervals_take_every_vector_for_a_direction(tmp_path: Path, reader: Any) -> None:
    data = data_of(tmp_path, [patch_row(number, number % 2 == 0) for number in range(12)])
    for split in ("train", "validation"):
        data.examples[split] = data.read_examples(split, reader)
    assert len({example.group for example in data.examples["train"]}) == 12
    answered = data.baselines("validation")
    assert {"cell_majority", "direction_x_text", "ridge", "boosting", "text_chars"} <= answered.keys()
    assert all(len(answers) == 2 for answers in answered.values())


def test_examples_that_are_kept_on_disk_find_their_vectors(
    tmp_path: Path, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("afintro.tasks.stored.LARGE", 0)
    rows = [patch_row(number, number % 2 == 0) for number in range(12)]
    in_memory = None
    for _ in range(2):  # made, and read again without the records
        data = data_of(tmp_path, rows)
        examples = list(data.read_examples("train", reader))
        vectors = {example.uid: example.slot.vector.tolist() for example in examples if example.slot}
        assert in_memory in (None, vectors)
        in_memory = vectors
    assert len(vectors) == 12


WRONG = {
    "no vector": ({"patch_position": {"orig_pos": 3}}, "intervention_vector"),
    "no place": ({"patch_position": None}, "patch_position"),
    "place of another kind": ({"patch_position": 3}, "intervention_vector"),
    "zero": ({"patch_position": {"intervention_vector": [0.0, 0.0]}}, "not 0"),
    "not finite": ({"patch_position": {"intervention_vector": [1.0, float("nan")]}}, "finite"),
    "matrix": ({"patch_position": {"intervention_vector": [[1.0], [2.0]]}}, "intervention_vector"),
    "ragged": ({"patch_position": {"intervention_vector": [[1.0], 2.0]}}, "numbers"),
    "empty": ({"patch_position": {"intervention_vector": []}}, "intervention_vector"),
    "words": ({"patch_position": {"intervention_vector": ["a"]}}, "intervention_vector"),
    "no layer": ({"layer": []}, "layer"),
    "layer below 0": ({"layer": [-1]}, "layer"),
    "layer in words": ({"layer": ["3"]}, "layer"),
    "layer twice": ({"layer": [3, 3]}, "layer"),
    "no tokens": ({"input_tokens": []}, "input_tokens"),
    "ids": ({"input_tokens": [1, 2]}, "input_tokens"),
    "no answer": ({"ablated_continuation": None}, "ablated_continuation"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_rows_are_refused_by_name(tmp_path: Path, what: str) -> None:
    fields, word = WRONG[what]
    path = tmp_path / "p.jsonl"
    write_rows(path, [patch_row(0), patch_row(1) | fields])
    with pytest.raises(UserError, match=word) as refused:
        read_any_records(str(path))
    assert refused.value.where == f"{path}, record 1"


def test_vectors_of_several_widths_and_mixed_kinds_are_refused(tmp_path: Path) -> None:
    narrow = patch_row(1, patch_position={"intervention_vector": [1.0, 2.0], "orig_pos": 0})
    path = write_rows(tmp_path / "p.jsonl", [patch_row(0), narrow])
    with pytest.raises(UserError, match="width") as refused:
        read_any_records(path)
    assert refused.value.where == path
    write_steering_records(tmp_path, counts=(1, 1))
    steered = json.loads((tmp_path / "train.json").read_text())[:1]
    with pytest.raises(UserError, match="with and without"):
        read_any_records(write_rows(tmp_path / "q.jsonl", [patch_row(0), *steered]))


def test_one_layer_may_stand_alone() -> None:
    assert patched_record(patch_row(0) | {"layer": 4}, "here").layers == (4,)


def test_only_files_of_activation_patching_carry_vectors(tmp_path: Path) -> None:
    write_steering_records(tmp_path, counts=(1, 1))
    vectors = RecordVectors()
    assert not vectors.holds(str(tmp_path / "train.json"))
    for name in ("p.json", "p.jsonl", "p.parquet"):
        path = write_rows(tmp_path / name, [patch_row(0)])
        assert vectors.holds(path)
        assert len(vectors.of([path, None, path])) == 1


def test_what_is_written_is_the_vector_that_was_added(tokenizer: PreTrainedTokenizerFast) -> None:
    """In units of the residual stream's norm a vector's own length does not count, as in generation."""
    direction = Direction("d", {1: np.array([0.0, 3.0, 4.0], np.float32)}, None, {})
    for unit, added in (("raw", [0.0, 1.5, 2.0]), ("residual_norm", [0.0, 0.3, 0.4])):
        record = SteeringRecord("a prompt", "d", 1, 0.5, "one", "two", alpha_unit=unit)
        row = patching_row(record, direction, tokenizer)
        assert row["patch_position"]["intervention_vector"] == pytest.approx(added)
