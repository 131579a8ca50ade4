"""The settings of all tasks: each split is read from its own split of a dataset."""

import datasets
import pytest

from afintro.errors import UserError
from afintro.tasks.context_ablation import ContextAblation
from afintro.tasks.settings import TaskSettings

SPLITS = {"train": ("a", "b"), "dev": ("c",), "test": ("d",)}


@pytest.fixture
def source(tmp_path):
    """Return a dataset of records with three splits."""
    rows = {
        name: [
            {"ablation_prompt": text, "system_prompt": "S", "random_hint_prediction": "x", "zeroshot_prediction": "y"}
            for text in texts
        ]
        for name, texts in SPLITS.items()
    }
    splits = {name: datasets.Dataset.from_list(some) for name, some in rows.items()}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "dataset")
    return str(tmp_path / "dataset")


def scenarios(data, split):
    return [record.scenario for record in data.records(split)]


def test_one_dataset_for_all_splits(source):
    """The training split was read three times before."""
    data = ContextAblation(train_path=source, validation_path=source, test_path=source, answer_form="text")
    assert [scenarios(data, split) for split in ("train", "validation", "test")] == [["a", "b"], ["c"], ["d"]]
    assert data.file_of("validation") == f"{source}::dev"


def test_splits_that_are_named(source):
    paths = {"train_path": source, "validation_path": source}
    data = ContextAblation(
        **paths, test_path=f"{source}::train", train_split="dev", validation_split="test", answer_form="text"
    )
    assert [scenarios(data, split) for split in ("train", "validation", "test")] == [["c"], ["d"], ["a", "b"]]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"validation_split": "train"}, "data.validation_path"),
        ({"test_path": "SOURCE::dev", "test_split": "test"}, "data.test_split"),
        ({"test_path": "SOURCE::dev"}, "data.test_path"),
        ({"test_split": "dev"}, "data.test_split"),
    ],
)
def test_what_is_refused(source, settings, where):
    settings = {name: value.replace("SOURCE", source) for name, value in settings.items()}
    with pytest.raises(UserError) as caught:
        TaskSettings(train_path=source, validation_path=source, **settings).sources()
    assert caught.value.where == where


def test_a_heldout_split(source):
    for split, hit in (("train", True), ("test", False)):
        data = ContextAblation(
            train_path=source, validation_path=source, answer_form="text", heldout=[f"{source}::{split}"]
        )
        if hit:
            with pytest.raises(UserError, match="in a held-out set"):
                data.records("train")
        else:
            assert scenarios(data, "train") == ["a", "b"]
