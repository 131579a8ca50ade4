"""Which comparisons prove nothing, because they do not fit their training questions."""

import pytest

from afintro.callbacks.results import underfit_of


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
