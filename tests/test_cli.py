"""The command line: what it leaves, what it refuses and how, and every YAML through it."""

import json
import os
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import afintro.cli
from afintro.cli import main
from afintro.cli_errors import explain
from afintro.data.files import write_json
from tests.conftest import Workspace, save_small_model, write_described_features, write_records
from tests.recomputed import assert_table_follows

ROOT = Path(__file__).parents[1]
METRIC = {"value", "ci_low", "ci_high", "n"}
# The evaluation after fit takes most of the time of a test of training.
UNTESTED = ("--trainer.limit_test_batches", "0")


@pytest.fixture(autouse=True)
def in_the_workspace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs in its own empty folder."""
    if "workspace" in request.fixturenames:
        folder = request.getfixturevalue("workspace").path
        monkeypatch.chdir(folder)
        monkeypatch.setenv("AFINTRO_CACHE", str(folder / "cache"))


def command(workspace: Workspace, name: str, *more: str) -> int:
    return main([name, "--config", str(workspace.config), *more])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The message of a refusal: exit code 2, at most two lines, no traceback."""
    error = [line for line in capsys.readouterr().err.splitlines() if "afintro: error" in line or "remedy:" in line]
    assert code == 2
    assert len(error) == 2, error
    assert error[0].startswith("afintro: error: ")
    assert error[1].startswith("  remedy: ")
    return "\n".join(error)


class StopsTheExplainer(EarlyStopping):
    """Stops the training of one base model after an epoch, and lets every other go on."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = str(pl_module.name)
        trainer.should_stop = trainer.should_stop or not name.endswith("slower")


@pytest.mark.usefixtures("no_readers")
def test_a_comparison_trains_by_its_own_stopping_rule(workspace: Workspace, tmp_path: Path) -> None:
    """A comparison that trains as long as the explainer took may be behind because it learns more slowly, and prove nothing."""
    slower = save_small_model(tmp_path / "slower", seed=7)
    bases = json.dumps({"other_bits": str(slower), "no_policy": str(workspace.model)})
    stops = ["--trainer.callbacks", "tests.test_cli.StopsTheExplainer", "--trainer.callbacks.monitor", "val/loss"]
    stops += ["--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"]
    stops += ["--trainer.callbacks.monitor", "val/exact_match", "--trainer.callbacks.mode", "max"]
    assert command(workspace, "fit", "--other_base", bases, "--trainer.max_epochs", "3", *stops) == 0
    run = workspace.runs()[0]
    epochs = {name: json.loads((run / name / "training.json").read_text())["epochs"] for name in json.loads(bases)}
    assert epochs == {"other_bits": 3, "no_policy": 1}
    assert not list(run.glob("*/checkpoints/*/*")), "a comparison leaves its adapter, not its checkpoints"
    found = json.loads((run / "summary.json").read_text())
    assert {"other_bits", "no_policy"} <= found["baselines"].keys()
    assert found["training_fit"].keys() == {"explainer", "other_bits", "no_policy"}
    fitting = {"other_bits", "no_policy"} - set(found["underfit"])
    assert {f"lead/exact_match/{name}" for name in fitting} <= found["metrics"].keys()


@pytest.mark.usefixtures("no_readers")
def test_a_comparison_keeps_its_best_checkpoint(workspace: Workspace, tmp_path: Path) -> None:
    """The highest loss counts as best here, which is that of the first epoch: later epochs must leave no trace.

    The explainer takes one epoch in both runs, because the comparison begins with the random state that it leaves.
    """
    slower = save_small_model(tmp_path / "slower", seed=7)
    best = ["--trainer.callbacks", "tests.test_cli.StopsTheExplainer", "--trainer.callbacks.monitor", "val/loss"]
    best += ["--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"]
    best += ["--trainer.callbacks.monitor", "val/loss", "--trainer.callbacks.mode", "max"]
    for epochs in ("1", "3"):
        more = ["--trainer.max_epochs", epochs, "--model.schedule", "constant", *UNTESTED, *best]
        assert command(workspace, "fit", "--other_base", str(slower), *more) == 0
    folders = [run / "other_base" for run in workspace.runs()]
    assert [json.loads((folder / "training.json").read_text())["epochs"] for folder in folders] == [1, 3]
    one, three = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert all(torch.equal(three[name], tensor) for name, tensor in one.items())


@pytest.mark.usefixtures("no_readers")
def test_an_underfit_comparison_is_named_and_leaves_the_lead(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_small_model(tmp_path / "other", seed=7)
    monkeypatch.setattr("afintro.explainer.comparisons.training_fit", lambda *_: 0.5)
    monkeypatch.setattr("afintro.callbacks.results.training_fit", lambda *_: 0.9)
    assert command(workspace, "fit", "--other_base", str(other)) == 0
    found = json.loads((workspace.runs()[0] / "summary.json").read_text())
    assert (found["training_fit"], found["underfit"]) == ({"explainer": 0.9, "other_base": 0.5}, ["other_base"])
    assert "other_base" in found["baselines"]
    leads = {name: value for name, value in found["metrics"].items() if name.startswith("lead/")}
    assert leads
    assert all(value["against"] != "other_base" for value in leads.values())
    assert any("other_base" in line and "underfit" in line for line in found["warnings"])
    solved = [line for line in found["warnings"] if "can be solved" in line]
    assert any("other_base" in line for line in solved), (
        "it does as well as the explainer here, although it is underfit"
    )


@pytest.mark.parametrize(
    "name", ["explainer", "text_only", "vector_only", "zero_shot", "from_scratch", "../up", "Other", ""]
)
def test_the_name_of_a_comparison_is_checked_before_any_training(
    name: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command(workspace, "fit", "--other_base", json.dumps({name: str(workspace.model)}))
    assert "--other_base" in refused(capsys, code)
    assert not workspace.runs() or not (workspace.runs()[0] / "checkpoints").exists()


def test_fit_validate_test_predict_leave_what_the_contract_says(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = save_small_model(tmp_path / "other", seed=7)
    assert command(workspace, "fit", "--other_base", str(other)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "summary: lightning_logs/context_ablation/version_0/summary.json"
    assert "Explainer beside its baselines" in "\n".join(printed)
    run = workspace.runs()[0]
    assert {path.name for path in run.iterdir()} >= {
        "summary.json",
        "predictions.jsonl",
        "config.yaml",
        "metrics.csv",
        "checkpoints",
    }
    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() == {
        "task", "split", "selected_on", "reported_on", "n", "seconds", "metrics", "baselines", "warnings", "truncated_answers",
        "conclusion", "training", "training_fit", "underfit", "model", "data", "versions", "git_commit",
    }  # fmt: skip
    assert (summary["task"], summary["split"], summary["n"]) == ("context_ablation", "test", 30)
    metrics = summary["metrics"]
    expected = {"exact_match", "has_changed_f1", "content_match", "parse_rate", "auroc_changed", "calibration_error"}
    expected |= {f"exact_match/{q}" for q in ("generative_explanation", "orig_match", "change_match")}
    expected |= {"chrf/orig_match", "chrf/change_match", "lead/exact_match", "lead/has_changed_f1"}
    assert expected <= metrics.keys()
    assert all(value.keys() >= METRIC for value in metrics.values())
    assert metrics["lead/exact_match"]["against"] in summary["baselines"]
    assert metrics["lead/exact_match"]["against"] not in ("zero_shot", "four_shot"), "they hold the organism's weights"
    assert summary["training_fit"].keys() == {"explainer", "other_base"}
    assert {name: record["epochs"] for name, record in summary["training"].items()} == {"explainer": 2, "other_base": 2}
    assert "shown" in summary["conclusion"].lower()
    assert summary["conclusion"].split()[-1] == " ".join(printed[:-1]).split()[-1], "the sentence comes last"
    assert summary["baselines"].keys() == {
        "majority", "always_unchanged", "copy_monitored", "tfidf_nearest", "tfidf_probe", "text_chars", "text_skipgrams",
        "from_scratch", "zero_shot", "four_shot", "other_base",
    }  # fmt: skip
    assert summary["model"]["base"] == str(workspace.model)
    assert summary["data"]["path"] == "test.json"
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 30
    assert rows[0].keys() == {
        "uid", "scenario_id", "question_type", "prompt", "expected", "predicted", "exact_match", "truncated", "verdict_expected",
        "verdict_predicted", "p_changed", "parsed", "baselines", "baselines_exact_match", "baselines_p_changed",
    }  # fmt: skip
    assert all(row["exact_match"] == (row["predicted"] == row["expected"]) for row in rows)
    assert summary["truncated_answers"] == sum(row["truncated"] for row in rows) / 30
    assert any("explainer's answers were cut" in w for w in summary["warnings"]) == (
        summary["truncated_answers"] > 0.05
    )
    assert_table_follows(summary, rows, "generative_explanation", ("generative_explanation",))

    events = EventAccumulator(str(run)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "val/loss",
        "train/learning_rate",
        "train/tokens_per_second",
        "has_changed_f1/tfidf_probe",
    } <= scalars
    assert events.Tags()["images"] == ["verdicts"]
    assert "predictions/text_summary" in events.Tags()["tensors"]

    assert command(workspace, "test", "--ckpt_path", "best") == 0
    again = json.loads((workspace.runs()[1] / "summary.json").read_text())
    assert again["metrics"] == metrics
    assert again["baselines"] == summary["baselines"], "the comparison is found again"
    assert (again["training"], again["conclusion"]) == (summary["training"], summary["conclusion"])
    assert command(workspace, "validate", "--ckpt_path", "best") == 0
    validated = json.loads((workspace.runs()[2] / "summary.json").read_text())
    reported = [
        [each[name] for name in ("split", "selected_on", "reported_on")] for each in (summary, again, validated)
    ]
    assert reported == [["test", "validation", "test"]] * 2 + [["validation"] * 3]
    chosen = [any("chosen on these items" in line for line in each["warnings"]) for each in (summary, validated)]
    assert chosen == [False, True]
    assert command(workspace, "predict", "--ckpt_path", "best") == 0
    predicted = [json.loads(line) for line in (workspace.runs()[3] / "predictions.jsonl").read_text().splitlines()]
    by_uid = {row["uid"]: row["predicted"] for row in rows}
    assert [row["predicted"] for row in predicted] == [by_uid[row["uid"]] for row in predicted]
    assert len(predicted) == 10
    assert "conclusion" not in validated, "its items chose the checkpoint"


@pytest.mark.usefixtures("no_readers")
def test_a_comparison_that_a_resumed_run_trains_is_found(workspace: Workspace, tmp_path: Path) -> None:
    """The best checkpoint may be of the run that was resumed from."""
    other = save_small_model(tmp_path / "other", seed=7)
    few = ["--data.limit", "3", "--data.question_weights", '{"generative_explanation": 1.0}']
    assert command(workspace, "fit", *few) == 0
    assert command(workspace, "fit", "--ckpt_path", "last", "--other_base", str(other), *few) == 0
    first, second = (json.loads((run / "summary.json").read_text()) for run in workspace.runs())
    assert second["model"]["checkpoint"] == first["model"]["checkpoint"]
    assert "other_base" in second["baselines"]
    assert second["training"].keys() == {"explainer", "other_base"}


@pytest.mark.usefixtures("no_readers")
def test_without_test_items_half_of_validation_is_reported(workspace: Workspace, tmp_path: Path) -> None:
    """The half chooses for the comparison too, which is asked the other half."""
    other = save_small_model(tmp_path / "other", seed=7)
    assert command(workspace, "fit", "--other_base", str(other), "--data.test_path", "null") == 0
    run = workspace.runs()[0]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["split"] == "test"
    assert (summary["selected_on"], summary["reported_on"]) == ("half of validation", "the other half of validation")
    assert (summary["n"], summary["data"]["n"], summary["data"]["path"]) == (15, 15, "validation.json")
    assert not any("chosen on these items" in line for line in summary["warnings"])
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert all("other_base" in row["baselines"] for row in rows)
    reported = {row["scenario_id"] for row in rows}
    assert len(reported) == 5
    assert command(workspace, "validate", "--ckpt_path", "best", "--data.test_path", "null") == 0
    whole = [json.loads(line) for line in (workspace.runs()[1] / "predictions.jsonl").read_text().splitlines()]
    assert len({row["scenario_id"] for row in whole}) == 10
    assert reported < {row["scenario_id"] for row in whole}


def test_a_task_with_vectors_from_fit_to_test(workspace: Workspace) -> None:
    """Controls, the comparison without vectors, and both injectors found again; categories and scores in each row."""
    write_described_features(workspace.path, layers=(3, 5))
    described = json.loads((workspace.path / "descriptions.json").read_text())
    held = [uid for uid in described if described[uid]["cluster_id"] == "5" or uid.endswith("7")]
    for split, uids in (("train", described.keys() - set(held)), ("validation", held[0::2]), ("test", held[1::2])):
        write_json(workspace.path / f"{split}.json", {uid: described[uid] for uid in sorted(uids)})
    config = ["--config", str(ROOT / "configs" / "feature_descriptions.yaml"), "--model.name", str(workspace.model)]
    config += ["--data.train_path", "train.json", "--data.features", '["L3.safetensors", "L5.safetensors"]']
    config += ["--data.validation_path", "validation.json", "--data.test_path", "test.json"]
    config += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.limit", "12"]
    assert main(["fit", *config]) == 0
    assert main(["test", *config, "--ckpt_path", "best"]) == 0
    folders = [workspace.path / "lightning_logs" / "feature_descriptions" / f"version_{i}" for i in (0, 1)]
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    assert second["metrics"] == first["metrics"]
    assert second["baselines"] == first["baselines"], "the comparison is found again, its injector included"
    scales = {f"selfie/{scale}" for scale in ("0.5", "1", "2", "4")}
    assert first["baselines"].keys() == {
        "reference", "majority", "nearest", "nearest_in_layer", "nearest_by_sign", "ridge_parts", "layer_tfidf",
        "zero_vector", "shuffled_vector", "negated_vector", "text_only", *scales,
    }  # fmt: skip
    assert first["baselines"]["reference"]["exact_match"]["value"] == 1.0
    assert {"judge/rouge_l", "judge/rouge_l/macro", "exact_match", "lead/judge/rouge_l/shuffled_vector"} <= set(
        first["metrics"]
    )
    assert first["model"]["vectors"]["width"] == 24
    assert (folders[0] / "text_only" / "injector.safetensors").is_file()
    row = json.loads((folders[1] / "predictions.jsonl").read_text().splitlines()[0])
    assert row["group"] in ("even", "odd")
    assert row["scores"].keys() == {"rouge_l", "chrf"}


def test_text_only_is_refused_for_a_task_without_vectors(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--text_only: needs vectors" in refused(capsys, command(workspace, "fit", "--text_only", "true"))
    assert "--vector_only: needs a text beside" in refused(capsys, command(workspace, "fit", "--vector_only", "true"))


@pytest.mark.usefixtures("no_readers")
def test_later_configs_and_dotted_overrides_win(workspace: Workspace) -> None:
    (workspace.path / "overlay.yaml").write_text("model: {lora: {r: 2}, learning_rate: 0.5}\n")
    overrides = (
        "--config",
        "overlay.yaml",
        "--model.learning_rate",
        "0.25",
        "--data.limit",
        "3",
        "--trainer.max_epochs",
        "1",
    )
    assert command(workspace, "fit", *overrides) == 0
    saved = (workspace.runs()[0] / "config.yaml").read_text()
    assert "learning_rate: 0.25" in saved
    assert "r: 2\n" in saved
    assert "alpha: 8" in saved


@pytest.mark.parametrize("form", [["--config", "wide.yaml"], ["--config=wide.yaml"]])
def test_a_configuration_in_utf_16_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    (workspace.path / "wide.yaml").write_text("trainer: {max_steps: 1}", encoding="utf-16")
    assert "wide.yaml: is not UTF-8" in refused(capsys, command(workspace, "fit", *form))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--model.nmae", "x"), "model.name"),
        (("--data.trian_path", "x"), "data.train_path"),
        (("--trainer.max_epoch", "3"), "trainer.max_epochs"),
        (("--modl.name", "x"), "model.name"),
        (("--model.lora.rr", "3"), "model.lora.r"),
        (("--model.injection.sit", "residual"), "model.injection.site"),
        (("--data.answer_from", "text"), "data.answer_form"),
        (("--data", "SteeringPrediction", "--data.directoins", "x"), "data.directions"),
        (("--config", "configs/introspection.yaml", "--data.styl", "vague"), "data.style"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], names: str
) -> None:
    message = refused(capsys, command(workspace, "fit", *arguments))
    assert arguments[-2].removeprefix("--") in message
    assert f"did you mean {names}?" in message


BAD_FILES = {
    "malformed JSON": ("[{", "line 1"),
    "empty": ("", "empty"),
    "no record": ("[]", "no record"),
    "no text": ('[{"system_prompt": "s"}]', "record 0"),
    "wrong type": (
        '[{"ablation_prompt": 3, "system_prompt": "s", "random_hint_prediction": "a", "zeroshot_prediction": "b"}]',
        "'ablation_prompt' is int, not str",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_files_are_refused(workspace: Workspace, capsys: pytest.CaptureFixture[str], case: str) -> None:
    content, expected = BAD_FILES[case]
    (workspace.path / "bad.json").write_text(content)
    message = refused(capsys, command(workspace, "fit", "--data.train_path", "bad.json"))
    assert "bad.json" in message
    assert expected in message
    assert not (workspace.path / "lightning_logs" / "context_ablation" / "version_0" / "checkpoints").exists()


def test_a_missing_file_is_refused(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.json: does not exist" in refused(
        capsys, command(workspace, "fit", "--data.train_path", "nowhere.json")
    )


def test_an_unknown_model_is_refused_offline(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "model 'no/such-model'" in refused(capsys, command(workspace, "fit", "--model.name", "no/such-model"))


def test_a_tokenizer_without_the_slot_token_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no token '<vec>'" in refused(capsys, command(workspace, "fit", "--model.slot_token", "<vec>"))


def test_a_prompt_longer_than_the_context_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short = save_small_model(tmp_path / "short", seed=0, max_position_embeddings=64)
    message = refused(capsys, command(workspace, "fit", "--model.name", str(short)))
    assert "the explainer's context is 64" in message
    assert "train item" in message


def test_a_held_out_sample_in_training_is_refused_before_the_model_loads(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("afintro.explainer.loading.load_model", loading)
    code = command(workspace, "fit", "--data.heldout", '["train.json"]')
    message = refused(capsys, code)
    assert "24 training records are in a held-out set" in message
    assert "train.json, record 0 matches train.json, record 0" in message


def test_a_full_disk_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("afintro.callbacks.preflight.shutil.disk_usage", lambda _: usage)
    assert "checkpoints need" in refused(capsys, command(workspace, "fit"))

    monkeypatch.undo()
    monkeypatch.chdir(workspace.path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "summary.json")

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", full)
    assert "summary.json: has no space left" in refused(capsys, command(workspace, "fit"))


@pytest.mark.usefixtures("no_readers")
def test_an_adapter_for_another_base_model_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(workspace, "fit", "--trainer.max_epochs", "1") == 0
    capsys.readouterr()
    other = save_small_model(tmp_path / "other", seed=1)
    message = refused(capsys, command(workspace, "validate", "--ckpt_path", "best", "--model.name", str(other)))
    assert "made for another model" in message
    assert str(workspace.model) in message
    assert str(other) in message


def test_checkpoints_that_are_not_there_are_refused(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run of context_ablation" in refused(capsys, command(workspace, "validate", "--ckpt_path", "best"))
    assert "x.ckpt: does not exist" in refused(capsys, command(workspace, "validate", "--ckpt_path", "x.ckpt"))
    assert "--ckpt_path" in refused(capsys, command(workspace, "validate"))


def test_a_loss_that_is_not_finite_stops_at_preflight(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "afintro.explainer.module.ExplainerModule.loss",
        lambda self, batch: self.answer_nll(batch)[0].sum() * float("nan"),
    )
    assert "have a loss of nan" in refused(capsys, command(workspace, "fit"))


def test_as_a_user_runs_it(workspace: Workspace) -> None:
    """In a process of its own: exit code, two lines, no traceback; and the traceback when it is asked for."""
    bad = workspace.run_as_a_user("fit", "--config", str(workspace.config), "--data.train_path", "nowhere.json")
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
    assert "nowhere.json" in bad.stderr
    shown = workspace.run(
        "fit", "--config", str(workspace.config), "--data.train_path", "nowhere.json", AFINTRO_TRACEBACK="1"
    )
    assert "Traceback" in shown.stderr


def test_the_explanations_of_parser_errors() -> None:
    assert explain("Parser key \"model.lora.r\":\n  Expected a <class 'int'>. Got value: x") == (
        "model.lora.r: 'x' is not accepted\n  remedy: give int"
    )
    assert explain("unrecognized arguments: --zzz 1").startswith("unknown setting 'zzz'\n  remedy: --help")


def test_gradient_accumulation_ends_where_the_large_batch_ends(workspace: Workspace) -> None:
    """Lightning's accumulation over batches of 4 takes the steps of batches of 8, to rounding."""
    from afintro.explainer.checkpoint import read_checkpoint, resolve_checkpoint

    exact = (
        "--model.dtype",
        "float64",
        "--trainer.precision",
        "64-true",
        "--model.lora.dropout",
        "0",
        "--trainer.max_epochs",
        "1",
        *UNTESTED,
    )
    assert command(workspace, "fit", *exact, "--data.batch_size", "8") == 0
    whole = read_checkpoint(resolve_checkpoint("last", afintro.cli.LOGS, "context_ablation"))
    assert command(workspace, "fit", *exact, "--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2") == 0
    parts = read_checkpoint(resolve_checkpoint("last", afintro.cli.LOGS, "context_ablation"))
    assert whole["global_step"] == parts["global_step"]
    for name, tensor in whole["state_dict"].items():
        assert (tensor - parts["state_dict"][name]).abs().max() < 1e-6, name


def test_an_epoch_of_rows_filled_to_a_budget_ends_where_one_large_batch_ends(workspace: Workspace) -> None:
    """Whatever row an example falls into, it weighs the same."""
    from afintro.explainer.checkpoint import read_checkpoint, resolve_checkpoint

    exact = (
        "--model.dtype", "float64", "--trainer.precision", "64-true", "--model.lora.dropout", "0", "--trainer.max_epochs", "2",
        *UNTESTED,
    )  # fmt: skip
    assert command(workspace, "fit", *exact, "--data.batch_size", "72") == 0
    whole = read_checkpoint(resolve_checkpoint("last", afintro.cli.LOGS, "context_ablation"))
    budget = ("--data.max_tokens", "700", "--trainer.accumulate_grad_batches")
    assert command(workspace, "fit", *exact, *budget, "1", "--trainer.max_epochs", "1") == 0
    rows = read_checkpoint(resolve_checkpoint("last", afintro.cli.LOGS, "context_ablation"))["global_step"]
    assert rows > 3
    assert command(workspace, "fit", *exact, *budget, str(rows)) == 0
    parts = read_checkpoint(resolve_checkpoint("last", afintro.cli.LOGS, "context_ablation"))
    assert whole["global_step"] == parts["global_step"] == 2
    for name, tensor in whole["state_dict"].items():
        assert (tensor - parts["state_dict"][name]).abs().max() < 1e-6, name


def test_an_example_longer_than_the_budget_is_refused_before_training(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, command(workspace, "fit", "--data.max_tokens", "40"))
    assert "a row holds data.max_tokens: 40" in said
    assert "train item" in said
    assert "set data.max_tokens to" in said


@pytest.mark.usefixtures("no_readers")
def test_held_out_action_drop_trains_on_the_rest(workspace: Workspace) -> None:
    write_records(workspace.path / "gold.json", 3, seed=3)
    code = command(
        workspace,
        "fit",
        "--data.heldout",
        '["gold.json"]',
        "--data.heldout_action",
        "drop",
        "--trainer.max_epochs",
        "1",
    )
    assert code == 0
    summary = json.loads((workspace.runs()[0] / "summary.json").read_text())
    assert "dropped by the contamination check" in " ".join(summary["warnings"])
