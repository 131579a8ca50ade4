"""Tables with a row a pair are read by the columns that the user names, in every format."""

import csv
import json

import pyarrow
import pytest
from pyarrow import parquet

from afintro.errors import UserError
from afintro.tasks.context_ablation.imports.pairs import match
from afintro.tasks.context_ablation.imports.tables import Columns, files_below, read_columns

ROWS = [
    {"q": "What is tea?", "seen": 'A "leaf",\nthey say', "unseen": "", "who": "m1", "sys": "Watched."},
    {"q": "What is tea?", "seen": "A drink", "unseen": "A leaf", "who": "m2", "sys": "Watched!"},
]
NAMES = {"request": "q", "monitored": "seen", "unmonitored": "unseen"}


def write(path):
    """Write the rows in the format that the path's ending names."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        path.write_text(json.dumps(ROWS))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_pairs(tmp_path, suffix):
    path = write(tmp_path / f"table{suffix}")
    first, second = read_columns(path, Columns({**NAMES, "model": "who", "cue": "sys"}))
    assert (first.model, second.model, first.name) == ("m1", "m2", f"table{suffix}/m1")
    [pair], counts = match(first)
    assert (pair.monitored.text, pair.unmonitored.text) == (ROWS[0]["seen"], "")
    assert (pair.monitored.cue, pair.monitored.prompt) == ("Watched.", "Watched.\n\nWhat is tea?")
    assert pair.unmonitored.prompt == "What is tea?"
    assert counts.empty_unmonitored == 1


def test_the_cue_and_the_model_may_be_given_for_all_rows(tmp_path):
    [source] = read_columns(write(tmp_path / "t.csv"), Columns(NAMES, cue="Free tier.", model="m"))
    pairs, counts = match(source)
    assert (counts.pairs, counts.requests) == (2, 1)
    assert {pair.monitored.cue for pair in pairs} == {"Free tier."}
    assert [pair.monitored.text for pair in pairs] == [row["seen"] for row in ROWS]
    assert source.model == "m"


@pytest.mark.parametrize(
    ("columns", "where", "word"),
    [
        (Columns({"request": "q", "monitored": "seen"}, cue="x"), "--columns", "unmonitored"),
        (Columns({**NAMES, "colour": "q"}, cue="x"), "--columns", "colour"),
        (Columns(NAMES), "--cue", "is missing"),
    ],
)
def test_parts_that_are_missing_or_unknown_are_refused(columns, where, word):
    with pytest.raises(UserError) as caught:
        columns.check()
    assert caught.value.where == where
    assert word in caught.value.what


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"q": "a", "seen": "b"}, "no column 'unseen'"),
        ({"q": "a", "seen": 3, "unseen": "c"}, "column 'seen' is int"),
        ({"q": " ", "seen": "b", "unseen": "c"}, "empty request or cue"),
        ({"q": None, "seen": "b", "unseen": "c"}, "empty request or cue"),
        ("text", "not an object"),
    ],
)
def test_a_wrong_row_is_refused_by_name(tmp_path, row, word):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError) as caught:
        read_columns(path, Columns(NAMES, cue="Watched."))
    assert caught.value.where == f"{path}, record 0"
    assert word in caught.value.what


def test_an_answer_that_is_null_is_none_and_a_folder_is_searched(tmp_path):
    path = tmp_path / "below" / "t.jsonl"
    path.parent.mkdir()
    path.write_text(
        json.dumps({"q": "a", "seen": "b", "unseen": None}) + "\n" + json.dumps({"q": "a", "seen": "b", "unseen": "c"})
    )
    (tmp_path / "notes.md").write_text("no table")
    assert files_below(tmp_path) == [path]
    [source] = read_columns(path, Columns(NAMES, cue="Watched."))
    _, counts = match(source)
    assert (counts.pairs, counts.no_answer, counts.unmatched_monitored) == (1, 1, 1)
    for missing in (tmp_path / "nowhere", tmp_path):
        path.unlink(missing_ok=True)
        with pytest.raises(UserError) as caught:
            files_below(missing)
        assert caught.value.where == str(missing)
