"""The benchmarks themselves on the tiny shape: they run, what they say is complete, and the systems agree."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.flips import wilson
from benchmarks.study import differences
from tests import forked

ROOT = Path(__file__).parents[2]


def run(folder, module, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = forked.run(module, ["--results", str(folder), *arguments], ROOT, environment, timeout=400)
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


def test_no_batch_arrangement_changes_an_answer_in_float32(tmp_path):
    arguments = ("--prompts", "12", "--batches", "1", "5", "--dtypes", "float32")
    result, said = run(tmp_path, "benchmarks.flips", *arguments)
    alone, together, *foreign = result["rows"]
    assert (alone["setting"], together["setting"]) == (
        "its grammar, batch 1 against 1",
        "its grammar, batch 5 against 1",
    )
    assert len(foreign) == 2
    for row in result["rows"]:
        assert (row["flipped"], row["rows"], row["ci_low"]) == (0, 12, 0)
        assert row["ci_high"] == pytest.approx(1.96**2 / (12 + 1.96**2))  # of 0 in 12
        assert row["tokens"] > 12
    assert "rows that differ" in said


def test_an_interval_of_flips_lies_around_their_share():
    low, high = wilson(3, 10)
    assert (low, high) == pytest.approx((0.1078, 0.6032), abs=1e-4)  # Brown, Cai & DasGupta 2001, eq. 4
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_scaling_measures_training_and_pairs_and_passes_options_on(tmp_path):
    work = ("--devices", "1", "--steps", "20", "--samples", "2", "--new", "2")
    result, _ = run(tmp_path, "benchmarks.scale", *work, "--options", "--data.max_tokens=640", "--model.lora.r=4")
    assert result["options"] == ["--data.max_tokens=640", "--model.lora.r=4"]
    training, pairs = result["rows"]
    assert (training["system"], training["runs"], training["times_one"]) == ("fit, ddp", 2, 1)
    assert (pairs["system"], pairs["runs"], pairs["times_one"]) == ("pairs", 1, 1)
    assert min(training["tokens_per_second"], pairs["tokens_per_second"]) > 0


def test_questions_together_are_what_they_are_one_by_one(tmp_path, study_model):
    options = ("--contexts", "2", "--items", "2", "--runs", "1", "--evaluations", "detection", "realtime")
    result, said = run(tmp_path, "benchmarks.study", "--model", str(study_model), *options)
    assert [row["system"] for row in result["rows"]] == ["together", "one by one"] * 3
    detection, realtime = result["rows"][1], result["rows"][3]
    for row in (detection, realtime):
        assert row["texts_that_differ"] == 0
        assert row["largest_difference"] < 1e-5  # nats
    assert detection["setting"].startswith("detection, ")
    assert result["rows"][5]["setting"].startswith("all of these, ")
    assert "times as slow" in said


def test_differences_are_found_wherever_they_are():
    one = [{"odds": 1.0, "lens": [0.5, None], "text": "a"}]
    assert differences(one, one) == (0, 0)
    other = [{"odds": 1.25, "lens": [0.0, None], "text": "b"}]
    assert differences(one, other) == (0.5, 1)
