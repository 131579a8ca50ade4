"""Leads of known size are inside of their intervals, and no lead is claimed where there is none."""

import pytest

from benchmarks.planted.__main__ import EFFECTS
from benchmarks.planted.systems import power

SEEDS = 200


@pytest.mark.slow
@pytest.mark.parametrize("effect", sorted(EFFECTS))
def test_a_known_lead_is_inside_of_its_interval_and_found(effect: float) -> None:
    drawn = power(effect, EFFECTS[effect], SEEDS)
    assert 0.93 <= drawn.covered <= 0.99
    assert drawn.value == pytest.approx(effect, abs=0.1 * effect)
    assert drawn.above > 0.7


@pytest.mark.parametrize("items", [100, 400])
def test_where_there_is_no_lead_the_interval_covers_0(items: int) -> None:
    drawn = power(0.0, items, SEEDS)
    assert 0.93 <= drawn.covered <= 0.99
    assert drawn.above < 0.05


def test_the_best_of_several_equal_rivals_makes_no_lead() -> None:
    drawn = power(0.0, 400, SEEDS, rivals=5)
    assert drawn.above < 0.025
    assert drawn.value < 0  # the luckiest is taken
