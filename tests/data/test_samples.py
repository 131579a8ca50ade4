"""Samples are read in all formats, wrong samples are refused by name, and input files stay unchanged."""

import json
import re
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from afintro.data.records import read_object
from afintro.data.samples import Sample, read_samples
from afintro.data.sources import read_rows
from afintro.errors import UserError

# What real texts hold: braces, quotes, several scripts, and separators that str.splitlines would split at.
ODD = 'He said: "{x}" — naïve 中文 🙂\nsecond line\r\n\x85 next line, \u2028 line separator, \x1c and \x0c page'
ROWS = [
    {"text": "first", "label": "aligned", "category": "x"},
    {"text": ODD, "label": "alignment_faking", "category": None},
    {"text": "third", "label": None, "category": "y"},
]
SAMPLES = [
    Sample("first", "aligned", category="x"),
    Sample(ODD, "alignment_faking"),
    Sample("third", "unknown", category="y"),
]


def write_list(folder):
    (folder / "samples.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return folder / "samples.json"


def write_object(folder):
    content = {"metadata": {"n": 3, "samples": "not these"}, "samples": ROWS}
    (folder / "samples.json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    return folder / "samples.json"


def write_lines(folder):
    (folder / "samples.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return folder / "samples.jsonl"


def write_parquet(folder):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "samples.parquet")
    return folder / "samples.parquet"


def write_dataset(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "dataset")
    return folder / "dataset"


def write_dataset_of_splits(folder):
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[2:])}
    datasets.DatasetDict(splits).save_to_disk(folder / "dataset")
    return folder / "dataset"


def write_directory_of_files(folder):
    (folder / "dataset").mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[2:])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "dataset" / f"{split}.parquet")
    return folder / "dataset"


SHAPES = [
    write_list,
    write_object,
    write_lines,
    write_parquet,
    write_dataset,
    write_dataset_of_splits,
    write_directory_of_files,
]
WITH_SPLITS = [write_dataset_of_splits, write_directory_of_files]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path):
    """Return a folder for the input, with nothing else in it."""
    (tmp_path / "theirs").mkdir()
    return tmp_path / "theirs"


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


@pytest.mark.parametrize("write", SHAPES)
def test_shapes(folder, write):
    assert read_samples(str(write(folder))) == SAMPLES


@pytest.mark.parametrize("write", SHAPES)
def test_nothing_is_written_into_or_beside_the_input(folder, write):
    source = write(folder)
    before = state(folder)
    read_samples(str(source))
    assert state(folder) == before


@pytest.mark.parametrize("write", WITH_SPLITS)
def test_the_split_asked_for(folder, write):
    source = str(write(folder))
    assert read_samples(source, "test") == SAMPLES[2:]
    assert read_samples(source, "train") == SAMPLES
    with pytest.raises(UserError, match=r"dataset: .*split 'missing'"):
        read_samples(source, "missing")


def test_jsonl_written_without_escapes(folder):
    """Only a line feed ends a line: U+2028, U+0085 and the like stand raw inside JSON strings."""
    path = folder / "samples.jsonl"
    path.write_bytes("\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode())
    assert read_samples(str(path)) == SAMPLES
    path.write_bytes("\r".join(json.dumps(row) for row in ROWS).encode())
    assert read_samples(str(path)) == SAMPLES


def test_other_fields_and_empty_labels_do_not_matter(folder):
    path = folder / "samples.json"
    path.write_text(json.dumps([{"text": "a", "id": 3, "nested": {"label": "b"}}, {"text": "a", "label": ""}]))
    assert read_samples(str(path)) == [Sample("a", "unknown")] * 2


def test_scenario_ids_are_kept(folder):
    path = folder / "samples.json"
    rows = [
        {"text": "a", "scenario_id": "Cordale"},
        {"text": "b", "scenario_id": None},
        {"text": "c", "scenario_id": ""},
    ]
    path.write_text(json.dumps([*rows, {"text": "d"}]))
    assert [sample.scenario_id for sample in read_samples(str(path))] == ["Cordale", "", "", ""]


@pytest.mark.parametrize(
    ("row", "source", "category"),
    [
        ({"source": " XSTest ", "category": "homonyms"}, "XSTest", "homonyms"),
        ({"Source": "Original", "Category": "Privacy"}, "Original", "Privacy"),
        ({"dataset": "a", "SemanticCategory": "cybercrime"}, "a", "cybercrime"),
        ({"source": "b", "dataset": "a", "risk_area": 3}, "b", "3"),
        ({"source": ["a"], "origin": "c", "category": {"a": 1}}, "c", None),
        ({"source": "", "category": True}, None, None),
        ({}, None, None),
    ],
    ids=str,
)
def test_where_a_sample_is_from_and_of_what_kind(folder, row, source, category):
    [sample] = read_samples(write(folder, [{"text": "a", **row}]))
    assert (sample.source, sample.category) == (source, category)


def test_the_text_is_no_category(folder):
    rows = [{"SemanticCategory": "a", "Behavior": "b"}, {"SemanticCategory": "c", "Behavior": "d"}]
    found = read_samples(write(folder, rows), text_field="SemanticCategory")
    assert [(sample.text, sample.category) for sample in found] == [("a", None), ("c", None)]


def test_texts_are_kept_as_they_are(folder):
    path = folder / "samples.json"
    path.write_text(json.dumps([{"text": "  padded\n"}]))
    assert read_samples(str(path))[0].text == "  padded\n"


def test_read_rows_gives_the_raw_objects(folder):
    assert list(read_rows(str(write_parquet(folder)))) == ROWS


def write(folder, rows):
    (folder / "samples.json").write_text(json.dumps(rows))
    return str(folder / "samples.json")


ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "row",
    [
        "a",
        {"text": "a", "prompt": "other"},
        {"TEXT": "a"},
        {"Text": "other", "text": "a"},
        {"messages": ASKED, "prompt": "other"},
        {"conversations": [{"from": "human", "value": "a"}]},
        {"text": None, "prompt": ASKED},
        ASKED,
        {"goal": "a", "target": "b"},
        {"Prompt": "a", "question": ""},
        {"prompt": "a", "question": "a"},
        {"instruction": "a", "input": "", "output": "b"},
        {"original_user_prompt": "a", "ablation_prompt": "b", "question": "c"},
        {"ablation_prompt": "a", "prompt": "b"},
    ],
    ids=str,
)
def test_where_the_text_stands(folder, row):
    assert read_samples(write(folder, [row, row])) == [Sample("a"), Sample("a")]


def test_a_field_of_ones_own(folder):
    rows = [{"text": "x", "Behavior": "a"}, {"text": "y", "Behavior": "b"}]
    for name in ("Behavior", "behavior"):
        assert [sample.text for sample in read_samples(write(folder, rows), text_field=name)] == ["a", "b"]
    with pytest.raises(UserError, match="'absent'") as caught:
        read_samples(write(folder, rows), text_field="absent")
    assert caught.value.where.endswith("record 0")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "question": "b"}, "prompt, question"),
        ({"instruction": "a", "input": "b"}, "instruction, input"),
        ({"question": "a", "context": "b"}, "question, context"),
        ({"messages": [{"role": "assistant", "content": "b"}]}, "no turn of the user"),
        ({"messages": "a", "x": 1, "text": ["a"]}, "field 'text' is list"),
        ({"messages": [{"role": "user", "content": " "}]}, "field 'messages' is empty"),
        ({"body": "a"}, "no field 'text'"),
        ("", "the text is empty"),
        ([], "is list, not an object"),
    ],
    ids=str,
)
def test_a_text_that_is_not_told(folder, row, words):
    path = write(folder, [row])
    with pytest.raises(UserError, match=words) as caught:
        read_samples(path)
    assert caught.value.where == f"{path}, record 0"


def test_what_a_conversation_loses_is_counted(folder, caplog):
    read_samples(write(folder, [{"messages": ASKED}, {"messages": ASKED[1:]}, {"messages": ASKED[1:2]}]))
    first, second = caplog.messages
    assert "1 of 3 conversations have a system turn" in first
    assert "2 of 3 conversations have an answer" in second
    caplog.clear()
    read_samples(write(folder, [{"messages": ASKED[1:2]}]))
    assert not caplog.messages


def test_labels_are_words_of_the_project(folder):
    rows = [
        {"text": "a", "label": label}
        for label in ("scheming", "hard_negative", None, "odd", True, 0, 1.0, float("nan"))
    ]
    (folder / "samples.json").write_text(json.dumps(rows))
    assert [sample.label for sample in read_samples(str(folder / "samples.json"))] == [
        "alignment_faking", "aligned", "unknown", "odd", "alignment_faking", "aligned", "alignment_faking", "unknown",
    ]  # fmt: skip
    named = write(folder, [{"text": "a", "Label": label} for label in (0, 1, 2)])
    assert [sample.label for sample in read_samples(named, label_names=("faking", "honest", "odd"))] == [
        "alignment_faking", "aligned", "odd",
    ]  # fmt: skip


def test_tables_and_names_of_classes(folder):
    (folder / "samples.csv").write_text("Goal,Label\na,faking\nb,\n")
    assert read_samples(str(folder / "samples.csv")) == [Sample("a", "alignment_faking"), Sample("b")]
    kinds = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["faking", "honest"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=kinds)
    data.save_to_disk(folder / "dataset")
    assert read_samples(str(folder / "dataset")) == [Sample("a", "alignment_faking"), Sample("b", "aligned")]


# Wrong input: (file name, content, where the message points, what it says).
WRONG = {
    "missing": ("samples.json", None, "", "does not exist"),
    "missing lines": ("samples.jsonl", None, "", "does not exist"),
    "missing parquet": ("samples.parquet", None, "", "does not exist"),
    "empty": ("samples.json", "", "", "is empty"),
    "blank": ("samples.jsonl", " \n\n", "", "is empty"),
    "empty parquet": ("samples.parquet", "", "", "is not Parquet"),
    "no parquet": ("samples.parquet", "[]" * 20, "", "is not Parquet"),
    "malformed": ("samples.json", '[\n{"text": "a"},\n{"text" "b"}]', ", line 3", "malformed JSON: .* \\(column 9\\)"),
    "cut off": ("samples.json", '[{"text": "a"}', ", line 1", "malformed JSON"),
    "lines in json": ("samples.json", '{"text": "a"}\n{"text": "b"}', ", line 2", "malformed JSON"),
    "malformed line": ("samples.jsonl", '{"text": "a"}\n\n{"text": "b"', ", line 3", "malformed JSON"),
    "not utf-8": ("samples.json", b'[{"text": "caf\xe9"}]', "", "is not UTF-8 text \\(byte 14\\)"),
    "not utf-8 lines": ("samples.jsonl", b'{"text": "\xff"}', "", "is not UTF-8 text"),
    "no list": ("samples.json", '{"metadata": {}}', "", "holds no list of records"),
    "samples no list": ("samples.json", '{"samples": {"text": "a"}}', "", "holds no list of records"),
    "scalar": ("samples.json", "3", "", "holds no list of records"),
    "no samples": ("samples.json", "[]", "", "holds no sample"),
    "no samples in object": ("samples.json", '{"samples": []}', "", "holds no sample"),
    "no text": ("samples.json", '[{"text": "a"}, {"label": "b"}]', ", record 1", "has no field 'text'"),
    "null text": ("samples.jsonl", '{"text": "a"}\n{"text": null}', ", record 1", "has no field 'text'"),
    "empty text": ("samples.json", '[{"text": " \\n"}]', ", record 0", "field 'text' is empty"),
    "text a number": ("samples.json", '[{"text": 3}]', ", record 0", "field 'text' is int, not a string"),
    "label a fraction": ("samples.json", '[{"text": "a", "label": 0.5}]', ", record 0", "field 'label' is float, not a"),
    "label a list": ("samples.json", '[{"text": "a", "label": ["b"]}]', ", record 0", "field 'label' is list, not a"),
    "label a number": ("samples.json", '[{"text": "a", "label": 2}]', ", record 0", "field 'label' is int 2, a number without"),
    "id a number": ("samples.json", '[{"text": "a", "scenario_id": 1}]', ", record 0", "field 'scenario_id' is int, not"),
    "a string": ("samples.json", '[{"text": "a"}, "b"]', ", record 1", "is str, not an object"),
    "a list in lines": ("samples.jsonl", '{"text": "a"}\n[]', ", record 1", "is list, not an object"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "place", "words"), WRONG.values(), ids=list(WRONG))
def test_wrong_input_is_a_user_error_naming_file_and_place(folder, name, content, place, words):
    path = folder / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        read_samples(str(path))
    assert str(caught.value).startswith(f"{path}{place}: ")
    assert "\n  remedy: " in str(caught.value)
    assert [found.name for found in state(folder)] == ([name] if content is not None else [])


def test_a_row_without_text_names_its_fields_as_the_file_spells_them(folder):
    (folder / "samples.json").write_text('[{"modelId": "m", "index": 3}]')
    with pytest.raises(UserError) as caught:
        read_samples(str(folder / "samples.json"))
    assert str(caught.value).endswith("modelId, index")


def test_wrong_rows_of_parquet_and_datasets_are_named_too(folder):
    rows = [{"text": "a"}, {"text": ""}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "samples.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(folder / "dataset")
    for name in ("samples.parquet", "dataset"):
        with pytest.raises(UserError, match=f"{name}, record 1: field 'text' is empty"):
            read_samples(str(folder / name))


@pytest.mark.parametrize("name", ["samples.json", "samples.jsonl"])
def test_a_file_that_may_not_be_read_is_a_user_error(folder, monkeypatch, name):
    """As the docstring of ``read_rows`` promises."""
    path = folder / name
    path.write_text("[]")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=name):
        read_samples(str(path))


@pytest.mark.parametrize("source", ["no/such-dataset", "no_such_file.txt", "/no/such/directory"])
def test_an_unknown_dataset_offline(source):
    with pytest.raises(UserError, match=f"{source}: does not exist, and is not a dataset with split 'train'"):
        read_samples(source)


def test_read_object(folder):
    (folder / "object.json").write_text('{"b": {"a": 1}, "a": [{"é": 2}]}', encoding="utf-8")
    assert read_object(str(folder / "object.json")) == {"b": {"a": 1}, "a": [{"é": 2}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "object.json: does not exist"),
        ('{"a":\n 1,}', "object.json, line 2: is malformed JSON"),
        (b'{"a": "\xff"}', "object.json: cannot be read"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "object.json: cannot be read: 'b' occurs twice"),
        ("[1]", "object.json: is list, not an object"),
        ("{}", "object.json: is an empty"),
    ],
)
def test_what_is_no_such_object(folder, content, message):
    path = folder / "object.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(message)):
        read_object(path)
