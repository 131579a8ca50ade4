"""Pairing of self-report items: what counts, and what is left out and counted."""

import math

import pytest

from afintro.study.scoring.items import CONTROLS, SELF_REPORTS, TRAINED, YES_NO, categories, groups, paired_items
from afintro.tasks.introspection import trials
from tests.study.made_up import answer, both


def test_an_item_is_adapter_minus_base():
    [item], left_out = paired_items(both("feelings-0", 0.2, 0.7, mass=0.8))
    assert (item.base, item.adapter) == (0.2, 0.7)
    assert item.moved == pytest.approx(0.5)
    assert item.shift == pytest.approx(math.log(0.7 / 0.3) - math.log(0.2 / 0.8))
    assert item.whole == pytest.approx(0.4)  # of p_a, not of the share of both
    assert left_out == 0


def test_seeds_and_contexts_are_items_of_their_own():
    rows = [
        *both("feelings-0", 0.2, 0.3),
        *both("feelings-0", 0.2, 0.4, seed=1),
        *both("feelings-0", 0.2, 0.5, context="c"),
    ]
    items, left_out = paired_items(rows)
    assert sorted(item.adapter for item in items) == [0.3, 0.4, 0.5]
    assert left_out == 0


def test_the_order_of_rows_does_not_matter():
    rows = [*both("feelings-0", 0.2, 0.3), *both("feelings-1", 0.5, 0.4)]
    found = {item.key: item.shift for item in paired_items(rows)[0]}
    assert found == {item.key: item.shift for item in paired_items(rows[::-1])[0]}


def test_what_is_not_answered_once_by_both_is_left_out_and_counted():
    rows = [
        answer("adapter", "feelings-0", 0.5),  # not by the base
        *both("feelings-1", 0.5, 0.5), *both("feelings-1", 0.5, 0.6),  # twice
        *both("feelings-2", 0.5, 0.6),
        answer("adapter", "feelings-3", 0.5), {**answer("base", "feelings-3", 0.5), "p_yes": None},
    ]  # fmt: skip
    items, left_out = paired_items(rows)
    assert [item.question for item in items] == ["feelings-2"]
    assert left_out == 3


def test_other_pairs_are_left_out_uncounted():
    rows = [*both("feelings-0", 0.1, 0.2), *both("feelings-0", 0.1, 0.9, pair="red_blue")]
    assert [item.adapter for item in paired_items(rows)[0]] == [0.2]
    assert [item.adapter for item in paired_items(rows, "red_blue")[0]] == [0.9]
    assert paired_items(rows)[1] == 0
    assert trials.YES_NO.name == YES_NO


@pytest.mark.parametrize(
    ("adapter", "base", "low"), [(0.9, 0.9, False), (0.4, 0.9, True), (0.9, 0.4, True), (0.5, 0.5, False)]
)
def test_mass_is_low_if_it_is_in_either_system(adapter, base, low):
    rows = [answer("adapter", "feelings-0", 0.5, mass=adapter), answer("base", "feelings-0", 0.5, mass=base)]
    assert paired_items(rows)[0][0].low_mass is low


@pytest.mark.parametrize(
    ("p", "floor", "ceiling"),
    [(0.0, True, False), (0.019, True, False), (0.02, False, False), (0.98, False, False), (0.981, False, True)],
)
def test_floor_and_ceiling_are_those_of_either_system(p, floor, ceiling):
    for rows in (both("feelings-0", p, 0.5), both("feelings-0", 0.5, p)):
        item = paired_items(rows)[0][0]
        assert (item.at_floor, item.at_ceiling, item.at_edge) == (floor, ceiling, floor or ceiling)


def test_log_odds_do_not_end_where_probabilities_do():
    """P(yes) is 1 in floating point, and the smaller probability still tells how far it went."""
    far = {"p_yes": 1.0, "p_a": 0.9, "p_b": 0.9e-20}
    [item], _ = paired_items([answer("base", "feelings-0", 0.5), {**answer("adapter", "feelings-0", 0.5), **far}])
    assert item.shift == pytest.approx(20 * math.log(10))
    gone = {**far, "p_b": 0.0}
    [item], _ = paired_items([answer("base", "feelings-0", 0.5), {**answer("adapter", "feelings-0", 0.5), **gone}])
    assert math.isfinite(item.shift)


def test_a_twin_is_of_its_originals_family():
    original, twin = paired_items([*both("feelings-0", 0.1, 0.2), *both("feelings-0r", 0.1, 0.2)])[0]
    assert (original.family, twin.family) == ("feelings-0", "feelings-0")
    assert (original.reversed, twin.reversed) == (False, True)


def test_what_was_trained_on_counts_in_no_other_group():
    rows = [
        *both("feelings-0", 0.1, 0.2),
        *both("feelings-1", 0.1, 0.9, trained=True),
        *both("absurd-0", 0.1, 0.2),
    ]
    items = paired_items(rows)[0]
    names = {name: [item.question for item in members] for name, members in groups(items).items()}
    assert names == {SELF_REPORTS: ["feelings-0"], CONTROLS: ["absurd-0"], TRAINED: ["feelings-1"]}
    assert {name: len(members) for name, members in categories(items).items()} == {"feelings": 1, "absurd": 1}


def test_a_group_without_items_is_none():
    assert list(groups(paired_items(both("absurd-0", 0.1, 0.2))[0])) == [CONTROLS]
