"""Sentences say what the numbers say, and nothing where there are none."""

from dataclasses import replace

import pytest

from afintro.evaluation.intervals import Estimate
from afintro.study.report.findings import excludes_zero, findings
from afintro.study.report.tables import number
from tests.study.made_up import EFFECTS, LOW


@pytest.fixture
def said(analysis):
    """Paragraph by variant."""
    return {line.split("**")[1]: line for line in findings(analysis).splitlines()}


def test_a_paragraph_a_variant(said):
    assert list(said) == list(EFFECTS)


def test_a_claim_is_told_from_a_yes_bias_and_from_nothing(said):
    assert "The claim moves, whichever way it is worded." in said["original_v3"]
    assert "What moves is how often it says yes, not what it says about itself." in said["vague_prompt"]
    assert "Controls move too." in said["vague_prompt"]
    assert "Controls move too." not in said["original_v3"]
    assert "No shift is told apart from 0." in said["no_steer"]


def test_low_mass_is_said_in_place_of_a_claim(said):
    assert "**Not interpretable**: 100 % of the items have low mass." in said[LOW]
    assert "claim moves" not in said[LOW]
    assert "**Mass collapse**" in said[LOW]
    assert "told apart from none, not from no_steer" in said[LOW]
    assert "Categories that move after adjustment: none of 4" in said[LOW]


def test_controls_stand_beside_every_claim(said):
    assert "told apart from no_steer." in said["original_v3"]
    assert "no control variant" in said["no_steer"]
    assert "of which 8 of 32 started at floor or ceiling" in said["original_v3"]


def test_numbers_are_those_of_the_tables(analysis, said):
    own = analysis.overall[0]
    assert f"moves by {number(own.worded.estimate)}" in said[own.variant]
    held_out = analysis.detections[0].metrics["auroc/adapter"]
    assert f"AUROC {number(held_out, signed=False)} (upper half" in said[own.variant]


def test_detection_stands_beside_base_and_untaught_variants(said):
    assert "; base 0." in said["original_v3"]
    assert ", no_steer 0." in said["original_v3"]
    assert ", no_steer" not in said["no_steer"].partition("Steering by")[2]


def test_words_follow_the_numbers(analysis):
    """The same paragraph of another study: with its shift turned off, the claim goes."""
    nothing = Estimate(0.0, -0.1, 0.1, 32)
    flat = [
        replace(
            one,
            worded=replace(one.worded, estimate=nothing),
            corrected=replace(one.corrected, estimate=nothing),
            bias=nothing,
        )
        for one in analysis.overall
    ]
    assert "claim moves" not in findings(replace(analysis, overall=flat))


def test_without_results_there_is_nothing_to_say(analysis):
    empty = replace(analysis, overall=[], by_category=[], differences=[], detections=[])
    assert findings(empty) == "Nothing to say yet.\n"


def test_detection_alone_is_told(analysis):
    alone = replace(analysis, overall=[], by_category=[], differences=[])
    assert findings(alone).splitlines()[0].startswith("- **original_v3**: Steering by held-out vectors")


def test_excludes_zero():
    assert excludes_zero(Estimate(0.2, 0.1, 0.3, 9))
    assert excludes_zero(Estimate(-0.2, -0.3, -0.1, 9))
    assert not excludes_zero(Estimate(0.2, 0.0, 0.3, 9))
    assert not excludes_zero(Estimate(0.2, None, None, 1))
