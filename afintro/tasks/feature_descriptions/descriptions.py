"""Descriptions of features: ``{feature: {chosen_label, cluster_id, all_labels[, category]}}``, and what they are made of.

A feature is written "123", or "40/123" with its layer.
"""

import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from afintro.data.samples import read_object
from afintro.errors import UserError

REMAKE = "make the file again with scripts/build_af_feature_descriptions.py"
FEATURE = re.compile(r"((0|[1-9][0-9]*)/)?(0|[1-9][0-9]*)")


class Description(TypedDict):
    """What is said of one feature; the chosen label is one of all labels, and none is empty."""

    chosen_label: str
    cluster_id: str
    all_labels: list[str]
    category: NotRequired[str]


def from_clusters(summaries: str | Path, assignments: str | Path) -> tuple[dict[str, Description], list[str]]:
    """Describe every feature by the summary of its cluster.

    Args:
        summaries: JSON ``{cluster: summary}``.
        assignments: JSON ``{feature: cluster}``; a cluster is a string, a number, or null or -1 for none.

    Returns:
        The descriptions, and the features without any: those of no cluster or of one without a summary.

    Raises:
        UserError: Names file and record; also where no feature has a summary.
    """
    texts = {
        cluster: label_text(summary, f"{summaries}, cluster {cluster!r}")
        for cluster, summary in read_object(summaries).items()
    }
    described: dict[str, Description] = {}
    unlabelled: list[str] = []
    for key, cluster in read_object(assignments).items():
        where = f"{assignments}, feature {key!r}"
        feature = feature_key(key, where)
        if cluster is not None and type(cluster) not in (int, str):
            raise UserError(
                f"cluster is {type(cluster).__name__}", where=where, remedy="give a string, a whole number or null"
            )
        label = "" if cluster in (None, -1, "-1") else texts.get(str(cluster), "")
        if label:
            described[feature] = {"chosen_label": label, "cluster_id": str(cluster), "all_labels": [label]}
        else:
            unlabelled.append(feature)
    return _some(described, f"{assignments} with {summaries}"), unlabelled


def from_categories(path: str | Path) -> tuple[dict[str, Description], list[str]]:
    """Describe every feature by the reasoning that put it into its category.

    Args:
        path: JSON ``{category: [{latent_id, reasoning, description}]}``. Without a reasoning the description is the
            label; of a feature without both nothing is said.

    Returns:
        The descriptions, and the features without any.

    Raises:
        UserError: Names file and record; also for a feature that is listed twice.
    """
    described: dict[str, Description] = {}
    seen: dict[str, str] = {}
    for category, entries in read_object(path).items():
        if not isinstance(entries, list):
            raise UserError(
                f"is {type(entries).__name__}, not a list", where=f"{path}, {category}", remedy="list its features"
            )
        for index, entry in enumerate(entries):
            where = f"{path}, {category}, record {index}"
            feature, labels = _entry(entry, category, where)
            if feature in seen:
                raise UserError(
                    f"feature {feature} is listed in {seen[feature]} already", where=where, remedy="list it once"
                )
            seen[feature] = f"{category}, record {index}"
            if labels:
                described[feature] = {
                    "chosen_label": labels[0], "cluster_id": category, "all_labels": labels, "category": category,
                }  # fmt: skip
    return _some(described, str(path)), [feature for feature in seen if feature not in described]


def _entry(entry: Any, category: str, where: str) -> tuple[str, list[str]]:
    """Feature and labels of one entry of a category."""
    if not isinstance(entry, dict):
        raise UserError(f"is {type(entry).__name__}, not an object", where=where, remedy="give one object a feature")
    if "latent_id" not in entry:
        raise UserError("has no field 'latent_id'", where=where, remedy="give the number of the feature")
    if entry.get("category", category) != category:
        raise UserError(f"is of category {entry['category']!r}", where=where, remedy="list it there")
    labels = [label_text(entry.get(name), f"{where}, {name}") for name in ("reasoning", "description")]
    return feature_key(entry["latent_id"], where), [label for label in labels if label]


def _some(described: dict[str, Description], where: str) -> dict[str, Description]:
    if not described:
        raise UserError("no feature has a label", where=where, remedy="check that the files belong together")
    return described


def read_descriptions(path: str | Path) -> dict[str, Description]:
    """Read what :func:`from_clusters` and :func:`from_categories` give, from JSON.

    Raises:
        UserError: Names file, feature and field.
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
    """How a feature is written: "123" or "40/123".

    Raises:
        UserError: ``value`` is neither such a string nor a whole number.
    """
    key = str(value)  # of anything else but a string or a whole number, this has another form
    if not FEATURE.fullmatch(key):
        raise UserError(f"{value!r} is no feature", where=where, remedy='write a feature as 123 or as "40/123"')
    return key


def label_text(value: Any, where: str) -> str:
    """A label without white space around it; "" for null.

    Raises:
        UserError: Not a string, or half a character in it.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"is {type(value).__name__}, not a string", where=where, remedy="give a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, which is no text
        raise UserError("holds half a character", where=where, remedy="mend the lone surrogate escape") from error
    return value.strip()
