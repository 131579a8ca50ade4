"""Which comparisons prove nothing, because they do not fit their training questions."""

import pytest

from afintro.callbacks.results import fits_known, underfit_of
from afintro.evaluation.intervals import Estimate
from afintro.tasks.base import TaskData
from afintro.tasks.context_ablation import ContextAblation


@pytest.mark.parametrize(
    ("fits", "underfit"),
    [
        ({}, set()),
        ({"explainer": 1.0, "other_bits": 0.94}, {"other_bits"}),
        ({"explainer": 1.0, "other_bits": 0.96, "no_policy": 0.5}, {"no_policy"}),
        ({"explainer": 0.5, "other_bits": 0.5, "no_policy": 1.0}, set()),
        # Without vectors nobody can fit questions whose answers depend on the vector: its low fit is a result.
        ({"explainer": 1.0, "text_only": 0.5, "other_base": 0.5}, {"other_base"}),
    ],
)
def test_a_comparison_that_fits_worse_by_more_than_a_twentieth_is_underfit(
    fits: dict[str, float], underfit: set[str]
) -> None:
    assert underfit_of(fits).keys() == underfit


def test_the_warning_names_the_comparison_and_both_fits() -> None:
    [warning] = underfit_of({"explainer": 0.9, "no_policy": 0.25}).values()
    assert all(part in warning for part in ("no_policy", "underfit", "0.250", "0.900"))


def known(labelled: dict[str, float | None], **fits: float) -> tuple[dict[str, float], str]:
    """What counts as the fit of each system, from its exact match on labeled names and on training questions."""
    metric = "exact_match/labelled_name"
    table = {name: {metric: Estimate(value, None, None, 9)} for name, value in labelled.items()} | {"zero_shot": {}}
    return fits_known(table or {}, fits, ContextAblation())


def test_fit_is_judged_on_labeled_names_in_new_wordings_where_there_are_any() -> None:
    labelled = {"explainer": 0.98, "other_bits": 0.9, "from_scratch": 0.97, "text_chars": 0.8}
    fits, of = known(labelled, explainer=1.0, other_bits=1.0)
    assert fits == {"explainer": 0.98, "other_bits": 0.9, "from_scratch": 0.97}
    assert "labelled names" in of
    assert underfit_of(fits, of).keys() == {"other_bits"}
    assert "labelled names" in underfit_of(fits, of)["other_bits"]


def test_the_reader_from_scratch_can_be_underfit_too() -> None:
    fits, of = known({"explainer": 0.98, "from_scratch": 0.6})
    assert underfit_of(fits, of).keys() == {"from_scratch"}


def test_without_labeled_names_training_questions_tell() -> None:
    table = {"explainer": {"exact_match": Estimate(1.0, None, None, 9)}}
    fits = {"explainer": 1.0, "other_base": 0.5}
    for data in (ContextAblation(), TaskData()):
        assert fits_known(table, fits, data) == (fits, "training questions")


def test_a_fit_that_cannot_be_computed_is_left_out() -> None:
    assert known({"explainer": 0.98, "other_bits": None}, explainer=1.0, other_bits=1.0)[0] == {"explainer": 0.98}
