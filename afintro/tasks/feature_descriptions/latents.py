"""Descriptions of features one by one, as rows of ``{latent_id, description}``: automatic interpretations of one layer."""

import re
from pathlib import Path

from afintro.data.formats import file_rows
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.clusters import read_assignments
from afintro.tasks.feature_descriptions.descriptions import (
    Description,
    feature_key,
    latent_labels,
    nonempty,
    note_once,
)

UNCLUSTERED = "unclustered"
LAYER = re.compile(r"(?:^|[._-])layer_?(\d+)$")


def from_latents(path: str | Path, assignments: str | Path | None = None) -> tuple[dict[str, Description], list[str]]:
    """Describe every feature by its own description.

    Args:
        path: JSONL or a JSON list of ``{latent_id, description}``, or a folder of such files. A field ``layer``, or a file's
            name such as ``layer_40.jsonl``, is the layer of the features.
        assignments: JSON ``{feature: cluster}``. A feature without a cluster is a cluster with the features of its label.

    Returns:
        The descriptions, and the features without a description.

    Raises:
        UserError: A file is wrong (names file and record), or a feature is listed twice.
    """
    clusters = read_assignments(assignments) if assignments else {}
    described: dict[str, Description] = {}
    seen: dict[str, str] = {}
    for file in _files(Path(path)):
        named = LAYER.search(file.stem)
        for index, row in enumerate(file_rows(file)):
            where = f"{file}, record {index}"
            number, labels = latent_labels(row, where)
            layer = row.get("layer", int(named[1]) if named else None)
            feature = number if layer is None or "/" in number else feature_key(f"{layer}/{number}", where)
            note_once(seen, feature, f"{file.name}, record {index}", where)
            if labels:
                cluster = clusters.get(feature) or clusters.get(feature.rpartition("/")[2])
                described[feature] = {
                    "chosen_label": labels[0],
                    "cluster_id": cluster or labels[0],
                    "all_labels": labels,
                }
                if not cluster:  # else every label would be a category of the scores
                    described[feature]["category"] = UNCLUSTERED
    _check_known(clusters, seen, assignments)
    return nonempty(described, str(path)), [feature for feature in seen if feature not in described]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".json"))
    if not files:
        raise UserError("holds no .jsonl or .json file", where=str(path), remedy="give rows of latent_id, description")
    return files


def _check_known(clusters: dict[str, str], seen: dict[str, str], assignments: str | Path | None) -> None:
    """Refuse assignments none of whose features is described: the files are of two layers or two autoencoders."""
    numbers = {feature.rpartition("/")[2] for feature in seen}
    if clusters and not any(feature in seen or feature in numbers for feature in clusters):
        what = "none of its features is described"
        raise UserError(what, where=str(assignments), remedy="give assignments of the described features")
