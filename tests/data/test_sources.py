"""A source names a path or a hub id, and a split: what has splits is read with the right one, or refused."""

import json
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from afintro.data.sources import local_splits, read_rows, refuse_same, source_of, split_source, with_split
from afintro.errors import UserError

ROWS = {"train": [{"text": "a"}, {"text": "b"}], "test": [{"text": "c"}]}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def saved(folder, rows=None):
    """Write a dataset of splits as ``save_to_disk`` does."""
    splits = {name: datasets.Dataset.from_list(some) for name, some in (rows or ROWS).items()}
    datasets.DatasetDict(splits).save_to_disk(folder / "dataset")
    return str(folder / "dataset")


def of_files(folder, rows=None):
    """Write a folder of Parquet files that are called as their splits."""
    (folder / "files").mkdir()
    for name, some in (rows or ROWS).items():
        parquet.write_table(pyarrow.Table.from_pylist(some), folder / "files" / f"{name}.parquet")
    return str(folder / "files")


def test_the_split_behind_a_source():
    assert split_source("owner/name::test") == ("owner/name", "test")
    assert split_source("owner/name") == ("owner/name", None)
    assert split_source("a::b::test") == ("a::b", "test")
    assert [split_source(text)[1] for text in ("::test", "name::", "a:b")] == [None, None, None]


def test_a_file_whose_name_holds_the_mark_is_a_file(tmp_path):
    path = tmp_path / "runs::2.json"
    path.write_text('[{"text": "a"}]')
    assert split_source(str(path)) == (str(path), None)
    assert list(read_rows(str(path))) == [{"text": "a"}]


def test_a_split_is_named_once():
    assert with_split("x", "test", "here") == with_split("x::test", "test", "here") == "x::test"
    assert with_split("x", None, "here") == "x"
    with pytest.raises(UserError, match="another split") as caught:
        with_split("x::train", "test", "here")
    assert caught.value.where == "here"


@pytest.mark.parametrize("write", [saved, of_files])
def test_each_role_reads_its_own_split(tmp_path, write):
    source = write(tmp_path)
    assert sorted(local_splits(tmp_path / source)) == ["test", "train"]
    assert list(read_rows(source_of("train", source, None))) == ROWS["train"]
    assert list(read_rows(source_of("test", source, None))) == ROWS["test"]
    assert list(read_rows(source_of("validation", source, "test"))) == ROWS["test"]
    assert list(read_rows(f"{source}::test")) == list(read_rows(source, "test")) == ROWS["test"]
    with pytest.raises(
        UserError, match=r"train, test.*none is called validation|test, train.*none is called val"
    ) as caught:
        source_of("validation", source, None)
    assert caught.value.where == source
    assert "data.validation_split" in caught.value.remedy


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_what_datasets_call_validation(tmp_path, name):
    source = saved(tmp_path, {"train": ROWS["train"], name: ROWS["test"]})
    assert list(read_rows(source_of("validation", source, None))) == ROWS["test"]


def test_what_has_one_split_or_none_is_read_whole(tmp_path):
    datasets.Dataset.from_list(ROWS["train"]).save_to_disk(tmp_path / "plain")
    plain, single = str(tmp_path / "plain"), of_files(tmp_path, {"test": ROWS["test"]})
    assert source_of("validation", plain, None) == plain
    assert list(read_rows(source_of("validation", plain, None))) == ROWS["train"]
    for role in ("train", "validation"):
        assert list(read_rows(source_of(role, single, None))) == ROWS["test"]
    with pytest.raises(UserError, match="no splits"):
        list(read_rows(plain, "test"))


def test_files_and_hub_ids():
    assert source_of("validation", "missing.json", None) == "missing.json"
    assert source_of("train", "owner/name", None) == "owner/name"
    assert source_of("validation", "owner/name", None) == "owner/name::validation"
    assert source_of("test", "owner/name", "dev") == source_of("test", "owner/name::dev", None) == "owner/name::dev"


def test_a_file_has_no_split_but_the_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS["train"]))
    assert list(read_rows(str(path), "train")) == ROWS["train"]
    for source, split in ((str(path), "test"), (f"{path}::test", None)):
        with pytest.raises(UserError, match="no split 'test'") as caught:
            read_rows(source, split)
        assert caught.value.where == str(path)


def test_a_missing_split_is_refused_with_the_splits_there_are(tmp_path):
    for source in (saved(tmp_path), of_files(tmp_path)):
        with pytest.raises(UserError, match=r"'dev'.*train.*test") as caught:
            list(read_rows(source, "dev"))
        assert caught.value.where == source


def test_the_same_split_for_two_roles_is_refused():
    refuse_same({"train": "x", "validation": "x::validation", "test": None})
    refuse_same({"train": "a.json", "validation": "a.json", "test": "a.json"})  # tests of small files do that
    for other in ("x", "x::train"):
        with pytest.raises(UserError, match=r"'train' of x, as data\.train_path") as caught:
            refuse_same({"train": "x", "validation": other, "test": None})
        assert caught.value.where == "data.validation_path"
    with pytest.raises(UserError, match=r"data\.validation_path is"):
        refuse_same({"train": "x", "validation": "x::dev", "test": "x::dev"})


def test_one_folder_under_two_spellings_is_one_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ds").mkdir()
    for other in ("ds/", "./ds", str(tmp_path / "ds"), "ds/../ds::train"):
        with pytest.raises(UserError, match=r"data\.train_path") as caught:
            refuse_same({"train": "ds", "validation": other, "test": None})
        assert caught.value.where == "data.validation_path"


def test_numbers_of_classes_become_their_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    data.save_to_disk(tmp_path / "data")
    data.to_parquet(tmp_path / "data.parquet")
    for name in ("data", "data.parquet"):
        assert [row["label"] for row in read_rows(str(tmp_path / name))] == ["yes", "no", None]
