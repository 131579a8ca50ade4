"""Equivalence is shown where the 90 % interval lies within the margin, and sign tests are exact."""

import numpy as np
import pytest
from scipy.stats import norm, t

from afintro.evaluation.hierarchical import HierarchicalBootstrap
from afintro.evaluation.intervals import mean_of
from afintro.study.scoring.equivalence import equivalence, sign_test

UNITS = 60


def resampled(center, spread):
    """The mean of numbers that are spread normally, with exactly this mean and standard deviation."""
    values = norm.ppf((np.arange(UNITS) + 0.5) / UNITS)
    values = center + spread * values / values.std(ddof=1)
    bootstrap = HierarchicalBootstrap({"context": list(range(UNITS))}, 0, 4000)
    return bootstrap.resample({"": mean_of(list(values))})[""]


@pytest.mark.parametrize(
    ("center", "spread", "shown"),
    [
        (0.0, 0.1, True),
        (0.05, 0.1, True),
        (0.095, 0.1, False),  # within the margin, and not shown to be
        (0.0, 1.0, False),  # an interval that holds 0 shows nothing
        (0.3, 0.1, False),
        (-0.095, 0.1, False),
    ],
)
def test_what_is_shown(center, spread, shown):
    assert equivalence(resampled(center, spread), 0.0, 0.1).shown is shown


def test_the_p_value_is_that_of_students_test():
    for center, spread in ((0.05, 0.2), (-0.02, 0.4), (0.15, 0.3)):
        error = spread / np.sqrt(UNITS)
        wanted = max(t.sf((0.1 - center) / error, UNITS - 1), t.sf((center + 0.1) / error, UNITS - 1))
        assert equivalence(resampled(center, spread), 0.0, 0.1).p == pytest.approx(wanted, abs=0.02)


def test_the_center_need_not_be_zero():
    assert equivalence(resampled(0.5, 0.1), 0.5, 0.1).shown
    assert not equivalence(resampled(0.5, 0.1), 0.0, 0.1).shown


def test_one_unit_shows_nothing():
    bootstrap = HierarchicalBootstrap({"context": ["a", "a"]}, 0)
    found = equivalence(bootstrap.resample({"": mean_of([0.0, 0.0])})[""], 0.0, 0.1)
    assert found.p is None
    assert not found.shown


def test_a_false_claim_of_no_effect_is_as_rare_as_it_is_to_be():
    """The true value is the margin: 5 % of the samples may show equivalence."""
    shown = 0
    for trial in range(200):
        values = np.random.default_rng(trial).normal(0.1, 0.1, 30)
        bootstrap = HierarchicalBootstrap({"context": list(range(30))}, trial, 400)
        shown += equivalence(bootstrap.resample({"": mean_of(list(values))})[""], 0.0, 0.1).shown
    assert shown <= 20


@pytest.mark.parametrize(
    ("values", "above", "below", "p"),
    [
        ([0.6] * 6, 6, 0, 2 / 64),
        ([0.6] * 5, 5, 0, 2 / 32),
        ([0.6, 0.4], 1, 1, 1.0),
        ([0.6, 0.5, 0.5], 1, 0, 1.0),  # what lies on the value does not count
        ([0.5], 0, 0, None),
        ([], 0, 0, None),
    ],
)
def test_sign_tests(values, above, below, p):
    found = sign_test(values, 0.5)
    assert (found.above, found.below) == (above, below)
    assert found.p is None if p is None else found.p == pytest.approx(p)
    assert found.text.startswith(f"{above} of {above + below} seeds above 0.5")
