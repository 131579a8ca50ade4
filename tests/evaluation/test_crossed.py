"""Intervals over scenarios and directions: the weighted metrics, coverage where directions differ, and what has no interval."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from afintro.evaluation.crossed import Crossed, weighted
from afintro.evaluation.intervals import Clusters
from afintro.evaluation.metrics import few_clusters_warning, lead, score
from afintro.evaluation.statistic import Statistic


def statistic(kind, values):
    values = np.array(values, dtype=np.float64)
    return Statistic("m", values.reshape(len(values), -1), kind, tuple(f"{row:05d}" for row in range(len(values))))


def crossed(scenarios, directions):
    return Crossed({"scenario": tuple(map(str, scenarios)), "direction": tuple(map(str, directions))})


class TestWeighted:
    RNG = np.random.default_rng(0)
    WEIGHTS = RNG.integers(0, 4, (6, 40)).astype(np.float64)
    TRUTH, SAID = RNG.integers(0, 2, 40), RNG.integers(-1, 2, 40)
    SCORES = np.round(RNG.random(40), 1)  # with ties

    def test_whole_weights_are_repetitions(self):
        """Against scikit-learn on the items repeated."""
        found = {
            "mean": weighted(statistic("mean", self.SCORES))(self.WEIGHTS),
            "f1": weighted(statistic("f1", np.stack([self.TRUTH, self.SAID], 1)))(self.WEIGHTS),
            "auroc": weighted(statistic("auroc", np.stack([self.SCORES, self.TRUTH], 1)))(self.WEIGHTS),
        }
        for draw, weights in enumerate(self.WEIGHTS):
            rows = np.repeat(np.arange(40), weights.astype(int))
            assert found["mean"][draw] == pytest.approx(self.SCORES[rows].mean())
            expected = f1_score(self.TRUTH[rows], self.SAID[rows], labels=[0, 1], average="macro")
            assert found["f1"][draw] == pytest.approx(expected)
            assert found["auroc"][draw] == pytest.approx(roc_auc_score(self.TRUTH[rows], self.SCORES[rows]))

    def test_at_equal_weights_they_are_the_metrics(self):
        for kind, values in (
            ("mean", self.SCORES),
            ("f1", np.stack([self.TRUTH, self.SAID], 1)),
            ("auroc", np.stack([self.SCORES, self.TRUTH], 1)),
        ):
            own = statistic(kind, values)
            assert weighted(own)(np.ones((1, 40)))[0] == pytest.approx(own.value)

    def test_an_absent_class_is_undefined_and_other_kinds_are_refused(self):
        assert np.isnan(weighted(statistic("auroc", [[0.1, 1], [0.2, 1]]))(np.ones((1, 2)))[0])
        with pytest.raises(ValueError, match="macro"):
            weighted(statistic("macro", [[0.1, 1], [0.2, 1]]))


class TestCrossed:
    def drawn(self, seed, spread=0.1, directions=20, scenarios=40, count=400):
        """Hits whose rate differs between directions and between scenarios."""
        rng = np.random.default_rng(seed)
        rate = 0.75 + spread * rng.standard_normal(directions)
        of, scenario = rng.integers(0, directions, count), rng.integers(0, scenarios, count)
        hits = rng.random(count) < np.clip(rate[of] + 0.05 * rng.standard_normal(scenarios)[scenario], 0, 1)
        return statistic("mean", hits), crossed(scenario, of)

    def test_the_interval_covers_where_directions_differ_and_the_one_over_scenarios_does_not(self):
        covered = alone = 0
        for seed in range(100):
            hits, units = self.drawn(seed)
            found = units.estimate(hits)
            narrow = hits.estimate(Clusters(units.levels["scenario"]))
            covered += found.ci_low <= 0.75 <= found.ci_high
            alone += narrow.ci_low <= 0.75 <= narrow.ci_high
        assert 92 <= covered <= 100
        assert alone < covered - 5

    def test_value_and_count_are_those_of_the_items(self):
        hits, units = self.drawn(0)
        found = units.estimate(hits)
        assert (found.value, found.n) == (pytest.approx(hits.value), 400)
        assert units.estimate(hits) == found, "every draw is seeded"

    def test_a_lead_is_paired(self):
        hits, units = self.drawn(1)
        assert (units.lead(hits, hits).value, units.lead(hits, hits).ci_low < 0 < units.lead(hits, hits).ci_high) == (
            0,
            True,
        )
        worse = replace(hits, values=np.where(np.arange(400)[:, None] % 4 == 0, 0.0, hits.values))
        found = units.lead(hits, worse)
        assert found.value == pytest.approx(hits.value - worse.value)
        assert 0 < found.ci_low < found.value < found.ci_high
        assert found.ci_high - found.ci_low < units.estimate(hits).ci_high - units.estimate(hits).ci_low

    def test_one_direction_leaves_the_scenarios_and_one_of_both_leaves_nothing(self):
        hits, units = self.drawn(2)
        one = Crossed({**units.levels, "direction": ("d",) * 400})
        assert one.estimate(hits).ci_low is not None
        both = Crossed({"scenario": ("s",) * 400, "direction": ("d",) * 400})
        assert (both.estimate(hits).ci_low, both.estimate(hits).value) == (None, pytest.approx(hits.value))

    def test_calibration_has_the_wider_interval_of_both_levels(self):
        rng = np.random.default_rng(0)
        own = statistic("calibration", np.stack([rng.random(200), rng.integers(0, 2, 200)], 1))
        units = crossed(rng.integers(0, 50, 200), rng.integers(0, 4, 200))
        each = [own.estimate(Clusters(level)) for level in units.levels.values()]
        assert units.estimate(own) == max(each, key=lambda found: found.ci_high - found.ci_low)

    def test_scores_and_leads_of_crossed_items(self):
        """Through the functions that a run calls; items that a rival lacks are left out."""
        hits, units = self.drawn(3)
        scores = {"m": (hits, units)}
        assert score(scores)["m"] == units.estimate(hits)
        rows = list(range(300))
        found, best = lead(scores, {"rival": {"m": (hits.restricted(rows), units.restricted(rows))}}, "m")
        assert (found.value, found.n, best) == (0.0, 300, "rival")
        assert few_clusters_warning(scores) is None
        few = Crossed({**units.levels, "direction": tuple(str(row % 3) for row in range(400))})
        assert "m (3)" in few_clusters_warning({"m": (hits, few)})
