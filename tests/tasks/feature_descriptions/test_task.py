"""Feature descriptions: what the explainer reads, what is held out, and what its score is compared with."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from afintro.data.batch import collate
from afintro.data.files import write_json
from afintro.data.text import render
from afintro.errors import UserError
from afintro.evaluation.judges import Judge, Tfidf
from afintro.evaluation.metrics import Prediction
from afintro.lm.injection import VectorSpace
from afintro.tasks.base import EXPLAINER
from afintro.tasks.feature_descriptions import readers
from afintro.tasks.feature_descriptions.features import FeatureFile, write_features
from afintro.tasks.feature_descriptions.neighbors import baseline_labels
from afintro.tasks.feature_descriptions.records import Feature
from afintro.tasks.feature_descriptions.scorer import Detection, functional_auroc
from afintro.tasks.feature_descriptions.task import FeatureDescriptions, Wording
from afintro.tasks.vectors import shuffled as exchange
from tests.tasks.stand_in import trainer_of

TOPICS = ("cats", "large dogs", "rain in spring", "a sharp knife", "blue", "the moon", "a lost key", "old songs")
LAYERS = (1, 4)
COUNT = 20  # features a layer
SLOT = "<|slot|>"


def shuffled(items, seed):
    """Vectors exchanged among items of different labels."""
    return exchange(items, seed, lambda item: item.answer)


def uids() -> list[str]:
    return [f"{layer}/{3 * number}" for layer in LAYERS for number in range(COUNT)]


def topic(uid: str) -> int:
    return uids().index(uid) % len(TOPICS)  # five features each, of both layers


def label(uid: str) -> str:
    return f"fires on {TOPICS[topic(uid)]}"


def write_small_data(folder: Path, width: int) -> dict[str, np.ndarray]:
    """40 features of two layers in eight clusters, a direction each; returns the vectors by uid.

    ``descriptions.json`` holds all of them, ``train.json`` and ``held.json`` 30 and 10.
    """
    drawn = np.random.default_rng(5)
    directions = drawn.standard_normal((len(TOPICS), width))
    vectors = {uid: (directions[topic(uid)] + 1.7 * drawn.standard_normal(width)).astype(np.float32) for uid in uids()}
    for layer in LAYERS:
        own = [uid for uid in uids() if uid.startswith(f"{layer}/")]
        indices = np.array([int(uid.split("/")[1]) for uid in own])
        rows = np.stack([vectors[uid] for uid in own])
        write_features(folder / f"L{layer}.safetensors", [rows], indices, width, {"layer": str(layer)})
    described = {
        uid: {
            "chosen_label": label(uid),
            "cluster_id": f"cluster {topic(uid)}",
            "all_labels": [label(uid)],
            "category": ("animals", "things", "things", "other")[topic(uid) // 2],
        }
        for uid in uids()
    }
    held = [uid for uid in uids() if topic(uid) == 2 or uid in ("1/0", "1/3", "4/30", "4/33", "4/57")]
    write_json(folder / "descriptions.json", described)
    write_json(folder / "train.json", {uid: described[uid] for uid in uids() if uid not in held})
    write_json(folder / "held.json", {uid: described[uid] for uid in held})
    samples = [
        {
            "text": f"Text {number} tells of {TOPICS[number % 8]} and {TOPICS[(number + 3) % 8]}.",
            "label": "aligned",
            "fired_features": [uid for uid in uids() if topic(uid) in (number % 8, (number + 3) % 8)],
        }
        for number in range(24)
    ]
    write_json(folder / "firings.json", {"samples": samples})
    return vectors


class Counting(Judge):
    """Scores by a rule, and keeps what it was asked."""

    def __init__(self, name: str, rule: Any) -> None:
        self.name, self.rule, self.asked = name, rule, []

    def score(self, pairs: Any, rubric: Any = None) -> list[float | None]:
        self.asked.append(list(pairs))
        return [self.rule(*pair) for pair in pairs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("features")
    write_small_data(found, 32)
    return found


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return write_small_data(tmp_path_factory.mktemp("same"), 32)


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerFast) -> Any:
    return SimpleNamespace(name="small", slot_token=SLOT, tokenizer=tokenizer, context_length=512)


def task(
    folder: Path, explainer: Any = None, stage: str = "validate", train: str = "train.json", **settings: Any
) -> Any:
    """The data module on the small data, set up if there is an explainer."""
    settings = {"features": [str(folder / f"L{layer}.safetensors") for layer in LAYERS], **settings}
    settings = {"validation_fraction": 0.15, "batch_size": 4, **settings}
    for name in ("validation_path", "test_path", "activations"):
        if settings.get(name):
            settings[name] = str(folder / settings[name])
    data = FeatureDescriptions(train_path=str(folder / train), **settings)
    if explainer is not None:
        data.trainer = trainer_of(explainer)
        data.setup(stage)
    return data


FILES = {"validation_path": "held.json", "activations": "firings.json"}
OFF = {"train": "descriptions.json"}  # validation is split off


def names(examples: Any) -> list[str]:
    return [example.uid for example in examples]


# What the explainer reads.

GOLDEN = {
    "1/0": "{slot} is a feature of layer 1.\n\nDescribe when it is active.",
    "1/3": "Which texts make the feature {slot} of layer 1 fire?",
    "4/0": "Layer 4, feature {slot}\n\nWhat makes this feature fire?",
}


def test_golden_prompts() -> None:
    data = FeatureDescriptions()
    for uid, wording in GOLDEN.items():
        layer, index = (int(part) for part in uid.split("/"))
        messages, answer = data.render(Feature(layer, index, "fires on {slot}", "c", "d"), SLOT)
        assert messages == [
            {"role": "system", "content": "You describe features of a language model's activations."},
            {"role": "user", "content": wording.replace("{slot}", SLOT)},
        ], uid
        assert answer == "fires on {slot}"


def test_golden_example(folder: Path, reader: Any, vectors: dict[str, np.ndarray]) -> None:
    data = task(folder, reader, **FILES)
    example = next(item for item in data.examples["validation"] if item.uid == "4/33")
    assert (example.question_type, example.group) == ("unseen_feature", "other")
    assert example.answer == "fires on old songs"
    assert example.prompt == data.render(Feature(4, 33, "x", "c", "d"), SLOT)[0][1]["content"]
    tokenizer = reader.tokenizer
    assert tokenizer.decode(example.prompt_ids) == render(tokenizer, data.render(Feature(4, 33, "", "", ""), SLOT)[0])
    assert tokenizer.decode(example.answer_ids) == "fires on old songs" + tokenizer.eos_token
    slot = example.slot
    assert (slot.layer, slot.scale) == (4, 1.0)
    assert example.prompt_ids[slot.position] == tokenizer.convert_tokens_to_ids(SLOT)
    assert example.weight == 1.0


@pytest.mark.parametrize("settings", [FILES, OFF], ids=["files", "split off"])
def test_every_example_holds_its_own_vector_and_says_its_layer(
    folder: Path, reader: Any, vectors: dict[str, np.ndarray], settings: dict[str, Any]
) -> None:
    data = task(folder, reader, **settings)
    everything = [*data.examples["train"], *data.examples["validation"]]
    assert len(everything) == 40
    slot_id = reader.tokenizer.convert_tokens_to_ids(SLOT)
    for example in everything:
        layer = example.uid.split("/")[0]
        assert example.answer == label(example.uid)
        np.testing.assert_array_equal(example.slot.vector, vectors[example.uid])
        assert [i for i, token in enumerate(example.prompt_ids) if token == slot_id] == [example.slot.position]
        assert str(example.slot.layer) == layer
        assert example.answer not in example.prompt
        assert f"layer {layer}" in example.prompt.lower()
    # Neither the number nor the label is told: what differs within a layer is the wording alone.
    assert len({example.prompt for example in everything}) == 2 * 3
    assert len({example.scenario_id for example in everything}) == len(TOPICS), "one label is resampled as one"
    batch = collate(everything[:3])
    np.testing.assert_array_equal(batch.slot_vectors.numpy(), [vectors[e.uid] for e in everything[:3]])
    assert batch.input_ids[batch.slot_positions].tolist() == [slot_id] * 3


@pytest.mark.parametrize(
    ("wording", "count"), [("Layer {layer}", 0), ("{slot} of {layer} is {slot}", 2), ("{slot} " + SLOT, 2)]
)
def test_a_wording_that_does_not_hold_the_slot_once_is_refused(
    folder: Path, reader: Any, wording: str, count: int
) -> None:
    with pytest.raises(UserError, match=rf"prompt of feature \d/\d+: holds the slot token {count} times"):
        task(folder, reader, wording=Wording(user=[wording]))


def test_a_wording_of_ones_own_is_read(folder: Path, reader: Any) -> None:
    data = task(folder, reader, wording=Wording("Be brief.", ["{slot}@{layer}: {label}?"]))
    assert {item.prompt for item in data.examples["train"]} == {f"{SLOT}@{layer}: {{label}}?" for layer in LAYERS}
    assert "Be brief." in reader.tokenizer.decode(data.examples["train"][0].prompt_ids)


def test_without_a_slot_token_nothing_is_read(folder: Path, reader: Any) -> None:
    reader.slot_token = None
    with pytest.raises(UserError, match=r"model.slot_token: is absent"):
        task(folder, reader)


# What is held out.


@pytest.mark.parametrize("seed", range(4))
def test_split_off_both_kinds_leak_nothing(folder: Path, reader: Any, seed: int) -> None:
    data = task(folder, reader, split_seed=seed, **OFF)
    train, held = data.examples["train"], data.examples["validation"]
    assert sorted(names(train) + names(held)) == sorted(uids())
    trained = {item.answer for item in train}
    kinds = Counter(item.question_type for item in held)
    assert kinds == {"unseen_cluster": 5, "unseen_feature": 6}  # clusters have five; the budget is 6
    for item in held:
        assert (item.answer in trained) == (item.question_type == "unseen_feature")
    assert data.primary == "unseen_cluster"
    assert {item.question_type for item in train} == {"feature_description"}


def test_the_seed_decides_the_split(folder: Path, reader: Any) -> None:
    first, again, other = (task(folder, reader, split_seed=seed, **OFF).examples for seed in (0, 0, 1))
    assert names(first["validation"]) == names(again["validation"])
    assert names(first["validation"]) != names(other["validation"])


def test_at_most_so_many_are_split_off(folder: Path, reader: Any) -> None:
    data = task(folder, reader, validation_fraction=0.5, validation_items=5, **OFF)
    assert Counter(item.question_type for item in data.examples["validation"]) == {
        "unseen_cluster": 5, "unseen_feature": 5,
    }  # fmt: skip


def test_with_a_file_the_kind_follows_from_what_is_trained(folder: Path, reader: Any) -> None:
    data = task(folder, reader, **FILES)
    assert len(data.examples["train"]) == 30
    kinds = {item.uid: item.question_type for item in data.examples["validation"]}
    assert len(kinds) == 10
    assert kinds == {uid: "unseen_cluster" if topic(uid) == 2 else "unseen_feature" for uid in kinds}
    assert data.warnings == []
    assert data.primary == "unseen_cluster"


def test_features_in_both_files_are_told(folder: Path, reader: Any) -> None:
    data = task(folder, reader, train="descriptions.json", validation_path="held.json")
    assert [warning for warning in data.warnings if "10 features of" in warning and "training file too" in warning]
    assert data.primary == "unseen_feature", "there is no held-out cluster"


def test_validation_is_scored_where_only_the_test_has_held_out_clusters(
    folder: Path, reader: Any, tmp_path: Path
) -> None:
    """``fit`` reads both before training, and chooses checkpoints by validation."""
    held = json.loads((folder / "held.json").read_text())
    (tmp_path / "features.json").write_text(json.dumps({uid: row for uid, row in held.items() if topic(uid) != 2}))
    data = task(folder, reader, "fit", validation_path=tmp_path / "features.json", test_path="held.json")
    assert data.primary == "unseen_cluster"
    scores = data.statistics(data.baselines("validation")["reference"])
    assert data.selection(scores) == 1.0


def test_nothing_left_to_validate_on_is_refused(folder: Path, reader: Any) -> None:
    with pytest.raises(UserError, match=r"train.json: 30 features leave none for validation"):
        task(folder, reader, validation_fraction=0.01)


def test_the_test_split_needs_a_file(folder: Path, reader: Any) -> None:
    with pytest.raises(UserError, match=r"data.test_path: is absent"):
        task(folder, reader, stage="test")
    data = task(folder, reader, stage="test", validation_path="held.json", test_path="held.json")
    assert len(data.examples["test"]) == 10
    shown = [item.uid for batch in data.predict_dataloader() for item in batch.examples]
    assert sorted(shown) == sorted(uid for uid in names(data.examples["test"]) if topic(uid) == 2)


def test_limit_takes_some_of_both_kinds(folder: Path, reader: Any) -> None:
    data = task(folder, reader, limit=4, **OFF)
    assert len(data.examples["train"]) == len(data.examples["validation"]) == 4
    assert {item.question_type for item in data.examples["validation"]} == {"unseen_cluster", "unseen_feature"}
    assert len(task(folder, reader, limit=4, **FILES).examples["validation"]) == 4
    with pytest.raises(UserError, match=r"data.limit: must be .* but is 0"):
        task(folder, limit=0)


@pytest.fixture
def gold(tmp_path: Path) -> str:
    write_json(tmp_path / "gold.json", [{"text": "Fires on THE moon!"}, {"chosen_label": "fires on nothing"}])
    return str(tmp_path / "gold.json")


def test_a_held_out_label_stops_the_run(folder: Path, reader: Any, gold: str) -> None:
    with pytest.raises(UserError) as error:
        task(folder, reader, heldout=[gold], **OFF)
    assert "5 training records are in a held-out set" in str(error.value)
    for uid in uids():
        assert (f"feature {uid} matches {gold}, record 0" in str(error.value)) == (topic(uid) == 5)


def test_held_out_labels_are_dropped_on_demand(folder: Path, reader: Any, gold: str) -> None:
    data = task(folder, reader, heldout=[gold], heldout_action="drop", **OFF)
    left = names(data.examples["train"]) + names(data.examples["validation"])
    assert sorted(left) == sorted(uid for uid in uids() if topic(uid) != 5)
    assert data.warnings == ["5 training features dropped by the contamination check"]


def test_a_cluster_that_was_dropped_is_not_seen(folder: Path, reader: Any, gold: str) -> None:
    both = {"train": "descriptions.json", "validation_path": "descriptions.json"}
    data = task(folder, reader, heldout=[gold], heldout_action="drop", **both)
    kinds = {item.uid: item.question_type for item in data.examples["validation"]}
    assert kinds == {uid: "unseen_cluster" if topic(uid) == 5 else "unseen_feature" for uid in uids()}


def test_a_held_out_label_may_stand_in_validation(folder: Path, reader: Any, gold: str) -> None:
    write_json(Path(gold), [{"text": "fires on rain in spring"}])
    assert len(task(folder, reader, heldout=[gold], **FILES).examples["validation"]) == 10


# Files.


def test_feature_files_that_do_not_go_together_are_refused(folder: Path, tmp_path: Path, reader: Any) -> None:
    write_features(tmp_path / "w.safetensors", [np.ones((1, 20), np.float32)], np.array([0]), 20, {"layer": "4"})
    first, other = str(folder / "L1.safetensors"), str(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"data.features: vectors of width 20 in w.safetensors, 32 in L1.safetensors"):
        task(folder, reader, features=[first, other])
    with pytest.raises(UserError, match=r"data.features: two files are of one layer"):
        task(folder, reader, features=[first, first])
    with pytest.raises(UserError, match=r"data.features: is absent"):
        task(folder, features=None)


def test_features_without_a_vector_are_left_out_and_told(folder: Path, tmp_path: Path, reader: Any) -> None:
    described = json.loads((folder / "train.json").read_text())
    write_json(tmp_path / "more.json", {**described, "4/1": described["4/3"], "4/2": described["4/3"]})
    data = task(folder, reader, train=str(tmp_path / "more.json"), **FILES)
    assert len(data.examples["train"]) == 30
    assert data.warnings == [f"2 features of {tmp_path / 'more.json'} have no vector (4/1, 4/2, ...): left out"]


def test_vectors_may_be_of_another_width_than_the_model(tmp_path: Path, reader: Any) -> None:
    vectors = write_small_data(tmp_path, 20)
    data = task(tmp_path, reader, **FILES)
    assert data.space == VectorSpace(20, LAYERS)
    batch = next(iter(data.val_dataloader()))
    np.testing.assert_array_equal(batch.slot_vectors.numpy(), [vectors[item.uid] for item in batch.examples])


def test_an_unknown_question_type_is_refused(folder: Path, reader: Any) -> None:
    with pytest.raises(UserError, match=r"unknown question type orig_match\n  remedy: use feature_description"):
        task(folder, reader, question_weights={"feature_description": 1.0, "orig_match": 0.5})


def test_the_weight_reaches_the_examples(folder: Path, reader: Any) -> None:
    data = task(folder, reader, question_weights={"feature_description": 0.25})
    assert data.examples["train"][0].weight == 0.25


def test_describe_says_where_the_vectors_are_from(folder: Path, reader: Any) -> None:
    found = task(folder, reader, **FILES).describe("validation")
    assert found["n"] == 10
    assert [(source["path"], source["layer"]) for source in found["features"]] == [
        (str(folder / f"L{layer}.safetensors"), str(layer)) for layer in LAYERS
    ]
    assert found["firings"] == str(folder / "firings.json")


# Memory.


def test_a_vector_is_read_when_its_example_is_asked_for(
    folder: Path, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = FeatureFile.rows
    monkeypatch.setattr(FeatureFile, "rows", lambda self, wanted: (read.append(len(wanted)), rows(self, wanted))[1])
    data = task(folder)
    data.feature_split("validation")
    examples = data.read_examples("train", reader)
    assert (len(examples), read) == (len(data.feature_split("train").indices), []), "opening and splitting reads none"
    assert examples[3].uid == examples[3 - len(examples)].uid
    assert read == [1, 1]
    assert names(examples[2:5]) == [examples[i].uid for i in (2, 3, 4)]
    assert sum(read) == 2 + 6
    with pytest.raises(IndexError):
        examples[len(examples)]

    data = task(folder, reader)
    read.clear()
    batch = next(iter(data.train_dataloader()))
    assert (len(batch), sum(read)) == (4, 4)
    assert data.training_examples() is data.examples["train"]


def test_the_longest_labels_are_found_without_tokenizing_all(folder: Path, reader: Any) -> None:
    data = task(folder, reader, **FILES)
    longest = data.longest("train", 6)
    assert [len(item.answer) for item in longest] == sorted(len(item.answer) for item in longest)
    assert [item.answer for item in longest[-5:]] == ["fires on a sharp knife"] * 5


# Baselines and controls.


def said(predictions: list[Prediction]) -> dict[str, str | None]:
    return {prediction.uid: prediction.predicted for prediction in predictions}


@pytest.mark.parametrize("settings", [FILES, OFF], ids=["files", "split off"])
def test_the_nearest_is_the_nearest(
    folder: Path, reader: Any, vectors: dict[str, np.ndarray], settings: dict[str, Any]
) -> None:
    data = task(folder, reader, **settings)
    found = data.baselines("validation")
    in_blocks = baseline_labels(data.feature_split("train"), data.feature_split("validation"), block=7)
    assert in_blocks == {name: [p.predicted for p in found[name]] for name in in_blocks}
    train, held = names(data.examples["train"]), names(data.examples["validation"])

    def nearest(uid: str, among: list[str]) -> str:
        vector = vectors[uid]
        cosines = [vectors[o] @ vector / np.linalg.norm(vectors[o]) for o in among]
        return label(among[int(np.argmax(cosines))])

    assert said(found["nearest"]) == {uid: nearest(uid, train) for uid in held}
    own = {uid: nearest(uid, [o for o in train if o.split("/")[0] == uid.split("/")[0]]) for uid in held}
    assert said(found["nearest_in_layer"]) == own
    assert said(found["nearest"]) != own, "the two differ somewhere, or the test says nothing"
    assert said(found["reference"]) == {uid: label(uid) for uid in held}
    assert all(prediction.exact_match for prediction in found["reference"])
    for answers in found.values():
        assert names(answers) == held
        assert all(p.exact_match == (p.predicted == p.expected) for p in answers)
        assert [p.group for p in answers] == [item.group for item in data.examples["validation"]]
        assert [p.question_type for p in answers] == [item.question_type for item in data.examples["validation"]]


def test_readers_answer_a_block_at_a_time_and_also_where_a_wording_has_no_word(
    folder: Path, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = task(folder, reader, **FILES)
    whole = data.baselines("validation")
    monkeypatch.setattr(readers, "BLOCK", 2)
    assert data.baselines("validation") == whole
    silent = task(folder, reader, wording=Wording(user=["{slot}?"]), **FILES).baselines("validation")
    assert said(silent["ridge_parts"]) == said(whole["ridge_parts"])
    assert len({p.predicted for p in silent["layer_tfidf"] if p.question_type == "unseen_cluster"}) == 1
    monkeypatch.setattr(readers, "MOST_TAUGHT", 9)
    assert said(data.baselines("validation")["ridge_parts"]) != said(whole["ridge_parts"])


def test_the_majority_is_the_commonest_label_and_of_equals_the_first(folder: Path, reader: Any, tmp_path: Path) -> None:
    described = json.loads((folder / "descriptions.json").read_text())
    commonest = Counter({"fires on blue": 3, "fires on cats": 3, "fires on the moon": 2})
    some = {uid: entry for uid, entry in described.items() if entry["chosen_label"] in commonest}
    taken: Counter[str] = Counter()
    train = {}
    for uid, entry in some.items():
        taken[entry["chosen_label"]] += 1
        if taken[entry["chosen_label"]] <= commonest[entry["chosen_label"]]:
            train[uid] = entry
    write_json(tmp_path / "train.json", train)
    data = task(folder, reader, train=str(tmp_path / "train.json"), validation_path="held.json")
    assert {p.predicted for p in data.baselines("validation")["majority"]} == {"fires on blue"}


def test_a_layer_without_training_features_falls_back_to_the_majority(
    folder: Path, reader: Any, tmp_path: Path
) -> None:
    described = json.loads((folder / "train.json").read_text())
    write_json(tmp_path / "train.json", {uid: entry for uid, entry in described.items() if uid.startswith("1/")})
    data = task(folder, reader, train=str(tmp_path / "train.json"), validation_path="held.json")
    found = data.baselines("validation")
    majority = found["majority"][0].predicted
    assert {text for uid, text in said(found["nearest_in_layer"]).items() if uid.startswith("4/")} == {majority}
    assert len(set(said(found["nearest_in_layer"]).values())) > 1


def test_controls_change_the_vector_and_nothing_else(folder: Path, reader: Any) -> None:
    data = task(folder, reader, **FILES)
    items = data.examples["validation"]
    controls = list(data.controls("validation", reader))
    assert [(control.name, control.trained) for control in controls] == [
        ("zero_vector", True), ("shuffled_vector", True), ("negated_vector", True), ("selfie/0.5", False),
        ("selfie/1", False), ("selfie/2", False), ("selfie/4", False),
    ]  # fmt: skip
    for control in controls:
        bare = [replace(item, slot=None) for item in control.items]
        assert bare == [replace(item, slot=None) for item in items]
        for item, original in zip(control.items, items, strict=True):
            kept = (item.slot.position, item.slot.layer)
            assert kept == (original.slot.position, original.slot.layer)
    assert all(not item.slot.vector.any() for item in controls[0].items)
    assert [item.slot.vector.tolist() for item in controls[1].items] == [
        item.slot.vector.tolist() for item in shuffled(items, 0)
    ]
    for item, original in zip(controls[2].items, items, strict=True):
        np.testing.assert_array_equal(item.slot.vector, -original.slot.vector)
    for control, scale in zip(controls[3:], (0.5, 1.0, 2.0, 4.0), strict=True):
        assert {item.slot.scale for item in control.items} == {scale}
        assert all(a.slot.vector is b.slot.vector for a, b in zip(control.items, items, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_shuffled_vectors_come_from_the_layer_and_of_another_label(folder: Path, reader: Any, seed: int) -> None:
    items = task(folder, reader, validation_path="descriptions.json", **OFF).examples["validation"]
    owner = {item.slot.vector.tobytes(): item for item in items}
    found = shuffled(items, seed)
    assert names(found) == names(items)
    donors = {item.uid: owner[item.slot.vector.tobytes()] for item in found}
    for item in items:
        donor = donors[item.uid]
        assert donor.uid != item.uid
        assert donor.slot.layer == item.slot.layer
        assert donor.answer != item.answer
    again = {item.uid: owner[item.slot.vector.tobytes()].uid for item in shuffled(items[::-1], seed)}
    assert again == {uid: donor.uid for uid, donor in donors.items()}, "the order of items does not matter"
    other = {item.uid: owner[item.slot.vector.tobytes()].uid for item in shuffled(items, seed + 1)}
    assert other != again


def test_shuffling_what_cannot_be_shuffled(folder: Path, reader: Any) -> None:
    """Of one label alone the vectors still change places; a single item of its layer keeps its own."""
    items = [item for item in task(folder, reader, **FILES).examples["validation"] if topic(item.uid) == 2]
    layers = Counter(item.slot.layer for item in items)
    assert min(layers.values()) >= 2
    assert all(not np.array_equal(a.slot.vector, b.slot.vector) for a, b in zip(items, shuffled(items, 0), strict=True))
    np.testing.assert_array_equal(shuffled(items[:1], 0)[0].slot.vector, items[0].slot.vector)


def test_blind_sees_zero_vectors_and_leaves_the_other_as_it_is(
    folder: Path, reader: Any, vectors: dict[str, np.ndarray]
) -> None:
    data = task(folder, reader, **FILES)
    zero_vectors = data.for_another_explainer(zero_vectors=True)
    assert zero_vectors.examples == {}
    for split in ("train", "validation"):
        found = list(zero_vectors.read_examples(split, reader))
        assert names(found) == names(data.examples[split])
        assert all(item.slot.vector.shape == (32,) and not item.slot.vector.any() for item in found)
        assert [item.prompt_ids for item in found] == [item.prompt_ids for item in data.examples[split]]
    np.testing.assert_array_equal(data.examples["train"][0].slot.vector, vectors[data.examples["train"][0].uid])
    assert data.for_another_explainer().read_examples("train", reader)[0].slot.vector.any()


# Scores.


def answers(data: Any, *texts: str | None) -> list[Prediction]:
    items = data.examples["validation"]
    drawn = [texts[i % len(texts)] for i in range(len(items))]
    return [
        Prediction(i.uid, i.scenario_id, i.question_type, i.answer, text, text == i.answer, group=i.group)
        for i, text in zip(items, drawn, strict=True)
    ]


def test_every_judge_is_asked_once_with_all_pairs(folder: Path, reader: Any) -> None:
    exact = Counting("exact", lambda reference, candidate: float(reference == candidate))
    unread = Counting("unread", lambda reference, candidate: None if "cats" in candidate else 0.5)
    texts = Counting("texts", lambda description, text: float(description.removeprefix("fires on ") in text))
    data = task(folder, reader, judges=[exact, unread], scorer=texts, texts_per_side=3, **FILES)
    systems = {
        EXPLAINER: answers(data, "fires on cats", None, "fires on the moon"),
        "reference": data.baselines("validation")["reference"],
    }
    found = data.graded(systems)
    everything = [p for name in systems for p in systems[name]]
    for judge in (exact, unread):
        assert judge.asked == [[(p.expected, p.predicted or "") for p in everything]]
    assert len(texts.asked) == 1

    assert list(found) == [EXPLAINER, "reference"]
    for name, graded in found.items():
        assert [replace(p, scores={}) for p in graded] == systems[name]
        for p in graded:
            assert p.scores.keys() == {"exact", "unread", "functional"}
            assert p.scores["exact"] == float(p.exact_match)
            assert p.scores["unread"] == (None if "cats" in (p.predicted or "") else 0.5)
    assert all(p.scores["functional"] == 1.0 for p in found["reference"]), "the label tells its texts apart"
    silent = [p for p in found[EXPLAINER] if p.predicted is None]
    assert {p.scores["functional"] for p in silent} == {0.5}
    assert "functional_auroc" in data.statistics(found["reference"])


def test_a_score_of_nothing_stays_nothing(folder: Path, reader: Any) -> None:
    mute = Counting("mute", lambda *_: None)
    data = task(folder, reader, judges=[mute], scorer=mute, **FILES)
    found = data.graded({EXPLAINER: answers(data, "fires on cats")})
    assert {tuple(p.scores.items()) for p in found[EXPLAINER]} == {(("mute", None), ("functional", None))}
    assert data.warnings_about(found, {}) == [
        "mute: 10 of 10 answers have no score; left out of its means",
        "functional: 10 of 10 answers have no score; left out of its means",
    ]


def test_without_firings_there_is_no_functional_score(folder: Path, reader: Any) -> None:
    data = task(folder, reader, validation_path="held.json")
    found = data.graded({EXPLAINER: answers(data, "fires on cats")})
    assert all(p.scores.keys() == {"rouge_l", "chrf"} for p in found[EXPLAINER])
    assert data.warnings_about(found, {}) == []


def test_firings_of_one_layer_may_name_features_by_number(folder: Path, reader: Any, tmp_path: Path) -> None:
    samples = json.loads((folder / "firings.json").read_text())["samples"]
    for sample in samples:
        sample["fired_features"] = [int(u.split("/")[1]) for u in sample["fired_features"] if u.startswith("1/")]
    write_json(tmp_path / "firings.json", {"samples": samples})
    scores = []
    for path in (tmp_path / "firings.json", folder / "firings.json"):
        described = json.loads((folder / "descriptions.json").read_text())
        write_json(tmp_path / "one.json", {uid: entry for uid, entry in described.items() if uid.startswith("1/")})
        one = [str(folder / "L1.safetensors")]
        data = task(
            folder, reader, features=one, train=str(tmp_path / "one.json"), activations=str(path), texts_per_side=99
        )
        graded = data.graded({"reference": data.baselines("validation")["reference"]})["reference"]
        scores.append([p.scores["functional"] for p in graded])
    assert scores[0] == scores[1]
    readings = [
        Detection(
            p.expected,
            tuple(s["text"] for s in samples if TOPICS[topic(p.uid)] in s["text"]),
            tuple(s["text"] for s in samples if TOPICS[topic(p.uid)] not in s["text"]),
        )
        for p in graded
    ]
    assert scores[0] == pytest.approx(functional_auroc(readings, Tfidf()))


def difference(low: float | None) -> dict[str, float | str | None]:
    return {"value": None if low is None else low + 0.1, "ci_low": low, "ci_high": 0.9, "against": "shuffled_vector"}


def test_a_label_that_is_known_from_another_cluster_is_not_unseen(folder: Path, reader: Any, tmp_path: Path) -> None:
    held = json.loads((folder / "held.json").read_text())
    unseen = {uid: row for uid, row in held.items() if topic(uid) == 2}
    first = next(iter(unseen))
    unseen[first] = {**unseen[first], "chosen_label": label("1/0")}
    write_json(tmp_path / "held.json", unseen)
    data = task(folder, reader, validation_path=tmp_path / "held.json")
    kinds = {item.uid: item.question_type for item in data.examples["validation"]}
    assert kinds == {uid: "unseen_feature" if uid == first else "unseen_cluster" for uid in unseen}
    [warning] = data.warnings
    assert warning.startswith("1 features of")
    assert "their label in another cluster" in warning


def test_labels_of_features_without_a_vector_are_not_known(folder: Path, reader: Any, tmp_path: Path) -> None:
    """The first rows of the file have no vector, and one of them the label of a held-out cluster."""
    described = json.loads((folder / "train.json").read_text())
    lost = {f"1/{3 * i + 1}": {**described["1/9"], "chosen_label": "lost", "cluster_id": "lost"} for i in range(2)}
    lost["1/1"]["chosen_label"] = TOPICS[2]
    (tmp_path / "train.json").write_text(json.dumps({**lost, **described}))
    held = json.loads((folder / "held.json").read_text())
    held = {uid: {**row, "cluster_id": "new"} for uid, row in held.items()}
    write_json(tmp_path / "held.json", held)
    data = task(folder, reader, train=str(tmp_path / "train.json"), validation_path=tmp_path / "held.json")
    kinds = {item.uid: item.question_type for item in data.examples["validation"]}
    assert kinds == {uid: "unseen_cluster" if topic(uid) == 2 else "unseen_feature" for uid in held}
    table, train = data.feature_split("train").table, data.feature_split("train").indices
    assert {table.feature(i).label for i in table.labeled(train, [label("1/9"), "lost"])} == {label("1/9")}


def test_readers_are_told_which_labels_are_new(folder: Path, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    say = readers.PartsReader.say
    monkeypatch.setattr(
        readers.PartsReader,
        "say",
        lambda self, rows, unseen: asked.append((len(rows), unseen)) or say(self, rows, unseen),
    )
    data = task(folder, reader, validation_path="held.json")
    held = data.examples["validation"]
    data.baselines("validation")
    unseen = sum(item.question_type == "unseen_cluster" for item in held)
    each = [(len(held) - unseen, False), (unseen, True)]
    assert asked == each * 2


def test_the_intervals_are_over_clusters_of_several_labels(folder: Path, reader: Any, tmp_path: Path) -> None:
    held = json.loads((folder / "held.json").read_text())
    described = {uid: {**row, "chosen_label": f"{row['chosen_label']} {uid}"} for uid, row in held.items()}
    write_json(tmp_path / "held.json", described)
    items = task(folder, reader, validation_path=tmp_path / "held.json").examples["validation"]
    clusters = {item.uid: item.scenario_id for item in items}
    assert len(set(clusters.values())) == len({topic(uid) for uid in held}) < len(held)
    assert all((clusters[a] == clusters[b]) == (topic(a) == topic(b)) for a in held for b in held)
    # Where the categories themselves are the clusters, they are few and given, and labels vary within them.
    write_json(tmp_path / "held.json", {uid: {**row, "cluster_id": row["category"]} for uid, row in described.items()})
    items = task(folder, reader, validation_path=tmp_path / "held.json").examples["validation"]
    assert len({item.scenario_id for item in items}) == len(held)


@pytest.mark.parametrize(("low", "warned"), [(0.01, False), (0.0, True), (-0.2, True), (None, True)])
def test_vectors_that_make_no_difference_are_told(folder: Path, reader: Any, low: float | None, warned: bool) -> None:
    data = task(folder, reader, validation_path="held.json")
    graded = data.graded({EXPLAINER: answers(data, "fires on cats")})
    for metric in ("judge/rouge_l", "judge/rouge_l/unseen_feature"):
        found = data.warnings_about(graded, {f"lead/{metric}/shuffled_vector": difference(low)})
        text = f"{metric}: shuffling the vectors costs less than the interval: the explainer is not reading them"
        assert found == [text] * warned
        [*negated] = data.warnings_about(graded, {f"lead/{metric}/negated_vector": difference(low)})
        assert len(negated) == warned
        assert all(warning.startswith(f"{metric}: negating") for warning in negated)
    others = {"lead/judge/rouge_l": difference(-1.0), "lead/judge/rouge_l/nearest": difference(-1.0)}
    assert data.warnings_about(graded, others) == []


def test_rivals_and_pairs() -> None:
    """The best rival needs no explainer that was trained to read vectors; the labels themselves are a ceiling."""
    baselines = ["reference", "majority", "nearest", "nearest_in_layer", "zero_vector", "shuffled_vector", "selfie/0.5",
                 "selfie/4", "text_only", "nearest_by_sign", "ridge_parts", "layer_tfidf", "negated_vector"]  # fmt: skip
    data = FeatureDescriptions()
    assert data.best_of(baselines) == [
        "majority", "nearest", "nearest_in_layer", "selfie/0.5", "selfie/4", "text_only", "nearest_by_sign", "ridge_parts",
        "layer_tfidf",
    ]  # fmt: skip
    assert data.compared_with(baselines) == baselines, "the labels too: their AUROC is not 1"
    assert data.without_weights(baselines) == ["majority", "text_only", "layer_tfidf"]
    assert data.leads == (
        "judge/rouge_l", "judge/rouge_l/unseen_feature", "functional_auroc", "functional_auroc/unseen_feature",
        "judge/rouge_l/macro",
    )  # fmt: skip
    assert data.solved == data.leads[:2]


@pytest.mark.slow
def test_details_count_categories_and_compare_two_judges(folder: Path, reader: Any) -> None:
    data = task(folder, reader, validation_path="held.json")
    graded = data.graded(
        {EXPLAINER: answers(data, "fires on cats", "fires on old songs"), **data.baselines("validation")}
    )
    found = data.details(graded)
    assert sum(found["categories"].values()) == 10
    assert found["categories"] == dict(Counter(item.group for item in data.examples["validation"]).most_common())
    assert (found["judges"]["first"], found["judges"]["second"]) == ("rouge_l", "chrf")
    # The labels score 1 with every judge: left out, or any two judges would agree.
    assert found["judges"]["kappa"]["n"] == 10 * 7
    assert found["near_duplicate_vectors"] == {"unseen_cluster": 0.0, "unseen_feature": 0.0}
    one = task(folder, reader, judges=[Counting("only", lambda *_: 1.0)], validation_path="held.json")
    assert "judges" not in one.details(one.graded({EXPLAINER: answers(one, "fires on cats")}))


def test_the_figure_is_of_the_first_judge(folder: Path, reader: Any) -> None:
    data = task(folder, reader, validation_path="held.json")
    figures = data.figures(data.graded({EXPLAINER: answers(data, "fires on cats")})[EXPLAINER])
    assert list(figures) == ["categories"]
    assert figures["categories"].axes[0].get_xlabel() == "rouge_l"
