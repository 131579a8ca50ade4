"""The benchmarks themselves on the tiny shape: they run, what they say is complete, and the systems agree."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from afintro.study.asking import conditions
from afintro.study.asking.conditions import Trial
from afintro.study.evaluations.detection import questions
from benchmarks.flips import wilson
from benchmarks.study import differences, sessions
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
    """One evaluation each of answers asked for, scored words and written texts; few questions."""
    evaluations = ("logprobs", "self_calibration", "identity")
    options = ("--contexts", "2", "--items", "2", "--runs", "1", "--evaluations", *evaluations)
    result, said = run(tmp_path, "benchmarks.study", "--model", str(study_model), *options)
    together, alone = result["rows"][::2], result["rows"][1::2]
    assert {row["system"] for row in together} == {"together"}
    assert {row["system"] for row in alone} == {"one by one"}
    assert [row["setting"].split(",")[0] for row in alone] == [*evaluations, "all of these"]
    for row in together[:-1]:
        assert (row["largest_difference"], row["times_slower"]) == (0, 1)
    for row in alone[:-1]:
        assert row["texts_that_differ"] == 0
        assert row["largest_difference"] < 1e-5  # nats; of probabilities below
    assert "times as slow" in said


def test_probabilities_together_are_those_one_by_one_to_a_millionth(study_model):
    ways = sessions(str(study_model), 2, 2)
    pair = ways["together"].data.pair
    readings_of = conditions.readings(ways["together"])
    asked = [Trial(one, question, "", pair, True) for one in readings_of for question in questions(ways["together"])]
    answers = [ways["together"].dialogues.answers(pair)] * len(asked)
    together, alone = (np.exp(way.ask([trial.query for trial in asked], answers)) for way in ways.values())
    assert together.shape == (len(asked), 2)
    assert 0 < abs(together - alone).max() < 1e-6  # another order of sums, so that equal bits would mean one way twice


def test_differences_are_found_wherever_they_are():
    one = [{"odds": 1.0, "lens": [0.5, None], "text": "a"}]
    assert differences(one, one) == (0, 0)
    other = [{"odds": 1.25, "lens": [0.0, None], "text": "b"}]
    assert differences(one, other) == (0.5, 1)
