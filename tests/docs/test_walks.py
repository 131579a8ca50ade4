"""The walks of README and tutorial run on the toy from their first to their last command, with small sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT, Command, block_commands

README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
# What stands for a reader's own files and models; the tutorial makes the files.
OWN = {
    "SAMPLES.json": "data/samples.json", "ACTIVATIONS.json": "data/activations.json", "MODEL": "toy",
    "SUMMARIES.json": "data/summaries.json", "ASSIGNMENTS.json": "data/assignments.json", "TOKEN": "'<|slot|>'",
}  # fmt: skip
SMALL = {
    "python -m afintro ": "--config configs/debug.yaml",
    "python scripts/generate_af_context_ablation.py": "--limit 60 --holdout 20 --control_samples 4 --max_new_tokens 32",
    "python scripts/generate_af_steering_data.py": "--limit 60 --holdout 20 --control_samples 4 --max_new_tokens 32",
    "python scripts/compute_af_direction.py": "--limit 60",
}
# make demo trains for minutes and make test is what runs this; the environment is that of the test.
LEFT_OUT = ("make ", ". .venv/bin/activate")


def run(command: Command, folder: Path, study_model: Path) -> None:
    """Run a command in a shell, with the small sizes; it must end well."""
    text = command.shell
    for name, value in OWN.items():
        text = text.replace(name, value)
    for program, sizes in SMALL.items():
        if text.startswith(program):
            text = f"{text} {sizes}"
    if "configs/introspection.yaml" in text:  # the study's base takes five minutes to train
        text = f"{text} --model.name {study_model}"
    environment = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"{command.page}: {text}\n{ended.stdout[-1500:]}\n{ended.stderr[-1500:]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, study_model: Path) -> Path:
    """A folder like a checkout, with the files that a reader would bring."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    (folder / "data").mkdir()
    for command in block_commands(TUTORIAL):
        if command.script is not None:
            run(command, folder, study_model)
    return folder


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [TUTORIAL, README], ids=lambda page: page.stem)
def test_every_walk_ends_well(page: Path, folder: Path, study_model: Path) -> None:
    walked = [command for command in block_commands(page) if not command.text.startswith(LEFT_OUT)]
    assert len(walked) > 10
    for command in walked:
        run(command, folder, study_model)
    tasks = {"context_ablation", "feature_descriptions", "steering"}
    assert tasks <= {summary.parents[1].name for summary in (folder / "lightning_logs").glob("*/*/summary.json")}
