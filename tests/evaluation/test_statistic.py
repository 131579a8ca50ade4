"""Intervals of macro-F1, AUROC, macro means and leads: variances against independent computations, agreement, clusters."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score, roc_auc_score

from afintro.evaluation.intervals import SHARE, Clusters, Estimate
from afintro.evaluation.score_intervals import auroc_ends, auroc_variance, difference, paired, wilson
from afintro.evaluation.statistic import (
    Statistic,
    auroc,
    auroc_influence,
    f1_influence,
    imbalance,
    macro_f1,
    macro_mean,
)

Z2 = norm.ppf(0.975) ** 2


def make(kind, values):
    return Statistic(kind, np.asarray(values, dtype=float), kind, tuple(map(str, range(len(values)))))


def alone(count):
    return Clusters([f"s{i}" for i in range(count)])


def ends(estimate):
    return estimate.ci_low, estimate.ci_high


def width(estimate):
    return estimate.ci_high - estimate.ci_low


def verdicts(count, right=0.8, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.4
    return np.stack([truth, truth ^ (rng.random(count) > right)], 1).astype(float)


def scores(count, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.4
    return np.stack([np.round(rng.normal(size=count) + shift * truth, 1), truth], 1)


STATISTICS = {
    "mean": make("mean", verdicts(60)[:, 1:]),
    "macro": make("macro", np.stack([scores(60)[:, 0].clip(0, 1), np.arange(60) % 4], 1)),
    "f1": make("f1", verdicts(60)),
    "auroc": make("auroc", scores(60)),
    "calibration": make("calibration", np.stack([np.linspace(0.01, 0.99, 60), np.arange(60) % 2], 1)),
}


class TestInfluence:
    """What an item adds is what the metric changes by when the item weighs a little more, per weight."""

    def test_of_macro_f1_against_sklearn(self):
        outcomes, little = verdicts(40), 1e-6
        outcomes[5, 1] = -1
        for row in range(40):
            weights = np.ones(40)
            weights[row] += little
            more = f1_score(*outcomes.T, labels=[0, 1], average="macro", sample_weight=weights)
            assert f1_influence(outcomes)[row] == pytest.approx((more - macro_f1(outcomes)) / little, abs=1e-5)

    def test_of_the_auroc_against_sklearn(self):
        values, little = scores(40), 1e-6
        for row in range(40):
            weights = np.ones(40)
            weights[row] += little
            more = roc_auc_score(values[:, 1], values[:, 0], sample_weight=weights)
            assert auroc_influence(values)[row] == pytest.approx((more - auroc(values)) / little, abs=1e-5)


class TestMacroF1:
    def test_of_all_right_answers_is_wilsons_interval_at_the_worth_of_the_classes(self):
        outcomes = np.repeat([[1.0, 1.0]] * 10 + [[0.0, 0.0]] * 40, 1, axis=0)
        found = make("f1", outcomes).estimate(alone(50))
        assert imbalance(outcomes[:, 0]) == pytest.approx(1 / (4 * 0.2 * 0.8))
        assert (found.value, *ends(found)) == pytest.approx((1.0, *wilson(1.0, 50 * 4 * 0.2 * 0.8)))

    def test_of_balanced_classes_is_nearly_the_interval_of_the_accuracy(self):
        outcomes = np.array([[0.0, 0.0], [1.0, 1.0]] * 80 + [[0.0, 1.0], [1.0, 0.0]] * 20)
        found = make("f1", outcomes).estimate(alone(200))
        assert found.value == pytest.approx(0.8)
        assert ends(found) == pytest.approx(wilson(0.8, 200), abs=2e-3)

    def test_an_answer_costs_what_imbalance_says(self):
        outcomes = np.repeat([[1.0, 1.0], [0.0, 0.0]], [100, 300], axis=0)
        wrong = outcomes.copy()
        wrong[0, 1] = 0.0
        assert macro_f1(outcomes) - macro_f1(wrong) == pytest.approx(imbalance(outcomes[:, 0]) / 400, rel=0.01)

    def test_of_an_absent_class_is_null(self):
        assert make("f1", [[0, 0]] * 5).estimate(alone(5)) == Estimate(None, None, None, 5)


class TestAuroc:
    def test_variance_is_that_of_delong_by_pairs(self):
        values = scores(50)
        own, other = values[values[:, 1] > 0, 0], values[values[:, 1] == 0, 0]
        wins = (own[:, None] > other) + 0.5 * (own[:, None] == other)
        delong = wins.mean(1).var(ddof=1) / len(own) + wins.mean(0).var(ddof=1) / len(other)
        value = wins.mean()
        evidence, model = 50 * (1 - value), auroc_variance(value, len(own), len(other))
        shape = (evidence * delong / model + 1) / (evidence + 1)
        found = make("auroc", values).estimate(alone(50))
        assert (found.value, *ends(found)) == pytest.approx((value, *auroc_ends(value, len(own), len(other), shape)))

    def test_of_perfect_separation_has_width(self):
        found = make("auroc", [[i, i > 11] for i in range(24)]).estimate(alone(24))
        assert (found.value, *ends(found)) == pytest.approx((1.0, *auroc_ends(1.0, 12, 12)))

    def test_of_an_absent_class_is_null(self):
        assert make("auroc", [[0.3, 1]] * 5).estimate(alone(5)) == Estimate(None, None, None, 5)


class TestMacroMean:
    VALUES = np.array([[1.0, 0], [0.0, 0], [0.5, 1], [0.25, 3], [0.25, 3], [0.25, 3], [0.75, 3]])

    def test_a_large_group_counts_no_more_than_a_small_one(self):
        assert macro_mean(self.VALUES) == pytest.approx((0.5 + 0.5 + 0.375) / 3)
        assert self.VALUES[:, 0].mean() != pytest.approx((0.5 + 0.5 + 0.375) / 3)

    def test_as_a_statistic_with_its_interval(self):
        found = make("macro", self.VALUES).estimate(alone(7))
        assert found == alone(7).weighted_mean(self.VALUES[:, 0], self.VALUES[:, 1], SHARE)
        assert found.value == pytest.approx(macro_mean(self.VALUES))
        assert found.ci_low < found.value < found.ci_high


@pytest.mark.parametrize("kind", STATISTICS)
class TestAllKinds:
    def test_value_and_estimate_agree(self, kind):
        statistic = STATISTICS[kind]
        found = statistic.estimate(alone(60))
        assert found.value == pytest.approx(statistic.value)
        assert found.ci_low <= found.value <= found.ci_high
        assert found.n == 60

    def test_copies_of_items_in_their_clusters_add_nothing(self, kind):
        statistic = STATISTICS[kind]
        copies = make(kind, np.repeat(statistic.values, 5, axis=0))
        clustered = copies.estimate(Clusters([f"s{i // 5}" for i in range(300)]))
        assert width(clustered) == pytest.approx(width(statistic.estimate(alone(60))), rel=0.08)
        assert width(clustered) > 1.5 * width(copies.estimate(alone(300)))

    def test_a_system_leads_itself_by_nothing_within_what_no_discordant_item_allows(self, kind):
        statistic = STATISTICS[kind]
        found = statistic.lead(statistic, alone(60))
        limit = Z2 / (60 + Z2)
        assert (found.value, found.n) == (0.0, 60)
        assert ends(found) == pytest.approx((-limit, limit), rel=0.1)

    def test_one_cluster_has_no_interval(self, kind):
        statistic, one = STATISTICS[kind], Clusters(["s"] * 60)
        assert ends(statistic.estimate(one)) == ends(statistic.lead(statistic, one)) == (None, None)


class TestLead:
    def test_of_shares_is_tangos_interval(self):
        own, other = verdicts(50, seed=1)[:, 1:], verdicts(50, seed=2)[:, 1:]
        found = make("mean", own).lead(make("mean", other), alone(50))
        first, second = int((own > other).sum()), int((own < other).sum())
        assert ends(found) == pytest.approx(paired(first, second, 50))

    def test_of_macro_f1_with_balanced_classes_is_nearly_that_of_the_accuracy(self):
        truth = np.array([0.0, 1.0] * 60)
        own, other = truth.copy(), truth.copy()
        own[:6], other[4:28] = 1 - own[:6], 1 - other[4:28]
        found = make("f1", np.stack([truth, own], 1)).lead(make("f1", np.stack([truth, other], 1)), alone(120))
        assert found.value == pytest.approx(18 / 120)
        assert ends(found) == pytest.approx(paired(22, 4, 120), abs=5e-3)

    def test_of_the_auroc_is_narrower_when_both_systems_read_the_same(self):
        own, unrelated = scores(80, seed=1), scores(80, shift=0.5, seed=1)
        near = own.copy()
        near[:, 0] += 0.3 * np.random.default_rng(5).normal(size=80)
        unrelated[:, 0] = np.random.default_rng(6).normal(size=80) + unrelated[:, 1]
        first, second, third = make("auroc", own), make("auroc", near), make("auroc", unrelated)
        assert width(first.lead(second, alone(80))) < 0.6 * width(first.lead(third, alone(80)))
        correlation = np.corrcoef(auroc_influence(own), auroc_influence(near))[0, 1]
        one, other = first.estimate(alone(80)), second.estimate(alone(80))
        expected = difference(one.value, ends(one), other.value, ends(other), correlation)
        assert ends(first.lead(second, alone(80))) == pytest.approx(expected)

    def test_of_scores_is_that_of_the_mean_difference(self):
        rng = np.random.default_rng(7)
        own, other = rng.random((400, 1)), rng.random((400, 1))
        found = make("mean", own).lead(make("mean", other), alone(400))
        half = 1.966 * (own - other).std(ddof=1) / 20
        assert (found.value, *ends(found)) == pytest.approx(
            ((own - other).mean(), (own - other).mean() - half, (own - other).mean() + half), abs=2e-3
        )

    def test_is_undefined_where_either_value_is(self):
        one_class = make("auroc", [[0.2, 0]] * 20)
        assert one_class.lead(one_class, alone(20)) == Estimate(None, None, None, 20)


def test_restricted_keeps_rows_and_names():
    some = STATISTICS["auroc"].restricted([3, 7])
    assert some.uids == ("3", "7")
    assert np.array_equal(some.values, STATISTICS["auroc"].values[[3, 7]])
