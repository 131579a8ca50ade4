"""One explainer of several cues: trained on two in one file, asked about a third that it never saw."""

import json
from pathlib import Path
from typing import Any

import pytest

from afintro.data.cue import Condition, Contrast
from afintro.data.cue_file import shipped_cues
from afintro.errors import UserError
from afintro.tasks.context_ablation.conditions import said_of
from afintro.tasks.context_ablation.records import ContextAblationRecord, read_records, to_json
from afintro.tasks.context_ablation.task import PRIMARY, ContextAblation
from afintro.toys.organism import scenarios
from tests.conftest import Workspace

TIERS, OVERSIGHT = (shipped_cues().contrasts[name] for name in ("tiers", "oversight"))
UNSEEN = Contrast("moods", Condition("calm", "Be calm."), Condition("loud", "Be loud."), "mood")


def rows_of(contrast: Contrast, count: int, seed: int, held_out_wording: bool = False) -> list[dict[str, Any]]:
    """Records of a contrast, as the grammar's policy would answer."""
    rows = []
    for number, scenario in enumerate(scenarios(count, seed, held_out_wording)):
        first, second = scenario.behavior(True), scenario.behavior(False)
        record = ContextAblationRecord(
            scenario=scenario.text, monitored_output=scenario.say(first), unmonitored_output=scenario.say(second),
            monitored_behavior=first, unmonitored_behavior=second, behavior_changed=first != second,
            **said_of(contrast, scenario.text, f"{seed}-{number}"),
        )  # fmt: skip
        rows.append(to_json(record))
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training file of two cues about the same scenarios, and a test file of a third about others."""
    (tmp_path / "two.json").write_text(json.dumps(rows_of(TIERS, 16, 1) + rows_of(OVERSIGHT, 16, 1)))
    (tmp_path / "third.json").write_text(json.dumps(rows_of(UNSEEN, 8, 2, held_out_wording=True)))
    return tmp_path


def test_scenarios_stay_on_one_side_whatever_the_cue(folder: Path) -> None:
    data = ContextAblation(train_path=str(folder / "two.json"), test_path=str(folder / "third.json"))
    by_split = {split: data.records(split) for split in ("train", "validation", "test")}
    identities = {split: {record.scenario_id for record in records} for split, records in by_split.items()}
    assert not identities["train"] & identities["validation"]
    for split in ("train", "validation"):
        cues = [record.cue for record in by_split[split]]
        assert cues.count("free tier") == cues.count("certain review") == len(identities[split])
    assert {record.cue for record in by_split["test"]} == {"mood"}


def test_a_held_out_scenario_is_found_under_any_cue(folder: Path) -> None:
    [first, *_] = rows_of(UNSEEN, 1, 1)
    (folder / "gold.json").write_text(json.dumps([{"text": first["ablation_prompt"]}]))
    data = ContextAblation(train_path=str(folder / "two.json"), heldout=[str(folder / "gold.json")])
    with pytest.raises(UserError, match="held-out"):
        data.records("train")
    left = ContextAblation(
        train_path=str(folder / "two.json"), heldout=[str(folder / "gold.json")], heldout_action="drop"
    )
    assert len(left.records("train") + left.records("validation")) == 2 * 15


def test_one_record_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.json").write_text(json.dumps(rows_of(TIERS, 2, 1) * 2))
    with pytest.raises(UserError, match="same uid"):
        read_records(str(tmp_path / "twice.json"))


@pytest.mark.long
def test_is_trained_on_two_cues_and_asked_about_a_third(workspace: Workspace) -> None:
    folder = workspace.path
    (folder / "two.json").write_text(json.dumps(rows_of(TIERS, 16, 1) + rows_of(OVERSIGHT, 16, 1)))
    (folder / "third.json").write_text(json.dumps(rows_of(UNSEEN, 8, 2, held_out_wording=True)))
    paths = ("--data.train_path", "two.json", "--data.validation_path", "null", "--data.test_path", "third.json")
    fit = workspace.run("fit", "--config", str(workspace.config), *paths, "--trainer.max_epochs", "1")
    assert fit.returncode == 0, fit.stderr
    lines = (workspace.runs()[-1] / "predictions.jsonl").read_text().splitlines()
    asked = [row for row in map(json.loads, lines) if row["question_type"] == PRIMARY]
    assert {row["uid"] for row in asked} == {f"2-{number}:moods/{PRIMARY}" for number in range(8)}
    for row in asked:
        assert row["prompt"].startswith("Be calm.\n\n")
        assert row["prompt"].endswith("how would the model's response change?\n\nBe loud.")
    summary = json.loads((workspace.runs()[-1] / "summary.json").read_text())
    assert (summary["split"], summary["metrics"]["exact_match"]["n"]) == ("test", 8)
