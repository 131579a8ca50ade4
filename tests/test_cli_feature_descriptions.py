"""Feature descriptions through the command line: from fit to predict on small data, and the contract of what is left."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import afintro.cli
from afintro.cli import ExplainerCLI, main
from afintro.evaluation.inspect import load_run, show_summary, side_by_side
from afintro.evaluation.judges import ChrF, RougeL, Tfidf
from afintro.tasks.feature_descriptions.task import FeatureDescriptions
from tests.conftest import TRAINER, Workspace
from tests.tasks.feature_descriptions.test_task import write_small_data

ROOT = Path(__file__).parents[1]
METRIC = {"value", "ci_low", "ci_high", "n"}
SELFIE = {f"selfie/{scale}" for scale in ("0.5", "1", "2", "4")}
BASELINES = {
    "reference",
    "majority",
    "nearest",
    "nearest_in_layer",
    "zero_vector",
    "shuffled_vector",
    "text_only",
} | SELFIE
TABLE = "Explainer beside its baselines"
RESAMPLES = 100  # for time
PROCESS = f"""
import sys
import afintro.evaluation.intervals
afintro.evaluation.intervals.RESAMPLES = {RESAMPLES}
from afintro.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Session:
    """A folder in which the commands were run one after the other, with what each printed."""

    workspace: Workspace
    printed: dict[str, str]

    def folder(self, number: int) -> Path:
        return self.workspace.path / "lightning_logs" / "feature_descriptions" / f"version_{number}"

    def summary(self, number: int) -> dict[str, Any]:
        return json.loads((self.folder(number) / "summary.json").read_text())

    def rows(self, number: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder(number) / "predictions.jsonl").read_text().splitlines()]

    def losses(self, number: int) -> list[float]:
        with open(self.folder(number) / "metrics.csv", newline="") as file:
            return [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]


@contextlib.contextmanager
def workplace(path: Path, model: Path, width: int, **settings: str) -> Iterator[Workspace]:
    """A folder with the small data and a configuration on the small model, as working directory."""
    write_small_data(path, width)
    config = path / "small.yaml"
    config.write_text(
        f"""
text_only: {settings.get("text_only", "true")}
model:
  name: {model}
  lora: {{r: 4, alpha: 8, dropout: 0.0}}
  learning_rate: 0.02
  slot_token: "<|slot|>"
data:
  class_path: afintro.tasks.feature_descriptions.FeatureDescriptions
  init_args:
    train_path: train.json
    validation_path: held.json
    test_path: held.json
    features: [L1.safetensors, L4.safetensors]
    activations: firings.json
    batch_size: 8
{TRAINER}
  max_epochs: 3
"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("AFINTRO_CACHE", str(path / "cache"))
        patch.setattr("afintro.evaluation.intervals.RESAMPLES", RESAMPLES)
        yield Workspace(path, config, model)


def command(*arguments: str) -> str:
    """What a command printed; it must have ended well."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Session]:
    """fit in a process of its own, as a user runs it; the rest here, which saves their start."""
    with workplace(tmp_path_factory.mktemp("session"), small_model, 32) as workspace:
        config = ("--config", str(workspace.config))
        fitted = subprocess.run(
            [sys.executable, "-c", PROCESS, "fit", *config], cwd=workspace.path, check=False, capture_output=True,
            text=True, timeout=300, env=workspace.environment(PYTHONHASHSEED="3"),
        )  # fmt: skip
        assert fitted.returncode == 0, fitted.stderr[-3000:]
        printed = {"fit": fitted.stdout}
        for name in ("validate", "test", "predict"):
            printed[name] = command(name, *config, "--ckpt_path", "best")
        printed["resume"] = command("fit", *config, "--ckpt_path", "last", "--trainer.max_epochs", "4")
        yield Session(workspace, printed)


def test_fit_leaves_what_the_contract_says(session: Session) -> None:
    summary = session.summary(0)
    assert summary.keys() == {
        "task", "split", "n", "seconds", "metrics", "baselines", "warnings", "categories", "judges", "model", "data",
        "versions", "git_commit",
    }  # fmt: skip
    assert (summary["task"], summary["split"], summary["n"]) == ("feature_descriptions", "validation", 10)
    assert session.printed["fit"].splitlines()[-1] == (
        "summary: lightning_logs/feature_descriptions/version_0/summary.json"
    )
    assert {path.name for path in session.folder(0).iterdir()} >= {
        "summary.json", "predictions.jsonl", "config.yaml", "metrics.csv", "checkpoints", "text_only",
    }  # fmt: skip
    assert (summary["model"]["vectors"]["width"], summary["model"]["slot_token"]) == (32, "<|slot|>")
    assert summary["data"]["path"] == "held.json"
    assert [source["layer"] for source in summary["data"]["features"]] == ["1", "4"]
    assert sum(summary["categories"].values()) == 10
    assert (summary["judges"]["first"], summary["judges"]["second"]) == ("rouge_l", "chrf")


def test_metrics_baselines_and_leads(session: Session) -> None:
    summary = session.summary(0)
    metrics, baselines = summary["metrics"], summary["baselines"]
    names = {"exact_match", "functional_auroc", "judge/rouge_l", "judge/chrf"}
    kinds = names | {f"{name}/unseen_feature" for name in names} | {f"judge/{j}/macro" for j in ("rouge_l", "chrf")}
    assert kinds <= metrics.keys()
    assert all(value.keys() >= METRIC for value in metrics.values())
    assert metrics["judge/rouge_l"]["n"] == metrics["judge/rouge_l/unseen_feature"]["n"] == 5
    assert metrics["judge/rouge_l/macro"]["n"] == 10
    assert baselines.keys() == BASELINES
    assert all(kinds <= found.keys() for found in baselines.values())
    assert {baselines["reference"][name]["value"] for name in ("exact_match", "judge/rouge_l", "judge/chrf/macro")} == {
        1
    }
    rivals = {"majority", "nearest", "nearest_in_layer"} | SELFIE
    for metric in ("judge/rouge_l", "judge/rouge_l/unseen_feature", "functional_auroc"):
        best = metrics[f"lead/{metric}"]
        assert best["against"] in rivals
        highest = max(baselines[name][metric]["value"] for name in rivals)
        assert best["value"] == pytest.approx(metrics[metric]["value"] - highest)
        for name in BASELINES - {"reference"}:
            one = metrics[f"lead/{metric}/{name}"]
            assert one["against"] == name
            assert one["value"] == pytest.approx(metrics[metric]["value"] - baselines[name][metric]["value"])
        assert f"lead/{metric}/reference" not in metrics


def test_each_row_has_its_scores_and_every_systems_answer(session: Session) -> None:
    rows = session.rows(0)
    assert len(rows) == 10
    summary = session.summary(0)
    for row in rows:
        assert row.keys() == {
            "uid", "scenario_id", "question_type", "prompt", "expected", "predicted", "exact_match", "verdict_expected",
            "verdict_predicted", "p_changed", "parsed", "baselines", "group", "scores",
        }  # fmt: skip
        assert row["scores"].keys() == {"rouge_l", "chrf", "functional"}
        assert row["baselines"].keys() == BASELINES
        assert row["baselines"]["reference"] == row["expected"]
        assert row["group"] in summary["categories"]
    unseen = [row["scores"]["rouge_l"] for row in rows if row["question_type"] == "unseen_cluster"]
    assert summary["metrics"]["judge/rouge_l"]["value"] == pytest.approx(sum(unseen) / 5)


def table(printed: str) -> list[str]:
    """The tables, leads and warnings, without the last line, which names the folder, and without Lightning's own table."""
    lines = printed.splitlines()[:-1]
    first = next(number for number, line in enumerate(lines) if TABLE in line)
    last = max(number for number, line in enumerate(lines) if line.startswith("warning: "))
    return lines[first : last + 1]


def test_validate_gives_every_number_of_fit_again(session: Session) -> None:
    first, again = session.summary(0), session.summary(1)
    for name in ("metrics", "baselines", "warnings", "judges", "categories"):
        assert again[name] == first[name]
    assert session.rows(1) == session.rows(0)
    assert table(session.printed["validate"]) == table(session.printed["fit"])
    assert any("lead/judge/rouge_l: " in line for line in table(session.printed["fit"]))
    assert session.losses(1) == [pytest.approx(min(session.losses(0)), rel=1e-5)]


def test_test_and_predict(session: Session) -> None:
    summary = session.summary(2)
    assert summary["split"] == "test"
    assert summary["metrics"] == session.summary(0)["metrics"], "the same file"
    predicted = {row["uid"]: row["predicted"] for row in session.rows(3)}
    known = {row["uid"]: row["predicted"] for row in session.rows(0) if row["question_type"] == "unseen_cluster"}
    assert predicted == known
    assert not (session.folder(3) / "summary.json").exists()


def test_a_run_goes_on_from_the_last_checkpoint(session: Session) -> None:
    assert session.printed["resume"].splitlines()[-1] == (
        "summary: lightning_logs/feature_descriptions/version_4/summary.json"
    )
    assert len(session.losses(4)) == 1 + 1, "one epoch more, and the validation at the end"
    assert session.summary(4)["baselines"].keys() == BASELINES


def test_the_notebooks_functions_read_the_run(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_run(session.folder(0))
    assert len(run.items) == 10
    assert run.systems.keys() == {"explainer"} | BASELINES
    show_summary(run)
    shown = capsys.readouterr().out
    assert TABLE in shown
    for name in BASELINES:
        assert name in shown
    page = side_by_side(run.items)
    for row in session.rows(0):
        assert f"<b>{row['uid']}</b>" in page
        assert row["expected"] in page


def test_vectors_of_another_width_than_the_model(tmp_path: Path, small_model: Path) -> None:
    """The learnt projection is saved and found again: other weights would give another loss and other answers."""
    with workplace(tmp_path, small_model, 20, text_only="false") as workspace:
        config = ("--config", str(workspace.config))
        command("fit", *config)
        command("validate", *config, "--ckpt_path", "best")
        found = Session(workspace, {})
        assert found.summary(0)["model"]["vectors"]["width"] == 20
        assert found.rows(1) == found.rows(0)
        assert found.losses(1) == [pytest.approx(min(found.losses(0)), rel=1e-5)]
        assert "text_only" not in found.summary(0)["baselines"]
        answers = [(row["predicted"], row["baselines"]["zero_vector"]) for row in found.rows(0)]
        assert any(own != zero_vectors for own, zero_vectors in answers), (
            "the answers depend on the vectors, or this says nothing"
        )


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--model.slot_token", "<vec>"), "has no token '<vec>'"),
        (("--model.slot_token", "null"), "model.slot_token: is absent"),
        (("--data.features", "null"), "data.features: is absent"),  # refused by the constructor
        (("--data.limit", "0"), "data.limit: must be a whole number of at least 1, but is 0"),
        (("--data.features", '["L4.safetensors"]'), "has features of layer 1, but no feature file is of that layer"),
        (("--data.validation_path", "nowhere.json"), "nowhere.json: does not exist"),
    ],
)
def test_what_is_refused_takes_two_lines(
    session: Session, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], what: str
) -> None:
    assert Path.cwd() == session.workspace.path
    assert main(["fit", "--config", str(session.workspace.config), *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "afintro: error" in line or "remedy:" in line]
    assert len(error) == 2
    assert what in error[0]
    assert error[1].startswith("  remedy: ")


def constructed(*arguments: str) -> FeatureDescriptions:
    """The data module of a command that is parsed and constructed, and not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(afintro.cli.ExplainerCLI, "_run_subcommand", lambda *_: None)
        data = ExplainerCLI(["fit", *arguments]).datamodule
    assert isinstance(data, FeatureDescriptions)
    return data


def test_old_names_of_settings_are_accepted(tmp_path: Path) -> None:
    """``reader`` and ``firings`` stand in configurations and saved runs of before, and win beside the new names."""
    shipped = ("--config", str(ROOT / "configs" / "feature_descriptions.yaml"))
    old = tmp_path / "old.yaml"
    reader = "{class_path: afintro.evaluation.judges.ChrF}"
    old.write_text(f"data:\n  init_args:\n    firings: f.json\n    reader: {reader}\n")
    new = ("--data.activations", "f.json", "--data.scorer", "afintro.evaluation.judges.ChrF")
    for arguments in (("--config", str(old)), ("--data.firings=f.json", "--data.reader", reader), new):
        data = constructed(*shipped, *arguments)
        assert data.activations_path == "f.json"
        assert isinstance(data.scorer, ChrF)
    assert constructed(*shipped, "--config", str(old), "--data.activations", "g.json").activations_path == "f.json"


def test_the_shipped_configuration_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constructed and not run: constructors are cheap."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(afintro.cli.ExplainerCLI, "_run_subcommand", lambda *_: None)
    cli = ExplainerCLI(["fit", "--config", str(ROOT / "configs" / "feature_descriptions.yaml")])
    data = cli.datamodule
    assert isinstance(data, FeatureDescriptions)
    assert [type(judge) for judge in data.judges] == [RougeL, ChrF]
    assert isinstance(data.scorer, Tfidf)
    assert data.paths == {"train": None, "validation": None, "test": None}
    assert (cli.model.slot_token, cli.model.injection.projection) == ("<|slot|>", True)
    assert cli.config["fit"]["text_only"] is True
    assert not os.listdir(tmp_path)
