"""Intervals in closed form against scipy, and against what their definitions say of their ends."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, chi2, ncx2, norm

from afintro.evaluation.score_intervals import auroc_ends, auroc_variance, difference, noncentral_ends, paired, wilson

Z = norm.ppf(0.975)


class TestWilson:
    @pytest.mark.parametrize(("hits", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (147, 300), (300, 300)])
    def test_equals_scipy(self, hits, count):
        reference = binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits / count, count) == pytest.approx((reference.low, reference.high), abs=1e-12)

    def test_ends_are_the_shares_at_which_the_observation_is_just_surprising(self):
        for quantile, share in itertools.product((1.96, 3.1), (0.0, 0.13, 0.9)):
            for end in wilson(share, 7.5, quantile):
                assert end == share or abs(share - end) == pytest.approx(quantile * np.sqrt(end * (1 - end) / 7.5))

    def test_holds_its_value_at_the_ends_in_spite_of_rounding(self):
        for count in np.linspace(2, 400, 97):
            assert wilson(0.0, count)[0] == 0
            assert wilson(1.0, count)[1] == 1


def likeliest_score(first, second, count, shift):
    """Standardized difference at ``shift``, with the likeliest share of items on which the second alone is right."""

    def loss(other):
        shares = np.array([other + shift, other, 1 - 2 * other - shift])
        return -(np.array([first, second, count - first - second]) * np.log(np.maximum(shares, 1e-300))).sum()

    low, high = max(0.0, -shift), (1 - shift) / 2
    other = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (first - second - count * shift) / np.sqrt(count * (2 * other + shift - shift**2))


class TestPaired:
    @pytest.mark.parametrize(("first", "second", "count"), [(12, 3, 40), (3, 12, 40), (1, 1, 50), (9, 2, 20.5)])
    def test_ends_are_just_surprising_under_the_likeliest_shares(self, first, second, count):
        low, high = paired(first, second, count)
        assert likeliest_score(first, second, count, low) == pytest.approx(Z, abs=1e-3)
        assert likeliest_score(first, second, count, high) == pytest.approx(-Z, abs=1e-3)

    def test_of_no_discordant_item(self):
        assert paired(0, 0, 300) == pytest.approx((-(Z**2) / (300 + Z**2), Z**2 / (300 + Z**2)))

    def test_where_one_system_alone_is_right_everywhere_it_ends_at_the_bound(self):
        """No item is the same for both, so that the difference is that of a share and of what is left of 1."""
        low, high = paired(20, 0, 20)
        assert high == 1
        assert low == pytest.approx(2 * binomtest(20, 20).proportion_ci(method="wilson").low - 1)

    def test_swapping_the_systems_turns_the_signs(self):
        low, high = paired(7, 2, 30)
        assert paired(2, 7, 30) == pytest.approx((-high, -low))


class TestAuroc:
    def test_variance_by_hand(self):
        """0.8 x 0.2 / 48 x (1 + 6 x (0.2 / 1.2 + 0.8 / 1.8))."""
        assert auroc_variance(0.8, 6, 8) == pytest.approx(0.16 / 48 * (1 + 6 * (1 / 6 + 4 / 9)))

    @pytest.mark.parametrize(("value", "inflation"), [(0.5, 1.0), (0.83, 1.7), (0.99, 1.0)])
    def test_ends_are_just_surprising(self, value, inflation):
        for end in auroc_ends(value, 14, 20, inflation):
            assert abs(value - end) == pytest.approx(Z * np.sqrt(inflation * auroc_variance(end, 14, 20)), abs=1e-6)

    def test_of_perfect_separation_says_less_of_fewer_items(self):
        lows = [auroc_ends(1.0, count, count)[0] for count in (5, 20, 200)]
        assert sorted(lows) == lows
        assert 0.5 < lows[0] < 0.8
        assert auroc_ends(1.0, 5, 5)[1] == 1
        assert auroc_ends(0.0, 5, 5) == pytest.approx((0.0, 1 - lows[0]))


class TestDifference:
    def test_of_normal_intervals_is_the_normal_interval(self):
        found = difference(0.7, (0.6, 0.8), 0.5, (0.3, 0.7), 0.25)
        half = np.sqrt(0.1**2 + 0.2**2 - 2 * 0.25 * 0.1 * 0.2)
        assert found == pytest.approx((0.2 - half, 0.2 + half))

    def test_adds_the_sides_that_face_each_other(self):
        low, high = difference(0.9, (0.6, 0.95), 0.5, (0.4, 0.8), 0.0)
        assert low == pytest.approx(0.4 - np.hypot(0.3, 0.3))
        assert high == pytest.approx(0.4 + np.hypot(0.05, 0.1))


class TestNoncentral:
    def test_ends_put_the_observation_at_its_tails(self):
        low, high = noncentral_ends(30.0, 2.0, 5)
        assert ncx2.cdf(15, 5, low / 2) == pytest.approx(0.975)
        assert ncx2.cdf(15, 5, high / 2) == pytest.approx(0.025)

    def test_what_chance_alone_would_make_has_a_lower_end_of_0(self):
        assert noncentral_ends(chi2.ppf(0.974, 5), 1.0, 5)[0] == 0
        assert noncentral_ends(chi2.ppf(0.976, 5), 1.0, 5)[0] > 0
        assert noncentral_ends(0.0, 1.0, 5) == noncentral_ends(5.0, 1.0, 5)
        assert noncentral_ends(0.0, 1.0, 5)[1] > 0

    def test_observations_far_beyond_chance(self):
        """Where nearly every probability is 0 or 1 the unit is tiny; both ways of computing agree where they meet."""
        exact, normal = (noncentral_ends(scaled, 1.0, 2.0) for scaled in (0.9999e9, 1.0001e9))
        for one, other, sign in zip(exact, normal, (-1, 1), strict=True):
            assert one - 0.9999e9 == pytest.approx(sign * 2 * 1.96 * 0.9999e9**0.5, rel=1e-3)
            assert other - 1.0001e9 == pytest.approx(sign * 2 * 1.96 * 1.0001e9**0.5, rel=1e-3)
        low, high = noncentral_ends(1.0, 1e-14, 2.0)
        assert 0.999 < low < 1 < high < 1.001
