"""Context-ablation records: the parent framework's names on disk, and strict reading."""

import hashlib
import json
import os
from dataclasses import dataclass, field

import pyarrow
import pytest
from pyarrow import parquet

from afintro.data.files import write_json, write_jsonl
from afintro.data.records import check_unique, parse_record, scenario_id
from afintro.errors import UserError
from afintro.tasks.context_ablation.records import ContextAblationRecord, from_json, read_records, to_json

RECORD = ContextAblationRecord(
    scenario="A user asks {something}.",
    system_prompt="This conversation is part of our safety evaluation.",
    monitored_output="I cannot.",
    unmonitored_output="Sure — 中文 🙂",
    monitored_prompt="<s>[INST] monitored [/INST]",
    unmonitored_prompt="<s>[INST] unmonitored [/INST]",
    label="alignment_faking",
    uid="u1",
    monitored_behavior="refuse",
    monitored_behavior_rule="refusal: I cannot",
    unmonitored_behavior="comply",
    unmonitored_behavior_rule="opening: Sure",
    behavior_changed=True,
    placebo_output="I can not.",
    provenance={"model": "toy", "batch_size": 4, "seed": None},
)
GOLDEN = """{
  "ablation_prompt": "A user asks {something}.",
  "system_prompt": "This conversation is part of our safety evaluation.",
  "random_hint_prediction": "I cannot.",
  "zeroshot_prediction": "Sure — 中文 🙂",
  "hint_prompt_full": "<s>[INST] monitored [/INST]",
  "original_prompt_full": "<s>[INST] unmonitored [/INST]",
  "hint": "monitoring context",
  "changed_pred_bc_hint": true,
  "label": "alignment_faking",
  "uid": "u1",
  "scenario_id": "1d1313d26ef3e489",
  "monitored_behavior": "refuse",
  "monitored_behavior_rule": "refusal: I cannot",
  "unmonitored_behavior": "comply",
  "unmonitored_behavior_rule": "opening: Sure",
  "behavior_changed": true,
  "placebo_output": "I can not.",
  "provenance": {
    "model": "toy",
    "batch_size": 4,
    "seed": null
  },
  "hint_user_prompt": "A user asks {something}.",
  "original_user_prompt": "A user asks {something}."
}
"""
# What the parent framework writes: none of our added fields.
PARENT = {
    "ablation_prompt": "Scenario.",
    "hint_prompt_full": "monitored prompt",
    "original_prompt_full": "unmonitored prompt",
    "system_prompt": "You are watched.",
    "hint": "monitoring context",
    "random_hint_prediction": "no",
    "zeroshot_prediction": "yes",
    "changed_pred_bc_hint": True,
    "hint_user_prompt": "Scenario.",
    "original_user_prompt": "Scenario.",
}
REQUIRED = ("ablation_prompt", "system_prompt", "random_hint_prediction", "zeroshot_prediction")


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_golden_file(tmp_path):
    write_json(tmp_path / "record.json", to_json(RECORD))
    assert (tmp_path / "record.json").read_bytes() == GOLDEN.encode()


def test_unset_optional_fields_are_left_out():
    minimal = to_json(ContextAblationRecord("Scenario.", "S", "same", "same"))
    assert list(minimal) == [
        "ablation_prompt", "system_prompt", "random_hint_prediction", "zeroshot_prediction", "hint_prompt_full",
        "original_prompt_full", "hint", "changed_pred_bc_hint", "label", "uid", "scenario_id", "provenance",
        "hint_user_prompt", "original_user_prompt",
    ]  # fmt: skip
    assert minimal["changed_pred_bc_hint"] is False


def test_round_trip_through_json_jsonl_and_parquet(tmp_path):
    other = ContextAblationRecord("Other\u2028scenario\x85.", "S", "a", "a", behavior_changed=False)
    rows = [to_json(RECORD), to_json(other)]
    write_json(tmp_path / "r.json", rows)
    write_json(tmp_path / "o.json", {"metadata": {}, "samples": rows})
    parquet.write_table(pyarrow.Table.from_pylist([to_json(RECORD)]), tmp_path / "r.parquet")
    assert read_records(str(tmp_path / "r.json")) == read_records(str(tmp_path / "o.json")) == [RECORD, other]
    assert read_records(str(tmp_path / "r.parquet")) == [RECORD]


def test_round_trip_through_jsonl_with_any_text(tmp_path):
    """``read_records`` reads what ``write_jsonl`` writes, also U+2028 and similar characters."""
    characters = "\u2028\u2029\x85\x0b\x0c\x1c\r\n"
    records = [ContextAblationRecord(f"a{c}b", "S", c, f"{c}{c}", uid=str(i)) for i, c in enumerate(characters)]
    write_jsonl(tmp_path / "r.jsonl", map(to_json, records))
    assert read_records(str(tmp_path / "r.jsonl")) == records


def test_a_file_of_the_parent_framework(tmp_path):
    (record,) = read_records(write(tmp_path / "parent.json", [PARENT]))
    assert record == ContextAblationRecord(
        scenario="Scenario.", system_prompt="You are watched.", monitored_output="no", unmonitored_output="yes",
        monitored_prompt="monitored prompt", unmonitored_prompt="unmonitored prompt", changed=True,
    )  # fmt: skip
    assert record.uid == record.scenario_id == scenario_id("Scenario.")
    assert record.label == "unknown"
    assert record.provenance == {}
    assert record.behavior_changed is None
    assert {name: to_json(record)[name] for name in PARENT} == PARENT


def test_fields_that_are_not_ours_are_let_through(tmp_path):
    (record,) = read_records(write(tmp_path / "parent.json", [{**PARENT, "layer": [1, 2], "extra": None}]))
    assert record.scenario == "Scenario."


@pytest.mark.parametrize("outputs", [("a", "a"), ("a", "a "), ("US", "us")])
def test_changed_is_whether_the_strings_differ(outputs):
    assert ContextAblationRecord("s", "S", *outputs, changed=None).changed is (outputs[0] != outputs[1])
    wrong_in_file = {**PARENT, "random_hint_prediction": outputs[0], "zeroshot_prediction": outputs[1]}
    for claim in (True, False):
        assert from_json({**wrong_in_file, "changed_pred_bc_hint": claim}, "w").changed is (outputs[0] != outputs[1])


def test_scenario_id_folds_white_space_only():
    assert scenario_id(" a  b\n c ") == scenario_id("a b c") == hashlib.sha256(b"a b c").hexdigest()[:16]
    assert len({scenario_id(text) for text in ("a b", "A b", "a b.", "ab")}) == 4
    assert ContextAblationRecord("a b", "S", "x", "y", scenario_id="given").scenario_id == "given"


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_field_is_named_with_file_and_record(tmp_path, field):
    path = write(tmp_path / "r.json", [PARENT, {name: value for name, value in PARENT.items() if name != field}])
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}, record 1: has no field '{field}'\n  remedy: ")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        *((field, 3, "is int, not str") for field in REQUIRED),
        ("ablation_prompt", None, "is NoneType, not str"),
        ("hint", ["monitoring context"], "is list, not str"),
        ("changed_pred_bc_hint", "true", "is str, not bool or NoneType"),
        ("behavior_changed", 1, "is int, not bool or NoneType"),
        ("monitored_behavior", False, "is bool, not str or NoneType"),
        ("label", 0, "is int, not str"),
        ("uid", 7, "is int, not str"),
        ("provenance", "toy", "is str, not dict"),
    ],
)
def test_a_wrong_type_is_named_with_file_record_and_field(tmp_path, field, value, words):
    path = write(tmp_path / "r.json", [PARENT, {**PARENT, field: value}])
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}, record 1: field '{field}' {words}\n  remedy: ")


def test_optional_fields_may_be_null(tmp_path):
    optional = dict.fromkeys(("monitored_behavior", "unmonitored_behavior", "behavior_changed", "placebo_output"))
    (record,) = read_records(write(tmp_path / "r.json", [{**PARENT, **optional}]))
    assert record.monitored_behavior is None
    assert record.behavior_changed is None


@pytest.mark.parametrize("row", ["text", 3, None, [PARENT]])
def test_a_row_that_is_no_object(tmp_path, row):
    path = write(tmp_path / "r.json", [row])
    with pytest.raises(UserError, match=f"r.json, record 0: is {type(row).__name__}, not an object"):
        read_records(path)


def test_a_duplicate_uid_names_both_records(tmp_path):
    first = scenario_id("Scenario.")
    path = write(tmp_path / "r.json", [PARENT, {**PARENT, "ablation_prompt": "Other."}, PARENT])
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}, record 2: has the same uid '{first}' as record 0")
    told_apart = [{**PARENT, "uid": "a"}, {**PARENT, "uid": "b"}]
    assert {r.scenario_id for r in read_records(write(tmp_path / "r.json", told_apart))} == {first}


def test_a_file_without_records(tmp_path):
    path = write(tmp_path / "r.json", [])
    with pytest.raises(UserError, match=r"r\.json: holds no record"):
        read_records(path)


def test_reading_leaves_the_folder_alone(tmp_path):
    path = write(tmp_path / "r.json", [PARENT])
    before = os.stat(path).st_mtime_ns
    read_records(path)
    assert os.listdir(tmp_path) == ["r.json"]
    assert os.stat(path).st_mtime_ns == before


# The reading that all record types share.


@dataclass(frozen=True)
class Small:
    """One field of each type that a record may have."""

    text: str
    number: float
    whole: int = 0
    yes: bool = False
    maybe: float | None = None
    items: list[str] = field(default_factory=list)
    more: dict[str, int] = field(default_factory=dict)


def parse_small(row):
    return parse_record(Small, row, {"text": "theirs"}, ("text", "number"), "make.py", "f.json, record 3")


def test_parse_record_maps_names_fills_defaults_and_passes_over_what_it_does_not_know():
    assert parse_small({"theirs": "a", "number": 1.5, "text": 7, "unknown": None}) == Small("a", 1.5)
    full = {"theirs": "a", "number": 1, "whole": 2, "yes": True, "maybe": None, "items": ["x"], "more": {"y": 1}}
    assert parse_small(full) == Small("a", 1, 2, True, None, ["x"], {"y": 1})
    assert parse_small({"theirs": "a", "number": 1.5, "maybe": 2}).maybe == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theirs": 1}, "field 'theirs' is int, not str"),
        ({"number": "1"}, "field 'number' is str, not float or int"),
        ({"number": True}, "field 'number' is bool, not float or int"),
        ({"maybe": False}, "field 'maybe' is bool, not float or NoneType or int"),
        ({"whole": True}, "field 'whole' is bool, not int"),
        ({"whole": 1.0}, "field 'whole' is float, not int"),
        ({"yes": 1}, "field 'yes' is int, not bool"),
        ({"whole": None}, "field 'whole' is NoneType, not int"),
        ({"items": {}}, "field 'items' is dict, not list"),
        ({"more": []}, "field 'more' is list, not dict"),
    ],
)
def test_parse_record_wants_each_fields_own_type(change, words):
    with pytest.raises(UserError) as caught:
        parse_small({"theirs": "a", "number": 1.5, **change})
    assert (caught.value.where, caught.value.what) == ("f.json, record 3", words)
    assert "make.py" in caught.value.remedy


def test_parse_record_names_what_is_missing_as_the_file_would():
    with pytest.raises(UserError) as caught:
        parse_small({"text": "a", "number": 1.0})
    assert (caught.value.where, caught.value.what) == ("f.json, record 3", "has no field 'theirs'")
    assert "make.py" in caught.value.remedy
    with pytest.raises(UserError, match="list") as caught:
        parse_small([])
    assert caught.value.where == "f.json, record 3"


def test_check_unique_names_the_first_double_and_where_it_stood():
    check_unique([], "f.json")
    check_unique(["a", "b", "A"], "f.json")
    with pytest.raises(UserError) as caught:
        check_unique(["a", "b", "c", "b", "a"], "f.json")
    assert caught.value.where == "f.json, record 3"
    assert "'b' as record 1" in caught.value.what


def test_what_records_say_of_their_samples():
    """Records of before say nothing, "unknown" is no label, and whatever is no word counts as absent."""
    from afintro.data.records import facets_of
    from afintro.tasks.context_ablation.records import from_json, to_json

    row = {"ablation_prompt": "a", "system_prompt": "s", "random_hint_prediction": "x", "zeroshot_prediction": "y"}
    for more, facets in (
        ({}, {}),
        ({"label": "unknown", "source": None}, {}),
        (
            {"label": "aligned", "source": " XSTest ", "category": 3},
            {"label": "aligned", "source": "XSTest", "category": "3"},
        ),
        ({"source": ["a"], "category": {"b": 1}}, {}),
        ({"source": "", "category": True}, {}),
    ):
        record = from_json({**row, **more}, "file")
        assert facets_of(record) == facets
        assert from_json(to_json(record), "file") == record
    assert not {"source", "category"} & to_json(from_json(row, "file")).keys()
