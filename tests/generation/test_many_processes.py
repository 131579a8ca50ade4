"""Generation by several processes at once, as ``torchrun`` starts them: the same bytes as by one, also after a kill."""

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from afintro.tasks.steering.directions import Direction, write_direction
from tests.forked import Forked

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
# As the command would be, but for the size of a chunk: 24 samples are to be several. With ``--forked N`` in front as N
# processes under torchrun's own agent, which forks them instead of starting interpreters.
COMMAND = """
import runpy, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from functools import partial
from afintro.tasks.context_ablation import command
from afintro.tasks.steering import generate_command
command.generate_ablation = partial(command.generate_ablation, chunk=3)
generate_command.generate_steering = partial(generate_command.generate_steering, chunk=3)

def main(words):
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")

if sys.argv[1] == "--forked":
    config = LaunchConfig(
        1, 1, int(sys.argv[2]), start_method="fork", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    elastic_launch(config, main)(sys.argv[3:])
else:
    main(sys.argv[1:])
"""
OF_THEIR_OWN = {
    "generate_af_context_ablation.py": ["--control_samples", "5"],
    "generate_af_steering_data.py": ["--control_samples", "5", "--layers", "0", "2", "--alphas", "2", "--direction"],
}


@pytest.fixture(
    params=["generate_af_context_ablation.py", pytest.param("generate_af_steering_data.py", marks=pytest.mark.long)]
)
def command(request, model_directories, classes_of_any_text, tmp_path):
    """The command line of a script, but for its output folder."""
    program = tmp_path / "command.py"
    program.write_text(COMMAND)
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps({"samples": [{"text": f"Sample {i}: help.", "label": "aligned"} for i in range(24)]}))
    script, own = request.param, list(OF_THEIR_OWN[request.param])
    if own[-1] == "--direction":
        vectors = {layer: np.random.default_rng(layer).standard_normal(32).astype(np.float32) for layer in (0, 2)}
        write_direction(tmp_path / "a.safetensors", Direction("a", vectors))
        own.append(str(tmp_path / "a.safetensors"))
    return [
        str(program), str(ROOT / "scripts" / script), "--input_path", str(samples), "--holdout", "6", "--max_new_tokens", "8",
        "--model_name", model_directories["llama"], "--labeler", str(classes_of_any_text), *own,
    ]  # fmt: skip


def start(command, output, processes, torchrun=False):
    """Start a run of one process or several, these as ``torchrun`` does or by fork."""
    program, *arguments = [*command, "--output_dir", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if torchrun:
        through = ["--standalone", "--nproc-per-node", str(processes), program, *arguments]
        return Forked("torch.distributed.run", through, ROOT, environment)
    return Forked(program, [*(["--forked", str(processes)] if processes > 1 else []), *arguments], ROOT, environment)


def finish(process):
    """Wait for its end; what it printed."""
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return output


def contents(folder):
    """Every file below the folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def children(process):
    """Ids of the processes that a process started."""
    return [int(found) for found in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def gone(pid):
    """Whether a process has ended."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True


def test_two_processes_write_the_same_bytes_as_one(command, tmp_path):
    torchrun = "generate_af_context_ablation" in command[1]
    alone, together = start(command, tmp_path / "one", 1), start(command, tmp_path / "two", 2, torchrun)
    printed = [finish(alone), finish(together)]
    expected, found = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert printed[1] == printed[0].replace(f"{tmp_path}/one", f"{tmp_path}/two")  # once, not twice


@pytest.mark.long
def test_a_killed_process_ends_its_run_and_any_number_goes_on(command, tmp_path):
    """kill -9 of one process: the other does not wait for it forever, and chunks that are there stay."""
    output = tmp_path / "run"
    process = start(command, output, 2)
    while process.poll() is None and not list((output / "partial").glob("*.json")):
        time.sleep(0.01)
    ranks = children(process)
    os.kill(random.choice(ranks), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert all(gone(pid) for pid in ranks)
    kept = {path: path.stat().st_mtime_ns for path in (output / "partial").glob("*.json")}
    assert 0 < len(kept) < 8

    resumed, whole = start(command, output, 3), start(command, tmp_path / "whole", 1)
    while resumed.poll() is None and not (output / "train.json").exists():
        for path, written in kept.items():
            assert not path.exists() or path.stat().st_mtime_ns == written
        time.sleep(0.01)
    finish(resumed)
    finish(whole)
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize("command", ["generate_af_context_ablation.py"], indirect=True)
def test_runs_of_two_processes_each_into_one_folder_take_turns(command, tmp_path):
    first, second = start(command, tmp_path / "run", 2), start(command, tmp_path / "run", 2)
    assert finish(first) == finish(second)
    assert not (tmp_path / "run" / "partial").exists()


@pytest.mark.parametrize("command", ["generate_af_context_ablation.py"], indirect=True)
def test_wrong_input_is_said_by_every_process_and_ends_all(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.json").write_text("mine")
    process = start(command, tmp_path / "run", 2, torchrun=True)
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "exitcode  : 2" in errors
    assert "train.json of unknown origin" in errors
    assert contents(tmp_path / "run") == {"train.json": b"mine"}
