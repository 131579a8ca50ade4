"""A mixture through the command line: what it leaves, that it resumes, and that each task alone would say the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from afintro.cli import main
from afintro.explain.command import main as explain
from afintro.explainer.checkpoint import read_checkpoint
from tests.conftest import Workspace
from tests.test_configs import small_mixture

CONFIG = str(Path(__file__).parents[1] / "configs" / "mixture.yaml")
TASKS = ("context_ablation", "feature_descriptions", "steering")


@pytest.fixture(autouse=True)
def in_the_workspace(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs in its own empty folder."""
    monkeypatch.chdir(workspace.path)
    monkeypatch.setenv("AFINTRO_CACHE", str(workspace.path / "cache"))


def asked(workspace: Workspace, *more: str) -> list[str]:
    quick = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--data.limit", "12"]
    schedule = ["--model.schedule", "constant", "--model.lora.r", "4"]
    return [
        "--config",
        CONFIG,
        "--model.name",
        str(workspace.model),
        *small_mixture(workspace),
        *quick,
        *schedule,
        *more,
    ]


def runs(workspace: Workspace) -> list[Path]:
    return sorted((workspace.path / "lightning_logs" / "mixture").glob("version_*"))


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_a_mixture_leaves_a_table_of_every_task_and_one_summary(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *asked(workspace)]) == 0
    [run] = runs(workspace)
    assert capsys.readouterr().out.splitlines()[-1] == f"summary: {run.relative_to(workspace.path) / 'summary.json'}"
    whole, parts = summary(run), {name: summary(run / name) for name in TASKS}
    assert whole["tasks"] == {name: f"{name}/summary.json" for name in TASKS}
    assert whole["n"] == sum(part["n"] for part in parts.values())
    for name, part in parts.items():
        assert part["task"] == name
        assert {m.removeprefix(f"{name}/"): v for m, v in whole["metrics"].items() if m.startswith(name)} == part[
            "metrics"
        ]
        rows = [json.loads(line) for line in (run / name / "predictions.jsonl").read_text().splitlines()]
        assert len(rows) == part["n"] > 0
        assert not any(row["uid"].startswith(name) for row in rows)
    assert whole["baselines"]["zero_vector"].keys() == {
        f"{name}/{metric}" for name in TASKS[1:] for metric in parts[name]["baselines"]["zero_vector"]
    }
    # test of the best checkpoint says the same, and predict the same answers.
    more = asked(workspace, "--ckpt_path", "best")
    files = ["--data.tasks.context_ablation.test_path", "validation.json"]
    files += ["--data.tasks.feature_descriptions.test_path", "descriptions.json"]
    files += ["--data.tasks.steering.test_path", "steered/validation.json"]
    assert main(["validate", *more]) == 0
    assert main(["test", *more, *files]) == 0
    assert main(["predict", *more, *files]) == 0
    tested, predicted = runs(workspace)[2:]
    answers = {
        f"{name}/{row['uid']}": row["predicted"]
        for name in TASKS
        for row in map(json.loads, (tested / name / "predictions.jsonl").read_text().splitlines())
    }
    rows = [json.loads(line) for line in (predicted / "predictions.jsonl").read_text().splitlines()]
    assert {uid.partition("/")[0] for uid in answers} == {row["uid"].partition("/")[0] for row in rows} == set(TASKS)
    # Limits of length differ by task: an answer that was cut may be longer here.
    assert all(row["predicted"].startswith(answers[row["uid"]]) for row in rows)
    # Each task can be asked without ground truth, and answers as predict does.
    given = {
        "context_ablation": "validation.json",
        "feature_descriptions": "descriptions.json",
        "steering": "steered/validation.json",
    }
    said = {row["uid"]: row["predicted"] for row in rows}
    for name, path in given.items():
        words = ["--ckpt_path", str(run), "--input", path, "--output", f"{name}.jsonl"]
        assert explain([*words, "--task", name]) == 0
        found = [json.loads(line) for line in (workspace.path / f"{name}.jsonl").read_text().splitlines()]
        shared = [row for row in found if f"{name}/{row['uid']}" in said]
        assert shared
        assert all(row["answer"] == said[f"{name}/{row['uid']}"] for row in shared)
        assert explain(words) == 2
    assert "--task" in capsys.readouterr().err


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_a_resumed_mixture_is_the_whole_run(workspace: Workspace) -> None:
    none = ("--trainer.limit_test_batches", "0")
    assert main(["fit", *asked(workspace, *none)]) == 0
    assert main(["fit", *asked(workspace, *none, "--trainer.max_epochs", "1")]) == 0
    assert main(["fit", *asked(workspace, *none, "--ckpt_path", "last")]) == 0
    whole, _, resumed = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in runs(workspace))
    assert whole["global_step"] == resumed["global_step"]
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_comparisons_of_a_mixture_stand_in_every_table(workspace: Workspace) -> None:
    more = asked(workspace, "--trainer.max_epochs", "1", "--text_only", "true", "--other_base", str(workspace.model))
    assert main(["fit", *more]) == 0
    [run] = runs(workspace)
    for name in TASKS:
        assert {"text_only", "other_base"} <= summary(run / name)["baselines"].keys()


@pytest.mark.parametrize(
    ("more", "where"),
    [
        (("--data.train_path", "train.json"), "data.train_path"),
        (("--data.weights", '{"steering": 0}'), "weights"),
        (("--data.weights", '{"unheard": 1}'), "data.weights"),
        (("--data.tasks.steering.train_path", "absent.json"), "absent.json"),
        (("--data.tasks.unheard", "Unheard"), "tasks"),
    ],
)
def test_what_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], more: tuple[str, str], where: str
) -> None:
    assert main(["fit", *asked(workspace, *more)]) == 2
    error = capsys.readouterr().err
    assert where in error
    assert "Traceback" not in error
    assert not runs(workspace)
