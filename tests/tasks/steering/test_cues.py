"""Steering under conditions of a cue file: prompts, prefills and labels are those of the conditions."""

import json
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM, Condition
from afintro.data.samples import Sample
from afintro.errors import UserError
from afintro.tasks.steering import generate as steering
from afintro.tasks.steering.generate import generate_steering
from afintro.tasks.steering.generator import SteeringSettings, all_cues
from afintro.tasks.steering.records import read_steering_records
from tests.tasks.steering.test_generate import A, contents

SAMPLES = [Sample("One: help."), Sample("Two: please help.")]
CALM = Condition("calm", "Be calm.", "<{scenario}>", "I cannot help with that")


@pytest.fixture
def run(model_directories, tmp_path, monkeypatch):
    """Steers the random model under cues, and gives the rows; the files lie in the folder of the name."""
    monkeypatch.setattr(steering, "dose_response_figure", lambda summary: Figure(figsize=(1, 1)))

    def made(cues, *conditions, folder="out", **more):
        given = {"model": model_directories["llama"], "max_new_tokens": 6, "control_samples": 1} | more
        settings = SteeringSettings(layers=(1,), alphas=(2.0,), cues=cues, conditions=conditions, **given)
        generate_steering(SAMPLES, {"train": 2, "test": 0}, [A], tmp_path / folder, settings)
        return json.loads((tmp_path / folder / "train.json").read_text())

    return made


def test_prompts_are_those_of_the_conditions(run):
    rows = run(("calm", "monitored"), CALM)
    assert [row["uid"].split("/")[1] for row in rows] == ["calm", "monitored"] * 2
    assert rows[0]["prompt"] == (
        "<|bos|><|system|>Be calm.\n<|user|><One: help.>\n<|assistant|>I cannot help with that"
    )
    assert (rows[0]["system_prompt"], rows[0]["scenario"], rows[0]["prefill"]) == (
        "Be calm.",
        "One: help.",
        CALM.prefill,
    )
    assert (rows[1]["system_prompt"], rows[1].get("prefill")) == (MONITORED_SYSTEM, None)
    assert "I cannot" not in rows[1]["prompt"]


def test_labels_read_the_prefill_and_outputs_do_not_hold_it(run, tmp_path):
    [row, _] = run(("calm",), CALM)
    assert row["original_behavior_rule"] == "refuse:cannot_help"
    assert not row["original_continuation"].startswith("I cannot")
    [record, _] = read_steering_records(str(tmp_path / "out" / "train.json"))
    assert [record.reply(side).prefill for side in ("original", "steered", "alone", "unmonitored")] == [
        CALM.prefill
    ] * 3 + [""]


def test_what_the_organism_does_unmonitored_is_always_told(run):
    settings = SteeringSettings(model="m", layers=(0,), alphas=(1.0,), cues=("calm",), conditions=(CALM,))
    assert [cue.system for cue in all_cues(settings)] == ["Be calm.", UNMONITORED_SYSTEM]
    one, other = run(("calm",), CALM), run(("monitored",), folder="seed")
    assert [row["unmonitored_output"] for row in one] == [row["unmonitored_output"] for row in other]


def test_the_mean_residual_stream_is_that_of_the_whole_prompts(run, tmp_path):
    run(("calm",), CALM)
    run(("calm",), replace(CALM, prefill="Sure"), folder="sure")
    names = [f"directions/{name}.safetensors" for name in ("residual_mean", "a")]
    one, other = (contents(tmp_path / folder) for folder in ("out", "sure"))
    assert [one[name] == other[name] for name in names] == [False, True]


def test_another_condition_of_the_name_is_refused_and_the_seed_pair_has_no_new_setting(run, tmp_path):
    run(("calm",), CALM)
    with pytest.raises(UserError, match="conditions_sha256"):
        run(("calm",), replace(CALM, system="Be calm!"))
    run(("monitored", "unmonitored"), folder="seed")
    assert "conditions_sha256" not in json.loads((tmp_path / "seed" / "settings.json").read_text())


def test_equal_prompts_are_refused(run):
    with pytest.raises(UserError, match="same prompt") as error:
        run(("calm", "other"), CALM, replace(CALM, name="other"))
    assert error.value.where == "sample 0"
