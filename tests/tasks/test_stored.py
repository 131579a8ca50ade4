"""Large record files are read from a store: the same examples as from memory, and made anew when anything changed."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from afintro.data import example_store
from afintro.errors import UserError
from afintro.evaluation.baselines import READERS
from afintro.tasks import stored
from afintro.tasks.context_ablation.task import ContextAblation
from afintro.tasks.context_ablation.wording import Question, Questions
from afintro.tasks.steering.task import SteeringPrediction
from tests.conftest import write_records, write_steering_records
from tests.tasks.stand_in import trainer_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "examples"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large."""
    monkeypatch.setattr(stored, "LARGE", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "train.json", 24, seed=3)
    write_records(tmp_path / "validation.json", 10, seed=3, held_out_wording=True)
    return tmp_path


def reader(tokenizer: Any, slot: str | None = None) -> Any:
    return SimpleNamespace(name="reader", slot_token=slot, tokenizer=tokenizer, context_length=4096)


def set_up(data: Any, explainer: Any, stage: str = "fit") -> Any:
    data.trainer = trainer_of(explainer)
    data.setup(stage)
    return data


def ablation(folder: Path, tokenizer: Any, stage: str = "fit", **settings: Any) -> ContextAblation:
    settings = {"validation_path": str(folder / "validation.json"), **settings}
    return set_up(ContextAblation(train_path=str(folder / "train.json"), **settings), reader(tokenizer), stage)


def batches(loader: Any) -> list[list[str]]:
    return [[example.uid for example in batch.examples] for batch in loader]


def unread(*_: Any) -> Any:
    raise AssertionError("the records are read again")


@pytest.mark.parametrize(
    "settings", [{}, {"validation_path": None, "validation_fraction": 0.4}, {"limit": 5}, {"max_tokens": 600}]
)
def test_the_store_gives_what_memory_gives(
    folder: Path, tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    if settings:  # one text baseline that learns stands for all, which the plain settings compare
        for name in set(READERS) - {"tfidf_probe"}:
            monkeypatch.delitem(READERS, name)
    weights = {"generative_explanation": 1.0, "orig_match": 0.25, "change_match": 0.0}
    plain = ablation(folder, tokenizer, question_weights=weights, **settings)
    assert isinstance(plain.examples["train"], list)
    assert not cache.exists(), "small files leave no store"
    expected = plain.baselines("validation")
    monkeypatch.setattr(stored, "LARGE", 0)
    for start in ("first", "second"):
        data = ablation(folder, tokenizer, question_weights=weights, **settings)
        for split in ("train", "validation"):
            assert not isinstance(data.examples[split], list)
            assert list(data.examples[split]) == plain.examples[split], start
            assert [e.branches for e in data.examples[split]] == [e.branches for e in plain.examples[split]]
            assert list(data.primary_examples(split)) == plain.primary_examples(split)
        assert list(data.training_examples()) == plain.training_examples()
        assert batches(data.train_dataloader()) == batches(plain.train_dataloader())
        assert batches(data.val_dataloader()) == batches(plain.val_dataloader())
        assert data.baselines("validation") == expected
        assert data.longest("train", 3) == plain.longest("train", 3)
        explainer = reader(tokenizer)
        assert [c.items for c in data.controls("validation", explainer)] == [
            c.items for c in plain.controls("validation", explainer)
        ]
        assert data._records == {}
        monkeypatch.setattr("afintro.tasks.context_ablation.task.read_records", unread)


@pytest.mark.usefixtures("large")
def test_other_question_weights_need_no_new_store(
    folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation(folder, tokenizer)
    monkeypatch.setattr("afintro.tasks.context_ablation.task.read_records", unread)
    data = ablation(folder, tokenizer, question_weights={"orig_match": 2.0}, batch_size=3, max_tokens=700)
    assert {e.question_type: e.weight for e in data.training_examples()} == {"orig_match": 2.0}
    assert len(data.training_examples()) == 24


def rewrite(path: Path, **fields: str) -> None:
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[0], **fields}, *rows[1:]]))


CHANGES: dict[str, Any] = {
    "records": lambda folder: rewrite(folder / "train.json", zeroshot_prediction="Something else."),
    "validation records": lambda folder: rewrite(folder / "validation.json", zeroshot_prediction="Something else."),
    "held-out file": lambda folder: (folder / "gold.json").write_text(
        json.dumps([{"text": "another text altogether"}])
    ),
    "limit": {"limit": 7},
    "answer form": {"answer_form": "text"},
    "questions": {"questions": Questions(orig_match=Question("s", ["{user_prompt}"]))},
    "held-out action": {"heldout_action": "drop"},
    "seed": {"split_seed": 1},
    "split": {"validation_path": None},
}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", [*CHANGES, "tokenizer", "template", "code"])
def test_what_shapes_the_examples_makes_a_new_store(
    folder: Path, tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (folder / "gold.json").write_text(json.dumps([{"text": "a text that is not in training at all"}]))
    settings: dict[str, Any] = {"heldout": [str(folder / "gold.json")]}

    def stores() -> set[str]:
        return {path.name for path in cache.glob("*/*") if path.is_dir()}

    ablation(folder, tokenizer, **settings)
    before = stores()
    ablation(folder, tokenizer, **settings)
    assert stores() == before
    assert len(before) == 2
    change = CHANGES.get(name, {})
    if callable(change):
        change(folder)
    else:
        settings |= change
    if name in ("tokenizer", "template"):
        from afintro.toys.organism import ToySettings, make_tokenizer

        tokenizer = make_tokenizer(ToySettings(vocabulary=263 + (name == "tokenizer"), context=512), ["ab " * 9])
        tokenizer.chat_template += " " if name == "template" else ""
    if name == "code":
        monkeypatch.setattr(example_store, "VERSION", -1)
    data = ablation(folder, tokenizer, **settings)
    assert len(stores() - before) == (1 if name == "validation records" else 2)
    monkeypatch.setattr(stored, "LARGE", 1 << 40)
    assert list(data.examples["train"]) == ablation(folder, tokenizer, **settings).examples["train"]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("changed", ["base", "named", "task", "other"])
def test_a_changed_file_of_a_base_class_or_of_a_module_that_it_names_makes_a_new_store(
    folder: Path, tokenizer: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    sources = {
        "named": "",
        "other": "",
        "base": "import other, named\nfrom afintro.tasks.context_ablation import ContextAblation\n"
        "class Base(ContextAblation):\n    shaped_by = (named,)\n",
        "task": "from base import Base\nclass Task(Base):\n    pass\n",
    }
    code = tmp_path / "code"
    code.mkdir()
    for name, text in sources.items():
        (code / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(code))
    try:
        task = importlib.import_module("task").Task

        def stores() -> int:
            data = task(train_path=str(folder / "train.json"), validation_path=str(folder / "validation.json"))
            set_up(data, reader(tokenizer))
            return len([path for path in cache.glob("*/*") if path.is_dir()])

        assert stores() == stores() == 2
        with (code / f"{changed}.py").open("a") as file:
            file.write("# changed\n")
        assert stores() == (2 if changed == "other" else 4)
    finally:
        for name in sources:
            sys.modules.pop(name, None)


@pytest.mark.usefixtures("large")
def test_the_contamination_check_speaks_before_a_store_is_there_and_again_from_it(
    folder: Path, tokenizer: Any, cache: Path
) -> None:
    text = json.loads((folder / "train.json").read_text())[4]["ablation_prompt"]
    (folder / "gold.json").write_text(json.dumps([{"text": text}]))
    gold = {"heldout": [str(folder / "gold.json")]}
    for _ in range(2):
        with pytest.raises(UserError, match="record 4 matches"):
            ablation(folder, tokenizer, **gold)
    assert not [path for path in cache.glob("*/*") if path.is_dir()]
    told = [ablation(folder, tokenizer, heldout_action="drop", **gold).warnings for _ in range(2)]
    assert told[0] == told[1]
    assert "dropped by the contamination check" in told[0][0]


@pytest.mark.usefixtures("large")
def test_shared_scenarios_are_reported_from_the_store_too(folder: Path, tokenizer: Any) -> None:
    path = str(folder / "train.json")
    made, stored = (ablation(folder, tokenizer, validation_path=path) for _ in range(2))
    assert made.warnings == stored.warnings
    assert made.warnings[0] == f"24 scenarios of {path} are in the training file too"
    assert made.near_duplicates == stored.near_duplicates == {"validation": 24}


@pytest.mark.usefixtures("large")
def test_an_example_beyond_the_context_is_refused_from_the_store_too(folder: Path, tokenizer: Any) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="a row holds data"):
            ablation(folder, tokenizer, max_tokens=90)


@pytest.mark.usefixtures("large")
def test_text_baselines_of_a_large_split_learn_from_a_draw_and_say_so(
    folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "TAUGHT", 30)
    data, again = (ablation(folder, tokenizer) for _ in range(2))
    assert data.taught() == again.taught()
    assert len({e.uid for e in data.taught()}) == 30
    assert len({e.question_type for e in data.taught()}) == 3
    found = data.baselines("validation")
    assert len(found["tfidf_nearest"]) == len(data.examples["validation"])
    assert data.warnings == ["the text baselines learn from 30 of 72 training items, drawn at random"]


@pytest.mark.long
def test_steering_from_the_store(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_steering_records(tmp_path)

    def steering(zero_vectors: bool = False) -> SteeringPrediction:
        path = str(tmp_path / "validation.json")
        data = SteeringPrediction(
            train_path=str(tmp_path / "train.json"),
            validation_path=path,
            unseen_fraction=0.4,
            batch_size=4,
            max_tokens=2000,
        )
        data = data.for_another_explainer(zero_vectors=True) if zero_vectors else data
        found: SteeringPrediction = set_up(data, reader(tokenizer, "<|slot|>"))
        return found

    plain, plain_blind = steering(), steering(zero_vectors=True)
    answered = plain.baselines("validation")
    monkeypatch.setattr(stored, "LARGE", 0)
    for _ in range(2):
        data = steering()
        assert (data.unseen, data.space) == (plain.unseen, plain.space)
        for split in ("train", "validation"):
            assert list(data.examples[split]) == plain.examples[split]
            for found, expected in zip(data.examples[split], plain.examples[split], strict=True):
                assert found.slot.vector.tobytes() == expected.slot.vector.tobytes()
                assert found.notes == expected.notes
        assert data.baselines("validation") == answered
        assert data.describe("validation") == plain.describe("validation")
        assert batches(data.train_dataloader()) == batches(plain.train_dataloader())
        explainer = reader(tokenizer, "<|slot|>")
        mine, theirs = ({c.name: c.items for c in d.controls("validation", explainer)} for d in (data, plain))
        assert mine == theirs
        monkeypatch.setattr("afintro.tasks.steering.task.read_any_records", unread)
    zero_vectors = steering(zero_vectors=True)
    assert list(zero_vectors.examples["train"]) == plain_blind.examples["train"]
    assert not any(e.slot.vector.any() for e in zero_vectors.examples["train"])


@pytest.mark.usefixtures("large")
def test_a_slot_token_in_a_scenario_is_found_before_training(tmp_path: Path, tokenizer: Any) -> None:
    write_steering_records(tmp_path)
    rows = json.loads((tmp_path / "train.json").read_text())
    for row in rows[: len(rows) // 2]:
        row["scenario"] += " <|slot|>"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    data = SteeringPrediction(
        train_path=str(tmp_path / "train.json"), validation_path=str(tmp_path / "validation.json")
    )
    with pytest.raises(UserError, match="holds the slot token 2 times"):
        set_up(data, reader(tokenizer, "<|slot|>"))


def test_a_small_validation_file_beside_a_large_training_file_is_stored_too(
    folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise looking for shared scenarios would read all training records at every start."""
    size = (folder / "train.json").stat().st_size
    assert (folder / "validation.json").stat().st_size < size
    monkeypatch.setattr(stored, "LARGE", size)
    first = ablation(folder, tokenizer)
    monkeypatch.setattr("afintro.tasks.context_ablation.task.read_records", unread)
    assert list(ablation(folder, tokenizer).examples["validation"]) == list(first.examples["validation"])
