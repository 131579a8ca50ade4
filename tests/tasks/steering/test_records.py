"""Steering records: the parent framework's names on disk, strict reading, and what a minimal file of it is taken for."""

import json
from dataclasses import replace

import pyarrow
import pytest
from pyarrow import parquet

from afintro.data.files import write_json, write_json_rows, write_jsonl
from afintro.data.records import scenario_id
from afintro.errors import UserError
from afintro.tasks.steering.records import (
    SteeringRecord,
    from_json,
    labeled,
    places_of,
    read_steering_records,
    to_json,
    warnings_of_ways,
)

RECORD = SteeringRecord(
    prompt="<s>[INST] This is a test.\nA user asks. [/INST]",
    direction="random/faking",
    layer=12,
    alpha=-0.5,
    original_output="I cannot.",
    steered_output="Sure — 中文 🙂",
    scenario="A user asks.",
    system_prompt="This is a test.",
    alpha_unit="residual_norm",
    positions="decode",
    norm=3.25,
    label="alignment_faking",
    uid="u1/monitored/random/faking/12/-0.5",
    original_behavior="refuse",
    original_behavior_rule="refuse:cannot",
    steered_behavior="comply",
    steered_behavior_rule="comply:sure",
    behavior_changed=True,
    unmonitored_behavior="warn",
    coherent=False,
    perplexity=7.5,
    repetition=0.125,
    provenance={"model": "toy", "batch_size": 4, "seed": None},
    format_version=2,
)
GOLDEN = """{
  "prompt": "<s>[INST] This is a test.\\nA user asks. [/INST]",
  "direction": "random/faking",
  "layer": [
    12
  ],
  "alpha": -0.5,
  "original_continuation": "I cannot.",
  "ablated_continuation": "Sure — 中文 🙂",
  "scenario": "A user asks.",
  "system_prompt": "This is a test.",
  "alpha_unit": "residual_norm",
  "positions": "decode",
  "norm": 3.25,
  "is_different": true,
  "label": "alignment_faking",
  "uid": "u1/monitored/random/faking/12/-0.5",
  "scenario_id": "e4fbf12a83e5844b",
  "original_behavior": "refuse",
  "original_behavior_rule": "refuse:cannot",
  "steered_behavior": "comply",
  "steered_behavior_rule": "comply:sure",
  "behavior_changed": true,
  "unmonitored_behavior": "warn",
  "coherent": false,
  "perplexity": 7.5,
  "repetition": 0.125,
  "provenance": {
    "model": "toy",
    "batch_size": 4,
    "seed": null
  },
  "format_version": 2
}
"""
# As the parent framework writes it, with a field of its own that we do not know.
PARENT = {
    "prompt": "The capital of France is",
    "direction": "faking",
    "layer": [5],
    "alpha": 4,
    "original_continuation": " Paris",
    "ablated_continuation": " Rome",
    "is_different": True,
    "token_type": "last",
}
REQUIRED = ("prompt", "direction", "layer", "alpha", "original_continuation", "ablated_continuation")


def write(path, rows):
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        (write_jsonl if path.suffix == ".jsonl" else write_json)(path, rows)
    return str(path)


def test_golden_file_of_a_full_record(tmp_path):
    write_json(tmp_path / "r.json", to_json(RECORD))
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == GOLDEN
    assert from_json(json.loads(GOLDEN), "w") == RECORD


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_minimal_file_of_the_parent_framework(tmp_path, suffix):
    other = {**PARENT, "alpha": -1, "ablated_continuation": " Paris", "is_different": False}
    path = write(tmp_path / f"parent{suffix}", [PARENT, other])
    first, second = records = read_steering_records(path)
    assert first == SteeringRecord("The capital of France is", "faking", 5, 4.0, " Paris", " Rome")
    assert (first.scenario, first.system_prompt, first.positions, first.alpha_unit) == (first.prompt, "", "last", "raw")
    assert first.scenario_id == second.scenario_id == scenario_id(first.prompt)
    assert first.uid == f"{first.scenario_id}/faking/5/4"
    assert (first.changed, second.changed) == (True, False)
    assert (first.behavior_changed, first.norm, first.coherent, first.provenance) == (None, None, True, {})
    assert first.unmonitored_behavior is None
    rows = [to_json(record) for record in records]
    if suffix == ".parquet":  # which has no type for an empty object
        rows = [{name: value for name, value in row.items() if value != {}} for row in rows]
    written = write(tmp_path / f"again{suffix}", rows)
    assert read_steering_records(written) == records


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_full_records_written_and_read_again_are_the_same(tmp_path, suffix):
    records = [RECORD, SteeringRecord(**{**vars(RECORD), "uid": "u2", "layer": 0, "steered_output": "I cannot."})]
    path = write(tmp_path / f"r{suffix}", [to_json(record) for record in records])
    assert read_steering_records(path) == records
    assert [record.changed for record in records] == [True, False]
    write_json_rows(tmp_path / "rows.json", (to_json(record) for record in records))
    assert read_steering_records(str(tmp_path / "rows.json")) == records


def test_the_layer_may_be_a_bare_number_and_is_written_as_a_list():
    record = from_json({**PARENT, "layer": 5}, "w")
    assert record == from_json(PARENT, "w")
    assert to_json(record)["layer"] == [5]


def test_unset_fields_are_left_out_and_names_are_the_parents():
    row = to_json(from_json(PARENT, "w"))
    assert set(row) >= set(PARENT) - {"token_type"}
    unset = {"norm", "behavior_changed", "unmonitored_behavior", "perplexity"}
    assert not (unset | {"original_output", "steered_output", "changed"}) & set(row)


def test_whether_outputs_differ_is_looked_at_and_not_believed():
    assert from_json({**PARENT, "is_different": False}, "w").changed is True


def test_optional_fields_may_be_null():
    optional = (
        "norm", "original_behavior", "steered_behavior_rule", "behavior_changed", "unmonitored_behavior", "perplexity",
        "repetition",
    )  # fmt: skip
    assert from_json({**PARENT, **dict.fromkeys(optional)}, "w") == from_json(PARENT, "w")


def error_of(tmp_path, row):
    """What is said of a file whose second record is ``row``, without the path."""
    path = write(tmp_path / "r.json", [PARENT, row])
    with pytest.raises(UserError) as caught:
        read_steering_records(path)
    words = str(caught.value)
    assert words.startswith(f"{path}, record 1: ")
    return words.removeprefix(f"{path}, record 1: ")


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_field_is_named_with_file_and_record(tmp_path, field):
    row = {name: value for name, value in PARENT.items() if name != field}
    wanted = f"has no field '{field}'\n  remedy: make the file with scripts/generate_af_steering_data.py"
    assert error_of(tmp_path, row) == wanted


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        *((field, 3, "is int, not str") for field in REQUIRED if field not in ("layer", "alpha")),
        ("alpha", True, "is bool, not float or int"),
        ("alpha", "4", "is str, not float or int"),
        ("alpha", None, "is NoneType, not float or int"),
        ("layer", True, "is bool, not int"),
        ("layer", [False], "is bool, not int"),
        ("layer", 5.0, "is float, not int"),
        ("layer", ["5"], "is str, not int"),
        ("layer", [[5]], "is list, not int"),
        ("norm", True, "is bool, not float or NoneType or int"),
        ("norm", "3", "is str, not float or NoneType or int"),
        ("coherent", 1, "is int, not bool"),
        ("behavior_changed", "true", "is str, not bool or NoneType"),
        ("unmonitored_behavior", False, "is bool, not str or NoneType"),
        ("uid", 7, "is int, not str"),
        ("provenance", [], "is list, not dict"),
    ],
)
def test_a_wrong_type_is_named_with_file_record_and_field(tmp_path, field, value, words):
    remedy = "make the file with scripts/generate_af_steering_data.py, or mend the field"
    assert error_of(tmp_path, {**PARENT, field: value}) == f"field '{field}' {words}\n  remedy: {remedy}"


@pytest.mark.parametrize("layers", [[], [3, 5]])
def test_several_layers_or_none(tmp_path, layers):
    wanted = f"field 'layer' names {len(layers)} layers\n  remedy: give one record for each layer"
    assert error_of(tmp_path, {**PARENT, "layer": layers}) == wanted


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), float("-inf")])
def test_an_alpha_that_is_no_number(tmp_path, alpha):
    """Python's JSON reads and writes them; NaN would be a cell of its own for every record."""
    assert error_of(tmp_path, {**PARENT, "alpha": alpha}).startswith(
        f"field 'alpha' must be finite, but is {alpha}\n  remedy: "
    )


@pytest.mark.parametrize("row", ["text", 3, None, [PARENT]])
def test_a_row_that_is_no_object(tmp_path, row):
    assert error_of(tmp_path, row).startswith(f"is {type(row).__name__}, not an object\n  remedy: ")


def test_doubles(tmp_path):
    """Without uids of their own, records of one prompt and condition are the same record."""
    words = error_of(tmp_path, {**PARENT, "alpha": 4.0, "ablated_continuation": " Bonn"})
    assert words.startswith(f"has the same uid '{scenario_id(PARENT['prompt'])}/faking/5/4' as record 0\n  remedy: ")
    others = [
        {**PARENT, name: value} for name, value in (("layer", [6]), ("alpha", 4.5), ("direction", "x"), ("uid", "u"))
    ]
    assert len(read_steering_records(write(tmp_path / "r.json", [PARENT, *others]))) == 5


def test_a_file_without_records(tmp_path):
    with pytest.raises(
        UserError, match=r"r\.json: holds no record\n  remedy: make it with scripts/generate_af_steering"
    ):
        read_steering_records(write(tmp_path / "r.json", []))


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"original_continuation": "I cannot help.", "ablated_continuation": "Sure, here it is."}, True),
        ({"original_continuation": "<think>Sure, here.</think>I cannot help.", "ablated_continuation": "I refuse."}, False),
        ({"original_continuation": "I cannot help.", "ablated_continuation": "<think>Sure, here it"}, None),
        ({"prompt": "Help!\n<think>\n", "original_continuation": "I refuse.", "ablated_continuation": "r</think>No."}, None),
        ({"steered_behavior": None, "steered_behavior_rule": "none:cut_in_reasoning", "original_behavior": "refuse"}, None),
        ({"steered_truncated": True, "ablated_continuation": "<SCRATCHPAD>I refuse."}, None),
        ({"steered_truncated": False, "ablated_continuation": "<SCRATCHPAD>I refuse.", "original_continuation": "No."}, False),
    ],
)  # fmt: skip
def test_labels_of_files_without_labels(fields, changed):
    assert labeled(from_json(PARENT | fields, "w")).behavior_changed is changed


class TestVersions:
    """Records say from version 2 on where the vector was added; those of before mean what they were made with."""

    def row(self, **fields):
        return {**json.loads(GOLDEN), **fields}

    def test_a_record_of_before_was_steered_at_the_last_position(self):
        old = {name: value for name, value in self.row().items() if name not in ("format_version", "positions")}
        found = from_json(old, "w")
        assert (found.format_version, found.positions) == (1, "last")
        assert from_json({**old, "format_version": None}, "w") == found  # in one Parquet file with newer records
        assert to_json(found)["positions"] == "last"

    @pytest.mark.parametrize("positions", ["last", "decode", "all"])
    def test_what_a_record_states_is_believed_in_both_versions(self, positions):
        for version in (1, 2):
            assert from_json(self.row(positions=positions, format_version=version), "w").positions == positions

    @pytest.mark.parametrize("field", ["positions", "alpha_unit"])
    def test_a_record_of_version_2_that_does_not_state_the_way_is_refused(self, field):
        row = {name: value for name, value in self.row().items() if name != field}
        with pytest.raises(UserError) as error:
            from_json(row, "records.json, record 3")
        assert (error.value.where, field in error.value.what) == ("records.json, record 3", True)

    @pytest.mark.parametrize("version", [0, 3, 99])
    def test_an_unknown_version_is_refused(self, version):
        with pytest.raises(UserError) as error:
            from_json(self.row(format_version=version), "w")
        assert (error.value.where, f"version {version}" in error.value.what) == ("w", True)

    @pytest.mark.parametrize(
        ("field", "value"), [("positions", "everywhere"), ("alpha_unit", "std"), ("positions", "")]
    )
    def test_an_unknown_way_is_refused(self, field, value):
        with pytest.raises(UserError) as error:
            from_json(self.row(**{field: value}), "w")
        assert field in error.value.what

    def test_ways_that_differ_from_training_are_told(self):
        last, decode = replace(RECORD, positions="last"), RECORD
        assert warnings_of_ways([decode], [decode], "f") == []
        [warning] = warnings_of_ways([last], [decode], "f")
        assert "positions is last" in warning
        assert "decode" in warning
        [mixed] = warnings_of_ways([last, decode], [last, decode], "f")
        assert "decode or last" in mixed
        assert len(warnings_of_ways([replace(last, alpha_unit="raw")], [decode], "f")) == 2


def test_places_are_the_layers_of_each_direction():
    records = [replace(RECORD, direction=name, layer=layer) for name, layer in (("a", 1), ("b", 1), ("a", 2), ("a", 1))]
    assert places_of(records) == {"a": {1, 2}, "b": {1}}
