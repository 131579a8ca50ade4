"""The benchmarks themselves on the tiny shape: they run, what they say is complete, and the systems agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder, *command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, "--shape", "tiny", "--results", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text()), done.stdout


def test_training_beside_the_trainer_starts_from_the_same_weights_and_learns_the_same(tmp_path):
    result, said = run(tmp_path, "benchmarks.train", "--steps", "2", "--systems", "cpu,cpu-trainer")
    assert set(result) >= {"hardware", "versions", "ceilings", "rows", "ratios"}
    own, peer = result["rows"]
    assert own["same_losses"] == pytest.approx(peer["same_losses"], abs=1e-4)
    assert len(set(own["same_losses"])) == 6  # every step has other examples
    assert 0 < own["fraction_of_ceiling"] < 1.5
    assert result["ratios"]["over_trl"] is None
    assert "not run:" in said
    assert "trl-flex" in result["not_run"]


def test_teacher_forcing_and_generation_give_the_same_verdicts(tmp_path):
    result, _ = run(tmp_path, "benchmarks.evaluate", "--items", "12", "--systems", "generate-64")
    assert [row["system"] for row in result["rows"]] == ["teacher-forced", "engine, batch 64", "generate, batch 64"]
    for row in result["rows"]:
        assert row["verdicts_that_differ"] == 0
        assert row["exact"] == 6
