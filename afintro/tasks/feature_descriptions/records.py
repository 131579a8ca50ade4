"""Labeled features and where their vectors are: a run of millions of features keeps a few numbers of each in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from numpy.typing import NDArray

from afintro.data.formats import is_file_name
from afintro.data.sources import open_dataset, split_source
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.descriptions import read_descriptions
from afintro.tasks.feature_descriptions.features import FeatureFile, convert_or

REMEDY = (
    "make the file with scripts/build_af_feature_descriptions.py, or give rows of feature, chosen_label, cluster_id"
)
Indices = NDArray[np.int32] | NDArray[np.int64]
BUILDERS = {".jsonl": "json", ".parquet": "parquet"}
TEXTS = ("chosen_label", "cluster_id", "category")


@dataclass(frozen=True)
class Feature:
    """One labeled feature, without its vector.

    Args:
        layer: 0-based decoder layer.
        index: Number of the feature within the layer.
        label: The description that the explainer should give.
        cluster: Name of the cluster; features of one cluster have related labels.
        category: Name of the category, for scores by category.
    """

    layer: int
    index: int
    label: str
    cluster: str
    category: str

    @property
    def uid(self) -> str:
        """``layer/index``."""
        return f"{self.layer}/{self.index}"


class ClusterNames(Sequence[str]):
    """An Arrow array of strings, of which one at a time is a Python object."""

    def __init__(self, names: pa.Array) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._names[int(index)].as_py()


class FeatureTable:
    """The features of a description file that have a vector.

    Labels stay in a memory-mapped Arrow table and vectors in their files. Memory holds about 35 bytes a feature, besides
    what Arrow keeps.

    Args:
        path: ``descriptions.json`` as ``{feature: {chosen_label, cluster_id, all_labels, category}}``; or rows as JSONL,
            Parquet, or a dataset (``DATASET::SPLIT``), with the columns ``feature``, ``chosen_label``, ``cluster_id`` and
            perhaps ``layer`` and ``category``.
            A feature is a number, or ``layer/number`` where there are several feature files.
        files: Feature files, one a layer.

    Attributes:
        clusters: Cluster of each feature ``[n]``, int32, as an index into ``cluster_names``.
        cluster_names: Names of the clusters.
        without_vector: Labeled features that are in no feature file: how many, and the first ten.

    Raises:
        UserError: The file is wrong, a feature occurs twice, or no feature file is of a feature's layer.
    """

    def __init__(self, path: str, files: Sequence[FeatureFile]) -> None:
        self.path, self.files = path, list(files)
        self._rows = _open(path)
        table = self._rows.data
        layers, features = self._layers(table), table.column("feature").to_numpy()
        file, row = self._locate(layers, features)
        located, lost = np.flatnonzero(row >= 0), np.flatnonzero(row < 0)
        self.without_vector = (len(lost), [f"{layers[i]}/{features[i]}" for i in lost[:10]])
        if not len(located):
            raise UserError("none of its features is in a feature file", where=path, remedy="check data.features")
        self._index, self._row = located.astype(np.int32), row[located].astype(np.int32)
        self._file = file[located].astype(np.int16)
        self._check_unique()
        encoded = pc.dictionary_encode(table.column("cluster_id").combine_chunks())
        self.cluster_names = ClusterNames(encoded.dictionary)
        self.clusters: NDArray[np.int32] = encoded.indices.to_numpy().astype(np.int32)[located]
        del encoded
        pa.default_memory_pool().release_unused()

    def _check_unique(self) -> None:
        keys = np.sort(self.keys(np.arange(len(self))))
        double = np.flatnonzero(keys[1:] == keys[:-1])
        if len(double):
            key = int(keys[double[0]])
            raise UserError(
                f"feature {key >> 40}/{key & (1 << 40) - 1} occurs twice", where=self.path, remedy="remove one"
            )

    def keys(self, indices: Indices) -> NDArray[np.int64]:
        """Return a number for each of some features that no other feature has: layer and index in one."""
        numbers = np.empty(len(indices), np.int64)
        for which in np.unique(self._file[indices]):
            here = np.flatnonzero(self._file[indices] == which)
            numbers[here] = self.files[which].indices[self._row[indices[here]]]
        return self.layer(indices).astype(np.int64) << 40 | numbers

    def _layers(self, table: Any) -> NDArray[np.int64]:
        """Return the layer of each row; a row without a layer gets the layer of the only feature file."""
        column = table.column("layer")
        if column.null_count:
            if len(self.files) > 1:
                raise UserError(
                    f"{column.null_count} features name no layer, but there are {len(self.files)} feature files",
                    where=self.path,
                    remedy="write features as layer/feature, e.g. 40/123",
                )
            column = pc.fill_null(column, self.files[0].layer)
        layers: NDArray[np.int64] = column.to_numpy()
        unknown = sorted(set(np.unique(layers).tolist()) - {file.layer for file in self.files})
        if unknown:
            raise UserError(
                f"has features of layer {unknown[0]}, but no feature file is of that layer",
                where=self.path,
                remedy="add it to data.features",
            )
        return layers

    def _locate(self, layers: Any, features: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return index of the feature file and row in the file; -1 for a feature that its layer's file does not hold."""
        which = np.zeros(len(layers), dtype=np.int64)
        row = np.full(len(layers), -1, dtype=np.int64)
        for number, file in enumerate(self.files):
            here = np.flatnonzero(layers == file.layer)
            position = np.searchsorted(file.indices, features[here]).clip(max=file.count - 1)
            row[here] = np.where(file.indices[position] == features[here], position, -1)
            which[here] = number
        return which, row

    def __len__(self) -> int:
        return len(self._index)

    def feature(self, index: int) -> Feature:
        """Return the feature at an index."""
        row = self._rows[int(self._index[index])]
        file = self.files[self._file[index]]
        return Feature(
            layer=file.layer,
            index=int(row["feature"]),
            label=row["chosen_label"],
            cluster=row["cluster_id"],
            category=row["category"] or row["cluster_id"],
        )

    def layer(self, indices: Indices) -> NDArray[np.int64]:
        """Return the layer of each of some features."""
        return np.array([file.layer for file in self.files])[self._file[indices]]

    def vectors(self, indices: Indices) -> NDArray[np.float32]:
        """Read the vectors of some features from their files, ``[len(indices), width]``."""
        vectors = np.empty((len(indices), self.files[0].width), np.float32)
        for number in np.unique(self._file[indices]):
            here = np.flatnonzero(self._file[indices] == number)
            vectors[here] = self.files[number].rows(self._row[indices[here]])
        return vectors

    def labels(self, indices: Indices) -> tuple[NDArray[np.int32], list[str]]:
        """Return the labels of some features: index of each label in the list of different labels, and this list."""
        column = self._rows.data.column("chosen_label").take(pa.array(self._index[indices]))
        encoded = pc.dictionary_encode(column.combine_chunks())
        return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()

    def label_counts(self, indices: Indices) -> dict[str, int]:
        """Count how often each label occurs among some features."""
        column = self._rows.data.column("chosen_label").take(pa.array(self._index[indices]))
        return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}

    def labeled(self, indices: Indices, labels: Sequence[str]) -> Indices:
        """Return those of some features that have one of some labels; no label of another feature is made a string."""
        has = pc.is_in(self._rows.data.column("chosen_label"), value_set=pa.array(labels, pa.string()))
        return indices[has.to_numpy()[self._index[indices]]]

    def longest(self, indices: Indices, count: int) -> Indices:
        """Choose ``count`` of some features by the length of their labels in characters, the longest last."""
        lengths = pc.utf8_length(self._rows.data.column("chosen_label")).to_numpy()[self._index[indices]]
        return indices[np.argsort(lengths, kind="stable")[-count:]]


def _open(path: str) -> Dataset:
    """Open rows with the columns layer, feature, chosen_label, cluster_id, category."""
    source, split = split_source(path)
    if not Path(source).is_file():
        if is_file_name(Path(source)):
            raise UserError("does not exist", where=path, remedy="give a file of feature descriptions")
        return _columns(open_dataset(source, split), path)
    suffix = Path(path).suffix
    if suffix == ".json":
        return Dataset(_table(read_descriptions(path)))
    if suffix not in BUILDERS:
        remedy = convert_or(path, "give .json, .jsonl or .parquet")
        raise UserError(f"has the unknown ending {suffix!r}", where=path, remedy=remedy)
    try:
        rows = load_dataset(BUILDERS[suffix], data_files=path, split="train")
        assert isinstance(rows, Dataset)
        return _columns(rows, path)
    except StopIteration as error:  # datasets finds no first row
        raise UserError("is empty", where=path, remedy=REMEDY) from error
    except (DatasetGenerationError, pa.ArrowInvalid, ValueError, TypeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0][:160]
        raise UserError(f"cannot be read ({reason})", where=path, remedy=REMEDY) from error


def _table(described: Any) -> pa.Table:
    keys = [key.rpartition("/") for key in described]
    return pa.table(
        {
            "layer": pa.array([int(layer) if layer else None for layer, _, _ in keys], pa.int64()),
            "feature": pa.array([int(feature) for _, _, feature in keys], pa.int64()),
            "chosen_label": [entry["chosen_label"] for entry in described.values()],
            "cluster_id": [entry["cluster_id"] for entry in described.values()],
            "category": pa.array([entry.get("category") for entry in described.values()], pa.string()),
        }
    )


def _columns(rows: Dataset, path: str) -> Dataset:
    """Check the rows of a JSONL or Parquet file, and bring them into the columns of :func:`_table`."""
    for name in ("feature", "chosen_label", "cluster_id"):
        if name not in rows.column_names:
            raise UserError(f"has no column {name!r}", where=path, remedy=REMEDY)
        if rows.data.column(name).null_count:
            raise UserError(f"column {name!r} has empty entries", where=path, remedy=REMEDY)
    for name in ("layer", "category"):
        if name not in rows.column_names:
            rows = rows.add_column(name, [None] * len(rows), feature=Value("int64" if name == "layer" else "string"))
    rows = rows.select_columns(["layer", "feature", *TEXTS])
    cast = rows.cast(
        Features({"layer": Value("int64"), "feature": Value("int64"), **{name: Value("string") for name in TEXTS}})
    )
    if pc.any(pc.equal(pc.utf8_trim_whitespace(cast.data.column("chosen_label")), "")).as_py():
        raise UserError("column 'chosen_label' has empty entries", where=path, remedy=REMEDY)
    return cast
