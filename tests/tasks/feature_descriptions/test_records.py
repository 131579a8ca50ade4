"""Labelled features and their vectors: every format gives the same table, and what is wrong is named."""

import codecs
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.features import FeatureFile, write_features
from afintro.tasks.feature_descriptions.records import Feature, FeatureTable

WIDTH = 4
INDICES = {3: [0, 2, 5, 9], 7: [1, 2]}
ROWS = [
    {"layer": 3, "feature": 9, "chosen_label": "fires on üüü", "cluster_id": "b", "category": "words"},
    {"layer": 3, "feature": 0, "chosen_label": "fires on cats", "cluster_id": "a", "category": "animals"},
    {"layer": 7, "feature": 2, "chosen_label": "fires on cats", "cluster_id": "a", "category": None},
    {"layer": 3, "feature": 4, "chosen_label": "has no vector", "cluster_id": "c", "category": None},
    {"layer": 3, "feature": 2, "chosen_label": "fires on large dogs", "cluster_id": "b", "category": "animals"},
    {"layer": 7, "feature": 8, "chosen_label": "has none either", "cluster_id": "c", "category": None},
]
KEPT = [("3/9", 3), ("3/0", 0), ("7/2", 5), ("3/2", 1)]  # uid and row in all vectors


def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, WIDTH)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FeatureFile]:
    """Feature files of layers 3 and 7, and an empty cache of datasets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    found, start = [], 0
    for layer, indices in INDICES.items():
        path = tmp_path / f"L{layer}.safetensors"
        block = vectors()[start : start + len(indices)]
        write_features(path, [block], np.array(indices), WIDTH, {"layer": str(layer)})
        found.append(FeatureFile(path))
        start += len(indices)
    return found


def entry(row: dict, **more: str) -> dict:
    """A row as ``descriptions.json`` holds it."""
    texts = {"chosen_label": row["chosen_label"], "cluster_id": row["cluster_id"], **more}
    found = {**texts, "all_labels": [row["chosen_label"]]}
    return {**found, "category": row["category"]} if row["category"] else found


def write(folder: Path, suffix: str, rows: list[dict] = ROWS, name: str = "table") -> str:
    """Rows as a file of one of the formats, or as a split of a dataset."""
    path = folder / f"{name}{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps({f"{row['layer']}/{row['feature']}": entry(row) for row in rows}))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix.startswith("::"):
        splits = {suffix[2:]: datasets.Dataset.from_list(rows), "other": datasets.Dataset.from_list(rows[:1])}
        datasets.DatasetDict(splits).save_to_disk(folder / name)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", "::test"])
def test_every_format_gives_the_same_table(tmp_path: Path, files: list[FeatureFile], suffix: str) -> None:
    table = FeatureTable(write(tmp_path, suffix), files)
    assert len(table) == 4
    assert [table.feature(i) for i in range(4)] == [
        Feature(3, 9, "fires on üüü", "b", "words"),
        Feature(3, 0, "fires on cats", "a", "animals"),
        Feature(7, 2, "fires on cats", "a", "a"),
        Feature(3, 2, "fires on large dogs", "b", "animals"),
    ]
    assert [table.feature(i).uid for i in range(4)] == [uid for uid, _ in KEPT]
    assert [table.cluster_names[code] for code in table.clusters] == ["b", "a", "a", "b"]
    assert table.clusters.dtype == np.int32
    assert len(table.cluster_names) == len(set(table.cluster_names)) == 3  # that of a feature without a vector too
    keys = table.keys(np.array([2, 1, 0, 3])).tolist()
    assert [(key >> 40, key & (1 << 40) - 1) for key in keys] == [(7, 2), (3, 0), (3, 9), (3, 2)]
    assert table.without_vector == (2, ["3/4", "7/8"])

    everything = np.arange(4)
    np.testing.assert_array_equal(table.vectors(everything), vectors()[[row for _, row in KEPT]])
    mixed = np.array([2, 3, 2, 0])  # both files, in an order of its own, one twice
    np.testing.assert_array_equal(table.vectors(mixed), vectors()[[5, 1, 5, 3]])
    assert table.layer(mixed).tolist() == [7, 3, 7, 3]

    assert table.label_counts(everything) == {"fires on üüü": 1, "fires on cats": 2, "fires on large dogs": 1}
    assert table.label_counts(np.array([1, 3])) == {"fires on cats": 1, "fires on large dogs": 1}
    assert table.longest(everything, 2).tolist() == [2, 3]  # the longest last; in characters, not bytes
    assert table.longest(np.array([3, 0, 1]), 5).tolist() == [0, 1, 3]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_the_layer_of_the_only_file_need_not_be_written(tmp_path: Path, files: list[FeatureFile], suffix: str) -> None:
    rows = [row for row in ROWS if row["layer"] == 3]
    if suffix == ".json":
        path = tmp_path / "bare.json"
        path.write_text(json.dumps({str(row["feature"]): entry(row) for row in rows}))
        bare = str(path)
    else:
        dropped = ("layer", "category")
        bare = write(tmp_path, suffix, [{k: v for k, v in row.items() if k not in dropped} for row in rows], "bare")
    table, full = FeatureTable(bare, files[:1]), FeatureTable(write(tmp_path, suffix, rows), files[:1])
    assert table.keys(np.arange(3)).tolist() == full.keys(np.arange(3)).tolist()
    assert [table.feature(i).uid for i in range(3)] == ["3/9", "3/0", "3/2"]
    category = {".json": "words"}.get(suffix, "b")
    assert table.feature(0).category == category, "the cluster stands in for a category that is not there"


def test_a_number_for_the_cluster_is_its_name(tmp_path: Path, files: list[FeatureFile]) -> None:
    table = FeatureTable(write(tmp_path, ".jsonl", [{**ROWS[0], "cluster_id": 12}]), files)
    assert table.feature(0).cluster == "12"


def changed(row: int, **values: object) -> list[dict]:
    return [{**found, **values} if index == row else found for index, found in enumerate(ROWS)]


def without(name: str) -> list[dict]:
    return [{key: value for key, value in row.items() if key != name} for row in ROWS]


ROW_ERRORS = {
    "no feature": (without("feature"), "has no column 'feature'"),
    "no label": (without("chosen_label"), "has no column 'chosen_label'"),
    "no cluster": (without("cluster_id"), "has no column 'cluster_id'"),
    "null feature": (changed(1, feature=None), "column 'feature' has empty entries"),
    "null label": (changed(1, chosen_label=None), "column 'chosen_label' has empty entries"),
    "null cluster": (changed(1, cluster_id=None), "column 'cluster_id' has empty entries"),
    "half a feature": (changed(1, feature=0.5), "cannot be read"),
    "twice": ([*ROWS, ROWS[0]], "feature 3/9 occurs twice"),
    "unknown layer": (changed(1, layer=4), "has features of layer 4, but no feature file"),
    "no layer": (without("layer"), "6 features name no layer, but there are 2 feature files"),
    "one without a layer": (changed(1, layer=None), "1 features name no layer, but there are 2 feature files"),
    "none with a vector": ([ROWS[3], ROWS[5]], "none of its features is in a feature file"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("case", ROW_ERRORS)
def test_rows_that_are_wrong_are_named(tmp_path: Path, files: list[FeatureFile], case: str, suffix: str) -> None:
    rows, what = ROW_ERRORS[case]
    path = write(tmp_path, suffix, rows)
    with pytest.raises(UserError) as error:
        FeatureTable(path, files)
    assert str(error.value).startswith(f"{path}: ")
    assert what in str(error.value)
    assert len(str(error.value).splitlines()) == 2


DESCRIBED = entry(ROWS[0])
JSON_ERRORS = {
    "twice": ({"9": DESCRIBED, "3/9": DESCRIBED}, 1, "feature 3/9 occurs twice"),
    "no layer": ({"9": DESCRIBED, "3/0": DESCRIBED}, 2, "1 features name no layer, but there are 2 feature files"),
    "unknown layer": ({"4/9": DESCRIBED}, 2, "has features of layer 4"),
    "another single layer": ({"7/2": DESCRIBED}, 1, "has features of layer 7"),
    "none with a vector": ({"3/1": DESCRIBED}, 2, "none of its features is in a feature file"),
    "no cluster": ({"3/9": {**DESCRIBED, "cluster_id": None}}, 2, "has no chosen_label or no cluster_id"),
}


@pytest.mark.parametrize("case", JSON_ERRORS)
def test_descriptions_that_are_wrong_are_named(tmp_path: Path, files: list[FeatureFile], case: str) -> None:
    described, count, what = JSON_ERRORS[case]
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(described))
    with pytest.raises(UserError) as error:
        FeatureTable(str(path), files[:count])
    assert str(error.value).startswith(str(path))
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("nowhere.json", None, "does not exist"),
        ("nowhere.parquet", None, "does not exist"),
        ("table.csv", "feature,chosen_label\n", "has the unknown ending '.csv'"),
        ("table", "{}", "has the unknown ending ''"),
        ("broken.jsonl", '{"feature": 1,\n', "cannot be read"),
        ("broken.parquet", "not Parquet", "cannot be read"),
        ("empty.jsonl", "", "is empty"),
        ("blank.jsonl", "\n \n", "cannot be read"),
        ("numbers.jsonl", "1\n2\n", "cannot be read"),
    ],
)
def test_files_that_are_wrong_are_named(
    tmp_path: Path, files: list[FeatureFile], name: str, content: str | None, what: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        FeatureTable(str(path), files)
    assert str(error.value).startswith(f"{path}: {what}")


def test_only_the_first_ten_features_without_a_vector_are_named(tmp_path: Path, files: list[FeatureFile]) -> None:
    lost = [{**ROWS[0], "feature": 100 + number} for number in range(25)]
    count, first = FeatureTable(write(tmp_path, ".parquet", [ROWS[0], *lost]), files).without_vector
    assert (count, first) == (25, [f"3/{100 + number}" for number in range(10)])


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary()]
)
def test_parquet_of_any_string_type(tmp_path: Path, files: list[FeatureFile], kind: pa.DataType) -> None:
    table = pa.Table.from_pylist(ROWS)
    for name in ("chosen_label", "cluster_id"):
        table = table.set_column(table.column_names.index(name), name, table.column(name).cast(kind))
    pq.write_table(table, tmp_path / "table.parquet")
    found = FeatureTable(str(tmp_path / "table.parquet"), files)
    assert found.feature(0) == Feature(3, 9, "fires on üüü", "b", "words")
    assert found.label_counts(np.arange(4)) == {"fires on üüü": 1, "fires on cats": 2, "fires on large dogs": 1}


def test_rows_behind_a_byte_order_mark(tmp_path: Path, files: list[FeatureFile]) -> None:
    path = Path(write(tmp_path, ".jsonl"))
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert FeatureTable(str(path), files).feature(0).label == "fires on üüü"


def test_a_dataset_without_such_a_split(tmp_path: Path, files: list[FeatureFile]) -> None:
    source = write(tmp_path, "::test").removesuffix("::test")
    with pytest.raises(UserError, match="other") as caught:
        FeatureTable(f"{source}::train", files)
    assert caught.value.where == source
