"""Configurations laid over each other: callbacks and loggers add up, and a real model leaves the toy's settings behind."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from afintro.callbacks import Results
from afintro.cli import ExplainerCLI
from afintro.cli_layers import real_layers, with_real_layers
from afintro.cli_trainer import loggers_of
from afintro.toys.embedded import directory_of, is_toy

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
KEPT = [("ModelCheckpoint", "val/selection"), ("EarlyStopping", "val/selection"), ("ModelCheckpoint", None)]
LR = "lightning.pytorch.callbacks.LearningRateMonitor"


class OwnStopping(EarlyStopping):
    """A user's own way to stop."""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands here are parsed and constructed, and not run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ExplainerCLI, "_run_subcommand", lambda *_: None)


def fit(*arguments: str, task: str = "context_ablation") -> ExplainerCLI:
    return ExplainerCLI(["fit", "--config", str(CONFIGS / f"{task}.yaml"), *arguments])


def overlay(trainer: dict[str, Any]) -> tuple[str, str]:
    Path("overlay.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    return "--config", "overlay.yaml"


def callbacks(cli: ExplainerCLI) -> list[tuple[str, str | None]]:
    """Class and metric of the callbacks that are configured, in their order."""
    configured = cli.config["fit"].trainer.callbacks or []
    return [(each.class_path.rpartition(".")[2], (each.get("init_args") or {}).get("monitor")) for each in configured]


def added(class_path: str, **init_args: object) -> list[dict[str, object]]:
    return [{"class_path": class_path, "init_args": init_args}]


@pytest.mark.slow
def test_callbacks_of_an_overlay_are_added_to_those_of_the_contract() -> None:
    cli = fit(*overlay({"callbacks": added(LR)}))
    assert callbacks(cli) == [*KEPT[:2], ("LearningRateMonitor", None), KEPT[2]]
    assert any(isinstance(callback, Results) for callback in cli.trainer.callbacks)
    first, last = cli.trainer.checkpoint_callbacks
    assert isinstance(first, ModelCheckpoint)
    assert isinstance(last, ModelCheckpoint)
    assert (first.monitor, last.monitor, last.filename) == ("val/selection", None, "last")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--trainer.callbacks+", LR), [*KEPT[:2], ("LearningRateMonitor", None), KEPT[2]]),
        ((f"--trainer.callbacks={LR}",), [*KEPT[:2], ("LearningRateMonitor", None), KEPT[2]]),
        (("--trainer.callbacks", f'[{{"class_path": "{LR}"}}]'), [*KEPT[:2], ("LearningRateMonitor", None), KEPT[2]]),
        (
            ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"),
            [KEPT[0], ("EarlyStopping", "val/loss"), KEPT[2]],
        ),
        (
            ("--trainer.callbacks+=tests.test_cli_layers.OwnStopping", "--trainer.callbacks.monitor", "val/loss"),
            [KEPT[0], ("OwnStopping", "val/loss"), KEPT[2]],
        ),
        (("--trainer.callbacks", "null"), []),
        (("--trainer.callbacks", "null", "--trainer.callbacks+", LR), [("LearningRateMonitor", None)]),
    ],
)
def test_callbacks_of_the_command_line_are_added_or_leave_out_all(
    arguments: tuple[str, ...], expected: list[tuple[str, str | None]]
) -> None:
    assert callbacks(fit(*arguments)) == expected


@pytest.mark.slow
def test_a_callback_takes_the_place_of_that_of_its_kind() -> None:
    """Checkpoints that a metric chooses are another kind than the last one; several of one overlay all stay."""
    checkpoint = "lightning.pytorch.callbacks.ModelCheckpoint"
    two = added(checkpoint, monitor="val/loss") + added(checkpoint, monitor="val/exact_match", mode="max")
    cli = fit(*overlay({"callbacks": two}))
    assert callbacks(cli) == [
        ("EarlyStopping", "val/selection"), ("ModelCheckpoint", "val/loss"), ("ModelCheckpoint", "val/exact_match"), KEPT[2],
    ]  # fmt: skip
    cli = fit(*overlay({"callbacks": added(checkpoint, filename="end")}))
    names = [
        callback.filename for callback in cli.trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)
    ]
    assert names == ["best-{epoch}-{step}", "end"]
    more = ("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor", "train/loss")
    assert callbacks(fit(*overlay({"callbacks": two}), *more)) == [
        ("EarlyStopping", "val/selection"), ("ModelCheckpoint", "train/loss"), KEPT[2],
    ]  # fmt: skip


@pytest.mark.slow
def test_an_overlay_without_callbacks_or_with_none_of_them() -> None:
    assert callbacks(fit(*overlay({"max_epochs": 1}))) == KEPT
    assert callbacks(fit(*overlay({"callbacks": None}))) == []
    Path("plus.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": added(LR)}}))
    assert callbacks(fit("--config", "plus.yaml")) == [*KEPT[:2], ("LearningRateMonitor", None), KEPT[2]]


@pytest.mark.slow
def test_early_stopping_waits_for_validation(tmp_path: Path) -> None:
    """Lightning looks at the end of every epoch, also where no validation ran."""
    cli = fit("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "train/loss", task="steering")
    stopping = {
        each.init_args.monitor: each.init_args.check_on_train_epoch_end
        for configured in (fit(), cli)
        for each in configured.config["fit"].trainer.callbacks
        if each.class_path.endswith("EarlyStopping")
    }
    assert stopping == {"val/selection": False, "train/loss": None}


def test_loggers_are_added_unless_one_has_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = loggers_of(None, tmp_path, "task")
    assert [type(logger) for logger in own] == [TensorBoardLogger, CSVLogger]
    assert [Path(str(logger.log_dir)) for logger in own] == [tmp_path / "task" / "version_0"] * 2  # type: ignore[attr-defined]
    service = DummyLogger()
    for given in (service, [service]):
        assert [type(logger) for logger in loggers_of(given, tmp_path, "task")] == [
            TensorBoardLogger,
            CSVLogger,
            DummyLogger,
        ]
    with caplog.at_level(logging.INFO, "afintro"):
        named = CSVLogger(tmp_path / "mine", name="n", version=3)
        assert loggers_of([service, named], tmp_path, "task") == [named, service]
    assert str(tmp_path / "mine" / "n" / "version_3") in caplog.text
    [silent] = loggers_of(False, tmp_path, "task")
    silent.log_metrics({"a": 1.0}, 0)
    silent.save()
    silent.finalize("done")
    assert not list(tmp_path.iterdir())
    assert Path(str(silent.log_dir)) == tmp_path / "task" / "version_0"  # type: ignore[attr-defined]


def settings(cli: ExplainerCLI) -> tuple[Any, ...]:
    found = cli.config["fit"]
    return found.other_base, found.model.lora.r, found.model.lora.alpha, found.model.learning_rate, found.model.schedule


TOY = ({"other_bits": "toy-other-bits", "no_policy": "toy-without-policy"}, 16, 32, 2e-3, "constant")


@pytest.mark.slow
def test_a_real_model_does_not_get_the_settings_of_the_toy(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "afintro"):
        assert settings(fit()) == TOY
        assert settings(fit("--model.name", directory_of("toy"))) == TOY, "the toy by its directory"
        assert "not a toy" not in caplog.text
        real = fit("--model.name", "some/model-7b")
    assert settings(real) == (None, 64, 64, 1e-4, "linear")
    assert real.config["fit"].model.lora.target_modules == "all-linear"
    [said] = [record.getMessage() for record in caplog.records if "not a toy" in record.getMessage()]
    for setting in ("some/model-7b", "other_base None", "model.learning_rate 0.0001", "model.lora.alpha 64"):
        assert setting in said


@pytest.mark.slow
def test_what_is_given_wins_over_the_settings_for_a_real_model() -> None:
    Path("mine.yaml").write_text("{model: {name: smollm2, lora: {r: 8}}, other_base: mine}")
    given = fit("--config", "mine.yaml", "--model.learning_rate", "2e-3")
    assert settings(given) == ("mine", 8, 64, 2e-3, "linear")
    seven = fit("--config", str(CONFIGS / "mistral_7b.yaml"))
    assert settings(seven) == (None, 128, 256, 5e-5, "linear")
    back = fit("--config", "mine.yaml", "--model.name", "toy")
    assert settings(back)[2:] == TOY[2:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "rate"), [("steering", 1e-4), ("feature_descriptions", 1e-4), ("introspection", 2e-4)]
)
def test_every_task_has_settings_for_a_real_model(task: str, rate: float) -> None:
    toy, real = (fit(*more, task=task).config["fit"] for more in ((), ("--model.name=smollm2",)))
    assert toy.model.learning_rate > 10 * rate == 10 * real.model.learning_rate
    if task != "introspection":  # whose adapter is that of the original study
        assert (real.model.lora.r, real.model.lora.alpha) == (64, 64)
        assert toy.data.init_args.wording is not None
        assert real.data.init_args.wording is None


def test_layers_lie_right_above_their_configurations() -> None:
    ablation, debug = str(CONFIGS / "context_ablation.yaml"), str(CONFIGS / "debug.yaml")
    layer = str(CONFIGS / "real" / "context_ablation.yaml")
    given = ["fit", f"--config={ablation}", "--config", debug, "-c", ablation, "--model.name", ablation]
    assert list(map(str, real_layers(given))) == [layer, layer]
    assert with_real_layers(given) == [
        "fit", f"--config={ablation}", "--config", layer, "--config", debug, "-c", ablation, "--config", layer,
        "--model.name", ablation,
    ]  # fmt: skip
    Path("context_ablation.yaml").write_text("a file of somebody's own")
    assert real_layers(["fit", "--config", "context_ablation.yaml"]) == []


def test_every_layer_belongs_to_a_configuration_and_changes_it() -> None:
    for layer in (CONFIGS / "real").glob("*.yaml"):
        below, above = (yaml.safe_load(path.read_text()) for path in (CONFIGS / layer.name, layer))
        assert above["model"]["learning_rate"] < below["model"]["learning_rate"] / 10


def test_which_models_are_toys(tmp_path: Path) -> None:
    def folder(name: str, file: str, content: dict[str, str]) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(content))
        return str(tmp_path / name)

    # Toys of a size of their own, e.g. the bases of a short study, and adapters on toys.
    small, short = folder("small", "toy.json", {}), folder("short", "study_base.json", {})
    adapter = folder("adapter", "adapter_config.json", {"base_model_name_or_path": small, "peft_type": "LORA"})
    named = ("toy", "toy-other-bits", "toy-without-policy", "study-base", "adapter::toy", directory_of("study-base"))
    for name in (*named, small, short, adapter):
        assert is_toy(name), name
    real = folder("real", "adapter_config.json", {"base_model_name_or_path": "org/model", "peft_type": "LORA"})
    for name in ("smollm2", "meta-llama/Llama-3.1-8B", "./toy", "toy::smollm2", "toys", real, f"{adapter}::smollm2"):
        assert not is_toy(name), name


@pytest.mark.slow
def test_the_mark_of_the_command_line_never_runs() -> None:
    for cli in (fit("--trainer.callbacks+", LR), fit()):
        assert all(type(callback).__name__ != "CommandLine" for callback in cli.trainer.callbacks)
        assert all(isinstance(callback, Callback) for callback in cli.trainer.callbacks)
