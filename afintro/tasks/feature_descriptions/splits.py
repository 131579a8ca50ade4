"""Which features are trained on, and in which way every other feature is held out: with its cluster, or alone."""

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from afintro.data.splits import hold_out
from afintro.evaluation.intervals import FEW_CLUSTERS
from afintro.tasks.feature_descriptions.records import FeatureTable, Indices

QUESTION = "feature_description"
UNSEEN_CLUSTER, UNSEEN_FEATURE = "unseen_cluster", "unseen_feature"


@dataclass(frozen=True)
class FeatureSplit:
    """Some features of a table.

    Args:
        table: The features of a description file.
        indices: ``[n]`` indices into the table.
        kinds: In which way each feature was held out, :data:`UNSEEN_CLUSTER` or :data:`UNSEEN_FEATURE`; None for training.
    """

    table: FeatureTable
    indices: Indices
    kinds: tuple[str, ...] | None = None

    def kind(self, index: int) -> str:
        """Return the question type of an item."""
        return QUESTION if self.kinds is None else self.kinds[index]

    def limited(self, limit: int | None) -> Self:
        """Return at most ``limit`` of the features, evenly spread, so that both kinds are represented."""
        if limit is None or len(self.indices) <= limit:
            return self
        return self.at(np.linspace(0, len(self.indices) - 1, limit).astype(np.int64))

    def at(self, places: NDArray[np.int64]) -> Self:
        """Return the features at some places ``[n]`` of this split."""
        kinds = None if self.kinds is None else tuple(self.kinds[place] for place in places)
        return type(self)(self.table, self.indices[places], kinds)

    def count_shared(self, table: FeatureTable) -> int:
        """Count the features of a table that this split holds too."""
        return int(np.isin(table.keys(np.arange(len(table))), self.table.keys(self.indices)).sum())

    def held_out(self, table: FeatureTable, indices: Indices) -> "FeatureSplit":
        """Return an evaluation split of a table, with this split as the training split.

        A feature is of an unseen cluster where training has neither its cluster nor its label: of two clusters with one
        label, the label of the second could be copied from the first.

        Args:
            table: Table of the evaluated features.
            indices: ``[n]`` which of its features are evaluated.
        """
        trained = {self.table.cluster_names[code] for code in np.unique(self.table.clusters[self.indices])}
        clusters = [table.cluster_names[code] in trained for code in table.clusters[indices]]
        codes, labels = table.labels(indices)
        known = set(self.table.labels(self.table.labeled(self.indices, labels))[1])
        seen = np.array(clusters, dtype=bool) | np.array([label in known for label in labels], dtype=bool)[codes]
        return FeatureSplit(table, indices, tuple(UNSEEN_FEATURE if kind else UNSEEN_CLUSTER for kind in seen))

    def copied(self, split: "FeatureSplit") -> int:
        """Count the features of an evaluation split whose label this training split has in other clusters alone."""
        trained = {self.table.cluster_names[code] for code in np.unique(self.table.clusters[self.indices])}
        names = (split.table.cluster_names[code] for code in split.table.clusters[split.indices])
        kinds = split.kinds or ()
        return sum(kind == UNSEEN_FEATURE and name not in trained for kind, name in zip(kinds, names, strict=True))

    def scenarios(self) -> list[str]:
        """Return for each feature what is one item of the intervals: its cluster or its label, whichever joins more features.

        A few clusters that are the categories themselves are taken as given, and labels vary within them.
        """
        codes, labels = self.table.labels(self.indices)
        features = [self.table.feature(index) for index in self.indices]
        clusters = len({feature.cluster for feature in features})
        given = clusters < FEW_CLUSTERS and all(feature.cluster == feature.category for feature in features)
        by_label = given or clusters >= len(labels)
        names = [labels[code] for code in codes] if by_label else [feature.cluster for feature in features]
        # records.scenario_id would fold white space, and labels hold it.
        return [hashlib.sha256(name.encode()).hexdigest()[:16] for name in names]


def split_off(
    table: FeatureTable, indices: NDArray[np.int64], fraction: float, most: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split validation features off training: whole clusters, and single features.

    Args:
        table: All features.
        indices: ``[n]`` the features that may be trained on.
        fraction: Share of the features to hold out by cluster, and again by feature.
        most: Largest number of features to hold out in either way.
        seed: Decides, with the features, which are held out.

    Returns:
        Indices of training and of validation features.
    """
    kept, by_cluster, by_feature = hold_out(
        table.keys(indices), table.clusters[indices], table.cluster_names, fraction, most, seed
    )
    return indices[kept], np.concatenate([indices[by_cluster], indices[by_feature]])
