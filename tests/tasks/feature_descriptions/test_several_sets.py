"""A feature that is selective on one set of texts is followed over the others."""

import numpy as np
import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.several_sets import FeatureSet, named_sources, over_sets


def made(faking: list[float], aligned: list[float], texts: int = 100) -> FeatureSet:
    rates = np.array([faking, aligned])
    return FeatureSet(rates[0] - rates[1], rates, (texts, texts))


def test_a_feature_that_keeps_its_selectivity_and_one_that_turns() -> None:
    first = made([0.9, 0.1, 0.8, 0.0, 0.5], [0.1, 0.7, 0.1, 0.0, 0.45])
    other = made([0.9, 0.1, 0.1, 0.3, 0.5], [0.1, 0.7, 0.8, 0.3, 0.5])
    found = over_sets({"benchmark": first, "organisms": other}, top=4)
    assert list(found["features"]) == ["0", "2", "1", "4"]
    assert found["apart_from_0"] == 3
    agreement = found["sets"]["organisms"]
    assert agreement["same_sign"] == agreement["holds"] == pytest.approx(2 / 3)
    turned = found["features"]["2"]["organisms"]
    assert turned["drop"] == pytest.approx(1.4)
    assert turned["drop_ci_low"] > 1.1
    kept = found["features"]["0"]["organisms"]
    assert kept["drop_ci_low"] < 0 < kept["drop_ci_high"]
    assert kept["ci_low"] < kept["value"] < kept["ci_high"]
    assert "drop" not in found["features"]["0"]["benchmark"]


def test_unrelated_selectivity_is_not_said_to_hold() -> None:
    drawn = np.random.default_rng(0)
    first, other = (made(drawn.binomial(30, 0.5, 400) / 30, drawn.binomial(30, 0.5, 400) / 30, 30) for _ in range(2))
    agreement = over_sets({"a": first, "b": other})["sets"]["b"]
    assert abs(agreement["spearman"]) < 0.15
    assert over_sets({"a": first, "b": first})["sets"]["b"]["spearman"] == pytest.approx(1.0)


def test_the_interval_is_newcombes() -> None:
    """Newcombe 1998, table II: 56 of 70 less 48 of 80 is 0.2 [0.0524, 0.3339] by method 10."""
    found = FeatureSet(np.array([0.2]), np.array([[56 / 70], [48 / 80]]), (70, 80)).interval(0)
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_sets_of_other_widths_are_refused() -> None:
    with pytest.raises(UserError, match="2 features") as caught:
        over_sets({"a": made([0.1], [0.2]), "b": made([0.1, 0.2], [0.2, 0.3])})
    assert caught.value.where == "set b"


def test_names_of_sets() -> None:
    assert named_sources(["a=x/y.npy", "z/b.npy"], "--activations") == {"a": "x/y.npy", "b": "z/b.npy"}
    for given in (["a=x", "y/a.npy"], ["../a=x", "b=y"], ["checkpoints=x", "b=y"]):
        with pytest.raises(UserError) as caught:
            named_sources(given, "--activations")
        assert caught.value.where == "--activations"
