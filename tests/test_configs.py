"""Every configuration that is shipped goes through the command line, and those of before still do."""

import os
from pathlib import Path

import pytest
import torch
import yaml

import afintro.cli
from afintro.cli import ExplainerCLI, main, program_name
from afintro.cli_layers import with_shipped_configs
from afintro.evaluation.judges import ChrF, RougeL, Tfidf
from afintro.tasks.feature_descriptions.task import FeatureDescriptions
from afintro.tasks.steering.task import SteeringPrediction
from tests.conftest import Workspace, write_described_features, write_steering_records

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
VARIANTS = sorted((ROOT / "configs" / "introspection").glob("*.yaml"))
TASKS = [path for path in CONFIGS if "class_path: afintro.tasks" in path.read_text()]
DEBUG = ROOT / "configs" / "debug.yaml"
STACKS = [[path, DEBUG] for path in TASKS] + [[TASKS[0], path] for path in CONFIGS if path not in (*TASKS, DEBUG)]


@pytest.fixture(autouse=True)
def in_the_workspace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs in its own empty folder."""
    if "workspace" in request.fixturenames:
        folder = request.getfixturevalue("workspace").path
        monkeypatch.chdir(folder)
        monkeypatch.setenv("AFINTRO_CACHE", str(folder / "cache"))


@pytest.mark.usefixtures("no_readers")
@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: "+".join(path.stem for path in stack))
def test_every_yaml_goes_through_the_command_line(
    stack: list[Path],
    workspace: Workspace,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Parsed and instantiated as given, then fitted for a step on a small model and small data."""
    small = ["--model.name", str(workspace.model), "--model.revision", "null", "--other_base", "null"]
    if stack[0].stem == "mixture":
        small += small_mixture(workspace)
    elif stack[0].stem == "feature_descriptions":
        write_described_features(workspace.path)
        small += ["--data.train_path", "descriptions.json", "--data.features", '["L3.safetensors"]']
    else:
        small += [
            "--data.train_path",
            "train.json",
            "--data.validation_path",
            "validation.json",
            "--data.test_path",
            "null",
        ]
        if stack[0].stem == "steering":
            write_steering_records(workspace.path, (4, 3))
        else:
            small += ["--model.slot_token", "null"]
    small += ["--data.heldout", "null"]
    small += [
        "--trainer.max_steps",
        "1",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "1",
    ]
    small += ["--trainer.val_check_interval", "1", "--trainer.precision", "32-true", "--data.limit", "4"]
    small += ["--trainer.limit_val_batches", "1.0", "--trainer.strategy", "auto"]
    # Tracing alone takes a minute and a half here; lm/test_compiled.py does it.
    monkeypatch.setattr(torch, "compile", lambda layer, **_: layer)
    if stack[0].stem == "introspection":
        small = introspection(request, *small[small.index("--data.heldout") :])
    assert main(["fit", *(part for path in stack for part in ("--config", str(path))), *small]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("summary: ")


def small_mixture(workspace: Workspace) -> list[str]:
    """Write a few records of every task of the mixture; the settings that name them."""
    write_described_features(workspace.path)
    steered = workspace.path / "steered"
    write_steering_records(steered, (4, 3))
    paths = {
        "context_ablation": {"train_path": "train.json", "validation_path": "validation.json"},
        "feature_descriptions": {"train_path": "descriptions.json", "features": '["L3.safetensors"]'},
        "steering": {"train_path": "steered/train.json", "validation_path": "steered/validation.json"},
    }
    return [
        word
        for name, settings in paths.items()
        for setting, value in settings.items()
        for word in (f"--data.tasks.{name}.{setting}", value)
    ]


def introspection(request: pytest.FixtureRequest, *more: str) -> list[str]:
    """Settings that make a run of the introspection task small."""
    model = str(request.getfixturevalue("study_model"))
    return ["--model.name", model, "--data.vector_count", "8", "--data.longest_context", "300", *more]


def test_every_variant_of_the_study_trains(workspace: Workspace, request: pytest.FixtureRequest) -> None:
    """All of the design, by name, and those of both polarities; each for a step."""
    pairs = ("red_blue", "alpha_beta", "up_down", "circle_square")
    names = {
        "original_v3", "r1_minimal", "vague_prompt", "food_control", "flipped_labels", "random_labels", "random_labels_v2",
        "no_steer", "deny_steering", "single_layer", "concept_vectors", "inverse_inference", "concept_discrimination",
        "neutral_red_blue", "neutral_foo_bar", *(f"nonbinary_{pair}" for pair in pairs), "original_5epoch", "original_10epoch",
        *(f"balanced_{name}" for name in ("v3", "5epoch", "vague", "no_steer", "random_labels")),
    }  # fmt: skip
    assert {path.stem for path in VARIANTS} == names
    assert len(names) == 26
    # Steps alone: evaluation is the same for all, and takes most of the time.
    small = introspection(request, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.limit", "4")
    small += [
        "--trainer.enable_checkpointing",
        "false",
        "--trainer.callbacks",
        "null",
        "--trainer.limit_val_batches",
        "0",
        "--trainer.limit_test_batches",
        "0",
    ]
    base = str(ROOT / "configs" / "introspection.yaml")
    for path in VARIANTS:
        assert main(["fit", "--config", base, "--config", str(path), *small]) == 0, path.stem
    folder = workspace.path / "lightning_logs" / "introspection"
    assert len(list(folder.glob("version_*/config.yaml"))) == 26


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a call for help prints."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_settings_of_the_task_that_is_configured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/afintro"])
    steering = shown(capsys, "fit", "--config", "configs/steering.yaml", "--help")
    assert steering.startswith("usage: afintro ")
    for setting in ("--model.lora.r", "--trainer.max_epochs", "--data.train_path", "--data.directions"):
        assert setting in steering
    assert "--data.style" not in steering, "that is a setting of another task"
    assert program_name() == "afintro"
    monkeypatch.setattr("sys.argv", ["/somewhere/afintro/__main__.py"])
    anything = shown(capsys, "fit", "--help")
    assert anything.startswith("usage: python -m afintro ")
    assert "--data.directions" in anything
    assert "--data.style" in anything
    assert "--data.answer_form" in shown(capsys, "fit", "--data.help", "ContextAblation")


def test_configs_means_the_packaged_file_where_there_is_no_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = str(ROOT / "configs" / "steering.yaml")
    given = [
        "fit",
        "--config",
        "configs/steering.yaml",
        "--config=configs/steering.yaml",
        "--config",
        "configs/no.yaml",
    ]
    resolved = ["fit", "--config", packaged, f"--config={packaged}", "--config", "configs/no.yaml"]
    assert with_shipped_configs(given) == resolved
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "steering.yaml").write_text("mine")
    assert with_shipped_configs(given) == given


def constructed(*arguments: str) -> FeatureDescriptions:
    """The data module of a command that is parsed and constructed, and not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(afintro.cli.ExplainerCLI, "_run_subcommand", lambda *_: None)
        data = ExplainerCLI(["fit", *arguments]).datamodule
    assert isinstance(data, FeatureDescriptions)
    return data


@pytest.mark.slow
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


def test_the_shipped_configuration_of_feature_descriptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constructed and not run: constructors are cheap."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(afintro.cli.ExplainerCLI, "_run_subcommand", lambda *_: None)
    cli = ExplainerCLI(["fit", "--config", str(ROOT / "configs" / "feature_descriptions.yaml")])
    data = cli.datamodule
    assert isinstance(data, FeatureDescriptions)
    assert [type(judge) for judge in data.judges] == [RougeL, ChrF]
    assert isinstance(data.scorer, Tfidf)
    assert data.paths == {"train": None, "validation": None, "test": None}
    assert (cli.model.slot_token, cli.model.settings.injection.projection) == ("<|slot|>", True)
    assert cli.config["fit"]["text_only"] is True
    assert not os.listdir(tmp_path)


def test_the_shipped_configuration_of_steering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constructed and not run: constructors are cheap."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(afintro.cli.ExplainerCLI, "_run_subcommand", lambda *_: None)
    cli = ExplainerCLI(["fit", "--config", str(ROOT / "configs" / "steering.yaml")])
    data = cli.datamodule
    assert isinstance(data, SteeringPrediction)
    assert data.paths == {"train": None, "validation": None, "test": None}
    assert cli.model.slot_token == "<|slot|>"
    assert cli.config["fit"]["text_only"] is cli.config["fit"]["vector_only"] is True
    assert not list(tmp_path.iterdir())


def test_names_of_the_first_layout_still_import() -> None:
    """They stand in saved configurations and exported model cards."""
    from afintro.explainer.sharding import Sharded
    from afintro.organisms.embedded import resolve
    from afintro.sharding import Sharded as of_before
    from afintro.toys.embedded import ensure_built

    assert of_before is Sharded
    assert resolve is ensure_built


@pytest.mark.parametrize("task", ["context_ablation", "feature_descriptions", "introspection", "steering"])
def test_class_paths_of_configurations_name_the_tasks_folder(task: str) -> None:
    """``afintro.tasks.<task>.<class>``: the path of saved configurations, whatever file the class is in."""
    path = yaml.safe_load((ROOT / "configs" / f"{task}.yaml").read_text())["data"]["class_path"]
    assert path.rpartition(".")[0] == f"afintro.tasks.{task}"
