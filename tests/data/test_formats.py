"""Rows of one file: byte order marks, tables of text, Parquet of any string type, and rows under other keys than 'samples'."""

import codecs
import json

import pyarrow
import pytest
from pyarrow import parquet

from afintro.data.formats import read_text
from afintro.data.records import read_object
from afintro.data.sources import read_rows
from afintro.errors import UserError

ROWS = [{"text": "naïve 中文 🙂", "label": "aligned"}, {"text": 'a "b", c;\nd\te', "label": None}]
MARKED = {"utf-8-sig": b"", "utf-16": b"", "utf-32": b"", "utf-16-be": codecs.BOM_UTF16_BE, "utf-16-le": b""}


@pytest.mark.parametrize("encoding", MARKED)
def test_byte_order_marks(tmp_path, encoding):
    texts = {
        "a.json": json.dumps(ROWS, ensure_ascii=False),
        "a.jsonl": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
        "a.csv": 'text,label\nnaïve 中文 🙂,aligned\n"a ""b"", c;\nd\te",\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(MARKED[encoding] + text.encode(encoding))
        assert list(read_rows(str(tmp_path / name))) == ROWS, name
    (tmp_path / "o.json").write_bytes(MARKED[encoding] + '{"é": 1}'.encode(encoding))
    assert read_object(tmp_path / "o.json") == {"é": 1}


def test_a_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(codecs.BOM_UTF8 + "x\ufeff".encode())
    assert read_text(path) == "x\ufeff"  # only the first is a mark
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 3\)"):
        read_text(path)
    path.write_bytes(codecs.BOM_UTF16_LE + b"x")
    with pytest.raises(UserError, match="not UTF-16 text"):
        read_text(path)


@pytest.mark.parametrize(
    ("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("A.CSV", ",")]
)
def test_tables_of_text(tmp_path, name, mark):
    (tmp_path / name).write_text(
        f'text{mark} label\r\n"x{mark} ""y""\nz"{mark}aligned\r\n\r\n" "{mark}\r\n', newline=""
    )
    assert list(read_rows(str(tmp_path / name))) == [
        {"text": f'x{mark} "y"\nz', "label": "aligned"}, {"text": " ", "label": None},
    ]  # fmt: skip


def test_the_mark_between_fields_is_that_of_the_header_whatever_ends_a_line(tmp_path):
    path = tmp_path / "old.csv"
    path.write_bytes(b"text;label\ra, b, c;1\rd, e;0\r")
    assert list(read_rows(str(path))) == [{"text": "a, b, c", "label": "1"}, {"text": "d, e", "label": "0"}]


def test_a_column_without_a_name_is_an_index_and_a_long_text_is_read(tmp_path):
    (tmp_path / "a.csv").write_text(f",text\n0,{'x' * 200_000}\n")
    (row,) = read_rows(str(tmp_path / "a.csv"))
    assert row == {"text": "x" * 200_000}


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        ("text,label\na,b\nc,d,e\n", ", line 3", "3 fields, but the header has 2"),
        ("text,label\na\n", ", line 2", "1 fields"),
        ('text\n"a\nb', ", line 3", "malformed CSV"),
        ('text\n"a"b\n', ", line 2", "malformed CSV"),
        ("text,text\na,b\n", "", "two columns 'text'"),
        (" \n", "", "empty"),
    ],
)
def test_broken_tables(tmp_path, content, place, words):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        list(read_rows(str(path)))
    assert caught.value.where == f"{path}{place}"


KINDS = {
    "string": pyarrow.string(),
    "large_string": pyarrow.large_string(),
    "string_view": pyarrow.string_view(),
    "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    "binary": pyarrow.binary(),
    "large_binary": pyarrow.large_binary(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_of_any_string_type(tmp_path, kind):
    texts = ["naïve", None, "b", "b"]
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string()).cast(KINDS[kind])})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [row["text"] for row in read_rows(str(tmp_path / "a.parquet"))] == texts


def test_bytes_that_are_no_text(tmp_path):
    parquet.write_table(pyarrow.table({"text": [b"a", b"\xff"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="UTF-8") as caught:
        list(read_rows(str(tmp_path / "a.parquet")))
    assert caught.value.where == f"{tmp_path}/a.parquet, record 1"


def written(folder, content):
    (folder / "a.json").write_text(json.dumps(content))
    return str(folder / "a.json")


@pytest.mark.parametrize("key", ["samples", "data", "examples", "records", "rows", "items", "instances"])
def test_rows_under_a_key(tmp_path, key):
    assert list(read_rows(written(tmp_path, {"metadata": {"n": 2}, key: ROWS}))) == ROWS
    assert list(read_rows(written(tmp_path, {key: {"id 1": ROWS[0], "id 2": ROWS[1]}}))) == ROWS


def test_rows_under_two_keys_are_refused(tmp_path):
    path = written(tmp_path, {"data": ROWS, "examples": ROWS[:1]})
    with pytest.raises(UserError, match="'data' and under 'examples'") as caught:
        read_rows(path)
    assert caught.value.where == path
    assert list(read_rows(written(tmp_path, {"data": "a note", "examples": ROWS}))) == ROWS


@pytest.mark.parametrize("content", [{}, {"data": "x"}, {"data": {}}, {"data": {"a": 1}}, {"train": ROWS}, "x", 3])
def test_an_object_without_rows(tmp_path, content):
    with pytest.raises(UserError, match="no list of records"):
        read_rows(written(tmp_path, content))


def test_answers_of_the_dataset_viewer(tmp_path):
    content = {
        "features": [
            {"feature_idx": 0, "name": "text", "type": {"dtype": "string", "_type": "Value"}},
            {"feature_idx": 1, "name": "label", "type": {"names": ["no", "yes"], "_type": "ClassLabel"}},
        ],
        "rows": [
            {"row_idx": index, "row": {"text": "a", "label": label}, "truncated_cells": []}
            for index, label in enumerate((1, 0, -1, None))
        ],
        "num_rows_total": 4,
    }
    assert [row["label"] for row in read_rows(written(tmp_path, content))] == ["yes", "no", None, None]
