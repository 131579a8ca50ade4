"""Where there are no test items, half of validation chooses and the other half is reported."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from afintro.data.batch import Example
from afintro.errors import UserError
from afintro.tasks.base import TaskData
from afintro.tasks.context_ablation import ContextAblation
from afintro.tasks.feature_descriptions.task import FeatureDescriptions
from tests.conftest import write_described_features, write_records
from tests.tasks.stand_in import trainer_of


def items(*scenarios: str, prompt: str = "") -> list[Example]:
    return [Example(f"u{i}", name, "q", prompt or f"text {i}", "a", (1,), (2,)) for i, name in enumerate(scenarios)]


def scenarios_of(half: Sequence[Example]) -> set[str]:
    return {example.scenario_id for example in half}


@pytest.mark.parametrize("seed", range(5))
def test_no_scenario_is_in_both_halves_which_are_of_one_size(seed: int) -> None:
    names = [f"s{i // 3}" for i in range(60)]
    choosing, reported = TaskData(split_seed=seed).halves(items(*names))
    assert not scenarios_of(choosing) & scenarios_of(reported)
    assert sorted(e.uid for half in (choosing, reported) for e in half) == sorted(f"u{i}" for i in range(60))
    assert abs(len(choosing) - len(reported)) <= 3


def test_the_seed_decides_and_the_order_of_the_items_stays() -> None:
    names = [f"s{i}" for i in range(40)]
    halves = {seed: TaskData(split_seed=seed).halves(items(*names)) for seed in (0, 1)}
    assert scenarios_of(halves[0][0]) != scenarios_of(halves[1][0])
    numbers = [int(example.uid[1:]) for example in halves[0][0]]
    assert numbers == sorted(numbers)
    again, _ = TaskData(split_seed=0).halves(items(*names))
    assert [e.uid for e in again] == [e.uid for e in halves[0][0]]


def test_a_large_scenario_does_not_unbalance_the_halves() -> None:
    for seed in range(5):
        choosing, reported = TaskData(split_seed=seed).halves(items(*["big"] * 20, *(f"s{i}" for i in range(20))))
        assert (len(choosing), len(reported)) == (20, 20)


def test_one_scenario_cannot_be_halved() -> None:
    assert min(len(half) for half in TaskData().halves(items("a", "a"))) == 0


def test_test_items_are_read_before_training(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A missing test file is found at the beginning of fit, not at its end."""
    train = str(write_records(tmp_path / "train.json", 6, seed=1))
    data = ContextAblation(train_path=train, validation_path=train, test_path=str(tmp_path / "missing.json"))
    reader = SimpleNamespace(name="reader", slot_token=None, tokenizer=tokenizer, context_length=None)
    data.trainer = trainer_of(reader)
    with pytest.raises(UserError) as caught:
        data.setup("fit")
    assert "missing.json" in caught.value.where


@pytest.mark.parametrize(
    ("kinds", "halved"), [("qq qq qq", True), ("qr qr qr", True), ("qq qq qr", False), ("qr", False)]
)
def test_validation_is_halved_only_where_each_half_has_every_question_type(kinds: str, halved: bool) -> None:
    class Small(TaskData):
        def read_examples(self, split: str, reader: Any) -> list[Example]:
            return [
                replace(item, question_type=kind) for item, kind in zip(items(*"abcd"), kinds.split(), strict=False)
            ]

    data = Small(train_path="x", validation_path="y")
    reader = SimpleNamespace(name="reader", slot_token=None, context_length=None)
    data.trainer = trainer_of(reader)
    data.setup("fit")
    assert data.halved == halved
    whole = {example.uid for example in data.read_examples("validation", None)}
    chosen = {example.uid for example in data.examples["validation"]}
    assert chosen | {example.uid for example in data.examples.get("test", [])} == whole
    assert (chosen == whole) == (not halved)
    other = data.for_another_explainer()
    other.trainer = data.trainer
    other.setup("fit")
    assert {example.uid for example in other.examples["validation"]} == chosen, (
        "a comparison is chosen by the same items"
    )
    assert data.called("test") == ("the other half of validation" if halved else "test")


def test_near_duplicates_stay_in_one_half() -> None:
    texts = [f"The {word} of the old {word} harbor counted every single ship by hand." for word in "abcdefghijklmnop"]
    pairs = [
        Example(f"u{i}{j}", f"s{i}{j}", "q", text + "!" * j, "a", (1,), (2,))
        for i, text in enumerate(texts)
        for j in (0, 1)
    ]
    for seed in range(5):
        halves = ContextAblation(split_seed=seed).halves(pairs)
        for half in halves:
            assert {uid[:-1] for uid in scenarios_of(half)} & {
                uid[:-1] for uid in scenarios_of(halves[half is halves[0]])
            } == set()
        assert min(map(len, halves)) > 0


def test_features_are_halved_with_their_items(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What baselines compare vectors with, and what texts are looked up for, is the half that is evaluated."""
    write_described_features(tmp_path)
    features = [str(tmp_path / "L3.safetensors")]
    data = FeatureDescriptions(
        train_path=str(tmp_path / "descriptions.json"), features=features, validation_fraction=0.4
    )
    reader: Any = SimpleNamespace(name="reader", slot_token="<|slot|>", tokenizer=tokenizer, context_length=None)
    whole = {example.uid for example in data.read_examples("validation", reader)}
    data.trainer = trainer_of(reader)
    data.setup("fit")
    assert data.halved
    choosing, reported = (data.examples[split] for split in ("validation", "test"))
    labels = [{example.answer for example in half} for half in (choosing, reported)]
    assert not labels[0] & labels[1]
    for split, half in (("validation", choosing), ("test", reported)):
        assert [e.uid for e in data.evaluated_examples(split, reader)] == [e.uid for e in half]
        answers = data.baselines(split)["nearest"]
        assert {answer.uid for answer in answers} == {example.uid for example in half}
        assert data.longest(split, 1)[-1].uid in {example.uid for example in half}
    assert {example.uid for half in (choosing, reported) for example in half} == whole
