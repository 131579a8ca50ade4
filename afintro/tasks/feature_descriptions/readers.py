"""Readers of the parts of labels by ridge regression: what a linear map says of the vector, and what of the layer alone."""

import logging
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, KFold
from sklearn.preprocessing import normalize

from afintro.tasks.feature_descriptions.examples import Wording
from afintro.tasks.feature_descriptions.label_parts import Floats, LabelParts, Rule, agreement
from afintro.tasks.feature_descriptions.records import Indices
from afintro.tasks.feature_descriptions.splits import UNSEEN_CLUSTER, FeatureSplit

log = logging.getLogger(__name__)

VECTOR, LAYER = "ridge_parts", "layer_tfidf"
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of unit vectors
FALLBACK = (1.0, (0.5, 1))  # penalty and rule where too few labels are to choose by
FOLDS = 4
MOST_TAUGHT = 10_000  # features that a reader learns from
MOST_TRIED = 2_000  # features among them that choose penalty and rule


class PartsReader:
    """Learn by ridge regression (Hoerl & Kennard 1970, Technometrics 12(1)) which parts a label has, and say labels.

    Penalty and rule are chosen by cross-validation on training features.

    Args:
        taught: ``[n, columns]`` float32, what is read of each training feature.
        labels: Their labels.
    """

    def __init__(self, taught: Floats, labels: Sequence[str]) -> None:
        self.taught, self.labels = taught, labels
        self.parts = LabelParts(labels)
        self.has = self.parts.matrix(labels)

    def say(self, asked: Floats, unseen: bool) -> list[str]:
        """Label features.

        Args:
            asked: ``[m, columns]`` float32, what is read of each feature.
            unseen: Whether training lacks the labels: cross-validation then keeps all features of a label in one fold.
        """
        penalty, rule = self.chosen(unseen)
        return self.parts.say(_predict(self.taught, self.has, asked, penalty), rule)

    def chosen(self, unseen: bool) -> tuple[float, Rule]:
        """Choose penalty and rule by the F1 of the parts in training features that were left out."""
        taught, has, labels = self.taught[:MOST_TRIED], self.has[:MOST_TRIED], self.labels[:MOST_TRIED]
        if len(set(labels)) < FOLDS:
            return FALLBACK
        if unseen:
            cut = list(GroupKFold(FOLDS, shuffle=True, random_state=0).split(taught, groups=labels))
        else:
            cut = list(KFold(FOLDS, shuffle=True, random_state=0).split(taught))
        best, choice = -1.0, FALLBACK
        for penalty in PENALTIES:
            scores = np.zeros_like(has)
            for kept, left in cut:
                scores[left] = _predict(taught[kept], has[kept], taught[left], penalty)
            for rule in self.parts.rules:
                worth = agreement(self.parts.found(scores, rule), has)
                if worth > best:
                    best, choice = worth, (penalty, rule)
        return choice


def _predict(taught: Floats, has: Floats, asked: Floats, penalty: float) -> Floats:
    scores: Floats = Ridge(penalty).fit(taught, has).predict(asked)
    return scores.reshape(len(asked), -1)


def reader_labels(train: FeatureSplit, split: FeatureSplit, wording: Wording, seed: int) -> dict[str, list[str]]:
    """Label the features of a split by two readers that are no language models.

    Args:
        train: Training features. Of more than 10,000, a random draw is learned from.
        split: Features to label.
        wording: How the explainer is asked.
        seed: Decides the order in which training features are read, and which are.

    Returns:
        Labels of the split's features, in order: ``ridge_parts`` reads the vector by a linear map that all layers share and
        one for each layer, ``layer_tfidf`` the words of the prompt without the vector, which tell nothing but the layer.
    """
    order = np.random.default_rng(seed).permutation(len(train.indices))[:MOST_TAUGHT]
    if len(order) < len(train.indices):
        log.info("%s, %s: learned from %d of %d training features", VECTOR, LAYER, len(order), len(train.indices))
    drawn = train.at(order)
    codes, names = drawn.table.labels(drawn.indices)
    labels = [names[code] for code in codes]
    layers = np.unique(drawn.table.layer(drawn.indices))
    texts = TfidfVectorizer(token_pattern=r"\w+").fit(prompts(drawn, drawn.indices, wording))
    unseen = np.array([kind == UNSEEN_CLUSTER for kind in split.kinds or ()])
    said = {name: np.empty(len(split.indices), dtype=object) for name in (VECTOR, LAYER)}
    for name in said:

        def read(of: FeatureSplit, indices: Indices, name: str = name) -> Floats:
            if name == VECTOR:
                return by_layer(of.table.vectors(indices), of.table.layer(indices), layers)
            return texts.transform(prompts(of, indices, wording)).toarray().astype(np.float32)

        reader = PartsReader(read(drawn, drawn.indices), labels)
        for kind in np.unique(unseen):
            here = np.flatnonzero(unseen == kind)
            said[name][here] = reader.say(read(split, split.indices[here]), bool(kind))
    return {name: list(labels) for name, labels in said.items()}


def by_layer(vectors: Floats, layer: Indices, layers: Indices) -> Floats:
    """Return what a linear map reads that has a part for all layers and a part for each.

    Args:
        vectors: ``[n, width]`` float32; their lengths do not count.
        layer: The layer of each vector ``[n]``.
        layers: The different layers of training ``[m]``. A vector of another layer has the shared part alone.

    Returns:
        ``[n, width]`` float32 where there is one layer, else ``[n, (1 + m) * width + m]``.
    """
    unit: Floats = normalize(vectors)
    if len(layers) == 1:
        return unit
    inside = (layer[:, None] == layers).astype(np.float32)
    own = (inside[:, :, None] * unit[:, None, :]).reshape(len(unit), -1)
    return np.hstack([unit, own, inside])


def prompts(split: FeatureSplit, indices: Indices, wording: Wording) -> list[str]:
    """Return what a reader gets of each feature who sees the prompt without its vector."""
    layers, keys = split.table.layer(indices), split.table.keys(indices)
    return [wording.text(int(layer), int(key) & (1 << 40) - 1, "") for layer, key in zip(layers, keys, strict=True)]
