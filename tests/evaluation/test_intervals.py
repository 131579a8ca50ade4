"""Intervals over clusters: against scipy where it has them, what clusters do to them, and that none has width 0 by agreement."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t, ttest_1samp

from afintro.evaluation import intervals
from afintro.evaluation.intervals import SHARE, Clusters, Estimate, effective_count, mean_of
from afintro.evaluation.score_intervals import paired, wilson
from tests.forked import printed_with_hash_seeds

Z = norm.ppf(0.975)


def names(count):
    return [f"s{index}" for index in range(count)]


def ends(estimate):
    return estimate.ci_low, estimate.ci_high


def width(estimate):
    return estimate.ci_high - estimate.ci_low


class TestShare:
    HITS, AMONG = (1, 0, 1, 1, 0, 1), (1, 1, 1, 0, 0, 0)

    @pytest.mark.parametrize("hits", [0, 1, 17, 29, 30])
    def test_of_single_items_is_wilsons_of_scipy(self, hits):
        found = Clusters(names(30)).share([1] * hits + [0] * (30 - hits))
        reference = binomtest(hits, 30).proportion_ci(method="wilson")
        assert found.value == pytest.approx(hits / 30)
        assert ends(found) == pytest.approx((reference.low, reference.high), abs=1e-12)

    def test_300_of_300(self):
        found = Clusters(names(300)).share([1] * 300)
        assert ends(found) == (pytest.approx(0.98736, abs=1e-5), 1.0)

    def test_among_some_is_the_share_of_these_alone(self):
        found = Clusters(names(6)).share(self.HITS, self.AMONG)
        assert found == Clusters(names(3)).share([1, 0, 1])
        assert (found.value, found.n) == (pytest.approx(2 / 3), 3)

    def test_among_some_keeps_their_clusters(self):
        clusters = list("aabbccdd")
        found = Clusters(clusters).share([1, 1, 0, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1, 1, 1])
        assert found == Clusters(list("aaccdd")).share([1, 1, 1, 1, 0, 1])
        assert Clusters(clusters).share([1] * 8, [1, 1, 0, 0, 0, 0, 0, 0]) == Estimate(1.0, None, None, 2)

    def test_truth_values_will_do(self):
        as_numbers = Clusters(names(6)).share(self.HITS, self.AMONG)
        assert Clusters(names(6)).share([h == 1 for h in self.HITS], [a == 1 for a in self.AMONG]) == as_numbers

    def test_among_nothing_is_null(self):
        assert Clusters(names(3)).share([1, 1, 0], [0, 0, 0]) == Estimate(None, None, None, 0)
        assert Clusters([]).share([]) == Estimate(None, None, None, 0)


class TestClusters:
    def test_design_effect_by_hand(self):
        """Two clusters of two that agree and one that does not: the analysis of variance has an ICC of 0.6.

        Mean squares: between 2 x (1/4 + 1/4 + 0) / 2 = 0.5, within 0.5 / 3 = 1/6; ICC = (1/2 - 1/6) / (1/2 + 1/6) = 1/2. With three
        items of the rarer outcome as evidence, and half an item of an ICC of 1: (3 x 1/2 + 1/2) / 3.5 = 4/7.
        """
        hits = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
        effect = Clusters(list("aabbcc")).effect(hits, 3)
        assert effect.correlation == pytest.approx(4 / 7)
        assert effect.design == pytest.approx(11 / 7)
        assert effect.quantile == pytest.approx(t.ppf(0.975, 2 * (11 / 7) / (4 / 7)))
        found = Clusters(list("aabbcc")).share(hits)
        assert ends(found) == pytest.approx(wilson(0.5, 6 * 7 / 11, effect.quantile))

    def test_unequal_clusters_count_by_the_cluster_of_a_mean_item(self):
        """Sizes 1 and 3: an item is in a cluster of (1 + 9) / 4 = 2.5 items, all of which agree."""
        effect = Clusters(list("abbbcddd")).effect(np.array([1.0, 1, 1, 1, 0, 0, 0, 0]), 4)
        assert (effect.correlation, effect.design) == (pytest.approx(1.0), pytest.approx(2.5))

    def test_equal_items_count_once(self):
        """Ten copies of each of 30 values are 30 observations."""
        values = np.random.default_rng(2).normal(size=30)
        clustered = Clusters(np.repeat(names(30), 10).tolist()).mean(np.repeat(values, 10))
        by_item = Clusters(names(300)).mean(np.repeat(values, 10))
        alone = Clusters(names(30)).mean(values)
        assert width(clustered) == pytest.approx(width(alone), rel=0.03)
        assert width(clustered) == pytest.approx(np.sqrt(10) * width(by_item), rel=0.06)
        assert (clustered.value, clustered.n) == (pytest.approx(by_item.value), 300)

    def test_items_that_have_nothing_in_common_count_fully(self):
        hits = np.random.default_rng(3).random(600) < 0.5
        clustered = Clusters(np.repeat(names(200), 3).tolist()).share(hits)
        assert width(clustered) == pytest.approx(width(Clusters(names(600)).share(hits)), rel=0.05)

    def test_agreement_everywhere_says_nothing_about_the_correlation(self):
        """300 hits of 100 scenarios are worth 100 hits."""
        found = Clusters(np.repeat(names(100), 3).tolist()).share([1] * 300)
        assert found.ci_high == 1
        assert found.ci_low == pytest.approx(wilson(1.0, 100, t.ppf(0.975, 99 * 3 / 2))[0])

    def test_clusters_that_all_hold_the_same_share_have_width(self):
        found = Clusters(np.repeat(names(40), 2).tolist()).share([1, 0] * 40)
        assert 0.15 < width(found) < 0.25  # of 80 independent items 0.214

    @pytest.mark.parametrize("clusters", [["a"], ["a"] * 9])
    def test_one_cluster_has_no_interval(self, clusters):
        items, count = Clusters(clusters), len(clusters)
        ones = np.ones(count)
        found = [items.share(ones), items.mean(ones), items.mean(ones, SHARE), items.estimate(mean_of(ones))]
        assert found == [Estimate(1.0, None, None, count)] * 4
        assert items.difference(ones, 1 - ones) == Estimate(1.0, None, None, count)

    def test_two_clusters_have_one_and_it_is_wide(self):
        found = Clusters(list("aabb")).share([1, 1, 1, 1])
        assert found.ci_low < 0.4
        assert found.ci_high == 1

    def test_names_do_not_matter_but_their_order_does_not_mix_items_up(self):
        hits = [0.0, 0.0, 1.0, 1.0]
        assert Clusters(["z", "z", "a", "a"]).share(hits) == Clusters(["a", "a", "z", "z"]).share(hits)
        assert width(Clusters(["z", "a", "z", "a"]).share(hits)) < width(Clusters(["z", "z", "a", "a"]).share(hits))


class TestMean:
    def test_of_single_items_without_bounds_is_students_of_scipy(self):
        values = np.random.default_rng(1).normal(3, 2, size=12)
        reference = ttest_1samp(values, 0).confidence_interval()
        assert ends(Clusters(names(12)).mean(values)) == pytest.approx((reference.low, reference.high))

    def test_of_many_scores_within_bounds_is_nearly_students(self):
        values = np.random.default_rng(1).beta(2, 3, size=2000)
        reference = ttest_1samp(values, 0).confidence_interval()
        found = Clusters(names(2000)).mean(values, SHARE)
        assert ends(found) == pytest.approx((reference.low, reference.high), abs=1e-3)

    def test_of_hits_and_misses_is_a_share(self):
        hits = [0, 1, 1, 1, 0, 1]
        assert Clusters(list("aabbcd")).mean(hits, SHARE) == Clusters(list("aabbcd")).share(hits)

    def test_scales_with_its_bounds(self):
        values = np.random.default_rng(4).random(30)
        found, scaled = Clusters(names(30)).mean(values, SHARE), Clusters(names(30)).mean(4 * values - 1, (-1.0, 3.0))
        assert (scaled.value, *ends(scaled)) == pytest.approx(
            (4 * found.value - 1, 4 * found.ci_low - 1, 4 * found.ci_high - 1)
        )

    def test_of_equal_scores_has_width(self):
        """Of 91 parts of the variance one is that of hits and misses: min(0.7, 0.3) x 300 items are evidence of none."""
        found = Clusters(names(300)).mean([0.7] * 300, SHARE)
        assert ends(found) == pytest.approx(wilson(0.7, 300 * 91, t.ppf(0.975, 299)))
        assert ends(Clusters(names(300)).mean([1.0] * 300, SHARE)) == (pytest.approx(0.98736, abs=1e-5), 1.0)

    def test_of_equal_values_without_bounds_has_no_interval(self):
        assert Clusters(names(5)).mean([2.5] * 5) == Estimate(2.5, None, None, 5)

    def test_over_groups_by_hand(self):
        """Variances of the groups' means, 0.02 / 2 and 0.06 / 3 / 2, are added and divided by the squared number of groups."""
        values, groups = np.array([0.1, 0.3, 0.5, 0.8, 0.8]), np.array([0.0, 0, 1, 1, 1])
        found = Clusters(names(5)).weighted_mean(values, groups, SHARE)
        share, variance, count = 0.45, (0.01 + 0.01) / 4, 1 / (2 / 16 + 3 / 36)
        evidence = 5 * share
        worth = count * (evidence + 1) / (evidence * variance / (share * (1 - share) / count) + 1)
        assert found.value == pytest.approx(share)
        assert ends(found) == pytest.approx(wilson(share, worth, t.ppf(0.975, 4)))

    def test_over_groups_of_one_item_has_width(self):
        found = Clusters(names(3)).weighted_mean(np.array([0.2, 0.5, 0.8]), np.arange(3.0), SHARE)
        assert ends(found) == pytest.approx(ends(Clusters(names(3)).mean([0.2, 0.5, 0.8], SHARE)), abs=0.1)


class TestDifference:
    def test_is_tangos_interval(self):
        first, second = [1] * 8 + [0] * 4 + [1] * 18, [0] * 8 + [1] * 4 + [1] * 18
        found = Clusters(names(30)).difference(first, second)
        assert (found.value, found.n) == (pytest.approx(4 / 30), 30)
        assert ends(found) == pytest.approx(paired(8, 4, 30))

    def test_clusters_widen_it(self):
        first, second = np.repeat([1, 0, 1, 1] * 5, 3), np.repeat([0, 1, 1, 1] * 5, 3)
        clustered = Clusters(np.repeat(names(20), 3).tolist()).difference(first, second)
        assert width(clustered) == pytest.approx(
            np.sqrt(3) * width(Clusters(names(60)).difference(first, second)), rel=0.1
        )

    def test_in_clusters_by_hand(self):
        """Four discordant items are the evidence of their correlation; each cluster of two goes one way or does not differ."""
        first, second = [1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]
        correlation = (4 * 1 + 0.5) / 4.5
        worth, quantile = 8 / (1 + correlation), t.ppf(0.975, 3 * (1 + correlation) / correlation)
        found = Clusters(list("aabbccdd")).difference(first, second)
        assert ends(found) == pytest.approx(paired(worth / 4, worth / 4, worth, quantile))
        # Discordant items of one cluster that go both ways: no correlation, from the evidence of two items.
        apart = Clusters(list("aabbccdd")).difference([1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0])
        assert ends(apart) == pytest.approx(paired(1 / 1.2, 1 / 1.2, 8 / 1.2, t.ppf(0.975, 3 * 6)))

    def test_of_systems_that_agree_everywhere_has_width(self):
        found = Clusters(names(300)).difference([1, 0, 1] * 100, [1, 0, 1] * 100)
        assert (found.value, *ends(found)) == pytest.approx((0.0, -0.012643, 0.012643), abs=1e-6)

    def test_is_narrower_than_that_of_unrelated_systems(self):
        hard = np.random.default_rng(3).random(300)
        one, other = hard < 0.5, hard < 0.45
        alike = Clusters(names(300)).difference(one, other)
        unlike = Clusters(names(300)).difference(one, np.random.default_rng(4).permutation(other))
        assert alike.value == pytest.approx(unlike.value)
        assert width(alike) < 0.5 * width(unlike)
        assert alike.ci_low > 0


class TestAnyStatistic:
    def test_of_a_mean_has_its_standard_error(self):
        values = np.random.default_rng(4).random(200)
        found = Clusters(names(200)).estimate(mean_of(values))
        assert ends(found) == pytest.approx(ends(Clusters(names(200)).mean(values, SHARE)), abs=2e-3)

    def test_clusters_are_left_out_as_a_whole(self):
        seen = []
        Clusters(["b", "a", "b", "c"]).estimate(
            lambda weights: seen.append(weights.tolist()) or mean_of([0, 1, 1, 0])(weights)
        )
        assert seen == [[[1, 1, 1, 1]], [[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]]

    def test_weights_are_handed_out_in_parts_whatever_their_size(self, monkeypatch):
        values = np.random.default_rng(4).random(30)
        whole, sizes = Clusters(names(30)).estimate(mean_of(values)), []
        monkeypatch.setattr(intervals, "CHUNK", 30 * 7)
        parts = Clusters(names(30)).estimate(lambda weights: sizes.append(len(weights)) or mean_of(values)(weights))
        assert (ends(parts), sizes) == (pytest.approx(ends(whole)), [1, 7, 7, 7, 7, 2])

    def test_that_never_varies_has_width(self):
        found = Clusters(names(50)).estimate(lambda weights: np.ones(len(weights)))
        assert ends(found) == pytest.approx(wilson(1.0, 50, t.ppf(0.975, 49)))

    def test_undefined_is_null_with_the_number_of_items(self):
        assert Clusters(names(5)).estimate(lambda weights: np.full(len(weights), np.nan)) == Estimate(
            None, None, None, 5
        )
        assert Clusters([]).estimate(mean_of([])) == Estimate(None, None, None, 0)

    def test_clusters_without_which_it_is_undefined_are_passed_over(self):
        found = Clusters(names(4)).estimate(lambda weights: np.where(weights[:, 0] > 0, 0.5, np.nan))
        assert (found.value, found.n) == (0.5, 4)
        assert 0 < found.ci_low < 0.5 < found.ci_high < 1


def test_an_effective_count_by_hand():
    """Twice the variance of hits and misses, with the evidence of three items beside one: 1 + 3/4 times the variance."""
    assert effective_count(0.4, 2 * 0.24 / 50, 50, 3) == pytest.approx(50 / (7 / 4))
    assert effective_count(1.0, 0.0, 50, 0, 3.0) == pytest.approx(50 / 3)


@pytest.mark.slow
def test_does_not_depend_on_the_hash_seed():
    """Known mistake 15: results that depend on set order."""
    code = (
        "from afintro.evaluation.intervals import Clusters\n"
        "print(Clusters([f's{i % 7}' for i in range(40)]).mean([i * i % 11 for i in range(40)]))"
    )
    printed = printed_with_hash_seeds(code, "0", "1", "271828")
    assert len(printed) == 1
    assert "Estimate" in printed.pop()


def test_nothing_to_estimate_is_null():
    assert Clusters([]).mean([]) == Estimate(None, None, None, 0)
    assert Clusters([]).difference([], []) == Estimate(None, None, None, 0)


def test_weighted_mean_by_hand():
    assert mean_of([1.0, 2.0, 10.0])(np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])).tolist() == [4.0, 2.0]
    assert np.isnan(mean_of([1.0])(np.array([[0.0]]))).all()


def test_as_json_has_the_names_of_the_results_contract():
    assert Estimate(0.5, 0.4, 0.6, 9).as_json() == {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 9}
