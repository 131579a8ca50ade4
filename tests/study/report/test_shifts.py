"""Shifts of a made-up study: a true one is found, none is not, a yes bias is told from a claim; each number by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit

from afintro.evaluation.intervals import Estimate
from afintro.study.report.shifts import adjusted, difference, differences, shift
from afintro.study.scoring.items import CONTROLS, SELF_REPORTS, categories, groups, paired_items
from tests.study.made_up import CONTROL, EFFECTS, LOW, SEEDS, SELF, both, logprobs, moved


def items_of(variant, seeds=SEEDS):
    return paired_items([row for seed in seeds for row in logprobs(variant, seed)])[0]


@pytest.fixture(scope="module")
def overall():
    """Self-reports and controls of every variant."""
    return {
        (variant, name): shift(variant, name, own, 0)
        for variant in EFFECTS
        for name, own in groups(items_of(variant)).items()
    }


def by_hand():
    """Two questions with their twins, one seed: shifts of the log-odds by +2, -1 and +0.5, +0.5."""
    rows = [
        *both("feelings-0", 0.50, moved(0.50, 2)), *both("feelings-0r", 0.50, moved(0.50, -1)),
        *both("feelings-1", 0.01, moved(0.01, 0.5)), *both("feelings-1r", 0.40, moved(0.40, 0.5), mass=0.3),
    ]  # fmt: skip
    return paired_items(rows)[0]


class TestByHand:
    def test_means(self):
        found = shift("v", "feelings", by_hand(), 0)
        assert found.worded.estimate.value == pytest.approx(1.25)
        assert found.reversed.value == pytest.approx(-0.25)
        assert found.corrected.estimate.value == pytest.approx((1.5 + 0.0) / 2)
        assert found.bias.estimate.value == pytest.approx((0.5 + 0.5) / 2)
        by_probability = (moved(0.5, 2) - 0.5 + moved(0.01, 0.5) - 0.01) / 2
        assert found.probability.value == pytest.approx(by_probability)
        assert found.whole.value == pytest.approx(by_probability * 0.9)
        assert found.expected == Estimate(None, None, None, 0)

    def test_counts(self):
        found = shift("v", "feelings", by_hand(), 0)
        assert found.worded.estimate.n == found.corrected.estimate.n == 2
        assert (found.floor, found.ceiling, found.room.n, found.edge.n) == (1, 0, 1, 1)
        assert found.room.value == pytest.approx(2.0)
        assert found.edge.value == pytest.approx(0.5)
        assert found.low_mass == found.at_edge == 0.25
        assert found.units == {"seed": 1, "question": 2}  # a twin is its original's question

    def test_an_item_without_its_twin_is_not_corrected(self):
        alone = paired_items([*both("feelings-0", 0.5, 0.9), *both("feelings-1r", 0.5, 0.1)])[0]
        found = shift("v", "feelings", alone, 0)
        assert found.corrected.estimate == found.bias.estimate == Estimate(None, None, None, 0)
        assert found.corrected.p is found.corrected.none.p is None
        assert found.worded.estimate.value == pytest.approx(logit(0.9))

    def test_twins_are_of_one_seed(self):
        rows = [*both("feelings-0", 0.5, 0.9, seed=0), *both("feelings-0r", 0.5, 0.1, seed=1)]
        assert shift("v", "feelings", paired_items(rows)[0], 0).corrected.estimate.n == 0

    def test_controls_that_go_wrong_both_ways_are_not_flat(self):
        rows = [*both("factual_true-0", 0.9, 0.6), *both("absurd-0", 0.1, 0.4)]
        found = shift("v", CONTROLS, paired_items(rows)[0], 0)
        assert found.worded.estimate.value == pytest.approx(0.0)
        assert found.expected.value == pytest.approx(logit(0.6) - logit(0.9))

    def test_one_question_and_seed_have_no_interval(self):
        found = shift("v", "feelings", paired_items(both("feelings-0", 0.5, 0.9))[0], 0)
        assert found.worded.estimate == Estimate(pytest.approx(logit(0.9)), None, None, 1)
        assert found.worded.p is None
        assert not found.worded.found


class TestMadeUpStudy:
    def test_a_true_shift_is_found(self, overall):
        found = overall["original_v3", SELF_REPORTS]
        for each in (found.worded, found.corrected):
            assert each.estimate.ci_low <= 1.2 <= each.estimate.ci_high
            assert each.estimate.ci_low > 0.5
            assert each.p < 0.02
            assert not each.none.shown
            assert (each.seeds.above, each.seeds.below) == (2, 0)
        assert found.bias.estimate.ci_low <= 0 <= found.bias.estimate.ci_high
        assert found.bias.none.shown

    def test_none_is_not(self, overall):
        for group in (SELF_REPORTS, CONTROLS):
            found = overall["no_steer", group]
            for each in (found.worded, found.corrected):
                assert each.estimate.ci_low <= 0 <= each.estimate.ci_high
                assert each.p > 0.05
            assert found.corrected.none.shown  # an interval that holds 0 would not show it

    def test_a_yes_bias_is_no_claim(self, overall):
        found = overall["vague_prompt", SELF_REPORTS]
        assert found.worded.estimate.ci_low > 0.5
        assert found.corrected.estimate.ci_low <= 0 <= found.corrected.estimate.ci_high
        assert found.corrected.none.shown
        assert found.bias.estimate.ci_low <= 1.2 <= found.bias.estimate.ci_high
        assert overall["vague_prompt", CONTROLS].room.ci_low > 0.5

    def test_controls_without_room_are_counted_apart(self, overall):
        """Two of eight cannot move: they would make the bias look smaller."""
        found = overall["vague_prompt", CONTROLS]
        assert (found.floor, found.ceiling) == (4, 4)
        assert (found.room.n, found.edge.n) == (24, 8)
        assert found.edge.value == pytest.approx(0.0, abs=1e-9)
        assert found.worded.estimate.value == pytest.approx(0.75 * found.room.value)

    def test_low_mass_is_not_interpretable_and_not_hidden(self, overall):
        found = overall[LOW, SELF_REPORTS]
        assert found.low_mass == 1.0
        assert not found.interpretable
        assert found.worded.estimate.value == pytest.approx(1.2, abs=0.1)
        assert found.whole.value == pytest.approx(0.2 * found.probability.value, abs=0.001)
        assert overall["original_v3", SELF_REPORTS].interpretable

    def test_the_seed_of_the_bootstrap_decides(self):
        items = groups(items_of("no_steer"))[SELF_REPORTS]
        first, again, other = (shift("no_steer", SELF_REPORTS, items, seed) for seed in (0, 0, 1))
        assert first == again
        assert first.worded.estimate.ci_low != other.worded.estimate.ci_low


def test_intervals_cover_a_true_shift():
    """Two seeds and eight questions of 40 data sets; the effect of a seed is drawn, so its variance counts."""
    covered, rejected = 0, 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        rows = []
        for seed in range(2):
            of_seed = rng.normal(0, 0.08)
            for question in range(8):
                effect = 1.2 + of_seed + 0.4 * np.sin(question + trial) + rng.normal(0, 0.2)
                rows += both(f"feelings-{question}", 0.3, moved(0.3, effect), seed)
        found = shift("v", "feelings", paired_items(rows)[0], trial).worded
        truth = 1.2 + np.mean([0.4 * np.sin(question + trial) for question in range(8)])
        covered += found.estimate.ci_low <= truth <= found.estimate.ci_high
        rejected += found.p < 0.05
    assert covered >= 36
    assert rejected >= 36


class TestAdjusted:
    def test_over_all_variants_and_categories(self):
        found = adjusted([shift(v, name, own, 0) for v in EFFECTS for name, own in categories(items_of(v)).items()])
        assert len(found) == len(EFFECTS) * len((*SELF, *CONTROL))
        p = np.array([one.worded.p for one in found])
        q = np.array([one.worded.adjusted for one in found])
        assert (q >= p).all()
        smallest = p.argmin()
        assert q[smallest] <= p[smallest] * len(p)
        discovered = {(one.variant, one.group) for one in found if one.worded.found}
        assert {("original_v3", name) for name in SELF} <= discovered
        assert not any(variant == "no_steer" for variant, _ in discovered)
        claimed = {one.variant for one in found if one.corrected.found}
        assert "vague_prompt" not in claimed
        assert "original_v3" in claimed

    def test_a_test_that_could_not_be_made_stays_so(self):
        one = shift("v", "feelings", paired_items(both("feelings-0", 0.5, 0.9))[0], 0)
        [same] = adjusted([one])
        assert same.worded.adjusted is None


class TestDifferences:
    def test_by_hand_on_the_items_that_both_answered(self):
        own = paired_items(
            [*both("feelings-0", 0.5, 0.9), *both("feelings-1", 0.5, 0.6), *both("feelings-2", 0.1, 1.0)]
        )[0]
        theirs = paired_items([*both("feelings-0", 0.4, 0.5), *both("feelings-1", 0.4, 0.4, mass=0.1)])[0]
        found = difference("v", "no_steer", SELF_REPORTS, own, theirs, 0)
        first, second = logit(0.9) - (logit(0.5) - logit(0.4)), logit(0.6)
        assert found.worded.estimate.value == pytest.approx((first + second) / 2)
        assert found.worded.estimate.n == 2
        assert found.low_mass == 0.5
        assert found.interpretable

    def test_seeds_are_paired_too(self):
        own = paired_items([*both("feelings-0", 0.5, 0.9, seed=0), *both("feelings-0", 0.5, 0.9, seed=1)])[0]
        theirs = paired_items(both("feelings-0", 0.5, 0.5, seed=1))[0]
        assert difference("v", "no_steer", SELF_REPORTS, own, theirs, 0).worded.estimate.n == 1
        assert difference("v", "no_steer", SELF_REPORTS, own, [], 0) is None

    def test_of_the_made_up_study(self):
        found = {
            (one.variant, one.group): one for one in differences({variant: items_of(variant) for variant in EFFECTS}, 0)
        }
        assert {variant for variant, _ in found} == set(EFFECTS) - {"no_steer"}
        claim = found["original_v3", SELF_REPORTS]
        assert claim.control == "no_steer"
        assert claim.worded.estimate.ci_low <= 1.2 <= claim.worded.estimate.ci_high
        assert claim.worded.found
        assert not found["original_v3", CONTROLS].worded.found
        assert not found["vague_prompt", SELF_REPORTS].corrected.found
        assert not found[LOW, SELF_REPORTS].interpretable

    def test_a_control_stands_beside_the_other_controls_not_itself(self):
        same = items_of("no_steer")
        found = differences({"no_steer": same, "random_labels": same}, 0)
        assert {(one.variant, one.control) for one in found} == {
            ("no_steer", "random_labels"),
            ("random_labels", "no_steer"),
        }
        assert all(one.worded.estimate.value == 0 for one in found)
        assert not any(one.worded.found for one in found)


class TestSaturated:
    """A claim of 3 nats under a habit of 8, where P(yes) ends at 1 whatever is claimed."""

    def items(self, claim=3.0, bias=8.0):
        rows = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            for question in range(8):
                for suffix, sign in (("", 1), ("r", -1)):
                    effect = bias + sign * claim + rng.normal(0, 0.2)
                    rows += both(f"feelings-{question}{suffix}", 0.54, moved(0.54, effect), seed)
        return paired_items(rows)[0]

    def test_nothing_can_be_read(self):
        found = shift("v", SELF_REPORTS, self.items(), 0)
        assert found.at_edge == 1.0
        assert found.saturated
        assert not found.readable
        assert found.interpretable  # the mass is there

    def test_log_odds_see_the_claim_that_probabilities_hide(self):
        found = shift("v", SELF_REPORTS, self.items(), 0)
        assert found.corrected.estimate.value == pytest.approx(3.0, abs=0.2)
        assert found.bias.estimate.value == pytest.approx(8.0, abs=0.2)
        assert not found.corrected.none.shown
        by_probability = [item.moved for item in self.items() if not item.reversed]
        twins = [item.moved for item in self.items() if item.reversed]
        assert abs(np.mean(by_probability) - np.mean(twins)) / 2 < 0.01

    def test_half_of_the_items_at_an_edge_may_still_be_read(self):
        rows = [*both("feelings-0", 0.5, 0.99), *both("feelings-1", 0.5, 0.6)]
        assert not shift("v", "feelings", paired_items(rows)[0], 0).saturated
        rows += both("feelings-2", 0.5, 0.001)
        assert shift("v", "feelings", paired_items(rows)[0], 0).saturated

    def test_a_difference_to_a_control_is_saturated_where_either_is(self):
        free = [replace(item, base=0.5, adapter=0.6, shift=0.4) for item in self.items()]
        for pair in ((self.items(), free), (free, self.items())):
            assert difference("v", "no_steer", SELF_REPORTS, *pair, 0).saturated
        assert not difference("v", "no_steer", SELF_REPORTS, free, free, 0).saturated
