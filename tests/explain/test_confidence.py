"""Calibration of P(changed): right where the truth is known, and null where nothing can be known."""

import numpy as np
import pytest

from afintro.explain.confidence import Confidence, confidence_of


def test_probabilities_that_say_too_much_are_taken_back() -> None:
    """P(changed) of 0.99 and 0.01 that is right in 80 % of the cases gives a confidence of 0.8 in either verdict."""
    drawn = np.random.default_rng(0)
    truth = drawn.random(4000) < 0.5
    right = drawn.random(4000) < 0.8
    said = np.where(truth == right, 0.99, 0.01)
    confidence = Confidence(np.stack([said, truth], 1).tolist())
    assert confidence.reason is None
    assert confidence.of(0.99, "changed") == pytest.approx(0.8, abs=0.03)
    assert confidence.of(0.01, "unchanged") == pytest.approx(0.8, abs=0.03)
    assert confidence.of(0.99, "unchanged") == pytest.approx(0.2, abs=0.03)


def test_certain_probabilities_do_not_become_certain() -> None:
    confidence = Confidence([[1.0, 1]] * 20 + [[0.0, 0]] * 20)
    sure = confidence.of(1.0, "changed")
    assert sure is not None
    assert 0.9 < sure < 1.0


@pytest.mark.parametrize("pairs", [[], [[0.5, 1]] * 50, [[0.5, 0]] * 50 + [[0.5, 1]] * 9])
def test_nothing_to_calibrate_on_gives_a_reason(pairs: list[list[float]]) -> None:
    confidence = Confidence(pairs)
    assert confidence.reason
    assert confidence.of(0.7, "changed") is None


def test_an_answer_without_verdict_has_no_confidence() -> None:
    confidence = Confidence([[0.9, 1]] * 20 + [[0.1, 0]] * 20)
    assert confidence.of(0.9, None) is None
    assert confidence.of(None, "changed") is None


def test_an_older_checkpoint_says_so() -> None:
    assert "before" in (confidence_of(None).reason or "")
