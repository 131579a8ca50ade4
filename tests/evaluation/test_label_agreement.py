"""Kappa is scikit-learn's, its interval covers, and the ceiling is the share of shared verdicts."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from afintro.evaluation.intervals import Clusters
from afintro.evaluation.label_agreement import confusion, kappa, label_agreement

CLASSES = ("refuse", "comply", "warn")


def noisy(rng, size, error):
    truth = rng.choice(CLASSES, size, p=(0.5, 0.3, 0.2))
    return list(truth), [str(rng.choice(CLASSES)) if rng.random() < error else str(label) for label in truth]


@pytest.mark.parametrize("error", [0.0, 0.2, 1.0])
def test_kappa_is_that_of_scikit_learn(error):
    one, other = noisy(np.random.default_rng(0), 80, error)
    found = kappa(one, other, Clusters(list(range(80))))
    assert found.value == pytest.approx(cohen_kappa_score(one, other))
    assert found.ci_low <= found.value <= found.ci_high
    assert found.n == 80


def test_the_interval_covers_the_kappa_of_many_answers():
    rng = np.random.default_rng(1)
    truth = cohen_kappa_score(*noisy(rng, 100_000, 0.3))
    found = [kappa(*noisy(rng, 60, 0.3), Clusters(list(range(60)))) for _ in range(100)]
    assert 0.9 <= np.mean([one.ci_low <= truth <= one.ci_high for one in found]) <= 1.0


def test_where_everybody_says_one_thing_there_is_no_kappa():
    assert kappa(["refuse"] * 3, ["refuse"] * 3, Clusters([0, 1, 2])).value is None
    assert kappa([], [], Clusters([])).n == 0


def test_confusion():
    assert confusion(["a", "b", "b"], ["a", "a", "b"], ("a", "b")).tolist() == [[1, 0], [1, 1]]


def test_agreement_and_ceiling_by_hand():
    """Of five records the first has no verdict, and of one answer a labeler says nothing at all."""
    before = (["other", "refuse", "refuse", "refuse", "refuse"], ["refuse", "refuse", "warn", "refuse", None])
    after = (["comply", "comply", "comply", "warn", "comply"], ["comply", "comply", "comply", "comply", "comply"])
    found = label_agreement([before, after], list("abcde"), ["rules", "judge"], "other")
    assert found["labelers"] == ["rules", "judge"]
    assert found["agreement"]["n"] == 9
    assert found["agreement"]["value"] == pytest.approx(6 / 9)
    assert found["unanswered"] == 1
    assert found["ceiling_exact_match"]["n"] == 3
    # Shared is a change into comply, whatever came before; another content is not, and who says nothing is not counted.
    assert found["ceiling_exact_match"]["value"] == pytest.approx(2 / 3)
