"""An explainer of features is credited with what no linear map, no neighbor and no layer tells, and with nothing else."""

import numpy as np
import pytest

from benchmarks.planted.features import combinations, planted, reads_parts
from benchmarks.planted.systems import NEGLIGIBLE, Finding


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    return {name.removeprefix("features: "): finding for name, finding in planted(0).items()}


@pytest.mark.slow
def test_a_reader_of_label_parts_has_no_lead(found) -> None:
    finding = found["reads parts of labels from the vector"]
    assert finding.explainer.value > 0.85
    assert finding.rival == "ridge_parts"
    assert abs(finding.lead.value) < NEGLIGIBLE
    assert finding.lead.ci_low < 0 < finding.lead.ci_high
    assert finding.caught


@pytest.mark.slow
def test_a_reader_of_the_layer_has_no_lead(found) -> None:
    finding = found["reads the layer alone"]
    assert finding.explainer.value > 0.4, "a third of a label is the layer, and a part more is often right"
    assert finding.lead.value < NEGLIGIBLE
    assert finding.lead.ci_low < 0
    assert any(
        warning.startswith("this can be solved from the text") and "layer_tfidf" in warning
        for warning in finding.warnings
    )
    assert any("not reading them" in warning for warning in finding.warnings)


@pytest.mark.slow
def test_a_description_that_is_right_up_to_sign_is_not_credited(found) -> None:
    finding = found["reads the vector up to sign"]
    assert finding.explainer.value > 0.5, "two of the three words are right"
    assert finding.rival == "nearest_by_sign"
    assert abs(finding.lead.value) < NEGLIGIBLE
    assert finding.caught
    assert any("a feature from its opposite" in warning for warning in finding.warnings)
    assert not any("not reading them" in warning for warning in finding.warnings), (
        "the vectors are read, but for their sign"
    )


@pytest.mark.slow
def test_an_explainer_that_knows_more_is_credited(found) -> None:
    finding = found["knows more than a linear map and neighbors"]
    assert finding.explainer.value == 1
    assert finding.reached < 0.85
    assert finding.lead.ci_low > 0.1
    assert finding.warnings == ()
    assert not finding.caught


@pytest.mark.parametrize("mood", ["", "signs", "layer"])
def test_worlds_hold_out_whole_labels_and_are_drawn_by_their_seed(mood) -> None:
    world, again, other = combinations(0, mood), combinations(0, mood), combinations(1, mood)
    assert not set(world.labels) & set(world.expected)
    assert {word for label in world.expected for word in label.split(", ")} <= {
        word for label in world.labels for word in label.split(", ")
    }
    np.testing.assert_array_equal(world.taught, again.taught)
    assert not np.array_equal(world.taught, other.taught)
    assert list(reads_parts(world)(np.stack(world.taught), world.layers[: len(world.labels)]))
