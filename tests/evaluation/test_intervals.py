"""Bootstrap intervals: how often they cover, what clusters and pairing do to them, and that they never vary."""

import numpy as np
import pytest

from afintro.evaluation.intervals import RESAMPLES, Bootstrap, Estimate, mean_of
from tests.conftest import printed_with_hash_seeds


def names(count):
    return [f"s{index}" for index in range(count)]


def width(estimate):
    return estimate.ci_high - estimate.ci_low


def test_intervals_of_a_mean_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    trials, covered = 200, 0
    for trial in range(trials):
        estimate = Bootstrap(names(60), seed=trial).mean(rng.normal(3.0, 2.0, 60))
        covered += estimate.ci_low <= 3.0 <= estimate.ci_high
    assert 0.89 <= covered / trials <= 0.985


def test_width_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(size=400)
    estimate = Bootstrap(names(400)).mean(values)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.n == 400
    standard_error = values.std() / 20
    assert estimate.ci_low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.25 * standard_error)
    assert estimate.ci_high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.25 * standard_error)


def test_clusters_of_equal_items_count_once():
    """Ten copies of each of 30 values are 30 observations: as wide as those alone, and sqrt(10) wider than 300."""
    values = np.random.default_rng(2).normal(size=30)
    repeated = np.repeat(values, 10)
    clustered = Bootstrap(np.repeat(names(30), 10).tolist()).mean(repeated)
    by_item = Bootstrap(names(300)).mean(repeated)
    alone = Bootstrap(names(30)).mean(values)
    assert width(clustered) == pytest.approx(np.sqrt(10) * width(by_item), rel=0.15)
    assert width(clustered) == pytest.approx(width(alone), rel=0.15)
    assert clustered.value == pytest.approx(by_item.value)
    assert clustered.n == 300


def test_whole_clusters_are_drawn():
    clusters = ["b", "a", "b", "c", "a", "b"]
    bootstrap = Bootstrap(clusters)
    assert bootstrap.weights.shape == (RESAMPLES, 6)
    for cluster in "abc":
        members = [i for i, name in enumerate(clusters) if name == cluster]
        assert (np.ptp(bootstrap.weights[:, members], axis=1) == 0).all()
    # As many clusters are drawn as there are: one item of each of the three tells how often it was.
    assert (bootstrap.weights[:, [0, 1, 3]].sum(1) == 3).all()


def test_the_interval_of_a_paired_difference_is_narrower():
    """Two systems that fail on the same items: their difference is known far better than either score."""
    rng = np.random.default_rng(3)
    hard = rng.random(300)
    one, other = (hard < 0.5).astype(float), (hard < 0.45).astype(float)
    bootstrap = Bootstrap(names(300))
    paired = bootstrap.estimate(lambda weights: mean_of(one)(weights) - mean_of(other)(weights))
    shuffled = rng.permutation(other)
    unpaired = bootstrap.estimate(lambda weights: mean_of(one)(weights) - mean_of(shuffled)(weights))
    assert paired.value == pytest.approx(unpaired.value)
    assert width(paired) < 0.5 * width(unpaired)
    assert paired.ci_low > 0


def test_same_seed_same_interval_and_another_seed_another():
    values = np.random.default_rng(4).normal(size=50)
    first, again, other = (Bootstrap(names(50), seed).mean(values) for seed in (7, 7, 8))
    assert first == again
    assert (first.ci_low, first.ci_high) != (other.ci_low, other.ci_high)
    assert first.value == other.value


@pytest.mark.slow
def test_does_not_depend_on_the_hash_seed():
    """Known mistake 15: results that depend on set order."""
    code = (
        "from afintro.evaluation.intervals import Bootstrap\n"
        "print(Bootstrap([f's{i % 7}' for i in range(40)], 3).mean([i * i % 11 for i in range(40)]))"
    )
    printed = printed_with_hash_seeds(code, "0", "1", "271828")
    assert len(printed) == 1
    assert "Estimate" in printed.pop()


def test_cluster_names_do_not_matter_but_their_order_by_name_does_not_mix_items_up():
    values = [0.0, 0.0, 5.0, 5.0]
    estimate = Bootstrap(["z", "z", "a", "a"]).mean(values)
    assert estimate.value == 2.5
    assert (estimate.ci_low, estimate.ci_high) == (0.0, 5.0)


def test_nothing_to_estimate_is_null():
    assert Bootstrap([]).mean([]) == Estimate(None, None, None, 0)


def test_undefined_on_the_items_is_null_with_their_number():
    assert Bootstrap(names(5)).estimate(lambda weights: np.full(len(weights), np.nan)) == Estimate(None, None, None, 5)


def test_resamples_on_which_it_is_undefined_are_left_out():
    """A ratio whose denominator vanishes when item 0 is not drawn (37 % of the time)."""
    estimate = Bootstrap(names(4)).estimate(lambda weights: np.where(weights[:, 0] > 0, 2.0, np.nan))
    assert estimate == Estimate(2.0, 2.0, 2.0, 4)


def test_weighted_mean_by_hand():
    assert mean_of([1.0, 2.0, 10.0])(np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])).tolist() == [4.0, 2.0]
    assert np.isnan(mean_of([1.0])(np.array([[0.0]]))).all()


def test_weights_are_handed_out_in_parts_whatever_their_size(monkeypatch):
    values = np.random.default_rng(4).normal(size=30)
    whole = Bootstrap(names(30)).mean(values)
    sizes = []
    monkeypatch.setattr("afintro.evaluation.intervals.CHUNK", 30 * 7)
    parts = Bootstrap(names(30)).estimate(lambda weights: sizes.append(len(weights)) or mean_of(values)(weights))
    assert parts == pytest.approx(whole)
    assert sizes == [1, *[7] * (RESAMPLES // 7), RESAMPLES % 7]


def test_as_json_has_the_names_of_the_results_contract():
    assert Estimate(0.5, 0.4, 0.6, 9).as_json() == {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 9}


class TestShare:
    HITS, AMONG = (1, 0, 1, 1, 0, 1), (1, 1, 1, 0, 0, 0)

    def test_by_hand(self):
        """Of three items two are hits; those outside count in neither, hits or not."""
        estimate = Bootstrap(names(6)).share(self.HITS, self.AMONG)
        assert estimate.value == pytest.approx(2 / 3)
        assert estimate.n == 3
        assert (estimate.ci_low, estimate.ci_high) == (0.0, 1.0)

    def test_is_the_ratio_on_every_resample(self):
        """Of those items alone, counted by hand; resamples that hold no item of ``among`` are left out."""
        rng = np.random.default_rng(6)
        clusters = [f"s{i % 12}" for i in range(60)]
        for rate in (0.05, 0.6):
            hits, among = (rng.random(60) < 0.4).astype(float), (rng.random(60) < rate).astype(float)
            among[7] = 1.0
            bootstrap = Bootstrap(clusters, seed=2)
            drawn = [
                hits[among > 0] @ own[among > 0] / own[among > 0].sum() for own in bootstrap.weights if own @ among
            ]
            found = bootstrap.share(hits, among)
            assert found.n == among.sum() > 0
            numbers = (found.value, found.ci_low, found.ci_high)
            assert numbers == pytest.approx((hits @ among / among.sum(), *np.percentile(drawn, [2.5, 97.5])))

    def test_of_all_items_it_is_their_mean(self):
        bootstrap = Bootstrap(names(6))
        found, mean = bootstrap.share(self.HITS, [1] * 6), bootstrap.mean(self.HITS)
        assert (found.value, found.n) == (pytest.approx(mean.value), 6)
        assert (found.ci_low, found.ci_high) == pytest.approx((mean.ci_low, mean.ci_high))

    def test_truth_values_will_do(self):
        as_numbers = Bootstrap(names(6)).share(self.HITS, self.AMONG)
        assert Bootstrap(names(6)).share([h == 1 for h in self.HITS], [a == 1 for a in self.AMONG]) == as_numbers

    def test_among_nothing_is_null(self):
        assert Bootstrap(names(3)).share([1, 1, 0], [0, 0, 0]) == Estimate(None, None, None, 0)
        assert Bootstrap([]).share([], []) == Estimate(None, None, None, 0)
