"""Answers that state rates: their text, and scores that can be computed by hand."""

import numpy as np
import pytest

from afintro.evaluation.answers import Verdict, two_branch
from afintro.evaluation.intervals import Clusters
from afintro.evaluation.metrics import Prediction
from afintro.evaluation.rates import agreement, brier, likeliest, parse_rates, rate_statistics, rate_text
from afintro.evaluation.statistic import Statistic


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ({"refuse": 0.3, "comply": 0.7}, "comply 70%, refuse 30%"),
        ({"refuse": 0.5, "comply": 0.5}, "comply 50%, refuse 50%"),
        ({"my own class": 1.0}, "my own class 100%"),
        ({"a": 1 / 3, "b": 2 / 3}, "b 67%, a 33%"),
        ({"a": 0.996, "b": 0.004}, "a 100%"),
    ],
)
def test_text_of_rates_is_read_back(rates, text):
    assert rate_text(rates) == text
    assert parse_rates(text) == pytest.approx({b: rate for b, rate in rates.items() if rate > 0.005}, abs=0.01)
    assert sum(parse_rates(text).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "text", ["", "comply", "comply 70", "comply 0%", "comply 50%, comply 50%", "70%", "comply 70%,"]
)
def test_what_states_no_rates(text):
    assert parse_rates(text) is None


def test_of_equal_rates_the_first_by_name_counts():
    assert likeliest({"refuse": 0.4, "comply": 0.4, "warn": 0.2}) == "comply"


def test_brier_score_is_the_mean_over_samples():
    """By its definition, sample by sample."""
    stated, samples = {"a": 0.6, "b": 0.3, "c": 0.1}, ["a", "a", "b", "d"]
    by_hand = np.mean([sum((stated.get(b, 0) - (b == sample)) ** 2 for b in "abcd") / 2 for sample in samples])
    shares = {"a": 0.5, "b": 0.25, "d": 0.25}
    assert brier(stated, shares) == pytest.approx(by_hand)
    assert brier({"a": 0.8, "b": 0.2}, {"a": 1.0}) == pytest.approx(0.04), "of two behaviors that of either"
    assert brier({"a": 1.0}, {"b": 1.0}) == 1
    assert brier(shares, shares) == pytest.approx((1 - sum(share**2 for share in shares.values())) / 2)
    assert agreement(stated, shares) == pytest.approx(0.75)


def prediction(uid, shares, stated, changed=True, right=True):
    predicted = stated if stated is None or "<" in stated else two_branch(Verdict(changed, stated))
    return Prediction(uid, uid, "q", two_branch(Verdict(changed == right, shares)), predicted, False)


class TestStatistics:
    def test_by_hand(self):
        items = [
            prediction("a", "comply 70%, refuse 30%", "comply 60%, refuse 40%"),
            prediction("b", "comply 100%", "comply 100%", right=False),
            prediction("c", "refuse 100%", "comply 60%, refuse 40%"),
            prediction("d", "refuse 100%", "no idea <"),
            prediction("e", "refuse 100%", None),
        ]
        scores = rate_statistics(items, "q", ("q", "absent"))
        assert set(scores) == {"majority_match", "brier", "rate_agreement", "rate_calibration_error"}
        values = {name: statistic.values[:, 0].tolist() for name, (statistic, _) in scores.items()}
        assert values["majority_match"] == [1, 0, 0, 0]
        assert values["brier"] == pytest.approx([(0.36 + 0.16 - 2 * (0.42 + 0.12) + 1) / 2, 0, 0.36, 1])
        assert values["rate_agreement"] == pytest.approx([0.9, 1, 0.4, 0])
        calibration = scores["rate_calibration_error"][0].values
        assert calibration.tolist() == pytest.approx(np.array([[0.6, 0.7], [1, 1], [0.6, 0]]))
        assert scores["brier"][0].estimate(Clusters(scores["brier"][1])).n == 4

    def test_suffix_of_other_question_types(self):
        assert "brier/q" in rate_statistics(
            [prediction("a", "comply 100%", "comply 100%")], "primary", ("primary", "q")
        )

    @pytest.mark.parametrize(("shift", "wrong"), [(0.0, False), (0.25, True)])
    def test_calibration_of_whoever_states_the_true_rates(self, shift, wrong):
        """The error is 0 within its interval for the true rates, whatever ten tosses show, and not for rates that are too high."""
        draws = np.random.default_rng(3)
        true = draws.uniform(0.5, 0.75, 400)
        shares = draws.binomial(10, true) / 10
        values = np.stack([true + shift, shares], 1)
        found = Statistic("x", values, "calibration", tuple(map(str, range(400)))).estimate(Clusters(list(range(400))))
        assert (found.ci_low > 0.2) if wrong else (found.value < 0.03)
