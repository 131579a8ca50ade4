"""The tasks with vectors through the command line: from fit to predict on small data, and the contract of what is left."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from afintro.cli import main
from afintro.evaluation.inspect import calibration_figure, load_run, select, show_summary, side_by_side
from afintro.evaluation.report import confusion_figure
from afintro.explain.command import main as explain
from afintro.tasks.steering.task import UNSEEN_DIRECTION, UNSEEN_SCENARIO
from tests.conftest import TRAINER, Workspace, write_steering_records
from tests.recomputed import assert_table_follows
from tests.tasks.feature_descriptions.test_task import write_small_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
METRIC = {"value", "ci_low", "ci_high", "n"}
SELECTION = {"selected_on", "reported_on", "training", "training_fit", "underfit"}
SUMMARY = {
    "task", "split", "n", "seconds", "metrics", "baselines", "warnings", "truncated_answers", "model", "data", "versions",
    "git_commit",
}  # fmt: skip
ROW = {
    "uid", "scenario_id", "question_type", "prompt", "expected", "predicted", "exact_match", "truncated", "verdict_expected",
    "verdict_predicted", "p_changed", "parsed", "baselines", "baselines_exact_match", "baselines_p_changed",
}  # fmt: skip
FILES = {"summary.json", "predictions.jsonl", "config.yaml", "metrics.csv", "checkpoints", "text_only"}
TABLES = {
    "cell_majority", "direction_majority", "always_unchanged", "copy_original", "vector_probe", "nearest_vector",
    "direction_x_text", "ridge", "boosting", "tfidf_nearest", "tfidf_probe", "text_chars", "text_skipgrams", "from_scratch",
}  # fmt: skip
READERS = ("tfidf_nearest", "tfidf_probe", "text_chars", "text_skipgrams", "from_scratch")
SELFIE = {f"selfie/{scale}" for scale in ("0.5", "1", "2", "4")}
FEATURE_RIVALS = {"majority", "nearest", "nearest_in_layer", "nearest_by_sign", "ridge_parts", "layer_tfidf"}
BASELINES = {
    "steering": TABLES | {"zero_vector", "shuffled_vector", "shuffled_prompt", "untrained", "text_only", "vector_only"},
    "feature_descriptions": SELFIE
    | FEATURE_RIVALS
    | {"reference", "zero_vector", "shuffled_vector", "negated_vector", "text_only"},
}
LEADS = ("has_changed_f1", "twin_accuracy", "content_match")
TABLE = "Explainer beside its baselines"
PROCESS = """
import sys
from afintro.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Session:
    """A folder in which commands of a task were run one after the other, with what each printed."""

    task: str
    workspace: Workspace
    printed: dict[str, str]

    def folder(self, number: int) -> Path:
        return self.workspace.path / "lightning_logs" / self.task / f"version_{number}"

    def summary(self, number: int) -> dict[str, Any]:
        return json.loads((self.folder(number) / "summary.json").read_text())

    def rows(self, number: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder(number) / "predictions.jsonl").read_text().splitlines()]

    def losses(self, number: int) -> list[float]:
        with open(self.folder(number) / "metrics.csv", newline="") as file:
            return [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]


def command(*arguments: str) -> str:
    """What a command printed; it must have ended well."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments) == 0
    return out.getvalue()


@contextlib.contextmanager
def working_in(path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("AFINTRO_CACHE", str(path / "cache"))
        yield


@contextlib.contextmanager
def with_features(path: Path, model: Path, width: int, **settings: str) -> Iterator[Workspace]:
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
  max_epochs: 2
"""
    )
    with working_in(path):
        yield Workspace(path, config, model)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Session]:
    """fit in a process of its own, as a user runs it; the rest here, which saves their start."""
    with with_features(tmp_path_factory.mktemp("session"), small_model, 32) as workspace:
        config = ("--config", str(workspace.config))
        fitted = subprocess.run(
            [sys.executable, "-c", PROCESS, "fit", *config], cwd=workspace.path, check=False, capture_output=True,
            text=True, timeout=300, env=workspace.environment(PYTHONHASHSEED="3"),
        )  # fmt: skip
        assert fitted.returncode == 0, fitted.stderr[-3000:]
        printed = {"fit": fitted.stdout}
        for name in ("validate", "test", "predict"):
            printed[name] = command(name, *config, "--ckpt_path", "best")
        printed["resume"] = command("fit", *config, "--ckpt_path", "last", "--trainer.max_epochs", "3")
        yield Session("feature_descriptions", workspace, printed)


@pytest.fixture(scope="module")
def steering(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Session]:
    """Vectors of another width than the model, and the comparison that does not see them."""
    path = tmp_path_factory.mktemp("steering")
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
  max_epochs: 1
"""
    )
    with working_in(path):
        given = ("--config", str(config), "--text_only", "true", "--vector_only", "true")
        printed = {"fit": command("fit", *given)}
        for name in ("validate", "predict"):
            printed[name] = command(name, *given, "--ckpt_path", "best")
        yield Session("steering", Workspace(path, config, small_model), printed)


@pytest.fixture(params=["feature_descriptions", "steering"])
def session(request: pytest.FixtureRequest) -> Session:
    """The session of each task in turn."""
    fixture = {"feature_descriptions": "features", "steering": "steering"}[request.param]
    found: Session = request.getfixturevalue(fixture)
    return found


def test_fit_leaves_what_the_contract_says(session: Session) -> None:
    summary, rows = session.summary(0), session.rows(0)
    described = session.task == "feature_descriptions"
    assert summary.keys() == SUMMARY | SELECTION | (
        {"categories", "judges", "near_duplicate_vectors", "groups"} if described else {"directions", "conclusion"}
    )
    assert (summary["task"], summary["split"], summary["n"]) == (session.task, "test", len(rows))
    if not described:
        assert " ".join(summary["conclusion"].split()) in " ".join(session.printed["fit"].split())
    assert session.printed["fit"].splitlines()[-1] == f"summary: lightning_logs/{session.task}/version_0/summary.json"
    assert TABLE in session.printed["fit"]
    assert {path.name for path in session.folder(0).iterdir()} >= FILES
    assert summary["model"]["slot_token"] == "<|slot|>"
    assert summary["baselines"].keys() == BASELINES[session.task]
    assert all(value.keys() >= METRIC for value in summary["metrics"].values())
    for row in rows:
        assert row.keys() == ROW | {"group"} | ({"scores", "baselines_scores", "category"} if described else {"twins"})
        assert row["baselines"].keys() == BASELINES[session.task]
        assert row["exact_match"] == (row["predicted"] == row["expected"])


def test_a_reader_recomputes_the_table(session: Session) -> None:
    if session.task == "steering":
        assert_table_follows(session.summary(0), session.rows(0), UNSEEN_SCENARIO, (UNSEEN_SCENARIO, UNSEEN_DIRECTION))
    else:
        assert_table_follows(session.summary(0), session.rows(0), "unseen_cluster")


def test_validate_gives_every_number_of_fit_again(session: Session) -> None:
    """The test file is the validation file here, so that only the warning about the choice is new."""
    first, again = session.summary(0), session.summary(1)
    for name in first.keys() & {"metrics", "baselines", "judges", "categories"}:
        assert again[name] == first[name], name
    of_validation = ("chosen on these items", "nearly equal", "in the training file")
    lines = [
        [line for line in each["warnings"] if not any(part in line for part in of_validation)]
        for each in (first, again)
    ]
    assert lines[0] == lines[1]
    assert ["chosen on these items" in str(each["warnings"]) for each in (first, again)] == [False, True]
    assert session.rows(1) == session.rows(0)
    assert session.losses(1) == [pytest.approx(min(session.losses(0)), rel=1e-5)]


def test_predict_writes_the_answers_of_the_headline_question(session: Session) -> None:
    """The test file is the validation file here, so the answers are those of fit; where fit cut an answer that is longer than
    any expected answer, predict, which looks at no expected answer, goes on.
    """
    number = 3 if session.task == "feature_descriptions" else 2
    headline = "unseen_cluster" if session.task == "feature_descriptions" else UNSEEN_SCENARIO
    predicted = {row["uid"]: row["predicted"] for row in session.rows(number)}
    by_fit = {row["uid"]: row for row in session.rows(0) if row["question_type"] == headline}
    assert predicted.keys() == by_fit.keys()
    for uid, row in by_fit.items():
        begun = row["predicted"].rstrip("\N{REPLACEMENT CHARACTER}")
        assert predicted[uid].startswith(begun) if row["truncated"] else predicted[uid] == row["predicted"]
    assert not (session.folder(number) / "summary.json").exists()


def test_explain_without_ground_truth_answers_as_predict_does(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file without labels and outputs gives the answers of ``predict``, and those of a vector of zeros beside them."""
    described = session.task == "feature_descriptions"
    monkeypatch.chdir(session.workspace.path)  # the configuration names its files relative to its folder
    given = json.loads((session.workspace.path / ("held.json" if described else "validation.json")).read_text())
    if described:
        bare: Any = [dict(zip(("layer", "feature"), map(int, name.split("/")), strict=True)) for name in given]
    else:
        truth = ("output", "behavior", "changed", "coherent", "truncated")
        bare = [
            {name: value for name, value in row.items() if not any(word in name for word in truth)} for row in given
        ]
    (session.workspace.path / "bare.json").write_text(json.dumps(bare))
    run = session.folder(0)
    arguments = ["--config", str(session.workspace.config), "--ckpt_path", str(run), "--input", "bare.json"]
    assert explain([*arguments, "--output", "answers.jsonl"]) == 0
    lines = (session.workspace.path / "answers.jsonl").read_text().splitlines()
    answers = {row["uid"]: row for row in map(json.loads, lines)}
    predicted = session.rows(3 if described else 2)
    assert len(answers) == len(bare)
    assert predicted
    for row in predicted:
        assert answers[row["uid"]]["answer"] == row["predicted"]
        assert answers[row["uid"]]["p_changed"] == pytest.approx(row["p_changed"], abs=2e-6)
        assert answers[row["uid"]]["answer_zero_vector"] is not None
    zeros = session.rows(0)[0]["baselines"]["zero_vector"]
    assert answers[session.rows(0)[0]["uid"]]["answer_zero_vector"].startswith(
        zeros.rstrip("\N{REPLACEMENT CHARACTER}")
    )


def test_a_run_of_feature_descriptions(features: Session) -> None:
    """Test is validation here; a run goes on from the last checkpoint; categories, judges and widths are written down."""
    summary = features.summary(0)
    assert (summary["n"], summary["data"]["path"], summary["model"]["vectors"]["width"]) == (10, "held.json", 32)
    assert [source["layer"] for source in summary["data"]["features"]] == ["1", "4"]
    assert sum(summary["categories"].values()) == 10
    assert (summary["judges"]["first"], summary["judges"]["second"]) == ("rouge_l", "chrf")
    assert (features.summary(2)["split"], features.summary(2)["metrics"]) == ("test", summary["metrics"])
    assert len(features.losses(4)) == 1, "one epoch more"
    rows = features.rows(0)
    for row in rows:
        assert row["scores"].keys() == {"rouge_l", "chrf", "functional"}
        assert row["baselines"]["reference"] == row["expected"]
        assert row["group"] in summary["categories"]
    unseen = [row["scores"]["rouge_l"] for row in rows if row["question_type"] == "unseen_cluster"]
    assert summary["metrics"]["judge/rouge_l"]["value"] == pytest.approx(sum(unseen) / 5)


def test_metrics_and_leads_of_feature_descriptions(features: Session) -> None:
    summary = features.summary(0)
    metrics, baselines = summary["metrics"], summary["baselines"]
    names = {"exact_match", "functional_auroc", "judge/rouge_l", "judge/chrf"}
    kinds = names | {f"{name}/unseen_feature" for name in names} | {f"judge/{j}/macro" for j in ("rouge_l", "chrf")}
    assert kinds <= metrics.keys()
    assert metrics["judge/rouge_l"]["n"] == metrics["judge/rouge_l/unseen_feature"]["n"] == 5
    assert metrics["judge/rouge_l/macro"]["n"] == 10
    assert all(kinds <= found.keys() for found in baselines.values())
    assert {baselines["reference"][name]["value"] for name in ("exact_match", "judge/rouge_l", "judge/chrf/macro")} == {
        1
    }
    rivals = FEATURE_RIVALS | SELFIE | {"text_only"}
    for metric in ("judge/rouge_l", "judge/rouge_l/unseen_feature", "functional_auroc"):
        best = metrics[f"lead/{metric}"]
        assert best["against"] in rivals
        highest = max(baselines[name][metric]["value"] for name in rivals)
        assert best["value"] == pytest.approx(metrics[metric]["value"] - highest)
        for name in BASELINES["feature_descriptions"]:
            one = metrics[f"lead/{metric}/{name}"]
            assert one["against"] == name
            assert one["value"] == pytest.approx(metrics[metric]["value"] - baselines[name][metric]["value"])


def test_vectors_of_another_width_than_the_model(tmp_path: Path, small_model: Path) -> None:
    """The learnt projection is saved and found again: other weights would give another loss and other answers."""
    with with_features(tmp_path, small_model, 20, text_only="false") as workspace:
        config = ("--config", str(workspace.config))
        command("fit", *config)
        command("validate", *config, "--ckpt_path", "best")
        found = Session("feature_descriptions", workspace, {})
        assert found.summary(0)["model"]["vectors"]["width"] == 20
        assert found.rows(1) == found.rows(0)
        assert found.losses(1) == [pytest.approx(min(found.losses(0)), rel=1e-5)]
        assert "text_only" not in found.summary(0)["baselines"]
        answers = [(row["predicted"], row["baselines"]["zero_vector"]) for row in found.rows(0)]
        assert any(own != zero_vectors for own, zero_vectors in answers), (
            "the answers depend on the vectors, or this says nothing"
        )


def test_metrics_and_leads_of_steering(steering: Session) -> None:
    summary = steering.summary(0)
    metrics, baselines = summary["metrics"], summary["baselines"]
    kinds = {"has_changed_f1", "twin_accuracy", "content_match", "parse_rate"}
    expected = {"exact_match", *(f"exact_match/{kind}" for kind in (UNSEEN_SCENARIO, UNSEEN_DIRECTION))}
    expected |= kinds | {f"{name}/{UNSEEN_DIRECTION}" for name in kinds}
    probable = {f"auroc_changed{suffix}" for suffix in ("", f"/{UNSEEN_DIRECTION}")}
    assert expected | probable <= metrics.keys()
    assert all(expected <= found.keys() for found in baselines.values())
    assert metrics["twin_accuracy"]["n"] == summary["data"][UNSEEN_SCENARIO]
    assert metrics[f"twin_accuracy/{UNSEEN_DIRECTION}"]["n"] == summary["data"][UNSEEN_DIRECTION]
    for suffix in ("", f"/{UNSEEN_DIRECTION}"):
        for metric in LEADS:
            best = metrics[f"lead/{metric}{suffix}"]
            rivals = TABLES | {"untrained", "text_only", "vector_only"}
            assert best["against"] in rivals
            for name in BASELINES["steering"]:
                one = metrics[f"lead/{metric}{suffix}/{name}"]
                assert one["against"] == name
                difference = metrics[metric + suffix]["value"] - baselines[name][metric + suffix]["value"]
                assert one["value"] == pytest.approx(difference)


def test_who_reads_the_text_alone_is_at_chance_on_twins(steering: Session) -> None:
    """Exactly, where every answer has a verdict; the text-only explainer gives twins the same answer at least."""
    baselines = steering.summary(0)["baselines"]
    for name in ("cell_majority", "always_unchanged", "copy_original", *READERS):
        for suffix in ("", f"/{UNSEEN_DIRECTION}"):
            assert baselines[name][f"twin_accuracy{suffix}"]["value"] == 0.5
    for name in ("text_only", "zero_vector"):
        assert baselines[name]["twin_accuracy"]["value"] <= 0.5
        said: dict[str, set[str | None]] = {}
        for row in steering.rows(0):
            said.setdefault(row["twins"], set()).add(row["baselines"][name])
        assert all(len(answers) == 1 for answers in said.values()), name


def test_intervals_of_steering_are_over_directions_too(steering: Session) -> None:
    """Whoever reads the text is right about one of each pair: over scenarios alone that would never vary."""
    summary = steering.summary(0)
    found = summary["baselines"]["always_unchanged"]["twin_accuracy"]
    assert found["ci_high"] - found["ci_low"] > 0.05
    assert any("fewer than 10 scenarios (or other clusters" in warning for warning in summary["warnings"])
    assert sum(row["n"] for row in summary["directions"].values()) == len(steering.rows(0))
    assert "direction" in summary["conclusion"]


def test_steering_asks_about_twins_and_unseen_directions(steering: Session) -> None:
    data, rows = steering.summary(0)["data"], steering.rows(0)
    assert (data["path"], steering.summary(0)["model"]["vectors"]["width"]) == ("validation.json", 24)
    assert len(data["unseen_directions"]) == 4
    assert data[UNSEEN_SCENARIO] + data[UNSEEN_DIRECTION] == data["n"] == len(rows)
    assert min(data[UNSEEN_SCENARIO], data[UNSEEN_DIRECTION]) > 0
    pairs = Counter((row["question_type"], row["twins"], row["verdict_expected"]) for row in rows)
    assert set(pairs.values()) == {1}
    assert len(rows) == 2 * len({(kind, twins) for kind, twins, _ in pairs})


def test_the_notebooks_functions_read_a_run(steering: Session, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_run(steering.folder(0))
    assert run.systems.keys() == {"explainer"} | BASELINES["steering"]
    assert run.primary == UNSEEN_SCENARIO, "also where another type with verdicts comes first by uid"
    show_summary(run)
    shown = capsys.readouterr().out
    assert TABLE in shown
    assert UNSEEN_DIRECTION in shown
    items = select(run, question_type=run.primary)
    assert len(items) == steering.summary(0)["data"][UNSEEN_SCENARIO]
    assert {item.prediction.twins for item in items} == {
        row["twins"] for row in steering.rows(0) if row["question_type"] == UNSEEN_SCENARIO
    }
    page = side_by_side(run.items)
    assert all(f"<b>{row['uid']}</b>" in page for row in steering.rows(0))
    title = calibration_figure(items).get_suptitle()
    assert title.startswith(f"{len(items)} items, calibration error ")
    figure = confusion_figure([item.prediction for item in run.items], run.primary)
    assert sum(int(text.get_text()) for text in figure.axes[0].texts) == len(items)


REFUSED = [
    ("features", ("--model.slot_token", "<vec>"), "'<vec>'"),
    ("features", ("--model.slot_token", "null"), "model.slot_token"),
    ("features", ("--data.features", "null"), "data.features"),  # refused by the constructor
    ("features", ("--data.limit", "0"), "data.limit"),
    ("features", ("--data.features", '["L4.safetensors"]'), "layer 1"),
    ("features", ("--data.validation_path", "nowhere.json"), "nowhere.json"),
    ("steering", ("--data.directions", "nowhere"), "nowhere"),
    ("steering", ("--data.train_path", "null"), "data.train_path"),
    ("steering", ("--data.heldout", '["train.json"]'), "480 training records"),
    ("steering", ("--data.wording.user", '["{user_prompt}"]'), "slot token"),
    ("steering", ("--data.train_path", "bad.json"), "bad.json, record 3"),
]


@pytest.mark.parametrize(("task", "arguments", "what"), REFUSED)
def test_what_is_refused_takes_two_lines(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    task: str, arguments: tuple[str, ...], what: str,
) -> None:  # fmt: skip
    session: Session = request.getfixturevalue(task)
    monkeypatch.chdir(session.workspace.path)
    if "bad.json" in arguments:
        records = json.loads(Path("train.json").read_text())
        records[3]["direction"] = "sideways"
        Path("bad.json").write_text(json.dumps(records))
    assert main(["fit", "--config", str(session.workspace.config), *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "afintro: error" in line or "remedy:" in line]
    assert len(error) == 2
    assert what in error[0]
    assert error[1].startswith("  remedy: ")
