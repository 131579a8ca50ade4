"""Baselines of the steering task that are no language model: tables of the training verdicts, and a probe of the vector."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, expected_verdict, two_branch
from afintro.evaluation.metrics import Prediction, text_prediction


@dataclass(frozen=True)
class Dose:
    """What a baseline sees of an item, beside its example.

    Args:
        direction: Name of the vector.
        layer: Where it was added.
        alpha: How many times.
        projection: Cosine of the vector and the organism's mean residual stream at that layer.
    """

    direction: str
    layer: int
    alpha: float
    projection: float


Asked = tuple[Example, Dose]


def steering_baselines(train: Sequence[Asked], items: Sequence[Asked]) -> dict[str, list[Prediction]]:
    """Predictions of every baseline, by name.

    ``cell_majority`` gives the commonest answer to the (layer, alpha) cell in training, ``direction_majority`` that to the
    direction in the cell (the cell's where the direction is unknown), ``always_unchanged`` the commonest unchanged answer,
    ``copy_original`` what the unsteered organism did (it is shown that, no other system is), ``vector_probe`` that of a
    logistic regression on the vector's projection, alpha and layer.
    """

    def cell(dose: Dose) -> Hashable:
        return dose.layer, dose.alpha

    def directed(dose: Dose) -> Hashable:
        return dose.direction, dose.layer, dose.alpha

    unchanged = [example.answer for example, _ in train if not expected_verdict(example.answer).changed]
    answer = _commonest(unchanged or [example.answer for example, _ in train])
    constant = two_branch(Verdict(False, expected_verdict(answer).content))
    return {
        "cell_majority": _table(train, items, [cell]),
        "direction_majority": _table(train, items, [directed, cell]),
        "always_unchanged": [text_prediction(item, constant, 0.0) for item, _ in items],
        "copy_original": [
            text_prediction(item, item.copy_answer, 0.0) for item, _ in items if item.copy_answer is not None
        ],
        "vector_probe": _probe(train, items),
    }


def _commonest(answers: Sequence[str]) -> str:
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _table(
    train: Sequence[Asked], items: Sequence[Asked], keys: Sequence[Callable[[Dose], Hashable]]
) -> list[Prediction]:
    """The commonest training answer of the first key that training knows; of all, where it knows none."""
    tables: list[dict[Hashable, list[str]]] = []
    for key in keys:
        table: dict[Hashable, list[str]] = defaultdict(list)
        for example, dose in train:
            table[key(dose)].append(example.answer)
        tables.append(table)
    everything = [example.answer for example, _ in train]
    found = []
    for item, dose in items:
        known = (table[key(dose)] for table, key in zip(tables, keys, strict=True) if key(dose) in table)
        answers = next(known, everything)
        changed = sum(expected_verdict(answer).changed for answer in answers) / len(answers)
        found.append(text_prediction(item, _commonest(answers), changed))
    return found


def _probe(train: Sequence[Asked], items: Sequence[Asked]) -> list[Prediction]:
    answers = [example.answer for example, _ in train]
    if len(set(answers)) == 1:  # a regression needs two classes
        return [text_prediction(item, answers[0], float(expected_verdict(answers[0]).changed)) for item, _ in items]
    layers = sorted({dose.layer for _, dose in train})
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(
        _numbers([dose for _, dose in train], layers), answers
    )
    probabilities = model.predict_proba(_numbers([dose for _, dose in items], layers))
    changed = np.array([expected_verdict(answer).changed for answer in model.classes_])
    return [
        text_prediction(item, str(model.classes_[row.argmax()]), min(1.0, float(row[changed].sum())))
        for (item, _), row in zip(items, probabilities, strict=True)
    ]


def _numbers(doses: Sequence[Dose], layers: Sequence[int]) -> NDArray[np.float64]:
    """Projection, alpha and their product, and all of them by layer ``[n, 4 + 4 L]``."""
    dose = np.array([[1.0, d.projection, d.alpha, d.projection * d.alpha] for d in doses])
    by_layer = [dose * np.array([[d.layer == layer] for d in doses]) for layer in layers]
    return np.concatenate([dose, *by_layer], axis=1)
