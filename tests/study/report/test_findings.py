"""Sentences say what the numbers say, and nothing where there are none."""

from dataclasses import replace

import numpy as np
import pytest

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Analysis
from afintro.study.report.findings import excludes_zero, findings
from afintro.study.report.shifts import shift
from afintro.study.report.tables import number
from afintro.study.results import Plan
from afintro.study.scoring.items import SELF_REPORTS, paired_items
from tests.study.made_up import EFFECTS, LOW, both, moved


@pytest.fixture
def said(analysis):
    """Paragraph by variant."""
    return {line.split("**")[1]: line for line in findings(analysis).splitlines()}


def test_a_paragraph_a_variant(said):
    assert list(said) == list(EFFECTS)


def test_a_claim_is_told_from_a_yes_bias_and_from_nothing(said):
    assert "The claim moves; the tendency to say yes moves by less than 0.4." in said["original_v3"]
    assert (
        "What moves is how often it says yes; what it says about itself moves by less than 0.4." in said["vague_prompt"]
    )
    assert "Controls move too" in said["vague_prompt"]
    assert "Controls move too" not in said["original_v3"]
    assert "Neither the claim nor the tendency to say yes moves" in said["no_steer"]
    assert "polarity corrected 2 of 2 seeds above 0, p = 0.5" in said["original_v3"]


def planted(claim, bias, noise, seeds=3):
    """Findings about a variant with a claim and a habit of saying yes, in log-odds."""
    items = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for question in range(8):
            for suffix, sign in (("", 1), ("r", -1)):
                effect = bias + sign * claim + rng.normal(0, noise)
                items += both(f"feelings-{question}{suffix}", 0.54, moved(0.54, effect), seed)
    found = shift("v", SELF_REPORTS, paired_items(items)[0], 0)
    empty = Analysis(Plan("s", {"v": ()}, (0,)), {}, {}, {}, [found], [], [], [], {}, [], {}, [])
    return findings(empty)


def test_a_claim_under_a_strong_habit_of_saying_yes_is_saturated_and_nothing_else_is_said():
    said = planted(claim=3.0, bias=8.0, noise=0.2)
    assert "**Saturated: nothing can be said.** 100 % of the items" in said
    assert "how often it says yes" not in said.lower()
    assert "claim moves" not in said
    assert "polarity corrected +3." in said  # the figure stands there all the same


@pytest.mark.parametrize(
    ("claim", "bias", "noise", "sentence"),
    [
        (1.0, 0.0, 0.1, "The claim moves; the tendency to say yes moves by less"),
        (1.0, 0.0, 1.5, "The claim moves; whether the tendency to say yes moves is open"),
        (0.0, 1.0, 0.1, "What moves is how often it says yes; what it says about itself moves by less"),
        (0.0, 1.5, 1.5, "whether what it says about itself moves too is open"),
        (1.0, 1.0, 0.1, "Both the claim and a tendency to say yes move."),
        (0.0, 0.0, 0.1, "Neither the claim nor the tendency to say yes moves"),
        (0.0, 0.0, 3.0, "No shift is told apart from 0, and one of 0.4 is not ruled out."),
    ],
)
def test_what_is_said_follows_what_was_planted(claim, bias, noise, sentence):
    assert sentence in planted(claim, bias, noise)


def test_one_seed_is_said_to_be_one(analysis):
    assert "One seed: nothing is known about other trainings." in planted(1.0, 0.0, 0.1, seeds=1)


def test_low_mass_is_said_in_place_of_a_claim(said):
    assert "**Not interpretable**: 100 % of the items have low mass." in said[LOW]
    assert "claim moves" not in said[LOW]
    assert "**Mass collapse**" in said[LOW]
    assert "told apart from none; low mass or saturated, so not comparable, beside no_steer" in said[LOW]
    assert "None of 4 categories can be read" in said[LOW]


def test_controls_stand_beside_every_claim(said):
    assert "told apart from no_steer." in said["original_v3"]
    assert "no control variant" in said["no_steer"]
    assert "25 % of the items at floor or ceiling" in said["original_v3"]


def test_numbers_are_those_of_the_tables(analysis, said):
    own = analysis.overall[0]
    assert f"move by {number(own.worded.estimate)} (P(yes) by {number(own.probability)})" in said[own.variant]
    held_out = analysis.detections[0].metrics["auroc/adapter"]
    assert f"AUROC {number(held_out, signed=False)} (upper half" in said[own.variant]


def test_a_detector_is_told_from_a_push_to_yes(said):
    assert "both above chance: not merely a push to one answer" in said["original_v3"]
    assert "**a push to one answer under steering, not detection**" in said["vague_prompt"]
    assert "**steering moves yes there too**" in said["vague_prompt"]
    assert "steering moves" not in said["original_v3"]
    assert "neither is told apart from chance" in said["no_steer"]
    assert "It was taught no detection; within 0.1 of 0.5:" in said["no_steer"]
    assert "taught no detection" not in said["original_v3"]
    assert "It is near chance; within 0.1 of 0.5: shown" in said["vague_prompt"]
    assert "near chance" not in said["original_v3"]


def test_norms_odd_contexts_and_seeds_stand_beside_detection(analysis, said):
    found = next(one for one in analysis.detections if (one.variant, one.condition) == ("original_v3", "held_out"))
    for name in ("auroc_norms/adapter", "fpr_odd/adapter", "auroc_odd/adapter", "auroc_among_odd/adapter"):
        assert number(found.metrics[name], signed=False) in said["original_v3"]
    assert ": 2 of 2 seeds above 0.5, p = 0.5." in said["original_v3"]


def side(low, high):
    return Estimate((low + high) / 2, low, high, 99)


@pytest.mark.parametrize(
    ("original", "reverse", "sentence"),
    [
        (side(0.7, 0.9), side(0.6, 0.8), "not merely a push"),
        (side(0.1, 0.3), side(0.2, 0.4), "the wrong way round"),
        (side(0.1, 0.3), side(0.7, 0.9), "not detection**"),
        (side(0.7, 0.9), side(0.4, 0.6), "cannot be told from a push"),
        (side(0.4, 0.6), side(0.4, 0.6), "neither is told apart"),
        (Estimate(0.9, None, None, 9), Estimate(0.9, None, None, 9), "neither is told apart"),
    ],
)
def test_the_verdict_on_polarities_goes_by_intervals(analysis, original, reverse, sentence):
    [found] = [one for one in analysis.detections if (one.variant, one.condition) == ("original_v3", "held_out")]
    metrics = {**found.metrics, "auroc_original/adapter": original, "auroc_reversed/adapter": reverse}
    alone = replace(analysis, overall=[], by_category=[], differences=[], detections=[replace(found, metrics=metrics)])
    assert sentence in findings(alone)


def test_one_polarity_is_said_to_be_one(analysis):
    [found] = [one for one in analysis.detections if (one.variant, one.condition) == ("original_v3", "held_out")]
    metrics = {
        name: value for name, value in found.metrics.items() if "original" not in name and "reversed" not in name
    }
    alone = replace(analysis, overall=[], by_category=[], differences=[], detections=[replace(found, metrics=metrics)])
    assert "in the one polarity that was asked" in findings(alone)
    assert "a push to that answer cannot be told from detection" in findings(alone)


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
            bias=replace(one.bias, estimate=nothing),
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
