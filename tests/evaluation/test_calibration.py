"""The calibration error: without what chance adds, against torchmetrics and by hand; its interval."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torchmetrics.functional.classification import binary_calibration_error

from afintro.evaluation.calibration import bins_of, calibration_error
from afintro.evaluation.intervals import Clusters


def estimate(probabilities, truth, clusters=None):
    values = np.stack([probabilities, truth], 1).astype(float)
    return calibration_error(values, Clusters(clusters or [str(i) for i in range(len(values))]))


def drawn(count, slope=1.0, seed=0):
    """Probabilities all over 0..1 and outcomes that follow them if the slope is 1."""
    rng = np.random.default_rng(seed)
    stated = rng.random(count)
    return stated, rng.random(count) < 0.5 + slope * (stated - 0.5)


def test_is_the_root_mean_square_of_torchmetrics_less_what_chance_adds():
    stated, truth = drawn(150, slope=0.2)
    plain = float(
        binary_calibration_error(torch.tensor(stated).float(), torch.tensor(truth).long(), n_bins=10, norm="l2")
    )
    chance = 0.0
    for index in range(10):
        inside = (stated >= index / 10) & (stated < (index + 1) / 10)
        gaps = truth[inside] - stated[inside]
        expected = (stated[inside] * (1 - stated[inside])).mean()
        chance += ((gaps - gaps.mean()) ** 2).sum() / inside.sum() / 150 + expected / inside.sum() / 150
    assert estimate(stated, truth).value == pytest.approx(np.sqrt(plain**2 - chance), abs=1e-5)
    assert chance > 0.1 * plain**2


def test_by_hand():
    """Gap 0.25 four times: the outcomes do not vary, so that chance is that of one outcome of the probabilities."""
    assert estimate([0.75] * 4, [1] * 4).value == pytest.approx(np.sqrt(0.25**2 - 0.75 * 0.25 / 4 / 4))
    assert estimate([0.75] * 4, [1, 1, 1, 0]).value == 0


def test_a_probability_of_1_and_rounding_above_it_belong_to_the_last_bin():
    assert bins_of(np.array([0.0, 0.05, 0.1, 0.95, 1.0, 1.0000000000000002])).tolist() == [0, 0, 1, 9, 9, 9]


def test_copies_of_items_add_nothing():
    stated, truth = drawn(60, slope=0.3)
    alone = estimate(stated, truth)
    copies = estimate(np.repeat(stated, 4), np.repeat(truth, 4), np.repeat(np.arange(60), 4).astype(str).tolist())
    assert (copies.ci_low, copies.ci_high) == pytest.approx((alone.ci_low, alone.ci_high), abs=0.02)
    as_items = estimate(np.repeat(stated, 4), np.repeat(truth, 4))
    assert as_items.ci_low > copies.ci_low + 0.03


def test_a_calibrated_system_does_not_read_as_miscalibrated_and_an_overconfident_one_does():
    """At 300 items, where the plain error of a perfectly calibrated system is 0.06."""
    found = [estimate(*drawn(300, seed=seed)) for seed in range(100)]
    assert sum(one.ci_low == 0 for one in found) >= 93
    assert sum(one.value == 0 for one in found) > 35
    assert all(one.ci_high > 0.03 for one in found)
    assert all(estimate(*drawn(300, slope=0.3, seed=seed)).ci_low > 0.05 for seed in range(20))


def test_of_certain_answers_that_are_all_right_or_all_wrong_has_width():
    limit = norm.ppf(0.975) ** 2 / (10 + norm.ppf(0.975) ** 2)
    right, wrong = estimate([0, 1] * 5, [0, 1] * 5), estimate([0, 1] * 5, [1, 0] * 5)
    assert (right.value, right.ci_low, right.ci_high) == pytest.approx((0.0, 0.0, limit))
    assert (wrong.value, wrong.ci_low, wrong.ci_high) == pytest.approx((1.0, 1 - limit, 1.0))


def test_nearly_certain_answers_that_are_all_right_have_the_width_of_no_error():
    """Ten probabilities of 0.1 % can hide an error of a quarter of the items, whatever their own variance says."""
    found = estimate([0.001] * 10, [0] * 10)
    assert (found.value, found.ci_low) == (0.0, 0.0)
    assert found.ci_high == pytest.approx(norm.ppf(0.975) ** 2 / (10 + norm.ppf(0.975) ** 2))


def test_one_cluster_has_no_interval():
    one = estimate([0.9] * 4, [0] * 4, ["s"] * 4)
    assert (one.ci_low, one.ci_high, one.n) == (None, None, 4)
    assert one.value > 0.5
