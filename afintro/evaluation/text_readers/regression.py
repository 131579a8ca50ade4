"""Logistic regressions over the pieces of a text; training texts that were held out choose how many pieces stand out."""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from afintro.data.batch import Example
from afintro.evaluation.text_readers.pieces import numbers
from afintro.evaluation.text_readers.training import SEED, Probabilities, Taught, draw

log = logging.getLogger(__name__)

COLUMNS = 2**17  # largest number of different pieces that a regression reads
BINS = 64  # thresholds on each number
FAINT = 0.01  # a column of a threshold in the full row, whose norm is 1: thresholds matter where they stand out
STANDOUTS = (8, 64, 512)  # numbers of columns that stand out; held-out training texts choose
ITERATIONS = 150  # beyond them, answers hardly change where texts contradict each other
PENALTY = 100.0  # inverse strength of the L2 penalty: weak enough to learn every training prompt by heart
FOLDS = 4
ENOUGH = 200  # held-out texts: folds are tried until so many were answered
CHARACTERS = 3_000_000  # training text that a regression reads at most
CHUNK = 2000  # texts whose columns are in memory at once


class Columns:
    """Turn texts into TF-IDF columns of their pieces, and thresholds on their numbers.

    Args:
        pieces: Splits a text into pieces, e.g. runs of characters.
        measured: Whether thresholds on :func:`~afintro.evaluation.text_readers.pieces.numbers` are columns too.
        texts: Training texts, which say what the columns are.
    """

    def __init__(self, pieces: Callable[[str], list[str]], measured: bool, texts: Sequence[str]) -> None:
        self._vectors = TfidfVectorizer(analyzer=pieces, max_features=COLUMNS, dtype=np.float32).fit(texts)
        quantiles = np.linspace(0, 1, BINS + 1)[:-1]
        measures = list(numbers(texts).T) if measured else []
        self._thresholds = [np.unique(np.quantile(measure, quantiles, method="lower")) for measure in measures]

    def of(self, texts: Sequence[str]) -> csr_matrix:
        """Return the columns of texts, ``[n, columns]`` float32."""
        blocks = [self._vectors.transform(texts)]
        if self._thresholds:
            above = [values[:, None] > cuts for values, cuts in zip(numbers(texts).T, self._thresholds, strict=True)]
            blocks.append(csr_matrix(np.concatenate(above, axis=1).astype(np.float32) * FAINT))
        return csr_matrix(hstack(blocks))


class Regression:
    """A logistic regression that reads all columns, and once more, at the same weight, the few that stand out.

    A telling character drowns among thousands of columns under any L2 penalty, and a rule that is spread over many columns is
    lost where few are read. Columns stand out by the F statistic of the analysis of variance.

    Args:
        standouts: Number of columns that stand out.
        matrix: ``[n, columns]`` float32, the training texts.
        labels: ``[n]`` int64, at least two different.
    """

    def __init__(self, standouts: int, matrix: csr_matrix, labels: NDArray[np.int64]) -> None:
        self._scaler = StandardScaler()
        self._model = LogisticRegression(C=PENALTY, max_iter=ITERATIONS, tol=1e-3)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            for expected in (
                UserWarning,
                RuntimeWarning,
                ConvergenceWarning,
            ):  # of columns that are constant, or tell all
                warnings.simplefilter("ignore", expected)
            self._select = SelectKBest(f_classif, k=min(standouts, matrix.shape[1])).fit(matrix, labels)
            self._scaler.fit(self._select.transform(matrix).toarray())
            self._model.fit(self._both(matrix), labels)

    def predict(self, matrix: csr_matrix, kinds: int) -> Probabilities:
        """Return ``[n, kinds]`` probabilities; a kind that was not among the labels has none."""
        probabilities = np.zeros((matrix.shape[0], kinds))
        probabilities[:, self._model.classes_] = self._model.predict_proba(self._both(matrix))
        return probabilities

    def _both(self, matrix: csr_matrix) -> csr_matrix:
        standing = self._scaler.transform(self._select.transform(matrix).toarray())
        return csr_matrix(hstack([matrix, csr_matrix(standing / np.sqrt(standing.shape[1]))]))


def read_pieces(
    name: str, pieces: Callable[[str], list[str]], measured: bool, taught: Taught, items: Sequence[Example]
) -> Probabilities:
    """Answer items by a regression that learned from the training texts.

    Args:
        name: Name of the reader, for the log.
        pieces: Splits a text into pieces.
        measured: Whether lengths, counts and amounts of the text are read too.
        taught: Training examples and the kinds of their answers, at least two.
        items: Examples to answer.

    Returns:
        ``[items, kinds]`` float64.
    """
    started = time.monotonic()
    taught = draw(name, taught, [len(example.prompt) for example in taught.examples], CHARACTERS)
    texts = [example.prompt for example in taught.examples]
    answered = [np.zeros((0, taught.kinds))]
    with threadpool_limits(1):  # the matrices are sparse, and threads that share busy cores wait for each other
        columns = Columns(pieces, measured, texts)
        matrix = columns.of(texts)
        standouts = _choose(matrix, taught)
        model = Regression(standouts, matrix, taught.labels)
        for start in range(0, len(items), CHUNK):
            chunk = [item.prompt for item in items[start : start + CHUNK]]
            answered.append(model.predict(columns.of(chunk), taught.kinds))
    log.info(
        "%s learned from %d prompts; %d of %d columns stand out (%.1f s)",
        name, len(texts), min(standouts, matrix.shape[1]), matrix.shape[1], time.monotonic() - started,
    )  # fmt: skip
    return np.concatenate(answered)


def _choose(matrix: csr_matrix, taught: Taught) -> int:
    """Choose how many columns stand out: by accuracy, then likelihood, on training texts that were held out.

    The texts are held out by scenario, and where scenarios have several texts, by text too: the reader will be asked about
    new scenarios, and about known scenarios in new words.
    """
    groups = [example.scenario_id for example in taught.examples]
    if len(set(groups)) < FOLDS:
        return STANDOUTS[0]
    tried = slice(ceil(ENOUGH * FOLDS / len(groups)))
    folds = list(GroupKFold(FOLDS).split(groups, groups=groups))[tried]
    if len(set(groups)) < len(groups):
        folds += list(KFold(FOLDS, shuffle=True, random_state=SEED).split(groups))[tried]
    merits = {standouts: [0.0, 0.0] for standouts in STANDOUTS}
    for learned, heldout in folds:
        if len(set(taught.labels[learned])) < 2:
            continue
        for standouts, merit in merits.items():
            model = Regression(standouts, matrix[learned], taught.labels[learned])
            probabilities, truth = model.predict(matrix[heldout], taught.kinds), taught.labels[heldout]
            merit[0] += float((probabilities.argmax(1) == truth).sum())
            merit[1] += float(np.log(probabilities[np.arange(len(truth)), truth] + 1e-9).sum())
    return max(merits, key=lambda standouts: merits[standouts])
