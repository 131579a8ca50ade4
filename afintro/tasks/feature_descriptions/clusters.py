"""Descriptions of features by the summaries of their clusters, as people's clustering scripts write them."""

from pathlib import Path
from typing import Any

from afintro.data.formats import file_rows, read_text
from afintro.data.records import read_object
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.descriptions import Description, feature_key, label_text, nonempty

SUMMARIES = ("summary", "representative_desc")
NO_CLUSTER = (None, -1, "-1")  # clustering by density gives noise the number -1


def from_clusters(summaries: str | Path, assignments: str | Path | None) -> tuple[dict[str, Description], list[str]]:
    """Describe every feature by the summary of its cluster.

    Args:
        summaries: JSON ``{cluster: summary}``, or a list of ``{cluster_id, representative_desc or summary, feature_ids}``.
        assignments: JSON ``{feature: cluster}``; a cluster is a string or a number; null or -1 stand for no cluster. None if
            the list of clusters names the features.

    Returns:
        The descriptions; and the features without a description, which have no cluster or a cluster without a summary.

    Raises:
        UserError: A file is wrong or the two contradict each other (names file and record), or no feature has a summary.
    """
    texts, members = read_summaries(summaries)
    if assignments is None and not members:
        what = "needs either --assignments, or clusters that list their feature_ids"
        raise UserError(what, where=str(summaries), remedy="give the file that says which feature is in which cluster")
    clusters = members if assignments is None else read_assignments(assignments)
    _check_agreement(clusters, members, assignments)
    described: dict[str, Description] = {}
    unlabeled: list[str] = []
    for feature, cluster in clusters.items():
        label = texts.get(cluster, "") if cluster else ""
        if label:
            described[feature] = {"chosen_label": label, "cluster_id": cluster, "all_labels": [label]}
        else:
            unlabeled.append(feature)
    where = str(summaries) if assignments is None else f"{assignments} with {summaries}"
    return nonempty(described, where), unlabeled


def read_assignments(path: str | Path) -> dict[str, str]:
    """Read JSON ``{feature: cluster}``.

    Returns:
        The cluster of each feature, "" for none.

    Raises:
        UserError: The file is wrong; names file and feature.
    """
    clusters = {}
    for key, cluster in read_object(path).items():
        where = f"{path}, feature {key!r}"
        clusters[feature_key(key, where)] = _cluster(cluster, where)
    return clusters


def read_summaries(path: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read the summaries of clusters.

    Returns:
        The summary of each cluster, "" for none; and the cluster of each feature, "" for none, where clusters list features.

    Raises:
        UserError: The file is wrong, a cluster occurs twice, or a feature is in two clusters; names file and record.
    """
    if not read_text(Path(path)).lstrip().startswith("["):
        return {
            name: label_text(summary, f"{path}, cluster {name!r}") for name, summary in read_object(path).items()
        }, {}
    texts: dict[str, str] = {}
    members: dict[str, str] = {}
    for index, row in enumerate(file_rows(Path(path))):
        where = f"{path}, record {index}"
        if not isinstance(row, dict) or "cluster_id" not in row:
            raise UserError("is no object with a cluster_id", where=where, remedy="give one object for each cluster")
        cluster = _cluster(row["cluster_id"], where)
        if cluster in texts:
            raise UserError(f"cluster {cluster or 'of noise'} occurs twice", where=where, remedy="list it once")
        texts[cluster] = next(filter(None, (label_text(row.get(name), f"{where}, {name}") for name in SUMMARIES)), "")
        for key in _features(row.get("feature_ids"), where):
            feature = feature_key(key, where)
            if feature in members:
                what = f"feature {feature} is in cluster {members[feature] or 'of noise'} already"
                raise UserError(what, where=where, remedy="list it in one cluster")
            members[feature] = cluster
    return texts, members


def _features(listed: Any, where: str) -> list[Any]:
    if not isinstance(listed, list | None):
        what = f"feature_ids is of type {type(listed).__name__}, not a list"
        raise UserError(what, where=where, remedy="list the numbers of the features")
    return listed or []


def _cluster(value: Any, where: str) -> str:
    """Return the name of a cluster, "" for none."""
    if value is not None and type(value) not in (int, str):
        what = f"cluster is of type {type(value).__name__}"
        raise UserError(what, where=where, remedy="give a string, a whole number or null")
    return "" if value in NO_CLUSTER else str(value)


def _check_agreement(clusters: dict[str, str], members: dict[str, str], where: str | Path | None) -> None:
    """Refuse a feature that the assignments have in another cluster than the list of clusters: the files are of two runs."""
    for feature, cluster in members.items():
        if clusters.get(feature, cluster) != cluster:
            what = f"is in cluster {clusters[feature] or 'of noise'}, but the summaries list it in {cluster or 'noise'}"
            raise UserError(
                what, where=f"{where}, feature {feature!r}", remedy="give summaries and assignments of one clustering"
            )
