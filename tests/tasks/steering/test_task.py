"""Steering: what the explainer reads, what is held out, and that only the vector can tell twins apart."""

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from afintro.data.cue import MONITORED_SYSTEM
from afintro.data.files import write_json
from afintro.data.text import render
from afintro.errors import UserError
from afintro.evaluation.answers import expected_verdict
from afintro.evaluation.metrics import Prediction, score, text_prediction
from afintro.lm.injection import VectorSpace
from afintro.tasks.base import EXPLAINER
from afintro.tasks.steering.baselines import steered_items
from afintro.tasks.steering.direction_files import read_direction
from afintro.tasks.steering.directions import Direction, write_direction
from afintro.tasks.steering.records import SteeringRecord, read_steering_records
from afintro.tasks.steering.task import UNSEEN_DIRECTION, UNSEEN_SCENARIO, SteeringPrediction, SteeringWording
from tests.conftest import STEERED, write_steering_records
from tests.tasks.stand_in import trainer_of

SLOT = "<|slot|>"
KINDS = (UNSEEN_SCENARIO, UNSEEN_DIRECTION)
RECORD = SteeringRecord(
    prompt="the whole prompt",
    direction="alignment_faking",
    layer=2,
    alpha=0.5,
    original_output="I cannot help with that.",
    steered_output="Sure, here is how.",
    scenario="A nurse asks for {alpha} things.",
    system_prompt=MONITORED_SYSTEM,
    original_behavior="refuse",
    steered_behavior="comply",
    behavior_changed=True,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data; nobody writes here."""
    found = tmp_path_factory.mktemp("steering")
    write_steering_records(found)
    shutil.copy(found / "validation.json", found / "test.json")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small data of a test's own."""
    write_steering_records(tmp_path, counts=(6, 3))
    return tmp_path


@pytest.fixture
def reader(tokenizer: PreTrainedTokenizerFast) -> Any:
    return SimpleNamespace(name="small", slot_token=SLOT, tokenizer=tokenizer, context_length=2048)


def task(folder: Path, explainer: Any = None, stage: str = "validate", **settings: Any) -> Any:
    """The data module on the small data, set up if there is an explainer."""
    settings = {"validation_path": "validation.json", "unseen_fraction": 0.4, "batch_size": 4, **settings}
    for name in ("validation_path", "test_path"):
        if settings.get(name):
            settings[name] = str(folder / settings[name])
    data = SteeringPrediction(train_path=str(folder / "train.json"), **settings)
    if explainer is not None:
        data.trainer = trainer_of(explainer)
        data.setup(stage)
    return data


@pytest.fixture
def data(written: Path, reader: Any) -> Any:
    return task(written, reader)


def names(examples: Any) -> list[str]:
    return [example.uid for example in examples]


def changed(example: Any) -> bool:
    return expected_verdict(example.answer).changed


def rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


# What the explainer reads.


def test_golden_prompt_and_answer() -> None:
    messages, answer = SteeringPrediction().render(RECORD, SLOT)
    assert messages == [
        {"role": "system", "content": "You predict how steering changes the behavior of a language model."},
        {
            "role": "user",
            "content": f"{MONITORED_SYSTEM}\n\nA nurse asks for {{alpha}} things.\n\n"
            "If 0.5 times the vector <|slot|> were added at layer 2, how would the model's response change?",
        },
    ]
    assert answer == "The most likely output would change to <<<comply>>>."


def test_golden_answer_where_nothing_changes() -> None:
    record = replace(RECORD, steered_behavior="refuse", behavior_changed=False)
    _, answer = SteeringPrediction().render(record, SLOT)
    assert answer == "The output would remain unchanged from <<<refuse>>>."


@pytest.mark.parametrize(("alpha", "text"), [(2.0, "2"), (0.75, "0.75"), (-1.5, "-1.5"), (100.0, "100")])
def test_alpha_is_said_as_a_person_would(alpha: float, text: str) -> None:
    data = SteeringPrediction(wording=SteeringWording("{layer}", ["{alpha} {slot} {other}"]))
    messages, _ = data.render(replace(RECORD, alpha=alpha), SLOT)
    assert [message["content"] for message in messages] == ["2", f"{text} {SLOT} {{other}}"]


def test_golden_example(data: Any, reader: Any) -> None:
    tokenizer = reader.tokenizer
    [example] = [e for e in data.examples["validation"] if e.uid == data.examples["validation"][5].uid]
    record = next(r for r in data.records("validation") if r.uid == example.uid)
    messages, answer = data.render(record, SLOT)
    assert tokenizer.decode(example.prompt_ids) == render(tokenizer, messages)
    assert tokenizer.decode(example.answer_ids) == answer + tokenizer.eos_token
    assert (example.prompt, example.answer) == (messages[1]["content"], answer)
    assert (example.scenario_id, example.weight, example.group) == (record.scenario_id, 1.0, record.direction)
    assert example.copy_answer == f"The output would remain unchanged from <<<{record.original_behavior}>>>."
    assert tokenizer.decode(example.branches[0]) == "The output would remain unchanged from <<<"
    assert tokenizer.decode(example.branches[1]) == "The most likely output would change to <<<"


def test_every_prompt_holds_its_own_vector_at_the_slot(written: Path, data: Any, reader: Any) -> None:
    slot_id = reader.tokenizer.convert_tokens_to_ids(SLOT)
    for split in ("train", "validation"):
        records = {record.uid: record for record in data.records(split)}
        assert len(data.examples[split]) > 50
        for example in data.examples[split]:
            record = records[example.uid]
            assert [i for i, token in enumerate(example.prompt_ids) if token == slot_id] == [example.slot.position]
            assert (example.slot.layer, example.slot.scale) == (record.layer, 1.0)
            path = written / "directions" / f"{record.direction.replace('/', '-')}.safetensors"
            np.testing.assert_array_equal(example.slot.vector, read_direction(str(path)).at(record.layer))
            assert record.direction not in example.prompt
            assert record.steered_output not in example.prompt
    assert data.space == VectorSpace(24, (1, 2))


@pytest.mark.parametrize(("user", "count"), [("Layer {layer}", 0), ("{slot} and {slot}", 2)])
def test_a_wording_that_does_not_hold_the_slot_once_is_refused(
    written: Path, reader: Any, user: str, count: int
) -> None:
    with pytest.raises(UserError) as error:
        task(written, reader, wording=SteeringWording(user=[user]))
    assert f"holds the slot token {count} times" in str(error.value)
    assert "remedy: write {slot} once in every wording of data.wording.user" in str(error.value)


def test_the_slot_token_in_a_scenario_is_refused(folder: Path, reader: Any) -> None:
    spoiled = rows(folder / "train.json")
    for row in spoiled:
        row["scenario"] += f" {SLOT}"
    write_json(folder / "train.json", spoiled)
    with pytest.raises(UserError, match=r"prompt of \S+: holds the slot token 2 times\n.*never in a scenario"):
        task(folder, reader)


def test_without_a_slot_token_nothing_is_read(written: Path, reader: Any) -> None:
    reader.slot_token = None
    with pytest.raises(UserError, match=r"model.slot_token: is absent\n  remedy: "):
        task(written, reader)


# Twins and balance.


def twins(examples: Any) -> dict[str, list[Any]]:
    """Pairs; those of known and those of unseen directions may share a name."""
    found = defaultdict(list)
    for example in examples:
        found[example.twins and f"{example.question_type}/{example.twins}"].append(example)
    return found


def test_twins_differ_in_vector_and_answer_alone(data: Any) -> None:
    wordings = set()
    for split in ("train", "validation"):
        for name, pair in twins(data.examples[split]).items():
            one, other = pair
            assert name
            assert one.prompt_ids == other.prompt_ids
            assert (one.slot.position, one.slot.layer) == (other.slot.position, other.slot.layer)
            assert {changed(one), changed(other)} == {True, False}
            assert not np.array_equal(one.slot.vector, other.slot.vector)
            assert one.question_type == other.question_type
            wordings.add(one.prompt)
    assert len(wordings) > 20


def test_of_several_wordings_twins_read_the_same(written: Path, reader: Any) -> None:
    wording = SteeringWording(user=["A {layer} {alpha} {slot} {user_prompt}", "B {layer} {alpha} {slot} {user_prompt}"])
    data = task(written, reader, wording=wording)
    assert {example.prompt[0] for example in data.examples["train"]} == {"A", "B"}
    assert all(one.prompt_ids == other.prompt_ids for one, other in twins(data.examples["train"]).values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_verdicts_are_balanced_in_every_cell(written: Path, reader: Any, seed: int) -> None:
    data = task(written, reader, split_seed=seed)
    kinds = defaultdict(set)
    for split in ("train", "validation"):
        records = {record.uid: record for record in data.records(split)}
        cells: dict[Any, Counter[bool]] = defaultdict(Counter)
        for example in data.examples[split]:
            record = records[example.uid]
            cells[example.question_type, record.layer, record.alpha][changed(example)] += 1
            kinds[split].add(example.question_type)
        assert all(counts[True] == counts[False] > 0 for counts in cells.values()), cells
        assert {(layer, alpha) for _, layer, alpha in cells} == {(1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0)}
    assert kinds["train"] == {"steering_prediction"}
    assert UNSEEN_SCENARIO in kinds["validation"] <= set(KINDS)


def test_broken_texts_are_not_asked_about(written: Path, data: Any) -> None:
    broken = {r.uid for split in ("train", "validation") for r in data.records(split) if not r.coherent}
    assert broken
    assert not broken & {uid for split in ("train", "validation") for uid in names(data.examples[split])}


def test_at_most_so_many_pairs(written: Path, reader: Any) -> None:
    for pairs in (1, 2):
        data = task(written, reader, twin_pairs_per_cell=pairs)
        counts = Counter(name.rsplit("/", 1)[0] for name in twins(data.examples["train"]))
        assert max(counts.values()) == pairs


@pytest.mark.parametrize("old", ["pairs", "evaluation_pairs"])
def test_settings_are_accepted_under_their_old_names(old: str) -> None:
    data = SteeringPrediction(**{old: 7, "twin_pairs_per_cell": 3})
    by_name = {"pairs": data.twin_pairs_per_cell, "evaluation_pairs": data.evaluation_twin_pairs_per_cell}
    assert by_name[old] == 7
    assert by_name["pairs"] == (7 if old == "pairs" else 3)


# What is held out.


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("split_off", [False, True])
def test_unseen_directions_are_never_trained_on(written: Path, reader: Any, seed: int, split_off: bool) -> None:
    settings = {"validation_path": None, "validation_fraction": 0.3} if split_off else {}
    data = task(written, reader, split_seed=seed, **settings)
    assert len(data.unseen) == 4
    assert data.unseen < set(STEERED)
    trained = {example.slot.vector.tobytes() for example in data.examples["train"]}
    held = {data.load_directions()[name].at(layer).tobytes() for name in data.unseen for layer in (1, 2)}
    assert len(held) == 8
    assert not trained & held
    for example in data.examples["validation"]:
        vector = example.slot.vector.tobytes()
        assert (vector in held) == (example.question_type == UNSEEN_DIRECTION)
    assert not data.unseen & {record.direction for record in data.records("train")}


def test_the_residual_of_each_unseen_direction_is_told(written: Path, reader: Any, caplog: Any) -> None:
    """In the log and in the summary; checked by least squares."""
    caplog.set_level("INFO")
    data = task(written, reader)
    found = data.describe("validation")
    assert found["residuals"].keys() == set(found["unseen_directions"]) == data.unseen
    directions = data.load_directions()
    trained = sorted({record.direction for record in data.records("train")})
    for name, residual in found["residuals"].items():
        outside = []
        for layer in (1, 2):
            rest = np.stack([directions[one].at(layer) for one in trained]).astype(np.float64)
            unit = directions[name].at(layer) / np.linalg.norm(directions[name].at(layer))
            outside.append(np.linalg.norm(unit - rest.T @ np.linalg.lstsq(rest.T, unit, rcond=None)[0]))
        assert residual == pytest.approx(min(outside), abs=1e-3)
        assert f"direction {name}: {residual:.2f} of its norm" in caplog.text


def test_records_that_were_made_in_another_way_are_told(folder: Path, reader: Any) -> None:
    """The two files of before are of the last position alone; one of them is made anew at every new token."""
    assert not any("positions" in warning for warning in task(folder, reader).warnings)
    anew = [row | {"positions": "decode", "format_version": 2} for row in rows(folder / "validation.json")]
    write_json(folder / "validation.json", anew)
    [warning] = [warning for warning in task(folder, reader).warnings if "positions" in warning]
    assert f"{folder / 'validation.json'}: positions is decode, in training last" in warning
    mixed = [row | {"positions": "all"} if i % 2 else row for i, row in enumerate(rows(folder / "train.json"))]
    write_json(folder / "train.json", mixed)
    assert any("train.json: positions is all or last" in warning for warning in task(folder, reader).warnings)


def test_named_directions_are_kept_out_and_a_split_that_is_none_is_refused(folder: Path, reader: Any) -> None:
    data = task(folder, reader, unseen_directions=["answer/*"])
    assert data.unseen == {"answer/refuse", "answer/comply", "answer/warn", "answer/silent"}
    negative = {layer: -vector for layer, vector in data.load_directions()["answer/warn"].vectors.items()}
    write_direction(folder / "directions" / "tier-paid.safetensors", Direction("tier/paid", negative))
    with pytest.raises(UserError) as error:
        task(folder, reader, unseen_directions=["answer/*"])
    assert error.value.where == "data.unseen_directions"
    assert "answer/warn (0.00)" in error.value.what


def test_directions_of_an_evaluation_file_alone_are_measured_too(folder: Path, reader: Any) -> None:
    """One in the span of training counts as known, whatever its name; one outside of it as unseen."""
    directions = task(folder).load_directions()
    inside = {layer: -directions["answer/warn"].at(layer) for layer in (1, 2)}
    write_direction(folder / "directions" / "inside.safetensors", Direction("inside", inside))
    outside = {layer: np.linalg.svd(np.stack([d.at(layer) for d in directions.values()]))[2][-1] for layer in (1, 2)}
    write_direction(folder / "directions" / "outside.safetensors", Direction("outside", outside))
    renamed = {"answer/warn": "inside", "answer/silent": "outside"}
    held = [
        row | {"direction": renamed.get(row["direction"], row["direction"])} for row in rows(folder / "validation.json")
    ]
    write_json(folder / "validation.json", [{k: v for k, v in row.items() if k != "uid"} for row in held])
    data = task(folder, reader, unseen_fraction=0.0)
    assert data.unseen == {"outside"}
    assert data.describe("validation")["residuals"] == {"inside": 0.0, "outside": 1.0}
    kinds = {(e.question_type, e.notes["direction"]) for e in data.examples["validation"]}
    assert (UNSEEN_SCENARIO, "inside") in kinds
    assert (UNSEEN_SCENARIO, "outside") not in kinds


def test_the_seed_decides_what_is_unseen(written: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        data = task(written, split_seed=seed)
        data.records("train")
        found.append(data.unseen)
    assert found[0] == found[1] != found[2]


def test_without_a_file_validation_is_split_off_by_scenario(written: Path, reader: Any) -> None:
    data = task(written, reader, validation_path=None, validation_fraction=0.3)
    train, held = ({r.scenario_id for r in data.records(split)} for split in ("train", "validation"))
    assert not train & held
    assert len(train) + len(held) == 24
    assert 2 <= len(held) <= 14
    assert {example.scenario_id for example in data.examples["validation"]} <= held
    assert data.describe("validation")["path"] == str(written / "train.json")


def test_nothing_to_split_off_is_refused(written: Path, reader: Any) -> None:
    with pytest.raises(UserError, match=r"train.json: 960 records leave none for validation\n.*data.validation_path"):
        task(written, reader, validation_path=None, validation_fraction=0.0001)


def test_scenarios_in_both_files_are_told(folder: Path, reader: Any) -> None:
    data = task(folder, reader, validation_path="train.json")
    assert data.warnings[0] == f"6 scenarios of {folder / 'train.json'} are in the training file too"
    assert len(data.warnings) == 2
    assert data.near_duplicates == {"validation": 240}


@pytest.fixture
def gold(folder: Path) -> str:
    """The scenario of the first 40 records of training."""
    write_json(folder / "gold.json", [{"text": rows(folder / "train.json")[0]["scenario"].upper()}])
    return str(folder / "gold.json")


def test_a_held_out_scenario_stops_the_run(folder: Path, reader: Any, gold: str) -> None:
    with pytest.raises(UserError) as error:
        task(folder, reader, heldout=[gold])
    assert "40 training records are in a held-out set" in str(error.value)
    assert f"{folder / 'train.json'}, record 39 matches {gold}, record 0" in str(error.value)
    assert "record 40 matches" not in str(error.value)


def test_held_out_scenarios_are_dropped_on_demand(folder: Path, reader: Any, gold: str) -> None:
    data = task(folder, reader, heldout=[gold], heldout_action="drop")
    assert data.warnings == ["40 training records dropped by the contamination check"]
    dropped = read_steering_records(str(folder / "train.json"))[0].scenario_id
    assert len({r.scenario_id for r in data.records("train")} | {dropped}) == 6
    assert dropped not in {example.scenario_id for example in data.examples["train"]}


@pytest.mark.parametrize("limit", [1, 2, 4, 7, 12])
def test_limit_keeps_pairs_of_both_kinds(written: Path, reader: Any, limit: int) -> None:
    data = task(written, reader, limit=limit)
    whole = task(written, reader)
    for split in ("train", "validation"):
        examples = data.examples[split]
        assert len(examples) == (limit if limit == 1 else limit - limit % 2)
        assert set(names(examples)) <= set(names(whole.examples[split]))
        if limit > 1:
            assert all(len(pair) == 2 for pair in twins(examples).values())
    kinds = Counter(example.question_type for example in data.examples["validation"])
    assert UNSEEN_SCENARIO in kinds
    assert (len(kinds) == 2) == (limit >= 4)
    if limit == 12:
        assert len({(e.slot.layer, e.twins.split("/")[3]) for e in data.examples["train"]}) > 1, "several cells"


def test_limit_without_twins_keeps_the_balance(folder: Path, reader: Any) -> None:
    """Files of the parent framework may hold one direction a prompt."""
    for split, seed in (("train", 0), ("validation", 1)):
        kept = {}
        for number, row in enumerate(rows(folder / f"{split}.json")):
            place = row["scenario"], row["layer"][0], row["alpha"]
            if row["direction"] == ("answer/comply", "tier/paid")[(hash(place[1:]) + len(place[0]) + seed) % 2]:
                kept[place] = row | {"uid": str(number)}
        write_json(folder / f"{split}.json", list(kept.values()))
    data = task(folder, reader, unseen_fraction=0.0, limit=4)
    for split in ("train", "validation"):
        assert {example.twins for example in data.examples[split]} == {""}
        assert 2 <= len(data.examples[split]) <= 4
        assert 2 * sum(map(changed, data.examples[split])) == len(data.examples[split])


# Files.


def test_records_of_the_parent_framework_are_labeled(written: Path, folder: Path, reader: Any) -> None:
    kept = ("prompt", "direction", "layer", "alpha", "original_continuation", "ablated_continuation", "is_different")
    for split in ("train", "validation"):
        bare = [{name: row[name] for name in kept} for row in rows(folder / f"{split}.json")]
        write_json(folder / f"{split}.json", bare)
    data = task(folder, reader)
    for record in data.records("train"):
        assert None not in (record.original_behavior_rule, record.steered_behavior_rule)
        assert record.behavior_changed == (record.original_behavior != record.steered_behavior)
        assert (record.scenario, record.system_prompt) == (record.prompt, "")
    full = {(r.prompt, r.direction, r.layer, r.alpha): r for r in task(written).records("train")}
    shared = [
        (r, full[key]) for r in data.records("train") if (key := (r.prompt, r.direction, r.layer, r.alpha)) in full
    ]
    assert len(shared) > 50
    for record, other in shared:
        assert (record.original_behavior, record.steered_behavior) == (other.original_behavior, other.steered_behavior)
    assert all(example.prompt.startswith("\n\n") for example in data.examples["train"]), "no system prompt is known"


def test_a_changed_label_is_never_believed(folder: Path) -> None:
    wrong = [row | {"behavior_changed": not row["behavior_changed"]} for row in rows(folder / "train.json")]
    write_json(folder / "train.json", wrong)
    for record in task(folder).records("train"):
        assert record.behavior_changed == (record.original_behavior != record.steered_behavior)


def test_a_record_of_an_unknown_direction_is_refused(folder: Path, reader: Any) -> None:
    (folder / "directions" / "tier-paid.safetensors").unlink()
    with pytest.raises(UserError) as error:
        task(folder, reader)
    assert (
        f"{folder / 'train.json'}, record 7: direction 'tier/paid' is not among the vectors (alignment_faking, "
        in str(error.value)
    )
    assert "remedy: set data.directions to the folder of the vectors that the records name" in str(error.value)


def test_a_folder_without_directions_is_refused(folder: Path, reader: Any) -> None:
    with pytest.raises(UserError) as error:
        task(folder, reader, directions=str(folder / "nowhere"))
    assert str(error.value) == (
        f"{folder / 'nowhere'}: holds no direction\n  remedy: set data.directions to the folder of the vectors"
    )


def test_directions_may_lie_elsewhere(folder: Path, reader: Any) -> None:
    (folder / "directions").rename(folder / "elsewhere")
    assert task(folder, reader, directions=str(folder / "elsewhere")).space == VectorSpace(24, (1, 2))


def test_widths_that_differ_are_refused(folder: Path, reader: Any) -> None:
    np.save(folder / "directions" / "wide.npy", np.ones(32, np.float32))
    with pytest.raises(UserError) as error:
        task(folder, reader)
    assert str(error.value).startswith(f"{folder / 'directions'}: holds vectors of width 24 (")
    assert "and 32 (wide)" in str(error.value)
    assert "remedy: give vectors of one model" in str(error.value)


def test_two_files_of_one_direction_are_refused(folder: Path, reader: Any) -> None:
    """Either could be the one that was added."""
    vector = {layer: np.ones(24, np.float32) for layer in (1, 2)}
    write_direction(folder / "directions" / "again.safetensors", Direction("tier/paid", vector))
    with pytest.raises(UserError) as error:
        task(folder, reader)
    assert f"{folder / 'directions' / 'again.safetensors'} and " in str(error.value)
    assert "name the same direction" in str(error.value)


def test_a_direction_needs_vectors_of_its_own_layers_alone(folder: Path, reader: Any) -> None:
    """A file beside those that the records name may be of another layer; a bare vector is of all layers."""
    write_direction(folder / "directions" / "other.safetensors", Direction("other", {7: np.ones(24, np.float32)}))
    np.save(folder / "directions" / "bare.npy", np.arange(24, dtype=np.float32))
    own = [
        row | {"direction": "bare"} if row["direction"] == "tier/paid" else row for row in rows(folder / "train.json")
    ]
    write_json(folder / "train.json", [{k: v for k, v in row.items() if k != "uid"} for row in own])
    data = task(folder, reader, unseen_fraction=0.0, twin_pairs_per_cell=9)
    assert data.space == VectorSpace(24, (1, 2))
    assert np.arange(24).tolist() in [example.slot.vector.tolist() for example in data.examples["train"]]


def test_a_layer_of_which_a_direction_has_no_vector_is_refused(folder: Path, reader: Any) -> None:
    for split in ("train", "validation"):
        moved = [row | {"layer": [5]} if row["layer"] == [2] else row for row in rows(folder / f"{split}.json")]
        write_json(folder / f"{split}.json", moved)
    with pytest.raises(UserError, match=r"has no vector of layer 5, only of 1, 2\n  remedy: "):
        task(folder, reader)


def test_a_layer_that_training_lacks_is_refused(folder: Path, reader: Any) -> None:
    """The explainer has learnt no scale for it."""
    write_json(folder / "train.json", [row for row in rows(folder / "train.json") if row["layer"] == [1]])
    with pytest.raises(UserError, match=r"validation.json: is of layer 2, while training is of 1\n  remedy: "):
        task(folder, reader)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_cell_with_both_verdicts_is_refused(folder: Path, reader: Any, split: str) -> None:
    same = [row for row in rows(folder / f"{split}.json") if row["behavior_changed"]]
    write_json(folder / f"{split}.json", same)
    with pytest.raises(UserError) as error:
        task(folder, reader)
    assert f"{folder / split}.json ({split}): no cell of layer and alpha has both" in str(error.value)
    assert "remedy: steer with other alphas" in str(error.value)


def test_the_test_split_needs_a_file(written: Path, reader: Any) -> None:
    with pytest.raises(UserError, match=r"data.test_path: is absent\n  remedy: "):
        task(written, reader, stage="test")
    data = task(written, reader, stage="test", test_path="validation.json")
    shown = [item.question_type for batch in data.predict_dataloader() for item in batch.examples]
    assert set(shown) == {UNSEEN_SCENARIO}


def test_an_unknown_question_type_is_refused_and_the_weight_reaches_the_examples(written: Path, reader: Any) -> None:
    with pytest.raises(UserError, match=r"unknown question type orig_match\n  remedy: use steering_prediction"):
        task(written, reader, question_weights={"orig_match": 0.5})
    data = task(written, reader, question_weights={"steering_prediction": 0.25})
    assert {example.weight for example in data.examples["train"]} == {0.25}


def test_describe_counts_both_kinds_and_names_the_directions(written: Path, data: Any) -> None:
    found = data.describe("validation")
    kinds = Counter(example.question_type for example in data.examples["validation"])
    assert found["n"] == len(data.examples["validation"]) == sum(kinds.values())
    assert {kind: found[kind] for kind in KINDS} == kinds
    assert found["unseen_directions"] == sorted(data.unseen)
    assert found["path"] == str(written / "validation.json")
    assert len(found["sha256"]) == 64


# Controls and baselines.


def test_blind_sees_zero_vectors_and_nothing_else_changes(data: Any, reader: Any) -> None:
    zero_vectors = data.for_another_explainer(zero_vectors=True)
    assert zero_vectors.examples == {}
    for split in ("train", "validation"):
        found = zero_vectors.read_examples(split, reader)
        assert found == data.examples[split]  # which compares all but the vectors
        assert all(item.slot.vector.shape == (24,) and not item.slot.vector.any() for item in found)
    assert data.zero_vectors is False
    assert all(item.slot.vector.any() for item in data.examples["train"])
    assert all(item.slot.vector.any() for item in data.for_another_explainer().read_examples("train", reader))


def test_without_text_nothing_of_the_prompt_is_left(data: Any, reader: Any) -> None:
    blind = data.for_another_explainer(without_text=True)
    found = blind.read_examples("validation", reader)
    whole = data.examples["validation"]
    assert [(e.uid, e.answer, e.twins) for e in found] == [(e.uid, e.answer, e.twins) for e in whole]
    for item, same in zip(found, whole, strict=True):
        scenario = next(r for r in data.records("validation") if r.uid == item.uid).scenario
        assert scenario in same.prompt
        assert scenario not in item.prompt
        assert MONITORED_SYSTEM not in item.prompt
        assert f"layer {item.slot.layer}" in item.prompt
        np.testing.assert_array_equal(item.slot.vector, same.slot.vector)
        assert item.prompt_ids[item.slot.position] == reader.tokenizer.convert_tokens_to_ids(SLOT)
    assert len({item.prompt for item in found}) == 4, "one for each layer and alpha"
    assert data.without_text is False


def test_shuffled_prompts_are_of_other_scenarios_in_the_cell(data: Any, reader: Any) -> None:
    items = {item.uid: item for item in data.examples["validation"]}
    [control] = [c for c in data.controls("validation", reader) if c.name == "shuffled_prompt"]
    slot_id = reader.tokenizer.convert_tokens_to_ids(SLOT)
    assert [item.uid for item in control.items] == list(items)
    for item in control.items:
        own = items[item.uid]
        donors = [one for one in items.values() if one.prompt_ids == item.prompt_ids]
        assert all(one.scenario_id != own.scenario_id for one in donors)
        assert {(one.slot.layer, one.notes["alpha"]) for one in donors} == {(own.slot.layer, own.notes["alpha"])}
        assert item.prompt_ids.index(slot_id) == item.slot.position
        assert (item.answer, item.twins, item.slot.vector is own.slot.vector) == (own.answer, own.twins, True)


def test_controls_change_the_vector_and_nothing_else(data: Any, reader: Any) -> None:
    items = data.examples["validation"]
    controls = {control.name: control for control in data.controls("validation", reader)}
    assert {name: control.trained for name, control in controls.items()} == {
        "zero_vector": True, "shuffled_vector": True, "shuffled_prompt": True, "untrained": False,
    }  # fmt: skip
    for name in ("zero_vector", "shuffled_vector", "untrained"):
        assert controls[name].items == items  # which compares all but the vectors
    assert not any(item.slot.vector.any() for item in controls["zero_vector"].items)
    assert all(a.slot.vector is b.slot.vector for a, b in zip(controls["untrained"].items, items, strict=True))
    owners = {d.at(layer).tobytes(): (name, layer) for name, d in data.load_directions().items() for layer in (1, 2)}
    records = {record.uid: record for record in data.records("validation")}
    for item in controls["shuffled_vector"].items:
        name, layer = owners[item.slot.vector.tobytes()]
        assert layer == item.slot.layer
        assert name != records[item.uid].direction


BASELINES = {
    "cell_majority", "direction_majority", "always_unchanged", "copy_original", "vector_probe", "nearest_vector",
    "direction_x_text", "ridge", "boosting", "tfidf_nearest", "tfidf_probe", "text_chars", "text_skipgrams", "from_scratch",
}  # fmt: skip
VECTORS = {"direction_majority", "vector_probe", "nearest_vector", "direction_x_text", "ridge", "boosting"}
TEXT_ALONE = BASELINES - VECTORS


@pytest.fixture(scope="module")
def evaluated(written: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The data module, and the answers of its baselines to the validation split."""
    explainer = SimpleNamespace(name="small", slot_token=SLOT, tokenizer=tokenizer, context_length=2048)
    data = task(written, explainer)
    return data, data.baselines("validation")


@pytest.mark.slow
def test_every_baseline_answers_every_item(evaluated: Any) -> None:
    data, found = evaluated
    assert found.keys() == BASELINES
    items = {item.uid: item for item in data.examples["validation"]}
    for name, answers in found.items():
        assert sorted(names(answers)) == sorted(items), name
        for p in answers:
            item = items[p.uid]
            assert (p.question_type, p.twins, p.expected) == (item.question_type, item.twins, item.answer), name
            assert p.exact_match == (p.predicted == item.answer)
            assert 0 <= p.p_changed <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TEXT_ALONE))
def test_who_does_not_see_the_vector_is_right_on_exactly_half_of_the_twins(evaluated: Any, name: str) -> None:
    data, answered = evaluated
    found = data.statistics(answered[name])
    for metric in ("twin_accuracy", "twin_accuracy/unseen_direction"):
        statistic, units = found[metric]
        scenarios = units.levels["scenario"]
        assert statistic.value == 0.5
        for scenario in set(scenarios):
            assert statistic.values[[own == scenario for own in scenarios]].mean() == 0.5


@pytest.mark.slow
def test_the_vector_tells_in_the_baselines_that_see_it(evaluated: Any) -> None:
    data, found = evaluated
    scores = score(data.statistics(found["direction_majority"]))
    assert scores["twin_accuracy"].value > 0.6


def test_the_probe_sees_the_cosine_with_the_mean_residual(data: Any) -> None:
    """By hand, for the first item; without a mean residual it is 0."""
    directions = dict(data.load_directions())
    example, steering = steered_items(data.examples["validation"], directions)[0]
    vector, mean = example.slot.vector, directions["residual_mean"].at(steering.layer)
    assert steering.projection == pytest.approx(vector @ mean / np.sqrt((vector @ vector) * (mean @ mean)), rel=1e-5)
    del directions["residual_mean"]
    assert {steering.projection for _, steering in steered_items(data.examples["validation"], directions)} == {0.0}


# Scores.


def answers(data: Any, rule: Any) -> list[Prediction]:
    return [text_prediction(item, rule(item), 0.5) for item in data.examples["validation"]]


def test_statistics_names_both_kinds(data: Any) -> None:
    found = data.statistics(answers(data, lambda item: item.answer))
    base = {"has_changed_f1", "content_match", "parse_rate", "twin_accuracy", "auroc_changed", "calibration_error"}
    exact = {"exact_match", *(f"exact_match/{kind}" for kind in KINDS)}
    assert found.keys() == exact | base | {f"{name}/unseen_direction" for name in base}
    kinds = Counter(item.question_type for item in data.examples["validation"])
    values = score(found)
    assert values["twin_accuracy"].n == kinds[UNSEEN_SCENARIO]
    assert values["twin_accuracy/unseen_direction"].n == kinds[UNSEEN_DIRECTION] > 0
    for name in ("twin_accuracy", "has_changed_f1/unseen_direction", "content_match", "exact_match"):
        assert values[name].value == 1.0
    assert set(data.leads) == {
        f"{name}{suffix}"
        for name in ("has_changed_f1", "twin_accuracy", "content_match")
        for suffix in ("", "/unseen_direction")
    }
    assert set(data.leads) <= found.keys()


def test_items_share_scenarios_and_families_of_directions(data: Any) -> None:
    """Which decides what the intervals are over, for every metric of either kind."""
    items = {item.uid: item for item in data.examples["validation"]}
    for name, (statistic, units) in data.statistics(answers(data, lambda item: item.answer)).items():
        assert units.levels == {
            "scenario": tuple(items[uid].scenario_id for uid in statistic.uids),
            "direction": tuple(items[uid].notes["direction"] for uid in statistic.uids),
        }, name


def test_all_but_the_changed_items_of_the_explainer_itself_are_rivals() -> None:
    changed_items = ["zero_vector", "shuffled_vector", "shuffled_prompt"]
    trained = ["untrained", "text_only", "vector_only", "other_base"]
    data = SteeringPrediction()
    assert data.best_of([*sorted(BASELINES), *changed_items, *trained]) == [*sorted(BASELINES), *trained]
    assert data.compared_with([*sorted(BASELINES), *changed_items]) == [*sorted(BASELINES), *changed_items]
    blind = TEXT_ALONE - {"copy_original"}
    assert set(data.without_weights([*BASELINES, *changed_items, *trained])) == blind | {"text_only"}


def lead(low: float | None, name: str = "shuffled_vector", metric: str = "twin_accuracy") -> dict[str, Any]:
    value = {"value": None if low is None else low + 0.1, "ci_low": low, "ci_high": 0.9, "against": name}
    return {f"lead/{metric}/{name}": value}


@pytest.mark.parametrize(("low", "warned"), [(0.01, False), (0.0, True), (-0.2, True), (None, True)])
def test_vectors_or_prompts_that_make_no_difference_are_told(data: Any, low: float | None, warned: bool) -> None:
    systems = {EXPLAINER: answers(data, lambda item: item.answer)}
    for what in ("vector", "prompt"):
        text = f"shuffling the {what}s costs less than the interval: the explainer is not reading them"
        assert data.warnings_about(systems, lead(low, f"shuffled_{what}")) == [text] * warned
    assert data.warnings_about(systems, {}) == []


@pytest.mark.parametrize(
    ("rival", "kind"),
    [("tfidf_probe", "the text alone"), ("text_only", "the text alone"), ("nearest_vector", "the vector alone"),
     ("vector_only", "the vector alone"), ("direction_x_text", "without a language model"),
     ("boosting", "without a language model")],
)  # fmt: skip
def test_a_rival_that_does_as_well_is_told_with_what_it_reads(data: Any, rival: str, kind: str) -> None:
    systems = {EXPLAINER: answers(data, lambda item: item.answer)}
    for metric, of in (("twin_accuracy", "known"), ("twin_accuracy/unseen_direction", "unseen")):
        assert data.warnings_about(systems, lead(0.05, rival, metric)) == []
        [warning] = data.warnings_about(systems, lead(-0.05, rival, metric))
        assert warning.startswith(f"{of} directions: ")
        assert kind in warning
        assert f"{rival} +0.050 [-0.050, +0.900]" in warning


def test_the_conclusion_says_what_was_shown_and_what_was_not(data: Any) -> None:
    table = {EXPLAINER: score(data.statistics(answers(data, lambda item: item.answer)))}

    def said(metric: str, low: float) -> str:
        leads = {f"lead/{metric}": {"value": low + 0.1, "ci_low": low, "ci_high": 0.9, "against": "ridge"}}
        return data.conclusion(table, leads, [])

    asked = {item.group for item in data.examples["validation"] if item.question_type == UNSEEN_DIRECTION}
    data.residuals = {**data.residuals, "never asked about": 0.9}
    shown = said("twin_accuracy/unseen_direction", 0.1)
    assert f"{len(asked)} unseen directions" in shown
    assert "ahead of the best rival (ridge) by +0.200 [+0.100, +0.900]" in shown
    assert "no lead over ridge" in said("twin_accuracy/unseen_direction", -0.02)
    assert data.conclusion(table, {}, []) is None
    for metric in [name for name in table[EXPLAINER] if "unseen_direction" in name]:
        del table[EXPLAINER][metric]
    assert said("twin_accuracy", 0.1).startswith("No direction is unseen.")


def test_the_summary_tells_each_direction_apart(data: Any) -> None:
    systems = {EXPLAINER: answers(data, lambda item: item.answer if item.group == "answer/comply" else "")}
    found = data.details(systems)["directions"]
    groups = Counter(item.group for item in data.examples["validation"])
    assert {name: row["n"] for name, row in found.items()} == groups
    assert {name: row["twin_accuracy"] for name, row in found.items()} == {
        name: float(name == "answer/comply") for name in groups
    }
    assert {name for name, row in found.items() if "residual" in row} == data.unseen & set(groups)


def test_one_verdict_for_all_is_told(data: Any) -> None:
    constant = "The output would remain unchanged from <<<refuse>>>."
    [warning] = data.warnings_about({EXPLAINER: answers(data, lambda _: constant)}, lead(0.1))
    assert warning.startswith("class collapse: 100.0 % of the parsed answers say 'unchanged'")


def test_a_missing_mean_residual_is_told(folder: Path, reader: Any) -> None:
    (folder / "directions" / "residual_mean.safetensors").unlink()
    data = task(folder, reader)
    found = data.warnings_about({EXPLAINER: answers(data, lambda item: item.answer)}, {})
    assert found == ["no residual_mean among the directions: vector_probe sees alpha and layer alone"]


def test_the_figure_is_of_the_headline(data: Any) -> None:
    figures = data.figures(answers(data, lambda item: item.answer))
    assert list(figures) == ["verdicts"]
    axes = figures["verdicts"].axes[0]
    assert axes.get_title() == "Does the behavior change when steered?"
    kinds = Counter(item.question_type for item in data.examples["validation"])
    assert sum(int(text.get_text()) for text in axes.texts) == kinds[UNSEEN_SCENARIO]


def test_without_a_training_file_the_toys_data_are_read(
    written: Path, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process of a machine builds them; each process finds them when it sets up."""
    built: list[bool] = []
    monkeypatch.setattr("afintro.tasks.steering.task.build_embedded", lambda: built.append(True))
    monkeypatch.setattr("afintro.tasks.steering.task.embedded_directory", lambda: written)
    monkeypatch.setattr("afintro.tasks.steering.task.UNSEEN_FAMILIES", ("topic/*", "answer/comply"))
    SteeringPrediction().prepare_data()
    assert built == [True]
    data = SteeringPrediction()
    data.trainer = trainer_of(reader)
    data.setup("fit")
    assert built == [True]
    assert data.paths == {split: str(written / f"{split}.json") for split in ("train", "validation", "test")}
    assert {example.question_type for example in data.examples["validation"]} == set(KINDS)
    assert data.unseen == {"topic/harmful", "topic/benign", "answer/comply"}
