"""A run that is killed goes on from its last checkpoint, and ends where the uninterrupted run ends."""

import signal
import time
from pathlib import Path

import pytest
import torch

from afintro.explainer.checkpoint import read_checkpoint, resolve_checkpoint
from tests.conftest import Workspace

QUICK = ("--trainer.max_epochs", "6", "--trainer.limit_test_batches", "0")  # training alone, which is what goes on


def last_checkpoint(workspace: Workspace) -> Path:
    return resolve_checkpoint("last", workspace.path / "lightning_logs", "context_ablation")


def interrupt(workspace: Workspace, with_signal: int, when: str, *arguments: str) -> None:
    """Start a fit and send it a signal once ``when`` is in its log of steps."""
    before = workspace.runs()
    process = workspace.start("fit", "--config", str(workspace.config), *QUICK, *arguments)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        found = [path for run in workspace.runs() if run not in before for path in (run / "checkpoints").glob(when)]
        if found:
            process.send_signal(with_signal)
            break
        time.sleep(0.02)
    process.wait(timeout=100)
    expected = -signal.SIGKILL if with_signal == signal.SIGKILL else 128 + signal.SIGTERM
    assert process.returncode == expected, "the run ended before it could be interrupted"


def assert_same_training(workspace: Workspace, one: Path, other: Path) -> None:
    first, second = read_checkpoint(one), read_checkpoint(other)
    assert first["global_step"] == second["global_step"]
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name


@pytest.mark.long
def test_killed_at_an_epoch_boundary_it_ends_bit_identical(workspace: Workspace) -> None:
    whole = workspace.run("fit", "--config", str(workspace.config), *QUICK)
    assert whole.returncode == 0, whole.stderr
    uninterrupted = last_checkpoint(workspace)
    interrupt(workspace, signal.SIGKILL, "last.ckpt")
    at = read_checkpoint(last_checkpoint(workspace))
    assert 0 < at["global_step"] < read_checkpoint(uninterrupted)["global_step"]
    resumed = workspace.run("fit", "--config", str(workspace.config), *QUICK, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_training(workspace, uninterrupted, last_checkpoint(workspace))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="batch_size"),
        pytest.param(("--data.max_tokens", "700"), id="max_tokens", marks=pytest.mark.long),
    ],
)
def test_sigterm_in_the_middle_of_an_epoch_saves_and_goes_on(workspace: Workspace, settings: tuple[str, ...]) -> None:
    whole = workspace.run("fit", "--config", str(workspace.config), *QUICK, *settings)
    assert whole.returncode == 0, whole.stderr
    uninterrupted = last_checkpoint(workspace)
    interrupt(workspace, signal.SIGTERM, "last.ckpt", *settings)
    assert (
        0 < read_checkpoint(last_checkpoint(workspace))["global_step"] < read_checkpoint(uninterrupted)["global_step"]
    )
    resumed = workspace.run("fit", "--config", str(workspace.config), *QUICK, *settings, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_training(workspace, uninterrupted, last_checkpoint(workspace))
