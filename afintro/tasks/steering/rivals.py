"""Rivals of a steering explainer: readers of vector and text without a language model, each learning from the training items."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, hstack
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from afintro.data.batch import Example
from afintro.evaluation.answers import expected_verdict
from afintro.evaluation.baselines import READERS, text_baselines
from afintro.evaluation.metrics import Prediction, text_prediction
from afintro.evaluation.text_readers.pieces import words
from afintro.evaluation.text_readers.regression import Regression
from afintro.evaluation.text_readers.training import SEED, Taught, teach
from afintro.tasks.steering.baselines import (
    SteeredItem,
    Steering,
    answer_by_table,
    steered_items,
    steering_baselines,
)
from afintro.tasks.steering.directions import Direction

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
TAUGHT = 8000  # training items that a rival learns from at most: the ridge solves a system of so many equations
PENALTIES = (0.03, 0.3, 3.0)
CHOOSING = 1500  # training items among which the penalty is chosen
WIDTH = 32  # components of the vectors, and of the texts, that trees are grown over
FEW = 8  # layers that trees see apart
TELLING = 64  # words that trees see one by one
PENALTY = 10.0  # inverse strength of the L2 penalty of direction times text
STANDOUTS = 64  # columns of direction times text that are read twice: see the regressions on the text


def every_baseline(
    train: Sequence[Example], items: Sequence[Example], directions: Mapping[str, Direction]
) -> dict[str, list[Prediction]]:
    """Answer items with the tables over strengths, the readers of vectors, the readers of the text, and those of both.

    Args:
        train: Training examples, of one question type.
        items: Items, whose question types tell known directions from unseen ones, which no reader is told.
        directions: The directions by name.
    """
    steered = steered_items(train, directions), steered_items(items, directions)
    systems = steering_baselines(*steered) | steering_rivals(*steered)
    asked = train[0].question_type
    texts = text_baselines(train, [replace(item, question_type=asked) for item in items], asked)
    question_types = {item.uid: item.question_type for item in items}
    for name in ("tfidf_nearest", *READERS):
        systems[name] = [replace(p, question_type=question_types[p.uid]) for p in texts[name]]
    return systems


def steering_rivals(train: Sequence[SteeredItem], items: Sequence[SteeredItem]) -> dict[str, list[Prediction]]:
    """Answer the items with every reader of vectors, and of vector and text together.

    ``nearest_vector`` takes the training vector of the same layer with the largest cosine, whose sign counts, and gives the
    commonest answer to its direction in the cell. ``direction_x_text`` is a logistic regression on the words of the text, on
    the direction that is nearest in the same way, and on their products. ``ridge`` is a kernel ridge regression on the
    products of layer, strength and vector with the words. ``boosting`` grows trees over the same. Of a learned answer the
    verdict comes first: "changed" where it is likelier, and then the likeliest answer with this verdict.

    Args:
        train: The training items, with their vectors.
        items: The items to answer.

    Returns:
        Predictions by name of the rival.
    """
    if len(train) > TAUGHT:
        rows = np.sort(np.random.default_rng(SEED).choice(len(train), TAUGHT, replace=False))
        log.warning(
            "the rivals that read vectors learn from %d of %d training items, drawn at random", TAUGHT, len(train)
        )
        train = [train[int(row)] for row in rows]
    train, items = ([(example, _signed(steering)) for example, steering in some] for some in (train, items))
    nearest = nearest_directions([steering for _, steering in train], [steering for _, steering in items])
    named = [(e, replace(s, direction=name)) for (e, s), name in zip(items, nearest, strict=True)]
    predictions = {
        "nearest_vector": answer_by_table(
            train,
            named,
            [
                lambda s: (s.direction, s.layer, s.strength),
                lambda s: (s.direction, s.layer),
                lambda s: (s.layer, s.strength),
            ],
        )
    }
    taught = teach([example for example, _ in train])
    readers: dict[str, Callable[..., Floats]] = {
        "direction_x_text": _direction_times_text, "ridge": _ridge, "boosting": _boosting,
    }  # fmt: skip
    for name, read in readers.items():
        started = time.monotonic()
        with threadpool_limits(1):  # threads that share busy cores wait for each other
            probabilities = np.ones((len(items), 1)) if taught.kinds < 2 else read(taught, train, named)
        predictions[name] = _answers([item for item, _ in items], probabilities, taught)
        log.info("%s learned from %d items (%.1f s)", name, len(train), time.monotonic() - started)
    return predictions


def _signed(steering: Steering) -> Steering:
    """Return the steering with a strength above 0: a negative strength turns the vector round, which has a name of its own."""
    if steering.strength >= 0:
        return steering
    direction = f"against {steering.direction}"
    return replace(steering, direction=direction, strength=-steering.strength, vector=-steering.vector)


def nearest_directions(train: Sequence[Steering], items: Sequence[Steering]) -> list[str]:
    """Return for each item the direction of the training vector of its layer with the largest cosine.

    Args:
        train: Steering of the training items.
        items: Steering of the items; an item of a layer without training vectors keeps its own direction.
    """
    known: dict[int, dict[bytes, Steering]] = {}
    for steering in train:
        known.setdefault(steering.layer, {}).setdefault(steering.vector.tobytes(), steering)
    stacks = {layer: (np.stack([s.vector for s in own.values()]), [*own.values()]) for layer, own in known.items()}
    names = []
    for steering in items:
        if steering.layer not in stacks:
            names.append(steering.direction)
            continue
        vectors, owners = stacks[steering.layer]
        names.append(owners[int((vectors @ steering.vector).argmax())].direction)
    return names


def _answers(items: Sequence[Example], probabilities: Floats, taught: Taught) -> list[Prediction]:
    """Give each item the likelier verdict, and the likeliest answer with this verdict."""
    changed = np.array([expected_verdict(answer).changed for answer in taught.answers])
    predictions = []
    for item, row in zip(items, probabilities, strict=True):
        share = float(np.clip(row[changed].sum() / max(row.sum(), 1e-9), 0.0, 1.0)) if changed.any() else 0.0
        wanted = changed if share > 0.5 else ~changed
        best = int(np.where(wanted, row, -np.inf).argmax())
        predictions.append(text_prediction(item, taught.answers[best], share))
    return predictions


def _texts(train: Sequence[SteeredItem], items: Sequence[SteeredItem]) -> tuple[csr_matrix, csr_matrix]:
    """Return the words of both, as TF-IDF columns of norm 1; a word of a single training prompt tells nothing of others."""
    prompts = [example.prompt for example, _ in train]
    several = len(set(prompts)) > 20
    columns = TfidfVectorizer(analyzer=words, min_df=2 if several else 1, dtype=np.float32).fit(prompts)
    return columns.transform(prompts), columns.transform([example.prompt for example, _ in items])


def _direction_times_text(
    taught: Taught, train: Sequence[SteeredItem], items: Sequence[SteeredItem]
) -> NDArray[np.float64]:
    """Answer by a logistic regression on direction, cell and words, and on the products of direction, layer and words.

    Held-out training scenarios choose whether single columns stand out, as in the regressions on the text.
    """
    places = sorted({(s.direction, s.layer) for _, s in train})
    cells = sorted({(s.layer, s.strength) for _, s in train})
    texts = _texts(train, items)

    def columns(some: Sequence[SteeredItem], text: csr_matrix) -> csr_matrix:
        place = csr_matrix([[float((s.direction, s.layer) == known) for known in places] for _, s in some])
        cell = csr_matrix([[float((s.layer, s.strength) == known) for known in cells] for _, s in some])
        strength = diags(np.array([s.strength for _, s in some]))
        products = [diags(place[:, [column]].toarray()[:, 0]) @ text for column in range(len(places))]
        return csr_matrix(hstack([place, strength @ place, cell, text, *products]), dtype=np.float32)

    matrix, labels = columns(train, texts[0]), taught.labels
    learned, held = _heldout(train)

    def right(model: Model) -> int:
        fitted = model(matrix[learned], labels[learned])
        return int((fitted.predict(matrix[held], taught.kinds).argmax(1) == labels[held]).sum())

    models: list[Model] = [_Spread, _Standing]
    chosen = max(models, key=right) if len(held) and len(set(labels[learned])) > 1 else models[0]
    return chosen(matrix, labels).predict(columns(items, texts[1]), taught.kinds)


class _Spread:
    """A logistic regression for rules that are spread over many words."""

    def __init__(self, matrix: csr_matrix, labels: NDArray[np.int64]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model = LogisticRegression(C=PENALTY, max_iter=150, tol=1e-3).fit(matrix, labels)

    def predict(self, matrix: csr_matrix, kinds: int) -> Floats:
        return _all_kinds(self._model.predict_proba(matrix), self._model.classes_, kinds)


class _Standing(Regression):
    """A logistic regression for rules of one word, which stands out beside a direction."""

    def __init__(self, matrix: csr_matrix, labels: NDArray[np.int64]) -> None:
        super().__init__(STANDOUTS, matrix, labels)


Model = type[_Spread] | type[_Standing]


def _heldout(train: Sequence[SteeredItem]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw training rows to learn from, and rows of other scenarios to choose by; no rows to choose by of a single scenario."""
    rows = np.random.default_rng(SEED).permutation(len(train))[:CHOOSING]
    groups = [train[row][0].scenario_id for row in rows]
    if len(set(groups)) < 2:
        return rows, rows[:0]
    learned, held = next(iter(GroupKFold(min(4, len(set(groups)))).split(rows, groups=groups)))
    return rows[learned], rows[held]


def _all_kinds(probabilities: Floats, known: NDArray[np.int64], kinds: int) -> Floats:
    everything = np.zeros((len(probabilities), kinds))
    everything[:, known] = probabilities
    return everything


def _ridge(taught: Taught, train: Sequence[SteeredItem], items: Sequence[SteeredItem]) -> Floats:
    """Answer by a ridge regression on the products of what steers and what is asked, in its dual form.

    Its columns are the products of (1, layer, layer times strength, layer times strength times vector) with (1, words); the
    penalty is chosen on scenarios that were held out.
    """
    texts = _texts(train, items)
    steered = _steered(train, train), _steered(items, train)
    kernel, asked = ((1 + steered[side] @ steered[0].T) * (1 + (texts[side] @ texts[0].T).toarray()) for side in (0, 1))
    targets = np.eye(taught.kinds)[taught.labels]
    learned, held = _heldout(train)

    def error(tried: float) -> float:
        model = KernelRidge(alpha=tried, kernel="precomputed").fit(kernel[np.ix_(learned, learned)], targets[learned])
        return float(((model.predict(kernel[np.ix_(held, learned)]) - targets[held]) ** 2).mean())

    penalty = min(PENALTIES, key=error) if len(held) else PENALTIES[1]
    model = KernelRidge(alpha=penalty, kernel="precomputed").fit(kernel, targets)
    return np.maximum(model.predict(asked), 0.0)


def _steered(some: Sequence[SteeredItem], train: Sequence[SteeredItem]) -> Floats:
    """Return columns of layer, strength and vector, each apart for every layer: ``[n, L (2 + width)]``."""
    layers = sorted({s.layer for _, s in train})
    largest = max(s.strength for _, s in train) or 1.0
    width = len(train[0][1].vector)
    columns = np.zeros((len(some), len(layers), 2 + width))
    for row, (_, steering) in enumerate(some):
        if steering.layer in layers:
            dose = steering.strength / largest
            own = np.concatenate([[1.0, dose], np.sqrt(len(layers) + 1) * dose * steering.vector])
            columns[row, layers.index(steering.layer)] = own
    return columns.reshape(len(some), -1)


def _boosting(taught: Taught, train: Sequence[SteeredItem], items: Sequence[SteeredItem]) -> Floats:
    """Answer by boosted trees over the vectors' and the texts' leading components, the telling words, layer and strength."""
    texts = _texts(train, items)
    vectors = [np.stack([s.vector for _, s in some]) for some in (train, items)]
    blocks: list[list[Floats]] = [
        [vectors[side], np.array([[s.layer, s.strength, s.projection] for _, s in some])]
        for side, some in enumerate((train, items))
    ]
    if vectors[0].shape[1] > WIDTH:
        parts = TruncatedSVD(WIDTH, random_state=SEED).fit(vectors[0])
        for side in (0, 1):
            blocks[side][0] = parts.transform(vectors[side])
    layers = sorted({s.layer for _, s in train})
    for side in (0, 1):  # where dose and layer decide what a component does, trees would need many cuts
        dosed = blocks[side][0] * blocks[side][1][:, [1]]
        blocks[side] += (
            [dosed * (blocks[side][1][:, [0]] == layer) for layer in layers] if len(layers) <= FEW else [dosed]
        )
    if texts[0].shape[1] > WIDTH:
        parts = TruncatedSVD(WIDTH, random_state=SEED).fit(texts[0])
        telling = SelectKBest(f_classif, k=min(TELLING, texts[0].shape[1])).fit(texts[0], taught.labels)
        for side in (0, 1):
            blocks[side] += [parts.transform(texts[side]), telling.transform(texts[side]).toarray()]
    else:
        for side in (0, 1):
            blocks[side].append(texts[side].toarray())
    model = HistGradientBoostingClassifier(
        max_iter=60, max_leaf_nodes=15, min_samples_leaf=10, early_stopping=False, random_state=SEED
    ).fit(np.concatenate(blocks[0], axis=1), taught.labels)
    return _all_kinds(model.predict_proba(np.concatenate(blocks[1], axis=1)), model.classes_, taught.kinds)
