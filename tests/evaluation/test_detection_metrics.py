"""Weighted signal detection against scikit-learn, by hand at the edges, and in the bootstrap."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from afintro.evaluation.detection_metrics import (
    MEASURES,
    auroc,
    balanced_accuracy,
    d_prime,
    false_positive_rate,
    statistic,
    true_positive_rate,
)
from afintro.evaluation.hierarchical import HierarchicalBootstrap


@pytest.fixture
def items():
    """200 items with many ties, some of them at 0, and integer weights of which some are 0."""
    rng = np.random.default_rng(0)
    steered = rng.random(200) < 0.4
    odds = np.round(rng.normal(0.4 * steered, 1.0), 1)
    return odds, steered, rng.poisson(1.0, (7, 200)).astype(np.float64)


def one(measure, odds, steered, weights=None):
    weights = np.ones((1, len(odds))) if weights is None else np.array([weights], dtype=np.float64)
    return float(measure(np.array(odds, dtype=np.float64), np.array(steered, dtype=bool), weights)[0])


def test_auroc_is_sklearns_with_weights_and_ties(items):
    odds, steered, weights = items
    assert len(np.unique(odds)) < 80
    wanted = [roc_auc_score(steered, odds, sample_weight=row) for row in weights]
    assert auroc(odds, steered, weights) == pytest.approx(wanted, abs=1e-12)


def test_rates_and_balanced_accuracy_are_sklearns(items):
    odds, steered, weights = items
    said = odds > 0
    assert (odds == 0).any()
    for row in weights:
        given = row[None]
        assert true_positive_rate(odds, steered, given)[0] == pytest.approx(
            recall_score(steered, said, sample_weight=row)
        )
        assert false_positive_rate(odds, steered, given)[0] == pytest.approx(
            1 - recall_score(steered, said, pos_label=0, sample_weight=row)
        )
        assert balanced_accuracy(odds, steered, given)[0] == pytest.approx(
            balanced_accuracy_score(steered, said, sample_weight=row)
        )


def test_a_weight_is_so_many_copies(items):
    odds, steered, weights = items
    for row in weights:
        copies = np.repeat(np.arange(200), row.astype(int))
        ones = np.ones((1, len(copies)))
        for measure in MEASURES.values():
            assert measure(odds, steered, row[None]) == pytest.approx(measure(odds[copies], steered[copies], ones))


def test_auroc_by_hand():
    assert one(auroc, [1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert one(auroc, [1, 2, 3, 4], [1, 1, 0, 0]) == 0.0
    assert one(auroc, [5, 5, 5, 5], [0, 1, 0, 1]) == 0.5
    assert one(auroc, [1, 2, 2, 3], [0, 1, 0, 1]) == 0.875  # of four pairs three won, one tied
    assert one(auroc, [1, 2, 2, 3], [0, 1, 0, 1], [1, 3, 1, 1]) == pytest.approx((3 * 1.5 + 2) / 8)
    assert one(auroc, [-np.inf, np.inf], [0, 1]) == 1.0


def test_even_odds_are_no_detection():
    assert one(true_positive_rate, [0.0, 0.1], [1, 1]) == 0.5
    assert one(false_positive_rate, [0.0, 0.0], [0, 0]) == 0.0


def test_d_prime_is_corrected_by_half_an_item():
    """Hautus 1995: hits 3 of 4 are 3.5 / 5, false alarms 0 of 4 are 0.5 / 5."""
    found = one(d_prime, [1, 1, 1, -1, -1, -1, -1, -1], [1, 1, 1, 1, 0, 0, 0, 0])
    assert found == pytest.approx(norm.ppf(0.7) - norm.ppf(0.1))
    perfect = one(d_prime, [1] * 50 + [-1] * 50, [1] * 50 + [0] * 50)
    assert perfect == pytest.approx(2 * norm.ppf(50.5 / 51))
    assert one(d_prime, [1, 1, 1, 1], [1, 0, 1, 0]) == 0.0


@pytest.mark.parametrize(("steered", "undefined"), [([1, 1], {"fpr"}), ([0, 0], {"tpr"})])
def test_without_one_class_it_is_undefined(steered, undefined):
    both = {"auroc", "balanced_accuracy", "d_prime"}
    nan = {name for name, measure in MEASURES.items() if np.isnan(one(measure, [1.0, -1.0], steered))}
    assert nan == both | undefined


def test_a_class_whose_weights_are_gone_is_absent():
    assert np.isnan(one(auroc, [1, 2, 3], [0, 0, 1], [1, 1, 0]))
    assert np.isnan(one(d_prime, [1, 2, 3], [0, 0, 1], [0, 0, 1]))


def detection(seeds=2, contexts=12, vectors=10, strength=3.0, seed=0):
    """Items of a detector that sees dose 2 and not dose 1; an unsteered one has neither vector nor dose."""
    rng = np.random.default_rng(seed)
    rows = []
    for run in range(seeds):
        for context in range(contexts):
            for vector in range(vectors):
                dose = [None, 1.0, 2.0][(context + vector) % 3]
                shift = strength if dose == 2.0 else 0.0
                rows.append((run, f"c{context}", f"v{vector}" if dose else None, dose, rng.normal(shift - 1.5, 1)))
    columns = list(zip(*rows, strict=True))
    levels = {"seed": columns[0], "context": columns[1], "vector": columns[2]}
    steered = np.array([dose is not None for dose in columns[3]])
    return np.array(columns[4]), steered, columns[3], HierarchicalBootstrap(levels)


def test_in_the_bootstrap_a_paired_difference_shares_its_weights():
    odds, steered, _, bootstrap = detection(strength=1.0)
    better = odds + 1.0 * steered
    first, second = statistic(auroc, better, steered), statistic(auroc, odds, steered)
    lead = bootstrap.resample({"lead": lambda weights: first(weights) - second(weights)})["lead"]
    assert lead.estimate.ci_low > 0
    assert lead.estimate.value == pytest.approx(roc_auc_score(steered, better) - roc_auc_score(steered, odds))
