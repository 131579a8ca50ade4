"""Explainers that read lengths, duplicates or scenario ids are named for what they are."""

import pytest

from benchmarks.planted.systems import reader_of_duplicates, reader_of_ids, reader_of_lengths


@pytest.mark.slow
def test_a_reader_of_lengths_has_no_lead() -> None:
    found = reader_of_lengths(160, 150, 0)
    assert found.explainer.value == 1
    assert found.lead.value < 0.05
    assert found.warnings


@pytest.mark.slow
def test_a_reader_of_duplicates_has_no_lead_and_its_duplicates_are_found() -> None:
    found, planted, seen = reader_of_duplicates(160, 150, 0)
    assert found.explainer.value > 0.65  # half of the items are near-duplicates, the others a coin
    assert found.lead.ci_low < 0
    assert found.lead.value < 0.05
    assert planted == 75
    assert planted - 2 <= seen <= planted + 2


@pytest.mark.slow
def test_a_reader_of_ids_is_seen_on_known_scenarios_and_at_chance_on_new_ones() -> None:
    found = reader_of_ids(60, 0)
    assert found["labeled"].explainer.value == 1
    new = found["new"].explainer
    assert new.value == 0.5
    assert new.ci_low < 0.5 < new.ci_high
    assert found["new"].lead.ci_low < 0
    assert found["new"].caught
    assert found["labeled"].reached > 0.8  # names are learned by heart from the text too
