"""The benchmarks on tiny shapes: the systems agree; the commands run to their end and write complete results."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from afintro.lm.load import load_model, load_tokenizer
from afintro.study.asking import conditions
from afintro.study.asking.conditions import Trial
from afintro.study.evaluations.detection import questions
from benchmarks import evaluate, flips, study, train
from benchmarks.shapes import SHAPES
from tests import forked

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_training_starts_from_the_weights_of_the_trainer_and_learns_the_same():
    ours, peer = (train.measure(train.SYSTEMS[name], SHAPES["tiny"], 2, seed=0) for name in ("cpu", "cpu-trainer"))
    assert ours["same_losses"] == pytest.approx(peer["same_losses"], abs=1e-4)
    assert len(set(ours["same_losses"])) == 6  # every step has other examples
    assert min(ours["tokens_per_second"], peer["tokens_per_second"]) > 0


@pytest.mark.slow
def test_teacher_forcing_and_generation_give_the_same_verdicts():
    rows, parameters = evaluate.measure("tiny", 6, 0, ["generate-64"], compiled=False)
    assert [row["system"] for row in rows] == ["teacher-forced", "engine, batch 64", "generate, batch 64"]
    assert parameters > 1e5
    for row in rows:
        assert (row["verdicts_that_differ"], row["exact"]) == (0, 3)


@pytest.mark.slow
def test_no_batch_arrangement_changes_an_answer_in_float32(small_model):
    model, tokenizer = load_model(str(small_model)), load_tokenizer(str(small_model))
    alone, together = flips.measure(model, tokenizer, flips.texts(6)["its grammar"], [1, 5])
    assert (alone["reference"], together["reference"], together["batch"]) == (1, 1, 5)
    for row in (alone, together):
        assert (row["flipped"], row["rows"], row["ci_low"]) == (0, 6, 0)
        assert row["ci_high"] == pytest.approx(1.96**2 / (6 + 1.96**2))  # of 0 in 6
        assert row["tokens"] > 6


def test_an_interval_of_flips_lies_around_their_share():
    low, high = flips.wilson(3, 10)
    assert (low, high) == pytest.approx((0.1078, 0.6032), abs=1e-4)  # Brown, Cai & DasGupta 2001, eq. 4
    assert flips.wilson(10, 10)[1] == pytest.approx(1)


@pytest.mark.slow
def test_probabilities_together_are_those_one_by_one_to_a_millionth(study_model):
    ways = study.sessions(str(study_model), 2, 2)
    pair = ways["together"].data.pair
    readings_of = conditions.readings(ways["together"])
    asked = [
        Trial(reading, question, "", pair, True) for reading in readings_of for question in questions(ways["together"])
    ]
    answers = [ways["together"].dialogues.answers(pair)] * len(asked)
    together, alone = (np.exp(way.ask([trial.query for trial in asked], answers)) for way in ways.values())
    assert together.shape == (len(asked), 2)
    assert 0 < abs(together - alone).max() < 1e-6  # another order of sums, so that equal bits would mean one way twice


def test_differences_are_found_wherever_they_are():
    rows = [{"odds": 1.0, "lens": [0.5, None], "text": "a"}]
    assert study.differences(rows, rows) == (0, 0)
    other = [{"odds": 1.25, "lens": [0.0, None], "text": "b"}]
    assert study.differences(rows, other) == (0.5, 1)


# The commands.


def run(folder, module, *arguments):
    """Run a benchmark's command to its end; returns the results file and standard output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = forked.run(module, ["--results", str(folder), *arguments], ROOT, environment, timeout=400)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text()), done.stdout


@pytest.mark.long
def test_the_training_command(tmp_path):
    result, printed = run(tmp_path, "benchmarks.train", "--steps", "2", "--systems", "cpu,cpu-trainer")
    assert set(result) >= {"hardware", "versions", "ceilings", "rows", "ratios"}
    ours, peer = result["rows"]
    assert ours["same_losses"] == pytest.approx(peer["same_losses"], abs=1e-4)
    assert 0 < ours["fraction_of_ceiling"] < 1.5
    assert result["ratios"]["over_trl"] is None
    assert "not run:" in printed
    assert "trl-flex" in result["not_run"]


@pytest.mark.long
def test_the_evaluation_command(tmp_path):
    result, _ = run(tmp_path, "benchmarks.evaluate", "--items", "12", "--systems", "generate-64")
    assert [row["system"] for row in result["rows"]] == ["teacher-forced", "engine, batch 64", "generate, batch 64"]
    for row in result["rows"]:
        assert (row["verdicts_that_differ"], row["exact"]) == (0, 6)


@pytest.mark.long
def test_the_command_about_flips(tmp_path):
    arguments = ("--prompts", "12", "--batches", "1", "5", "--dtypes", "float32")
    result, printed = run(tmp_path, "benchmarks.flips", *arguments)
    alone, together, *foreign = result["rows"]
    assert (alone["setting"], together["setting"]) == (
        "its grammar, batch 1 against 1",
        "its grammar, batch 5 against 1",
    )
    assert len(foreign) == 2
    for row in result["rows"]:
        assert (row["flipped"], row["rows"], row["ci_low"]) == (0, 12, 0)
        assert row["tokens"] > 12
    assert "rows that differ" in printed


@pytest.mark.long
def test_scaling_measures_training_and_pairs_and_passes_options_on(tmp_path):
    work = ("--devices", "1", "--steps", "20", "--samples", "2", "--new", "2")
    result, _ = run(tmp_path, "benchmarks.scale", *work, "--options", "--data.max_tokens=640", "--model.lora.r=4")
    assert result["options"] == ["--data.max_tokens=640", "--model.lora.r=4"]
    training, pairs = result["rows"]
    assert (training["system"], training["runs"], training["times_one"]) == ("fit, ddp", 2, 1)
    assert (pairs["system"], pairs["runs"], pairs["times_one"]) == ("pairs", 1, 1)
    assert min(training["tokens_per_second"], pairs["tokens_per_second"]) > 0


@pytest.mark.long
def test_questions_together_are_what_they_are_one_by_one(tmp_path, study_model):
    """One evaluation each of answers asked for, scored words and written texts; few questions."""
    evaluations = ("logprobs", "self_calibration", "identity")
    options = ("--contexts", "2", "--items", "2", "--runs", "1", "--evaluations", *evaluations)
    result, printed = run(tmp_path, "benchmarks.study", "--model", str(study_model), *options)
    together, alone = result["rows"][::2], result["rows"][1::2]
    assert {row["system"] for row in together} == {"together"}
    assert {row["system"] for row in alone} == {"one by one"}
    assert [row["setting"].split(",")[0] for row in alone] == [*evaluations, "all of these"]
    for row in together[:-1]:
        assert (row["largest_difference"], row["times_slower"]) == (0, 1)
    for row in alone[:-1]:
        assert row["texts_that_differ"] == 0
        assert row["largest_difference"] < 1e-5  # nats; of probabilities below
    assert "times as slow" in printed
