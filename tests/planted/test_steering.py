"""Explainers that read the vector alone, the text alone or who the direction is have no lead, thanks to the rival that does too."""

from functools import cache

import pytest

from afintro.evaluation.baselines import READERS
from benchmarks.planted.steering import CAUSES, Planted, nothing_tells, planted_steering
from benchmarks.planted.systems import NEGLIGIBLE

VECTOR = {"direction_majority", "vector_probe", "nearest_vector"}
BOTH = {"direction_x_text", "ridge", "boosting"}
TEXT = {"tfidf_nearest", "tfidf_probe"}
FINDERS = {
    "the vector alone": VECTOR | BOTH,
    "the text alone": TEXT | BOTH,
    "the identity of the direction": VECTOR | BOTH,
    "direction times text": BOTH,
    "vector times text": BOTH,
}
"""The rivals that can find a cause: without them, the explainer would be credited with what they read too."""
UNSEEN = ("the vector alone", "vector times text")


@cache
def made(cause: str, unseen: bool) -> Planted:
    return planted_steering(CAUSES.get(cause, nothing_tells), 300, 150, 0, unseen)


@pytest.fixture(autouse=True)
def one_reader_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """All readers of the text have tests of their own."""
    for name in set(READERS) - {"tfidf_probe"}:
        monkeypatch.delitem(READERS, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cause", "unseen"), [*((cause, False) for cause in CAUSES), *((cause, True) for cause in UNSEEN)]
)
def test_a_reader_of_a_planted_cause_has_no_lead_thanks_to_its_rivals(cause: str, unseen: bool) -> None:
    planted = made(cause, unseen)
    assert planted.explained.value > 0.93
    found, best = planted.lead()
    assert found.value < NEGLIGIBLE
    assert best in FINDERS[cause]
    assert planted.finding.caught
    assert planted.finding.warnings, "the run says so"
    alone, _ = planted.lead(without=FINDERS[cause])
    assert alone.ci_low > 0.2, "without its rivals the explainer is credited with a lead that is none"


@pytest.mark.slow
def test_where_nothing_tells_no_rival_finds_anything_and_the_explainer_is_credited() -> None:
    planted = made("nothing", False)
    found, _ = planted.lead()
    assert found.ci_low > 0.2
    assert not planted.finding.caught
    assert planted.finding.warnings == ()
    for name in set(planted.rivals) - {"copy_original"}:  # is shown what the others are not, and nothing here
        assert planted.reached(name).ci_low < 0.5, name
