"""Descriptions of features as ``{feature: {chosen_label, cluster_id, all_labels[, category]}}``, and their sources.

A feature is written "123", or "40/123" with its layer.
"""

import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from afintro.data.records import read_object
from afintro.errors import UserError

REMAKE = "make the file again with scripts/build_af_feature_descriptions.py"
FEATURE = re.compile(r"((0|[1-9][0-9]*)/)?(0|[1-9][0-9]*)")


class Description(TypedDict):
    """The labels of one feature; the chosen label is one of all labels, and no label is empty."""

    chosen_label: str
    cluster_id: str
    all_labels: list[str]
    category: NotRequired[str]


def from_categories(path: str | Path) -> tuple[dict[str, Description], list[str]]:
    """Describe every feature by the reasoning that put it into its category.

    Args:
        path: JSON ``{category: [{latent_id, reasoning, description}]}``. Without a reasoning, the description is the
            label. A feature without both gets no description.

    Returns:
        The descriptions, and the features without a description.

    Raises:
        UserError: The file is wrong (names file and record), or a feature is listed twice.
    """
    described: dict[str, Description] = {}
    seen: dict[str, str] = {}
    for category, entries in read_object(path).items():
        if not isinstance(entries, list):
            raise UserError(
                f"is of type {type(entries).__name__}, not a list",
                where=f"{path}, {category}",
                remedy="list its features",
            )
        for index, entry in enumerate(entries):
            where = f"{path}, {category}, record {index}"
            feature, labels = latent_labels(entry, where)
            if entry.get("category", category) != category:
                raise UserError(f"has the category {entry['category']!r}", where=where, remedy="list the entry there")
            note_once(seen, feature, f"{category}, record {index}", where)
            if labels:
                described[feature] = {
                    "chosen_label": labels[0], "cluster_id": category, "all_labels": labels, "category": category,
                }  # fmt: skip
    return nonempty(described, str(path)), [feature for feature in seen if feature not in described]


def latent_labels(entry: Any, where: str) -> tuple[str, list[str]]:
    """Return feature and labels of one object ``{latent_id, reasoning, description}``; a label that is absent or empty is left out.

    Raises:
        UserError: The object is not such an object.
    """
    if not isinstance(entry, dict):
        what = f"is of type {type(entry).__name__}, not an object"
        raise UserError(what, where=where, remedy="give one object for each feature")
    if "latent_id" not in entry:
        raise UserError("has no field 'latent_id'", where=where, remedy="give the number of the feature")
    labels = [label_text(entry.get(name), f"{where}, {name}") for name in ("reasoning", "description")]
    return feature_key(entry["latent_id"], where), [label for label in labels if label]


def note_once(seen: dict[str, str], feature: str, place: str, where: str) -> None:
    """Note where a feature is listed.

    Raises:
        UserError: It is listed already.
    """
    if feature in seen:
        raise UserError(f"feature {feature} is listed in {seen[feature]} already", where=where, remedy="list it once")
    seen[feature] = place


def nonempty(described: dict[str, Description], where: str) -> dict[str, Description]:
    """Return descriptions, of which there must be one at least."""
    if not described:
        raise UserError("no feature has a label", where=where, remedy="check that the files belong together")
    return described


def read_descriptions(path: str | Path) -> dict[str, Description]:
    """Read the JSON file of descriptions that ``scripts/build_af_feature_descriptions.py`` writes.

    Raises:
        UserError: The file is wrong; names file, feature and field.
    """
    described: dict[str, Description] = {}
    for key, entry in read_object(path).items():
        where = f"{path}, feature {key!r}"
        if not isinstance(entry, dict) or not isinstance(entry.get("all_labels"), list):
            raise UserError("is not an object with a list 'all_labels'", where=where, remedy=REMAKE)
        label = label_text(entry.get("chosen_label"), f"{where}, chosen_label")
        labels = [label_text(item, f"{where}, all_labels") for item in entry["all_labels"]]
        texts = {name: label_text(entry.get(name), f"{where}, {name}") for name in ("cluster_id", "category")}
        if not label or not texts["cluster_id"]:
            raise UserError("has no chosen_label or no cluster_id", where=where, remedy=REMAKE)
        description: Description = {
            "chosen_label": label, "cluster_id": texts["cluster_id"], "all_labels": [item for item in labels if item],
        }  # fmt: skip
        if texts["category"]:
            description["category"] = texts["category"]
        described[feature_key(key, where)] = description
    return described


def feature_key(value: Any, where: str) -> str:
    """Write a feature as "123" or "40/123".

    Raises:
        UserError: ``value`` is neither such a string nor a whole number.
    """
    key = str(value)  # any value but a string or a whole number has another form
    if not FEATURE.fullmatch(key):
        raise UserError(f"{value!r} is not a feature", where=where, remedy='write a feature as 123 or as "40/123"')
    return key


def label_text(value: Any, where: str) -> str:
    """Return a label without white space around it; "" for null.

    Raises:
        UserError: The value is not a string, or holds half a character.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"is of type {type(value).__name__}, not a string", where=where, remedy="give a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, which is not text
        raise UserError("holds half a character", where=where, remedy="correct the lone surrogate escape") from error
    return value.strip()
