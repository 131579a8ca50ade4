"""Steering through the command line: from fit to predict on small data, and the contract of what is left."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import afintro.cli
from afintro.cli import ExplainerCLI, main
from afintro.evaluation.inspect import calibration_figure, load_run, select, show_summary, side_by_side
from afintro.evaluation.report import confusion_figure
from afintro.tasks.steering.task import UNSEEN_DIRECTION, UNSEEN_SCENARIO, SteeringPrediction
from tests.conftest import TRAINER, Workspace, write_steering_records

ROOT = Path(__file__).parents[1]
METRIC = {"value", "ci_low", "ci_high", "n"}
TABLES = {
    "cell_majority", "direction_majority", "always_unchanged", "copy_original", "vector_probe", "tfidf_nearest",
    "tfidf_probe",
}  # fmt: skip
BASELINES = TABLES | {"zero_vector", "shuffled_vector", "untrained", "text_only"}
LEADS = ("has_changed_f1", "twin_accuracy", "content_match")
TABLE = "Explainer beside its baselines"


@dataclass
class Session:
    """A folder in which the commands were run one after the other, with what each printed."""

    workspace: Workspace
    printed: dict[str, str]

    def folder(self, number: int) -> Path:
        return self.workspace.path / "lightning_logs" / "steering" / f"version_{number}"

    def summary(self, number: int) -> dict[str, Any]:
        return json.loads((self.folder(number) / "summary.json").read_text())

    def rows(self, number: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder(number) / "predictions.jsonl").read_text().splitlines()]


def command(*arguments: str) -> str:
    """What a command printed; it must have ended well."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Session]:
    """Vectors of another width than the model, and the comparison that does not see them."""
    path = tmp_path_factory.mktemp("session")
    write_steering_records(path, (12, 6))
    config = path / "small.yaml"
    config.write_text(
        f"""
model:
  name: {small_model}
  lora: {{r: 4, alpha: 8, dropout: 0.0}}
  learning_rate: 0.02
  slot_token: "<|slot|>"
data:
  class_path: afintro.tasks.steering.SteeringPrediction
  init_args:
    train_path: train.json
    validation_path: validation.json
    test_path: validation.json
    unseen_fraction: 0.4
    pairs: 1
    batch_size: 16
{TRAINER}
  max_epochs: 2
"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("AFINTRO_CACHE", str(path / "cache"))
        patch.setattr("afintro.evaluation.intervals.RESAMPLES", 100)  # for time
        given = ("--config", str(config), "--text_only", "true")
        printed = {"fit": command("fit", *given)}
        for name in ("validate", "test", "predict"):
            printed[name] = command(name, *given, "--ckpt_path", "best")
        yield Session(Workspace(path, config, small_model), printed)


def test_fit_leaves_what_the_contract_says(session: Session) -> None:
    summary = session.summary(0)
    assert summary.keys() == {
        "task", "split", "n", "seconds", "metrics", "baselines", "warnings", "model", "data", "versions", "git_commit",
    }  # fmt: skip
    assert (summary["task"], summary["split"]) == ("steering", "validation")
    assert session.printed["fit"].splitlines()[-1] == "summary: lightning_logs/steering/version_0/summary.json"
    assert {path.name for path in session.folder(0).iterdir()} >= {
        "summary.json", "predictions.jsonl", "config.yaml", "metrics.csv", "checkpoints", "text_only",
    }  # fmt: skip
    assert (summary["model"]["vectors"]["width"], summary["model"]["slot_token"]) == (24, "<|slot|>")
    data = summary["data"]
    assert data["path"] == "validation.json"
    assert len(data["unseen_directions"]) == 4
    assert data[UNSEEN_SCENARIO] + data[UNSEEN_DIRECTION] == data["n"] == summary["n"]
    assert min(data[UNSEEN_SCENARIO], data[UNSEEN_DIRECTION]) > 0


def test_metrics_baselines_and_leads(session: Session) -> None:
    summary = session.summary(0)
    metrics, baselines = summary["metrics"], summary["baselines"]
    kinds = {"has_changed_f1", "twin_accuracy", "content_match", "parse_rate"}
    expected = {"exact_match", *(f"exact_match/{kind}" for kind in (UNSEEN_SCENARIO, UNSEEN_DIRECTION))}
    expected |= kinds | {f"{name}/{UNSEEN_DIRECTION}" for name in kinds}
    probable = {f"auroc_changed{suffix}" for suffix in ("", f"/{UNSEEN_DIRECTION}")}
    assert expected | probable <= metrics.keys()
    assert all(value.keys() >= METRIC for value in metrics.values())
    assert baselines.keys() == BASELINES
    assert all(expected <= found.keys() for found in baselines.values())
    assert metrics["twin_accuracy"]["n"] == summary["data"][UNSEEN_SCENARIO]
    assert metrics[f"twin_accuracy/{UNSEEN_DIRECTION}"]["n"] == summary["data"][UNSEEN_DIRECTION]
    for suffix in ("", f"/{UNSEEN_DIRECTION}"):
        for metric in LEADS:
            best = metrics[f"lead/{metric}{suffix}"]
            rivals = TABLES | {"untrained"}
            assert best["against"] in rivals
            for name in BASELINES:
                one = metrics[f"lead/{metric}{suffix}/{name}"]
                assert one["against"] == name
                difference = metrics[metric + suffix]["value"] - baselines[name][metric + suffix]["value"]
                assert one["value"] == pytest.approx(difference)


def test_who_reads_the_text_alone_is_at_chance_on_twins(session: Session) -> None:
    """Exactly, where every answer has a verdict; the text-only explainer gives twins the same answer at least."""
    baselines = session.summary(0)["baselines"]
    for name in ("cell_majority", "always_unchanged", "copy_original", "tfidf_nearest", "tfidf_probe"):
        for suffix in ("", f"/{UNSEEN_DIRECTION}"):
            assert baselines[name][f"twin_accuracy{suffix}"]["value"] == 0.5
    for name in ("text_only", "zero_vector"):
        assert baselines[name]["twin_accuracy"]["value"] <= 0.5
        said: dict[str, set[str | None]] = {}
        for row in session.rows(0):
            said.setdefault(row["twins"], set()).add(row["baselines"][name])
        assert all(len(answers) == 1 for answers in said.values()), name


def test_each_row_names_its_twins_and_holds_every_systems_answer(session: Session) -> None:
    rows = session.rows(0)
    assert len(rows) == session.summary(0)["n"]
    for row in rows:
        assert row.keys() == {
            "uid", "scenario_id", "question_type", "prompt", "expected", "predicted", "exact_match", "verdict_expected",
            "verdict_predicted", "p_changed", "parsed", "baselines", "twins",
        }  # fmt: skip
        assert row["baselines"].keys() == BASELINES
        assert row["exact_match"] == (row["predicted"] == row["expected"])
    pairs = Counter((row["question_type"], row["twins"], row["verdict_expected"]) for row in rows)
    assert set(pairs.values()) == {1}
    assert len(rows) == 2 * len({(kind, twins) for kind, twins, _ in pairs})


def test_the_tables_show_twins_and_unseen_directions(session: Session) -> None:
    printed = session.printed["fit"]
    assert TABLE in printed
    lines = [line.strip() for line in printed.splitlines()]
    assert UNSEEN_DIRECTION in lines
    heads = [line for line in lines if line.startswith("┃") and "system" in line]
    assert ["twins" in head for head in heads] == [True, False, True]
    for name in BASELINES:
        assert sum(line.startswith(f"│ {name} ") for line in lines) >= 3
    for metric in LEADS:
        assert any(line.startswith(f"lead/{metric}: ") for line in lines)
        assert any(line.startswith(f"lead/{metric}/{UNSEEN_DIRECTION}: ") for line in lines)


def test_validate_gives_every_number_of_fit_again(session: Session) -> None:
    first, again = session.summary(0), session.summary(1)
    for name in ("metrics", "baselines", "warnings", "data"):
        assert again[name] == first[name]
    assert session.rows(1) == session.rows(0)


def test_test_and_predict(session: Session) -> None:
    summary = session.summary(2)
    assert summary["split"] == "test"
    assert summary["metrics"] == session.summary(0)["metrics"], "the same file"
    predicted = {row["uid"]: row["predicted"] for row in session.rows(3)}
    known = {row["uid"]: row["predicted"] for row in session.rows(0) if row["question_type"] == UNSEEN_SCENARIO}
    assert predicted == known
    assert not (session.folder(3) / "summary.json").exists()


def test_the_notebooks_functions_read_the_run(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_run(session.folder(0))
    assert run.systems.keys() == {"explainer"} | BASELINES
    assert run.primary == UNSEEN_SCENARIO, "also where another type with verdicts comes first by uid"
    show_summary(run)
    shown = capsys.readouterr().out
    assert TABLE in shown
    assert UNSEEN_DIRECTION in shown
    items = select(run, question_type=run.primary)
    assert len(items) == session.summary(0)["data"][UNSEEN_SCENARIO]
    assert {item.prediction.twins for item in items} == {
        row["twins"] for row in session.rows(0) if row["question_type"] == UNSEEN_SCENARIO
    }
    page = side_by_side(run.items)
    assert all(f"<b>{row['uid']}</b>" in page for row in session.rows(0))
    title = calibration_figure(items).get_suptitle()
    assert title.startswith(f"{len(items)} items, calibration error ")
    figure = confusion_figure([item.prediction for item in run.items], run.primary)
    assert sum(int(text.get_text()) for text in figure.axes[0].texts) == len(items)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--model.slot_token", "<vec>"), "has no token '<vec>'"),
        (("--model.slot_token", "null"), "model.slot_token: is absent"),
        (("--data.directions", "nowhere"), "nowhere: holds no direction"),
        (("--data.train_path", "null"), "data.train_path: is absent while another path is given"),
        (("--data.limit", "0"), "data.limit: must be a whole number of at least 1, but is 0"),
        (("--data.validation_path", "nowhere.json"), "nowhere.json: does not exist"),
        (("--data.heldout", '["train.json"]'), "480 training records are in a held-out set"),
        (("--data.wording.user", '["{user_prompt}"]'), "holds the slot token 0 times"),
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


def test_as_a_user_runs_it(session: Session) -> None:
    """In a process of its own: exit code 2, no traceback."""
    records = json.loads((session.workspace.path / "train.json").read_text())
    records[3]["direction"] = "sideways"
    (session.workspace.path / "bad.json").write_text(json.dumps(records))
    bad = session.workspace.run("fit", "--config", str(session.workspace.config), "--data.train_path", "bad.json")
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
    assert "bad.json, record 3: direction 'sideways' is not among the vectors" in bad.stderr


def test_the_shipped_configuration_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constructed and not run: constructors are cheap."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(afintro.cli.ExplainerCLI, "_run_subcommand", lambda *_: None)
    cli = ExplainerCLI(["fit", "--config", str(ROOT / "configs" / "steering.yaml")])
    data = cli.datamodule
    assert isinstance(data, SteeringPrediction)
    assert data.paths == {"train": None, "validation": None, "test": None}
    assert cli.model.slot_token == "<|slot|>"
    assert cli.config["fit"]["text_only"] is True
    assert not list(tmp_path.iterdir())
