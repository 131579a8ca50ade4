"""Several test sets: every file is checked before the weights load, and each set has its summary, beside one table over all."""

import json
import shutil
from pathlib import Path

import pytest

from afintro.cli import main
from afintro.explainer import ExplainerModule
from tests.conftest import Workspace, write_records

pytestmark = pytest.mark.usefixtures("no_readers")


@pytest.fixture(autouse=True)
def in_the_workspace(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.path)
    monkeypatch.setenv("AFINTRO_CACHE", str(workspace.path / "cache"))


def command(workspace: Workspace, name: str, *more: str) -> int:
    return main([name, "--config", str(workspace.config), *more])


def with_groups(path: str, names: str = "ab") -> None:
    """Give the records of a file categories in turn."""
    rows = json.loads(Path(path).read_text())
    for number, row in enumerate(rows):
        row |= {"category": names[number % len(names)], "source": "made", "label": "aligned"}
    Path(path).write_text(json.dumps(rows))


@pytest.mark.long
def test_each_set_has_its_summary_and_all_have_one_table(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(workspace, "fit", "--trainer.max_epochs", "1") == 0
    without = json.loads((workspace.runs()[0] / "summary.json").read_text())
    write_records(workspace.path / "other.json", 10, seed=9, held_out_wording=True)
    with_groups("test.json")
    shutil.copy("test.json", "same.json")
    more = json.loads(Path("test.json").read_text())[:4] + json.loads(Path("other.json").read_text())
    (workspace.path / "part.json").write_text(json.dumps(more))
    shutil.copy("train.json", "seen.json")
    sets = {"benchmark": "test.json", "same": "same.json", "part": "part.json", "seen": "seen.json"}
    capsys.readouterr()
    assert command(workspace, "test", "--ckpt_path", "best", "--data.test_paths", json.dumps(sets)) == 0
    printed, run = capsys.readouterr().out, workspace.runs()[-1]
    assert printed.splitlines()[-1] == f"summary: lightning_logs/context_ablation/{run.name}/sets.json"
    assert "by test set" in printed
    table = json.loads((run / "sets.json").read_text())
    assert (table["first"], list(table["sets"])) == ("benchmark", list(sets))
    for name in sets:
        summary = json.loads((run / name / "summary.json").read_text())
        assert (summary["set"], summary["data"]["path"]) == (name, sets[name])
        metrics = {key: value for key, value in summary["metrics"].items() if not key.startswith("lead/")}
        assert table["sets"][name]["metrics"] == metrics
        assert summary["baselines"].keys() >= {"majority", "copy_monitored", "zero_shot"}
        assert len((run / name / "predictions.jsonl").read_text().splitlines()) == summary["n"]
    drops = {name: found.get("drop", {}).get("exact_match") for name, found in table["sets"].items()}
    assert drops["benchmark"] is None
    assert (drops["same"]["value"], drops["same"]["pairing"], drops["same"]["shared"]) == (0.0, "paired", 10)
    assert (drops["part"]["pairing"], drops["part"]["shared"]) == ("partly paired", 4)
    assert (drops["seen"]["pairing"], drops["seen"]["shared"]) == ("unpaired", 0)
    seen = json.loads((run / "seen" / "summary.json").read_text())
    assert seen["data"]["near_duplicates"] == 24
    assert any("24 scenarios of seen.json" in line for line in seen["warnings"])
    clean = json.loads((run / "benchmark" / "summary.json").read_text())
    assert not any("seen.json" in line or "part.json" in line for line in clean["warnings"])
    # Records without groups leave the summary as it was before there were groups; with groups one part is added.
    assert "groups" not in without
    assert clean.keys() - without.keys() == {"set", "groups"} or clean.keys() - without.keys() == {
        "groups",
        "set",
        "training",
    }
    assert {group["group"] for group in clean["groups"]["by"]["category"]["groups"]} == {"a", "b"}
    row = json.loads((run / "benchmark" / "predictions.jsonl").read_text().splitlines()[0])
    assert (row["label"], row["source"]) == ("aligned", "made")
    row = json.loads((run / "seen" / "predictions.jsonl").read_text().splitlines()[0])
    assert not {"label", "source", "category", "group"} & row.keys()


def test_every_file_is_checked_before_the_weights_load(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = ["--trainer.limit_test_batches", "0", "--trainer.max_epochs", "1"]
    assert command(workspace, "fit", *trainer) == 0
    monkeypatch.setattr(ExplainerModule, "configure_model", lambda _: pytest.fail("the weights were loaded"))
    (workspace.path / "wrong.json").write_text('[{"ablation_prompt": "a"}]')
    for sets, word in (
        ({"a": "test.json", "b": "wrong.json"}, "wrong.json, record 0"),
        ({"a": "test.json", "b": "absent.json"}, "absent.json"),
        ({"a": "test.json", "../b": "test.json"}, "data.test_paths"),
        ({"checkpoints": "test.json"}, "data.test_paths"),
    ):
        capsys.readouterr()
        assert command(workspace, "test", "--ckpt_path", "best", "--data.test_paths", json.dumps(sets)) == 2
        assert word in capsys.readouterr().err
    assert command(workspace, "predict", "--ckpt_path", "best", "--data.test_paths", '{"a": "test.json"}') == 2
    assert "data.test_paths" in capsys.readouterr().err
