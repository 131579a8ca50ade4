"""A study that is killed again and again ends with the same bytes as an undisturbed study."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from afintro.explainer.checkpoint import read_checkpoint
from afintro.study.__main__ import main
from tests.forked import Forked

ROOT = Path(__file__).parents[2]
RUN = "results/small/original_v3"
SMALL = {
    "trainer.accelerator": "cpu", "trainer.enable_progress_bar": False, "trainer.enable_model_summary": False,
    "trainer.max_epochs": 6, "data.examples": {"train": 32, "validation": 4, "test": 4}, "data.vector_count": 4,
    "data.longest_context": 250,
}  # fmt: skip


def write(folder: Path, model: Path) -> Path:
    """Write a study of two configured variants on a small random model."""
    folder.mkdir()
    configs = ROOT / "configs"
    variants = [str(configs / "introspection" / f"{name}.yaml") for name in ("original_v3", "no_steer")]
    study = {
        "name": "small", "base": [str(configs / "introspection.yaml")], "variants": variants, "seeds": [0],
        "evaluations": ["neutral_detection", "concepts"], "overrides": {"model.name": str(model), **SMALL},
        "scale": {"contexts": 2, "vectors": 1, "items": 2, "new_tokens": 2},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


def interrupt(folder: Path, number: int, when: Callable[[str], bool], *arguments: str) -> int:
    """Start the command, send it a signal when its output fulfills a condition, and return its exit code."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "AFINTRO_CACHE": str(folder.parent / "cache"),
    }  # fmt: skip
    process = Forked("afintro.study", ["run", "--config", "study.yaml", *arguments], folder, environment)
    deadline = time.monotonic() + 200
    while not when(said := "".join(path.read_text() for path in process.said)):
        assert process.poll() is None, f"it ended before it could be interrupted:\n{said[-3000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=100)


def left(folder: Path) -> dict[str, bytes]:
    """Return the files that must be the same: rows, scores, answers, and the records of trainings with the weights' hash."""
    names = ("*/*/seed_*.jsonl", "*/*/summary.json", "*/seed_*/predictions.jsonl", "*/seed_*/done.json")
    found = [path for name in names for path in (folder / "results" / "small").glob(name)]
    # The summary of a training says how long it took.
    kept = [path for path in found if not (path.name == "summary.json" and path.parent.name.startswith("seed_"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def finish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command to its end in this process, since a new process takes longer to start."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AFINTRO_CACHE", str(folder.parent / "cache"))
    assert main(["run", "--config", "study.yaml"]) == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_at_five_moments_it_ends_as_the_undisturbed_one(
    tmp_path: Path, study_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, torn = write(tmp_path / "whole", study_model), write(tmp_path / "torn", study_model)
    finish(whole, monkeypatch)
    expected = left(whole)
    assert len(expected) == 2 * (2 + 2 + 1 + 1)

    last, record = torn / RUN / "seed_0" / "checkpoints" / "last.ckpt", torn / RUN / "seed_0" / "done.json"
    rows = torn / RUN / "neutral_detection" / "seed_0.jsonl"
    assert interrupt(torn, signal.SIGKILL, lambda said: last.is_file()) == -signal.SIGKILL
    first, before = read_checkpoint(last)["global_step"], last.stat().st_mtime_ns
    assert 0 < first < 12
    assert interrupt(torn, signal.SIGTERM, lambda said: last.stat().st_mtime_ns > before) == 128 + signal.SIGTERM
    assert first < read_checkpoint(last)["global_step"] < 12
    assert not record.exists()
    assert interrupt(torn, signal.SIGKILL, lambda said: record.exists()) == -signal.SIGKILL
    assert not rows.exists()
    asked = "cell 2 of 6: original_v3, seed 0, neutral_detection"
    assert interrupt(torn, signal.SIGTERM, lambda said: asked in said) == 128 + signal.SIGTERM
    assert not rows.exists()
    # Two processes take a variant each, and end with the one that started them.
    both = [torn / "results" / "small" / "no_steer" / "seed_0" / "begun.json", rows]
    assert (
        interrupt(torn, signal.SIGKILL, lambda said: all(map(Path.exists, both)), "--devices", "2") == -signal.SIGKILL
    )
    finish(torn, monkeypatch)
    assert left(torn) == expected
