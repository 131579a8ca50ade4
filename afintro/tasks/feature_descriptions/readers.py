"""Readers of the parts of labels by ridge regression: what a linear map says of the vector, and what of the layer alone."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, KFold
from sklearn.preprocessing import normalize

from afintro.tasks.feature_descriptions.examples import Wording
from afintro.tasks.feature_descriptions.label_parts import Floats, LabelParts, Rule, agreement, words
from afintro.tasks.feature_descriptions.records import Indices
from afintro.tasks.feature_descriptions.splits import UNSEEN_CLUSTER, FeatureSplit

log = logging.getLogger(__name__)

VECTOR, LAYER = "ridge_parts", "layer_tfidf"
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of unit vectors
FALLBACK = (1.0, (0.5, 1))  # penalty and rule where too few labels are to choose by
FOLDS = 4
MOST_TAUGHT = 10_000  # features that a reader learns from
MOST_COLUMNS = 20_000  # of a linear map; more would not fit into memory beside the features
BLOCK = 1_000  # features that are labeled at a time
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
        self._fitted: dict[bool, tuple[Ridge, Rule]] = {}

    def say(self, asked: Floats, unseen: bool) -> list[str]:
        """Label features.

        Args:
            asked: ``[m, columns]`` float32, what is read of each feature.
            unseen: Whether training lacks the labels: cross-validation then keeps all features of a label in one fold.
        """
        if unseen not in self._fitted:
            penalty, rule = self.chosen(unseen)
            self._fitted[unseen] = Ridge(penalty).fit(self.taught, self.has), rule
        ridge, rule = self._fitted[unseen]
        return self.parts.say(_scores(ridge, asked), rule)

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
                scores[left] = _scores(Ridge(penalty).fit(taught[kept], has[kept]), taught[left])
            for rule in self.parts.rules:
                worth = agreement(self.parts.found(scores, rule), has)
                if worth > best:
                    best, choice = worth, (penalty, rule)
        return choice


def _scores(ridge: Ridge, asked: Floats) -> Floats:
    scores: Floats = ridge.predict(asked)
    return scores.reshape(len(asked), -1)


def reader_labels(train: FeatureSplit, split: FeatureSplit, wording: Wording, seed: int) -> dict[str, list[str]]:
    """Label the features of a split by two readers that are no language models.

    Args:
        train: Training features. Of more than 10,000, a random draw is learned from.
        split: Features to label.
        wording: How the explainer is asked.
        seed: Decides the order in which training features are read, and which are.

    Returns:
        Labels of the split's features, in order: ``ridge_parts`` reads the vector, see :func:`by_layer`, and ``layer_tfidf``
        the words of the prompt without the vector, which tell nothing but the layer.
    """
    drawn = train.at(np.random.default_rng(seed).permutation(len(train.indices))[:MOST_TAUGHT])
    if len(drawn.indices) < len(train.indices):
        log.info("%s, %s: learn from %d of %d features", VECTOR, LAYER, len(drawn.indices), len(train.indices))
    codes, names = drawn.table.labels(drawn.indices)
    labels = [names[code] for code in codes]
    layers = np.unique(drawn.table.layer(drawn.indices))
    texts = TfidfVectorizer(analyzer=_tokens).fit(prompts(drawn, drawn.indices, wording))

    def vector(of: FeatureSplit, indices: Indices) -> Floats:
        return by_layer(of.table.vectors(indices), of.table.layer(indices), layers)

    def layer(of: FeatureSplit, indices: Indices) -> Floats:
        columns: Floats = texts.transform(prompts(of, indices, wording)).toarray().astype(np.float32)
        return columns

    return {name: _answers(read, drawn, labels, split) for name, read in ((VECTOR, vector), (LAYER, layer))}


def _tokens(prompt: str) -> list[str]:
    """Return the words of a prompt, and a word that all prompts have: a wording may have no word at all."""
    return ["", *words(prompt)]


def _answers(
    read: Callable[[FeatureSplit, Indices], Floats], drawn: FeatureSplit, labels: Sequence[str], split: FeatureSplit
) -> list[str]:
    """Label the features of a split, by the way in which each is held out, a block at a time."""
    reader = PartsReader(read(drawn, drawn.indices), labels)
    unseen = np.array([kind == UNSEEN_CLUSTER for kind in split.kinds or ()], dtype=bool)
    said = np.empty(len(split.indices), dtype=object)
    for kind in np.unique(unseen):
        places = np.flatnonzero(unseen == kind)
        for here in np.array_split(places, -(-len(places) // BLOCK)):
            said[here] = reader.say(read(split, split.indices[here]), bool(kind))
    return [str(label) for label in said]


def by_layer(vectors: Floats, layer: Indices, layers: Indices) -> Floats:
    """Return the columns of a linear map that has a part for all layers and a part for each layer.

    Args:
        vectors: ``[n, width]`` float32; their lengths do not count.
        layer: The layer of each vector ``[n]``.
        layers: The different layers of training ``[m]``. A vector of another layer has the shared part alone.

    Returns:
        ``[n, width]`` float32 where there is one layer, ``[n, (1 + m) * width + m]`` where these columns are not too many, and
        else ``[n, width + m]``: the shared part and which layer it is.
    """
    unit: Floats = normalize(vectors)
    if len(layers) == 1:
        return unit
    inside = (layer[:, None] == layers).astype(np.float32)
    if (1 + len(layers)) * vectors.shape[1] > MOST_COLUMNS:
        return np.hstack([unit, inside])
    own = (inside[:, :, None] * unit[:, None, :]).reshape(len(unit), -1)
    return np.hstack([unit, own, inside])


def prompts(split: FeatureSplit, indices: Indices, wording: Wording) -> list[str]:
    """Return what a reader gets of each feature who sees the prompt without its vector."""
    layers, keys = split.table.layer(indices), split.table.keys(indices)
    return [wording.text(int(layer), int(key) & (1 << 40) - 1, "") for layer, key in zip(layers, keys, strict=True)]
