"""Baselines of the steering task without a language model: tables of the training verdicts, and a probe of the projection."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, expected_verdict, two_branch
from afintro.evaluation.metrics import Prediction, text_prediction
from afintro.tasks.steering.directions import RESIDUAL, Direction
from afintro.tasks.steering.spans import unit


@dataclass(frozen=True)
class Steering:
    """What a baseline sees of the steering of an item.

    Args:
        direction: Name of the vector's family: jittered copies of a direction share it.
        layer: 0-based layer after which the vector was added.
        strength: Multiple of the vector that was added.
        projection: Cosine of the vector and the organism's mean residual stream at that layer; 0 if the mean is unknown.
        vector: The vector at norm 1, ``[hidden]`` float64; a vector of one 0 where nobody reads it.
    """

    direction: str
    layer: int
    strength: float
    projection: float
    vector: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1), compare=False, repr=False)


SteeredItem = tuple[Example, Steering]


def steered_items(examples: Sequence[Example], directions: Mapping[str, Direction]) -> list[SteeredItem]:
    """Pair every example with what a baseline sees of its steering.

    Args:
        examples: Examples whose notes name direction, layer and alpha.
        directions: The directions by name, the organism's mean residual stream among them if it is known.
    """
    mean = directions.get(RESIDUAL)
    items = []
    for example in examples:
        name, layer, strength = (example.notes[key] for key in ("direction", "layer", "alpha"))
        vector = unit(directions[name], layer)
        projection = 0.0 if mean is None else float(vector @ unit(mean, layer))
        items.append((example, Steering(directions[name].family, layer, strength, projection, vector)))
    return items


def steering_baselines(train: Sequence[SteeredItem], items: Sequence[SteeredItem]) -> dict[str, list[Prediction]]:
    """Return the predictions of every baseline, by name.

    ``cell_majority`` gives the commonest training answer in the (layer, strength) cell; ``direction_majority`` the commonest
    answer to the direction in the cell (or to the cell if the direction is unknown); ``always_unchanged`` the commonest
    unchanged answer; ``copy_original`` what the unsteered organism did (no other system sees that); ``vector_probe`` the
    answer of a logistic regression on the vector's projection, strength and layer.
    """

    def cell(steering: Steering) -> Hashable:
        return steering.layer, steering.strength

    def directed(steering: Steering) -> Hashable:
        return steering.direction, steering.layer, steering.strength

    unchanged = [example.answer for example, _ in train if not expected_verdict(example.answer).changed]
    answer = _commonest(unchanged or [example.answer for example, _ in train])
    constant = two_branch(Verdict(False, expected_verdict(answer).content))
    return {
        "cell_majority": answer_by_table(train, items, [cell]),
        "direction_majority": answer_by_table(train, items, [directed, cell]),
        "always_unchanged": [text_prediction(item, constant, 0.0) for item, _ in items],
        "copy_original": [
            text_prediction(item, item.copy_answer, 0.0) for item, _ in items if item.copy_answer is not None
        ],
        "vector_probe": _probe(train, items),
    }


def _commonest(answers: Sequence[str]) -> str:
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def answer_by_table(
    train: Sequence[SteeredItem], items: Sequence[SteeredItem], keys: Sequence[Callable[[Steering], Hashable]]
) -> list[Prediction]:
    """Answer with the commonest training answer of the first key that training has, or of all answers if it has none.

    Args:
        train: The training items.
        items: The items to answer.
        keys: What items must share, the finest key first.
    """
    tables: list[dict[Hashable, list[str]]] = []
    for key in keys:
        table: dict[Hashable, list[str]] = defaultdict(list)
        for example, steering in train:
            table[key(steering)].append(example.answer)
        tables.append(table)
    everything = [example.answer for example, _ in train]
    predictions = []
    for item, steering in items:
        known = (table[key(steering)] for table, key in zip(tables, keys, strict=True) if key(steering) in table)
        answers = next(known, everything)
        changed = sum(expected_verdict(answer).changed for answer in answers) / len(answers)
        predictions.append(text_prediction(item, _commonest(answers), changed))
    return predictions


def _probe(train: Sequence[SteeredItem], items: Sequence[SteeredItem]) -> list[Prediction]:
    answers = [example.answer for example, _ in train]
    if len(set(answers)) == 1:  # a regression needs two classes
        return [text_prediction(item, answers[0], float(expected_verdict(answers[0]).changed)) for item, _ in items]
    layers = sorted({steering.layer for _, steering in train})
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(
        _numbers([steering for _, steering in train], layers), answers
    )
    probabilities = model.predict_proba(_numbers([steering for _, steering in items], layers))
    changed = np.array([expected_verdict(answer).changed for answer in model.classes_])
    return [
        text_prediction(item, str(model.classes_[row.argmax()]), min(1.0, float(row[changed].sum())))
        for (item, _), row in zip(items, probabilities, strict=True)
    ]


def _numbers(steerings: Sequence[Steering], layers: Sequence[int]) -> NDArray[np.float64]:
    """Return a constant, projection, strength and their product, and all four by layer: ``[n, 4 + 4 L]``."""
    numbers = np.array([[1.0, s.projection, s.strength, s.projection * s.strength] for s in steerings])
    by_layer = [numbers * np.array([[s.layer == layer] for s in steerings]) for layer in layers]
    return np.concatenate([numbers, *by_layer], axis=1)
