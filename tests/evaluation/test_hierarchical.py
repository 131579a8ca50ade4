"""The bootstrap over several levels: weights by hand, coverage and size with few units, pairing; Benjamini-Hochberg."""

import numpy as np
import pytest
from scipy.stats import norm, t

from afintro.evaluation.hierarchical import (
    HierarchicalBootstrap,
    Resampled,
    benjamini_hochberg,
    variance,
)
from afintro.evaluation.intervals import SHARE, Estimate, mean_of, ratio
from afintro.evaluation.score_intervals import wilson
from tests.forked import printed_with_hash_seeds


def crossed(seeds, questions):
    """Levels of one item for every seed and question."""
    return {
        "seed": np.repeat(np.arange(seeds), questions).tolist(),
        "question": [f"q{index}" for index in range(questions)] * seeds,
    }


def resampled_mean(values, levels, seed=0, resamples=1000):
    return HierarchicalBootstrap(levels, seed, resamples).resample({"mean": mean_of(values)})["mean"]


def outcomes(seeds, questions, spread, trials=200):
    """Share of data sets whose interval holds the true mean (0), and share whose p-value is below 0.05."""
    rng = np.random.default_rng(0)
    covered, rejected = 0, 0
    for trial in range(trials):
        of_seed, of_question = rng.normal(0, spread[0], (seeds, 1)), rng.normal(0, spread[1], (1, questions))
        values = of_seed + of_question + rng.normal(0, spread[2], (seeds, questions))
        found = resampled_mean(values.ravel(), crossed(seeds, questions), seed=trial)
        covered += found.estimate.ci_low <= 0 <= found.estimate.ci_high
        rejected += found.p_value() < 0.05
    return covered / trials, rejected / trials


class TestWeights:
    def test_are_the_product_of_how_often_each_unit_was_drawn(self):
        levels = {"seed": [0, 0, 1, 1, 2, 2], "question": ["a", "b", "a", "b", "a", "b"]}
        bootstrap = HierarchicalBootstrap(levels)
        weights = bootstrap.weights(0, 1000)
        seeds = bootstrap.weights(0, 1000, ["seed"])
        questions = bootstrap.weights(0, 1000, ["question"])
        assert weights.shape == (1000, 6)
        assert np.array_equal(weights, seeds * questions)
        # As many units as there are, each the same for all its items.
        assert (seeds[:, [0, 2, 4]].sum(1) == 3).all()
        assert (questions[:, [0, 1]].sum(1) == 2).all()
        assert np.array_equal(seeds[:, 0], seeds[:, 1])
        assert np.array_equal(questions[:, 0], questions[:, 4])

    def test_levels_are_drawn_independently(self):
        bootstrap = HierarchicalBootstrap(crossed(8, 8), resamples=4000)
        seeds, questions = bootstrap.weights(0, 4000, ["seed"])[:, 0], bootstrap.weights(0, 4000, ["question"])[:, 0]
        assert abs(np.corrcoef(seeds, questions)[0, 1]) < 0.06
        assert seeds.mean() == pytest.approx(1, abs=0.06)
        assert seeds.var() == pytest.approx(7 / 8, abs=0.1)

    def test_an_item_without_a_unit_is_not_redrawn_at_that_level(self):
        bootstrap = HierarchicalBootstrap({"vector": ["v", None, "w", None], "question": ["a", "a", "b", "b"]})
        vectors = bootstrap.weights(0, 1000, ["vector"])
        assert (vectors[:, [1, 3]] == 1).all()
        assert (vectors[:, 0] + vectors[:, 2] == 2).all()
        assert np.ptp(vectors[:, 0]) == 2

    def test_a_level_that_no_item_has_is_none(self):
        bootstrap = HierarchicalBootstrap({"vector": [None, None], "question": ["a", "b"]})
        assert bootstrap.units == {"question": 2}

    def test_levels_of_equal_units_are_drawn_alike_whatever_else_there_is(self):
        """So that tables of one study are from the same resamples."""
        alone = HierarchicalBootstrap({"question": ["a", "b", "c"]}, seed=3)
        beside = HierarchicalBootstrap({"seed": [0, 1, 1, 0], "question": ["c", "a", "b", "a"]}, seed=3)
        assert np.array_equal(alone.weights(0, 50)[:, [2, 0, 1]], beside.weights(0, 50, ["question"])[:, :3])


class TestLevelsWithOneUnit:
    def test_do_not_vary_and_are_named(self):
        values = np.random.default_rng(0).normal(size=12)
        one = HierarchicalBootstrap({"seed": [0] * 12, "question": list(range(12))})
        assert (one.fixed, one.varying) == (("seed",), ("question",))
        assert one.mean(values) == HierarchicalBootstrap({"question": list(range(12))}).mean(values)

    def test_without_any_that_varies_there_is_no_interval(self):
        """Zero width would say that the value is certain."""
        single = HierarchicalBootstrap({"seed": [0, 0, 0], "question": ["a", "a", "a"]})
        assert single.mean([1.0, 2.0, 3.0]) == Estimate(2.0, None, None, 3)
        assert single.resample({"m": mean_of([1.0, 2.0, 3.0])})["m"].p_value() is None

    def test_a_second_seed_widens_what_differs_between_seeds(self):
        values = np.array([0.0] * 20 + [1.0] * 20) + np.tile(np.random.default_rng(1).normal(0, 0.1, 20), 2)
        both = resampled_mean(values, crossed(2, 20)).estimate
        first = resampled_mean(values[:20], crossed(1, 20)).estimate
        assert both.ci_high - both.ci_low > 10 * (first.ci_high - first.ci_low)


class TestIntervals:
    def test_with_many_units_are_the_plain_percentile_interval(self):
        values = np.random.default_rng(2).normal(size=400)
        resampled = resampled_mean(values, {"question": list(range(400))})
        found, low, high = resampled.estimate, *np.percentile(resampled.draws, [2.5, 97.5])
        assert found.value == pytest.approx(values.mean())
        assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=0.015)

    @pytest.mark.parametrize(
        ("seeds", "questions", "spread"),
        [(3, 40, (0.3, 1.0, 1.0)), (3, 5, (0.5, 1.0, 0.3)), (2, 40, (0.1, 0.3, 0.3)), (1, 12, (0.0, 1.0, 0.5))],
    )
    @pytest.mark.slow
    def test_cover_the_truth_with_few_units_too(self, seeds, questions, spread):
        """Plain percentile intervals of these have 83 to 92 %, p < 0.05 for 8 to 17 % of nulls."""
        covered, rejected = outcomes(seeds, questions, spread)
        assert 0.90 <= covered <= 0.995
        assert rejected <= 0.095

    @pytest.mark.slow
    def test_three_seeds_that_differ_most_are_not_taken_for_many(self):
        """The plain percentile interval covers 73 %."""
        covered, _ = outcomes(3, 40, (1.0, 0.3, 0.3))
        assert covered >= 0.87

    def test_of_mere_noise_are_not_far_too_wide(self):
        """Four levels that do nothing: the product of multiplicities alone would make them four to five times too wide."""
        rng = np.random.default_rng(10)
        sizes = {"seed": 3, "context": 12, "vector": 8, "question": 4}
        levels = {name: rng.integers(0, size, 600).tolist() for name, size in sizes.items()}
        exact = 2 * 1.96 / np.sqrt(600)
        widths = [
            np.ptp([e.ci_low, e.ci_high])
            for e in (resampled_mean(rng.normal(size=600), levels, k).estimate for k in range(20))
        ]
        assert exact < np.median(widths) < 2.6 * exact

    def test_leave_out_null_just_where_p_is_below_5_percent(self):
        """But for rounding: four questions have 35 different resamples."""
        rng = np.random.default_rng(3)
        for trial in range(200):
            seeds, questions = int(rng.integers(1, 4)), int(rng.integers(4, 15))
            values = rng.normal(0.5, 1, seeds * questions) + np.repeat(rng.normal(0, 0.5, seeds), questions)
            found = resampled_mean(values, crossed(seeds, questions), trial)
            agree = (found.p_value() < 0.05) == (not found.estimate.ci_low <= 0 <= found.estimate.ci_high)
            assert agree or found.p_value() == pytest.approx(0.05, abs=0.03)

    def test_do_not_leave_the_bounds(self):
        """Two seeds that differ: Student's quantile of one degree of freedom would go far outside."""
        bootstrap = HierarchicalBootstrap(crossed(2, 10))
        values = np.array([1.0] * 10 + [0.4] * 10)
        free, held = bootstrap.estimate(mean_of(values)), bootstrap.estimate(mean_of(values), (0.0, 1.2))
        assert free.ci_low < 0
        assert free.ci_high > 1.2
        assert (held.ci_low, held.ci_high) == (0.0, 1.2)

    def test_of_a_paired_difference_are_narrower(self):
        rng = np.random.default_rng(4)
        hard = np.tile(rng.normal(0, 1, 50), 3)
        one, other = hard + 0.2 + rng.normal(0, 0.05, 150), hard + rng.normal(0, 0.05, 150)
        bootstrap = HierarchicalBootstrap(crossed(3, 50))
        first, second = mean_of(one), mean_of(other)
        paired = bootstrap.resample({"d": lambda weights: first(weights) - second(weights)})["d"]
        assert paired.estimate.value == pytest.approx(0.2, abs=0.03)
        assert paired.estimate.ci_low > 0
        assert bootstrap.estimate(first).ci_low < 0
        assert paired.p_value() < 0.01 < bootstrap.resample({"o": first})["o"].p_value()

    def test_resamples_on_which_it_is_undefined_are_left_out(self):
        bootstrap = HierarchicalBootstrap({"question": list("abcd")})
        found = bootstrap.resample({"r": lambda weights: np.where(weights[:, 0] > 0, 2.0, np.nan)})["r"]
        assert found.estimate == Estimate(2.0, None, None, 4)  # it never varies
        assert 500 < len(found.draws) < 800

    def test_nothing_to_estimate_is_null(self):
        assert HierarchicalBootstrap({"seed": [], "question": []}).mean([]) == Estimate(None, None, None, 0)
        undefined = HierarchicalBootstrap({"question": ["a", "b"]}).estimate(
            lambda weights: np.full(len(weights), np.nan)
        )
        assert undefined == Estimate(None, None, None, 2)

    def test_many_statistics_at_once_are_as_one_by_one(self):
        rng = np.random.default_rng(5)
        bootstrap = HierarchicalBootstrap(crossed(3, 7))
        many = {name: mean_of(rng.normal(size=21)) for name in "abc"}
        together = bootstrap.resample(many)
        for name, statistic in many.items():
            assert together[name].estimate == bootstrap.estimate(statistic)

    def test_chunks_do_not_matter(self, monkeypatch):
        values = np.random.default_rng(6).normal(size=21)
        whole = resampled_mean(values, crossed(3, 7)).estimate
        monkeypatch.setattr("afintro.evaluation.hierarchical.CHUNK", 21 * 13)
        in_chunks = resampled_mean(values, crossed(3, 7)).estimate
        assert (in_chunks.ci_low, in_chunks.ci_high) == pytest.approx((whole.ci_low, whole.ci_high), abs=1e-12)

    def test_same_seed_same_interval_and_another_seed_another(self):
        values = np.random.default_rng(7).normal(size=60)
        first, again, other = (resampled_mean(values, crossed(3, 20), seed).estimate for seed in (7, 7, 8))
        assert first == again
        assert (first.ci_low, first.ci_high) != (other.ci_low, other.ci_high)

    @pytest.mark.slow
    def test_does_not_depend_on_the_hash_seed(self):
        code = (
            "from afintro.evaluation.hierarchical import HierarchicalBootstrap\n"
            "levels = {'seed': [i % 3 for i in range(60)], 'question': [f's{i % 20}' for i in range(60)]}\n"
            "print(HierarchicalBootstrap(levels, 3).mean([i * i % 11 for i in range(60)]))"
        )
        printed = printed_with_hash_seeds(code, "0", "271828")
        assert len(printed) == 1
        assert "Estimate" in printed.pop()


MANY = {"inflation": 1.0, "freedom": 1e9}


class TestPValue:
    def test_formula_by_hand(self):
        """Of nine resamples two are at or below 0: q = 3 / 10, p = 0.6."""
        draws = np.array([-2.0, 0.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0])
        found = Resampled(2.0, draws, 9, **MANY)
        assert found.p_value() == pytest.approx(0.6)
        assert found.p_value(null=6.0) == pytest.approx(0.2)  # no resample beyond: 2 / (B + 1), never 0
        assert found.p_value(null=2.0) == 1.0

    def test_is_larger_with_few_degrees_of_freedom(self):
        draws = np.linspace(-0.1, 1.0, 99)
        below = (1 + np.sum(draws <= 0)) / 100
        found = Resampled(0.5, draws, 5, inflation=1.25, freedom=4)
        assert found.p_value() == pytest.approx(2 * t.cdf(norm.ppf(below) / 1.25, 4))
        assert found.p_value() > Resampled(0.5, draws, 5, **MANY).p_value()

    def test_falls_as_null_moves_away_beyond_all_resamples(self):
        """With two seeds the outermost resample alone never makes anything unlikely."""
        draws = np.linspace(0.9, 1.1, 999)
        near, far = (Resampled(1.0, draws, 5, inflation=1.2, freedom=2).p_value(null) for null in (0.89, -5.0))
        assert far < 0.01 < near

    def test_is_never_below_two_over_the_resamples_plus_one(self):
        nearly = resampled_mean(0.3 + 1e-6 * np.random.default_rng(0).normal(size=30), crossed(3, 10))
        assert nearly.p_value() == pytest.approx(2 / 1001)
        assert nearly.p_value(null=float(np.median(nearly.draws))) == 1.0

    def test_of_true_nulls_is_spread_out(self):
        rng = np.random.default_rng(8)
        found = [resampled_mean(rng.normal(size=30), {"question": list(range(30))}, k).p_value() for k in range(200)]
        assert 0.4 < np.mean(found) < 0.6
        assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.1)


def resampled_within(values, levels, bounds):
    return HierarchicalBootstrap(levels).resample({"mean": mean_of(values)}, bounds)["mean"]


class TestShares:
    """Statistics between 0 and 1 have Wilson's interval at the number of items of the same standard error."""

    def test_of_single_questions_is_nearly_wilsons_own(self):
        found = resampled_within([1.0] * 57 + [0.0] * 3, {"question": list(range(60))}, SHARE).estimate
        assert (found.ci_low, found.ci_high) == pytest.approx(wilson(0.95, 60, t.ppf(0.975, 59)), abs=0.01)

    def test_by_hand(self):
        draws = np.array([0.3, 0.5, 0.4, 0.4])  # with a variance of 0.005
        found = Resampled(0.4, draws, 9, SHARE, inflation=2.0, freedom=3.0, units=5)
        expected = wilson(0.4, 0.24 / (4 * 0.005), t.ppf(0.975, 3))
        assert (found.estimate.ci_low, found.estimate.ci_high) == pytest.approx(expected)

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_of_answers_that_all_agree_has_width(self, share):
        """Three seeds give the same answer to all of 40 questions: what 40 questions would show, not one number for certain."""
        found = resampled_within([share] * 120, crossed(3, 40), SHARE).estimate
        assert (found.ci_low, found.ci_high) == pytest.approx(wilson(share, 40, t.ppf(0.975, 39)))

    def test_p_value_is_5_percent_at_the_ends_of_the_interval(self):
        rng = np.random.default_rng(0)
        for values in (rng.random(60) < 0.9, rng.random(60) < 0.4, np.ones(60)):
            found = resampled_within(values.astype(float), crossed(3, 20), SHARE)
            for end in (found.estimate.ci_low, found.estimate.ci_high):
                assert end in (0, 1) or found.p_value(end) == pytest.approx(0.05)
            assert found.p_value(found.value) == 1.0
        assert resampled_within(np.ones(60), crossed(3, 20), SHARE).p_value(0.0) == pytest.approx(2 / 1001)

    def test_a_difference_that_never_varies_ends_where_tangos_interval_does(self):
        found = resampled_within([0.0] * 120, crossed(3, 40), (-1.0, 1.0))
        limit = t.ppf(0.975, 39) ** 2 / (40 + t.ppf(0.975, 39) ** 2)
        assert (found.estimate.ci_low, found.estimate.ci_high) == pytest.approx((-limit, limit))
        assert found.p_value() == 1.0
        assert found.p_value(limit) == pytest.approx(0.05)

    def test_what_has_no_bounds_and_never_varies_has_no_interval(self):
        constant = resampled_mean(np.full(30, 0.3), crossed(3, 10))
        assert constant.estimate == Estimate(pytest.approx(0.3), None, None, 30)
        assert constant.p_value() is None


class TestBenjaminiHochberg:
    def test_by_hand(self):
        """m = 5: 0.01 x 5/1, 0.02 x 5/2, 0.03 x 5/3, 0.04 x 5/4 are all 0.05; 0.5 x 5/5."""
        assert benjamini_hochberg([0.04, 0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.05, 0.5, 0.05, 0.05, 0.05])

    def test_an_adjusted_value_is_at_most_that_of_the_next(self):
        """0.02 x 3 = 0.06, 0.039 x 3/2 = 0.0585, 0.9: the first takes the second's."""
        assert benjamini_hochberg([0.02, 0.039, 0.9]) == pytest.approx([0.0585, 0.0585, 0.9])

    def test_example_of_the_paper(self):
        """Section 4.1 of Benjamini & Hochberg: at 0.05 the four smallest of fifteen are discoveries."""
        values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240]
        values += [0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
        adjusted = benjamini_hochberg(values)
        assert [p <= 0.05 for p in adjusted] == [True] * 4 + [False] * 11
        assert adjusted[3] == pytest.approx(0.0095 * 15 / 4)

    def test_what_was_not_tested_stays_none_and_is_not_counted(self):
        assert benjamini_hochberg([None, 0.01, None, 0.04]) == [None, pytest.approx(0.02), None, pytest.approx(0.04)]
        assert benjamini_hochberg([]) == []

    def test_ties_and_ones(self):
        assert benjamini_hochberg([0.5, 0.5, 1.0]) == pytest.approx([0.75, 0.75, 1.0])

    def test_false_discoveries_among_true_nulls_are_rare(self):
        rng = np.random.default_rng(9)
        families = [benjamini_hochberg(rng.random(50).tolist()) for _ in range(400)]
        assert np.mean([min(family) <= 0.05 for family in families]) < 0.09


def test_ratio_and_variance_of_nothing():
    assert np.isnan(ratio(np.array([1.0]), np.array([0.0]))).all()
    assert variance(np.array([np.nan])) == 0.0
    assert variance(np.array([1.0, np.nan, 3.0])) == 1.0
