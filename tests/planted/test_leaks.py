"""An explainer is not credited with what the text gives away, and is credited where the text gives nothing away."""

import pytest

from benchmarks.planted.leaks import CHANGED, LEAKS, no_leak, planted
from benchmarks.planted.systems import NEGLIGIBLE, leaking

TAUGHT, ASKED = 240, 150


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEAKS))
def test_a_leak_is_caught(name: str) -> None:
    found = leaking(name, TAUGHT, ASKED, 0)
    assert found.explainer.value > 0.94
    assert found.reached > 0.9
    assert found.lead.value < NEGLIGIBLE
    assert found.caught
    [warning] = found.warnings
    assert warning.startswith("this can be solved from the text: exact_match")
    assert found.rival in warning


@pytest.mark.slow
def test_an_explainer_that_knows_more_than_the_text_is_credited() -> None:
    found = leaking(no_leak.__name__, TAUGHT, ASKED, 0)
    assert found.explainer.value > 0.94
    assert found.reached < 0.65
    assert found.lead.ci_low > 0.2
    assert found.warnings == ()
    assert not found.caught


@pytest.mark.parametrize("write", [*LEAKS.values(), no_leak], ids=lambda write: write.__name__)
def test_planted_prompts_are_balanced_new_and_drawn_by_their_seed(write) -> None:
    train, items = planted(write, 100, 0, "train"), planted(write, 100, 0, "item")
    assert [e.prompt for e in planted(write, 100, 0, "train")] == [e.prompt for e in train]
    for examples in (train, items):
        assert sum(e.answer == CHANGED for e in examples) == 50
        assert len({e.uid for e in examples}) == len({e.scenario_id for e in examples}) == 100
        assert len({e.prompt_ids for e in examples}) > 90
    assert not {e.prompt for e in train} & {e.prompt for e in items}
