"""Mixtures: shares of the loss, what is handed to each task and back, and what is refused."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afintro.data.batch import Example, sizes_of
from afintro.errors import UserError
from afintro.evaluation.metrics import text_prediction
from afintro.evaluation.outcomes import Outcome
from afintro.explainer.module import ExplainerModule
from afintro.lm.injection import VectorSpace, VectorSpaces
from afintro.lm.lora import Lora
from afintro.tasks.base import TaskData
from afintro.tasks.context_ablation import ContextAblation
from afintro.tasks.mixture import Mixture
from afintro.tasks.mixture.joined import JoinedExamples, Part, mixed
from afintro.tasks.steering import SteeringPrediction
from tests.tasks.mixture.contract import small_data, small_tasks
from tests.tasks.stand_in import trainer_of


def items(count: int, name: str) -> list[Example]:
    return [Example(f"{name}{at}", "s", "q", "", "", (1,) * (at + 1), (2,)) for at in range(count)]


@pytest.fixture(scope="module")
def explainer(small_model: Path) -> ExplainerModule:
    return ExplainerModule(str(small_model), lora=Lora(r=2, alpha=4), slot_token="<|slot|>")


@pytest.fixture(scope="module")
def mixture(explainer: ExplainerModule, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    data = small_data(tmp_path_factory.mktemp("mixture"))
    data.trainer = trainer_of(explainer)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("weights", "copies"),
    [
        ({"a": 1.0, "b": 1.0}, (1, 4)),
        ({"a": 3.0, "b": 1.0}, (1, 1)),
        ({"a": 1.0, "b": 8.0}, (1, 33)),
        ({"a": 40, "b": 1}, (10, 1)),
    ],
)
def test_weights_are_shares_of_the_loss(weights: dict[str, float], copies: tuple[int, int]) -> None:
    """Whatever the numbers of examples; every example is in every epoch, and repeated by whole numbers."""
    examples = mixed({"a": items(33, "x"), "b": items(8, "y")}, weights)
    counted = Counter(example.uid for example in examples)
    assert ({counted[f"a/x{at}"] for at in range(33)}, {counted[f"b/y{at}"] for at in range(8)}) == (
        {copies[0]},
        {copies[1]},
    )
    sums = {name: sum(e.weight for e in examples if e.uid.startswith(name)) for name in ("a/", "b/")}
    assert sums["a/"] / sum(sums.values()) == pytest.approx(weights["a"] / (weights["a"] + weights["b"]))
    assert sum(sums.values()) == pytest.approx(len(examples))


def test_joined_examples_are_one_sequence() -> None:
    joined = JoinedExamples({"a": Part(items(3, "x")), "b": Part([]), "c": Part(items(2, "y"), copies=2, factor=0.5)})
    assert [e.uid for e in joined] == ["a/x0", "a/x1", "a/x2", "c/y0", "c/y1", "c/y0", "c/y1"]
    assert [e.uid for e in joined[2:4]] == ["a/x2", "c/y0"]
    assert joined[-1].uid == "c/y1"
    assert [e.weight for e in joined] == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    np.testing.assert_array_equal(sizes_of(joined), sizes_of(list(joined)))
    assert joined.places_of([0, 2, 3]) == {"a": [0, 2], "b": [], "c": [0]}
    for beyond in (7, -8):
        with pytest.raises(IndexError):
            joined[beyond]


def test_every_task_has_its_space_and_its_share(mixture: Mixture) -> None:
    assert isinstance(mixture.space, VectorSpaces)
    assert mixture.space.spaces == {"feature_descriptions": VectorSpace(24, (3,)), "steering": VectorSpace(24, (1, 2))}
    for example in mixture.examples["validation"]:
        name = example.uid.partition("/")[0]
        assert (example.slot.space if example.slot else "context_ablation") == name
    shares = {name: part["share"] for name, part in mixture.describe("train")["tasks"].items()}
    assert shares == {"context_ablation": 0.25, "feature_descriptions": 0.25, "steering": 0.5}
    sums: Counter[str] = Counter()
    for example in mixture.training_examples():
        sums[example.uid.partition("/")[0]] += 1
    assert set(sums) == set(shares)


def test_outcomes_come_back_under_their_own_uids(mixture: Mixture) -> None:
    outcomes = [Outcome(example, 1.0, True, None) for example in mixture.examples["validation"]]
    tables = list(mixture.tables(outcomes))
    assert [name for name, _, _ in tables] == ["context_ablation", "feature_descriptions", "steering"]
    for _, task, own in tables:
        assert [outcome.example.uid for outcome in own] == [e.uid for e in task.examples["validation"]]


def test_statistics_and_selection_are_those_of_each_task(mixture: Mixture) -> None:
    predictions = []
    for at, item in enumerate(mixture.examples["validation"]):
        predictions.append(replace(text_prediction(item, item.answer if at % 3 else "wrong", 0.5), uid=item.uid))
    scores, chosen = mixture.statistics(predictions), []
    for name, task in mixture.tasks.items():
        own = [replace(p, uid=p.uid.removeprefix(f"{name}/")) for p in predictions if p.uid.startswith(f"{name}/")]
        alone = task.statistics(own)
        assert {f"{name}/{metric}" for metric in alone} == {m for m in scores if m.startswith(f"{name}/")}
        assert all(scores[f"{name}/{metric}"][0].value == alone[metric][0].value for metric in ("exact_match",))
        chosen.append(task.selection(alone))
    assert mixture.selection(scores) == pytest.approx(sum(chosen) / 3)
    assert 0 < mixture.selection(scores) < 1


def test_a_limit_on_batches_leaves_items_of_every_task(explainer: ExplainerModule, tmp_path: Path) -> None:
    data = small_data(tmp_path)
    data.trainer = trainer_of(explainer)
    data.trainer.limit_val_batches = 2
    data.setup("validate")
    kept = Counter(example.uid.partition("/")[0] for example in data.examples["validation"])
    assert set(kept) == set(data.tasks)
    assert 8 <= sum(kept.values()) <= 10
    assert {name: len(task.examples["validation"]) for name, task in data.tasks.items()} == kept
    assert any("limit_val_batches" in line for line in data.warnings)


def test_what_is_given_for_the_mixture_holds_for_every_task_without(tmp_path: Path) -> None:
    tasks = small_tasks(tmp_path)
    for task in tasks.values():
        task.settings.batch_size = 4
    tasks["steering"].settings.limit = 5
    given: dict[str, Any] = {
        "limit": 3,
        "heldout": ["h.json"],
        "heldout_action": "drop",
        "split_seed": 7,
        "explained": 0,
    }
    data = Mixture(tasks=tasks, batch_size=4, max_tokens=500, **given)
    for name, task in data.tasks.items():
        settings = task.settings
        assert (settings.batch_size, settings.max_tokens, settings.split_seed, settings.explained) == (4, 500, 7, 0)
        assert (task.heldout, settings.heldout_action) == (["h.json"], "drop")
        assert settings.limit == (5 if name == "steering" else 3)


def test_another_explainer_gets_every_task_anew(mixture: Mixture) -> None:
    blind = mixture.for_another_explainer(zero_vectors=True)
    assert {name: task.zero_vectors for name, task in blind.tasks.items()} == {
        "context_ablation": False, "feature_descriptions": True, "steering": True,
    }  # fmt: skip
    textless = mixture.for_another_explainer(without_text=True)
    assert [name for name, task in textless.tasks.items() if task.without_text] == ["steering"]
    assert not any(task.zero_vectors or task.without_text for task in mixture.tasks.values())


def two() -> dict[str, TaskData]:
    return {"a": ContextAblation(), "b": SteeringPrediction()}


@pytest.mark.parametrize(
    ("settings", "where", "word"),
    [
        ({}, "data.tasks", "no task"),
        ({"tasks": two(), "weights": {"c": 1.0}}, "data.weights", "unknown task c"),
        ({"tasks": two(), "weights": {"a": 0.0}}, "data.weights.a", "above 0"),
        ({"tasks": two(), "weights": {"b": -1.0}}, "data.weights.b", "above 0"),
        ({"tasks": two(), "weights": {"b": float("nan")}}, "data.weights.b", "above 0"),
        ({"tasks": {"a": ContextAblation(), "b": ContextAblation()}}, "data.tasks.a", "same task"),
        ({"tasks": {"a": Mixture(tasks=two())}}, "data.tasks.a", "is a mixture"),
        ({"tasks": {"other_base": ContextAblation()}}, "data.tasks.other_base", "name"),
        ({"tasks": {"a/b": ContextAblation()}}, "data.tasks.a/b", "name"),
        ({"tasks": {"a": ContextAblation(batch_size=3)}}, "data.tasks.a.batch_size", "whole mixture"),
        ({"tasks": {"a": ContextAblation(max_tokens=3)}}, "data.tasks.a.max_tokens", "whole mixture"),
        ({"tasks": two(), "train_path": "x.json"}, "data.train_path", "each task"),
        ({"tasks": two(), "train_path": "x.json", "test_path": "y.json"}, "data.train_path", "each task"),
        ({"tasks": two(), "question_weights": {"q": 1.0}}, "data.question_weights", "each task"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], where: str, word: str) -> None:
    with pytest.raises(UserError) as refused:
        Mixture(**settings)
    assert refused.value.where == where
    assert word in str(refused.value)


def test_the_same_task_with_other_data_is_another_task() -> None:
    Mixture(tasks={"a": ContextAblation(), "b": ContextAblation(train_path="x.json")})


def test_a_task_that_cannot_be_read_is_named(explainer: ExplainerModule, tmp_path: Path) -> None:
    data = small_data(tmp_path)
    data.trainer = trainer_of(explainer)
    data.tasks["steering"].settings.question_weights = {"unheard": 1.0}
    with pytest.raises(UserError) as refused:
        data.setup("fit")
    assert refused.value.where == "data.tasks.steering.question_weights"


def test_a_task_without_training_examples_is_named(explainer: ExplainerModule, tmp_path: Path) -> None:
    data = small_data(tmp_path)
    data.trainer = trainer_of(explainer)
    data.tasks["context_ablation"].settings.question_weights = {}
    with pytest.raises(UserError) as refused:
        data.setup("fit")
    assert refused.value.where == "data.tasks.context_ablation.question_weights"
