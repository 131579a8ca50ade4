"""Descriptions of features from Neuronpedia's exports of explanations."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afintro.data.formats import file_rows, json_lines
from afintro.errors import UserError, one_line
from afintro.tasks.feature_descriptions.descriptions import Description, feature_key, label_text, nonempty

SOURCE = re.compile(r"(\d+)(?:-(.+))?")  # "20-gemmascope-res-16k": the layer, and the autoencoder of every layer
ENDINGS = (".jsonl", ".jsonl.gz", ".json")
REMEDY = "give the files of the folder 'explanations' of an export"


def from_neuronpedia(path: str | Path, source: str | None = None) -> tuple[dict[str, Description], list[str]]:
    """Describe every feature by its explanations.

    Args:
        path: ``.jsonl`` or ``.jsonl.gz``, a JSON list, or a folder of such files, of ``{modelId, layer, index, description}``.
        source: Which autoencoders: "20-gemmascope-res-16k" for one layer, "gemmascope-res-16k" for all layers, also with the
            model before it, "gemma-2-2b/20-gemmascope-res-16k". None where the files hold one autoencoder a layer.

    Returns:
        The descriptions by "layer/index": the first explanation of a feature is the label, all are in ``all_labels``, and
        features of one label are a cluster. And the features without a description.

    Raises:
        UserError: A file is wrong (names file and record), or several autoencoders of a layer, whose features have the same
            numbers, are not told apart by ``source``.
    """
    labels: dict[str, list[str]] = {}
    layers: dict[str, str] = {}
    origins: dict[tuple[str, str], None] = {}
    for row, where in _rows(Path(path)):
        model, layer, name = _origin(row, where)
        wanted = {f"{prefix}{rest}" for prefix in ("", f"{model}/") for rest in (row["layer"], name)}
        if source is None or source in wanted:
            origins[model, name] = None
            feature = feature_key(f"{layer}/{row['index']}", f"{where}, index")
            layers[feature] = row["layer"]
            found = labels.setdefault(feature, [])
            if "description" not in row:
                raise UserError("has no description", where=where, remedy=REMEDY)
            label = label_text(row["description"], f"{where}, description")
            if label and label not in found:
                found.append(label)
    _check_one(origins, source, str(path))
    described: dict[str, Description] = {
        feature: {
            "chosen_label": found[0],
            "cluster_id": found[0],
            "all_labels": found,
            "category": layers[feature],
        }
        for feature, found in labels.items()
        if found
    }
    return nonempty(described, str(path)), [feature for feature, found in labels.items() if not found]


def _check_one(origins: dict[tuple[str, str], None], source: str | None, where: str) -> None:
    names = [f"{model}/{name}" for model, name in origins]
    if not names:
        raise UserError(f"holds nothing of {source!r}" if source else "is empty", where=where, remedy=REMEDY)
    if len(names) > 1:
        what = f"holds features of several autoencoders: {', '.join(names)}"
        raise UserError(what, where=where, remedy="choose one by --source")


def _origin(row: Any, where: str) -> tuple[str, int, str]:
    """Return model, layer and autoencoder of a row."""
    if not isinstance(row, dict):
        raise UserError(f"is of type {type(row).__name__}, not an object", where=where, remedy=REMEDY)
    missing = next((name for name in ("modelId", "layer", "index") if name not in row), None)
    if missing:
        raise UserError(f"has no field {missing!r}", where=where, remedy=REMEDY)
    match = SOURCE.fullmatch(row["layer"]) if isinstance(row["layer"], str) else None
    if match is None:
        what = f"layer is {row['layer']!r}, not a number and a name such as '20-gemmascope-res-16k'"
        raise UserError(what, where=where, remedy=REMEDY)
    return str(row["modelId"]), int(match[1]), match[2] or "neurons"


def _rows(path: Path) -> Iterator[tuple[Any, str]]:
    """Give the rows of all files with their places."""
    files = [path]
    if path.is_dir():
        files = sorted((file for file in path.rglob("*") if file.name.endswith(ENDINGS)), key=_natural)
        if not files:
            raise UserError(f"holds no file of {', '.join(ENDINGS)}", where=str(path), remedy=REMEDY)
    for file in files:
        rows = _unzipped(file) if file.suffix == ".gz" else file_rows(file)
        for index, row in enumerate(rows):
            yield row, f"{file}, record {index}"


def _natural(file: Path) -> list[Any]:
    """Order batch-10 after batch-9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(file))]


def _unzipped(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") as file:
            yield from json_lines(file, path, "download the file again")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"is no gzip file of text, or is cut off ({one_line(error)})"
        raise UserError(what, where=str(path), remedy="download the file again") from error
