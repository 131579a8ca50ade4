"""The trainer's own switches do what Lightning's users expect, or are refused in two lines before any work."""

import csv
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from afintro.data.batch import Example
from afintro.explainer.checkpoint import read_checkpoint
from afintro.tasks.limits import fair_draw, limited_count
from tests.conftest import Workspace, save_small_model, write_described_features, write_steering_records
from tests.test_cli import command, refused

ROOT = Path(__file__).parents[1]
# Batches of 8: three of training, two of validation and two of the test, ten items each.
QUICK = ("--data.question_weights", '{"generative_explanation": 1.0}')
BEST, LAST = "best", "last"


@pytest.fixture(autouse=True)
def in_the_workspace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here that runs the command line does so in its own empty folder, with callbacks like the shipped ones."""
    if "workspace" in request.fixturenames:
        workspace: Workspace = request.getfixturevalue("workspace")
        monkeypatch.chdir(workspace.path)
        monkeypatch.setenv("AFINTRO_CACHE", str(workspace.path / "cache"))
        kept, stopping = "lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.callbacks.EarlyStopping"
        best = {"monitor": "val/exact_match", "mode": "max", "filename": "best-{epoch}-{step}"}
        stop = {"monitor": "val/exact_match", "mode": "max", "patience": 5}
        lay(workspace, {"callbacks": [one(kept, **best), one(stopping, **stop)]})


def one(class_path: str, **init_args: object) -> dict[str, object]:
    return {"class_path": class_path, "init_args": init_args}


def lay(workspace: Workspace, trainer: dict[str, object]) -> None:
    (workspace.path / "overlay.yaml").write_text(yaml.safe_dump({"trainer": trainer}))


def fit(workspace: Workspace, *more: str) -> int:
    return command(workspace, "fit", "--config", "overlay.yaml", *QUICK, *more)


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def validations(run: Path) -> int:
    """How often validation measured something."""
    return sum(bool(row.get("val/loss")) for row in csv.DictReader((run / "metrics.csv").open()))


# Arguments, steps of the last checkpoint, validations, and which checkpoint is reported.
RUNS: dict[str, tuple[tuple[str, ...], int, int, str]] = {
    "no validation": (("--trainer.limit_val_batches", "0"), 6, 0, LAST),
    "no share of validation": (("--trainer.limit_val_batches", "0.0"), 6, 0, LAST),
    "a batch of validation": (("--trainer.limit_val_batches", "1"), 6, 2, BEST),
    "half of validation": (("--trainer.limit_val_batches", "0.5"), 6, 2, BEST),
    "a batch of training": (("--trainer.limit_train_batches", "1"), 2, 2, BEST),
    "half of training": (("--trainer.limit_train_batches", "0.5"), 2, 2, BEST),
    "less than an epoch": (("--trainer.max_steps", "2"), 2, 0, LAST),
    "validation at every step": (("--trainer.val_check_interval", "1"), 6, 6, BEST),
    "validation four times": (("--trainer.val_check_interval", "0.25"), 6, 6, BEST),
    "validation by steps": (
        ("--trainer.val_check_interval", "5", "--trainer.check_val_every_n_epoch", "null"), 6, 1, BEST,
    ),
    "validation never in time": (("--trainer.check_val_every_n_epoch", "5"), 6, 0, LAST),
    "validation every other epoch": (("--trainer.check_val_every_n_epoch", "2"), 6, 1, BEST),
    "a sanity check": (("--trainer.num_sanity_val_steps", "1"), 6, 2, BEST),
    "a sanity check of all": (("--trainer.num_sanity_val_steps", "-1"), 6, 2, BEST),
    "a progress bar": (("--trainer.enable_progress_bar", "true"), 6, 2, BEST),
    "no model summary": (("--trainer.enable_model_summary", "false"), 6, 2, BEST),
    "accumulation": (("--trainer.accumulate_grad_batches", "2"), 4, 2, BEST),
    "clipping": (("--trainer.gradient_clip_val", "0.5", "--trainer.gradient_clip_algorithm", "value"), 6, 2, BEST),
    "anomalies": (("--trainer.detect_anomaly", "true"), 6, 2, BEST),
    "deterministic": (("--trainer.deterministic", "true"), 6, 2, BEST),
    "a profiler": (("--trainer.profiler", "simple"), 6, 2, BEST),
    "loaders anew": (("--trainer.reload_dataloaders_every_n_epochs", "1"), 6, 2, BEST),
    "no inference mode": (("--trainer.inference_mode", "false"), 6, 2, BEST),
    "no logs of steps": (("--trainer.log_every_n_steps", "0"), 6, 2, BEST),
}  # fmt: skip
OFTEN = ("a batch of validation", "no validation", "less than an epoch")  # Lightning's usual ways to a short run


@pytest.mark.usefixtures("no_readers")
@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.long) for n in RUNS])
def test_a_switch_runs_and_the_contract_of_results_holds(
    workspace: Workspace, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, steps, measured, reported = RUNS[name]
    assert fit(workspace, *arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    [run] = workspace.runs()
    assert printed[-1] == "summary: lightning_logs/context_ablation/version_0/summary.json"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == steps
    assert validations(run) == measured
    found = summary(run)
    assert Path(found["model"]["checkpoint"]).name.startswith(reported)
    assert found["n"] == 10
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 10
    unchosen = any("never measured" in line for line in found["warnings"])
    assert unchosen == (reported == LAST and "limit_val_batches" not in arguments[0])


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_time_may_end_training(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    forever = ("--trainer.max_time", "00:00:00:01", "--trainer.max_epochs", "-1")
    assert "model.schedule" in refused(capsys, fit(workspace, *forever))
    assert fit(workspace, *forever, "--model.schedule", "constant") == 0
    found = summary(workspace.runs()[-1])
    assert 0 < found["training"]["explainer"]["epochs"] < 1000
    assert found["n"] == 10


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_a_limit_on_the_test_holds_for_all_systems(workspace: Workspace, tmp_path: Path) -> None:
    """One batch of eight: comparison and baselines answer the items of the explainer, and validate and test say so too."""
    other = save_small_model(tmp_path / "other", seed=7)
    limited = ("--trainer.limit_test_batches", "0.5", "--other_base", str(other), "--trainer.max_epochs", "1")
    assert fit(workspace, *limited) == 0
    run = workspace.runs()[0]
    found = summary(run)
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert found["n"] == found["data"]["n"] == len(rows) == 5
    assert all(row["baselines"].keys() == found["baselines"].keys() for row in rows)
    assert "other_base" in found["baselines"]
    assert any("5 of 10 test items" in line for line in found["warnings"])
    ask = ("--ckpt_path", "best", *QUICK)
    assert command(workspace, "validate", *ask, "--trainer.limit_val_batches", "1") == 0
    assert summary(workspace.runs()[1])["n"] == 8
    assert command(workspace, "test", *ask, "--trainer.limit_test_batches", "0.5") == 0
    assert summary(workspace.runs()[2])["metrics"] == found["metrics"]


@pytest.mark.slow
def test_a_limit_is_a_number_of_batches_whatever_was_imported_before() -> None:
    """Where transformers is imported first, Python gives Lightning's ``Union[int, float]`` as ``Union[float, int]``."""
    program = (
        "import transformers; from afintro.cli import parsed; "
        "ask = ['fit', '--config', 'configs/context_ablation.yaml', '--trainer.limit_val_batches']; "
        "print([repr(parsed([*ask, limit])['trainer']['limit_val_batches']) for limit in ('1', '1.0', '0.5', 'null')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['1', '1.0', '0.5', 'None']"


def test_a_limit_counts_items_of_all_processes() -> None:
    assert limited_count(1, 100, 8) == 8
    assert limited_count(2, 100, 2 * 8) == 32
    assert limited_count(0.25, 100, 8) == 25
    assert limited_count(0.001, 100, 8) == 1
    for all_of_them in (1.0, 13, 100, 0):  # 0 leaves the evaluation out, and the trainer does that
        assert limited_count(all_of_them, 100, 8) is None


def items(kinds: Sequence[tuple[str, str]]) -> list[Example]:
    return [Example(str(at), "s", kind, "", "", None, None, twins=twins) for at, (kind, twins) in enumerate(kinds)]  # type: ignore[arg-type]


def test_a_draw_has_every_question_type_in_its_share_and_keeps_twins() -> None:
    many = items([("text", "")] * 60 + [("verdict", "")] * 30 + [("rare", "")] * 2)
    drawn = fair_draw(many, 12, "verdict", seed=0)
    kinds = [many[place].question_type for place in drawn]
    assert {kind: kinds.count(kind) for kind in kinds} == {"text": 7, "verdict": 4, "rare": 1}
    assert drawn == sorted(drawn)
    assert drawn != fair_draw(many, 12, "verdict", seed=1)
    assert [many[place].question_type for place in fair_draw(many, 1, "verdict", seed=0)] == ["verdict"]
    pairs = items([("verdict", f"pair {at // 2}") for at in range(20)])
    chosen = fair_draw(pairs, 7, "verdict", seed=0)
    assert len(chosen) == 6
    assert all((place ^ 1) in chosen for place in chosen)


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
@pytest.mark.parametrize("task", ["steering", "feature_descriptions", "introspection"])
def test_limits_hold_for_every_task(workspace: Workspace, task: str, request: pytest.FixtureRequest) -> None:
    arguments = ["--config", str(ROOT / "configs" / f"{task}.yaml"), "--trainer.accelerator", "cpu"]
    if task == "introspection":
        arguments += ["--model.name", str(request.getfixturevalue("study_model")), "--data.vector_count", "8"]
        arguments += ["--data.longest_context", "300", "--data.examples", '{"train": 32, "validation": 40, "test": 40}']
    else:
        arguments += ["--model.name", str(workspace.model), "--data.train_path", "train.json"]
    if task == "steering":
        write_steering_records(workspace.path, (6, 4))
        arguments += ["--data.validation_path", "validation.json"]
    if task == "feature_descriptions":
        write_described_features(workspace.path, count=48)
        (workspace.path / "descriptions.json").rename(workspace.path / "train.json")
        arguments += ["--data.features", '["L3.safetensors"]', "--data.validation_fraction", "0.5"]
    limits = ("--trainer.limit_val_batches", "0.5", "--trainer.limit_test_batches", "0.5", "--trainer.max_epochs", "1")
    from afintro.cli import main

    assert main(["fit", *arguments, *limits, "--trainer.limit_train_batches", "2"]) == 0
    found = summary(workspace.path / "lightning_logs" / task / "version_0")
    said = [line.split(": ")[1].split() for line in found["warnings"] if "items are evaluated" in line]
    assert len(said) == 2
    assert all(0 < int(words[0]) <= int(words[2]) / 2 + 1 for words in said)
    assert found["n"] in [int(words[0]) for words in said]


@pytest.mark.usefixtures("no_readers")
@pytest.mark.parametrize("batches", ["true", pytest.param("2", marks=pytest.mark.long)])
def test_a_development_run_keeps_nothing(workspace: Workspace, batches: str) -> None:
    before = {path.name for path in workspace.path.iterdir()}
    assert fit(workspace, "--trainer.fast_dev_run", batches) == 0
    assert {path.name for path in workspace.path.iterdir()} == before


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_an_evaluation_as_a_development_run_keeps_nothing(workspace: Workspace) -> None:
    assert fit(workspace, "--trainer.max_epochs", "1") == 0
    before = sorted(workspace.path.rglob("*"))
    for what in ("validate", "test", "predict"):
        assert command(workspace, what, "--ckpt_path", "last", *QUICK, "--trainer.fast_dev_run", "true") == 0
        assert sorted(workspace.path.rglob("*")) == before, what


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_without_checkpoints_the_last_weights_are_reported(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save_small_model(tmp_path / "other", seed=7)
    with caplog.at_level(logging.WARNING, "afintro"):
        assert fit(workspace, "--trainer.enable_checkpointing", "false", "--other_base", str(other)) == 0
    run = workspace.runs()[0]
    assert not (run / "checkpoints").exists()
    found = summary(run)
    assert (found["n"], found["model"]["checkpoint"]) == (10, None)
    assert "other_base" in found["baselines"]


@pytest.mark.usefixtures("no_readers")
def test_without_loggers_a_run_has_its_folder(workspace: Workspace) -> None:
    """Checkpoints in it are found; nothing lies in the working directory."""
    for _ in range(2):
        assert fit(workspace, "--trainer.logger", "false", "--trainer.max_epochs", "1") == 0
    run = workspace.runs()[1]
    assert {path.name for path in run.iterdir()} == {
        "checkpoints", "config.yaml", "predictions.jsonl", "summary.json", "training.json",
    }  # fmt: skip
    assert not (workspace.path / "checkpoints").exists()
    assert command(workspace, "test", "--ckpt_path", "best", *QUICK) == 0
    assert summary(workspace.runs()[2])["model"]["checkpoint"].startswith(str(Path("lightning_logs")))


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("--trainer.barebones", "true"), "trainer.barebones"),
        (("--trainer.overfit_batches", "1"), "trainer.overfit_batches"),
        (("--trainer.max_epochs", "0"), "trainer.max_epochs"),
        (("--trainer.limit_train_batches", "0"), "trainer.limit_train_batches"),
        (("--trainer.limit_val_batches", "-1"), "limit_val_batches"),
        (("--trainer.val_check_interval", "500"), "val_check_interval"),
        (("--trainer.profiler", "quick"), "profiler"),
        (("--trainer.accelerator", "tpu"), "torch_xla"),
    ],
)
def test_a_switch_that_cannot_hold_is_refused_before_training(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], where: str
) -> None:
    assert where in refused(capsys, fit(workspace, *arguments))
    assert not list(workspace.path.rglob("*.ckpt"))


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_a_metric_that_does_not_exist_is_named_with_those_that_do(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(workspace, {"callbacks": [one("lightning.pytorch.callbacks.EarlyStopping", monitor="val/exact_mach")]})
    said = refused(capsys, fit(workspace))
    assert "val/exact_mach" in said
    assert "val/exact_match" in said


@pytest.mark.usefixtures("no_readers")
@pytest.mark.long
def test_a_last_checkpoint_that_training_ended_between_can_be_resumed(workspace: Workspace) -> None:
    rare = ("--trainer.check_val_every_n_epoch", "4")
    assert fit(workspace, *rare, "--trainer.max_epochs", "4") == 0
    whole = read_checkpoint(workspace.runs()[0] / "checkpoints" / "last.ckpt")
    constant = ("--model.schedule", "constant")
    assert fit(workspace, *rare, *constant, "--trainer.max_epochs", "3") == 0
    assert fit(workspace, *rare, *constant, "--trainer.max_epochs", "4", "--ckpt_path", "last") == 0
    assert fit(workspace, *rare, *constant, "--trainer.max_epochs", "4") == 0
    resumed, uninterrupted = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in workspace.runs()[2:])
    assert resumed["global_step"] == uninterrupted["global_step"] == whole["global_step"] == 12
    for name, tensor in uninterrupted["state_dict"].items():
        assert (tensor - resumed["state_dict"][name]).abs().max() == 0, name


@pytest.mark.usefixtures("no_readers")
def test_runs_go_where_the_trainers_root_is_and_are_found_there(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ("--trainer.default_root_dir", str(workspace.path / "else" / "where"))
    assert fit(workspace, *root, "--trainer.max_epochs", "1") == 0
    run = workspace.path / "else" / "where" / "lightning_logs" / "context_ablation" / "version_0"
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"summary: {run / 'summary.json'}"
    assert "trainer.callbacks has no checkpoint" not in printed.err
    assert not (workspace.path / "lightning_logs").exists()
    assert command(workspace, "test", "--ckpt_path", "best", *QUICK, *root) == 0
    assert Path(summary(run.parent / "version_1")["model"]["checkpoint"]).parents[1] == run
    assert "no run of context_ablation" in refused(capsys, command(workspace, "test", "--ckpt_path", "last"))


@pytest.mark.usefixtures("no_readers")
def test_a_validation_prints_one_table_and_no_advertisement(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    assert fit(workspace, "--trainer.max_epochs", "1", "--trainer.callbacks", "null") == 0
    assert command(workspace, "validate", "--ckpt_path", "best", *QUICK) == 0
    printed = capsys.readouterr()
    assert printed.err.count("trainer.callbacks has no checkpoint") == 1
    assert "Validate metric" not in printed.out
    assert "nan" not in printed.out
    assert "Tip" not in printed.out + printed.err
    assert not [warning for warning in recwarn if "will be deleted" in str(warning.message)]
