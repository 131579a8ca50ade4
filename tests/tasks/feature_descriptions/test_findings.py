"""The sentence that a run ends with, and the warning of near-duplicates."""

import pytest

from afintro.evaluation.intervals import Estimate
from afintro.tasks.feature_descriptions.findings import conclusion, warnings

METRIC, CLUSTER = "judge/rouge_l", "unseen_cluster"


def lead(low, high, against="ridge_parts"):
    return {"value": (low + high) / 2, "ci_low": low, "ci_high": high, "n": 70, "against": against}


def said(rival, shuffled=(0.2, 0.4), labels=(0.9, 1.0), primary=CLUSTER):
    table = {
        "explainer": {METRIC: Estimate(0.7, 0.6, 0.8, 70), "functional_auroc": Estimate(0.94, 0.9, 0.98, 60)},
        "reference": {"functional_auroc": Estimate(sum(labels) / 2, *labels, 60)},
    }
    leads = {f"lead/{METRIC}": lead(*rival), f"lead/{METRIC}/shuffled_vector": lead(*shuffled, "shuffled_vector")}
    return conclusion(table, leads, METRIC, primary)


def test_a_lead_is_claimed_where_its_interval_lies_above_0():
    found = said((0.05, 0.15))
    assert found.startswith(
        "On 70 features of unseen clusters, the explainer (judge/rouge_l 0.700) reads its vectors and is ahead"
    )
    assert "(ridge_parts) by +0.100 [+0.050, +0.150]" in found
    assert found.endswith("with AUROC 0.940, the labels with 0.950.")


@pytest.mark.parametrize(("rival", "words"), [((-0.05, 0.15), "is not shown to be ahead"), ((-0.2, -0.1), "is behind")])
def test_no_lead_is_claimed_elsewhere(rival, words):
    found = said(rival)
    assert f"{words} " in found
    assert "ridge_parts, which needs no trained explainer" in found
    assert "is ahead of" not in found


def test_a_lead_without_reading_vectors_is_said_to_be_one():
    assert "is not shown to read its vectors and is ahead" in said((0.05, 0.15), shuffled=(-0.1, 0.1))


def test_a_scorer_that_cannot_tell_texts_by_the_labels_judges_nothing():
    assert "labels with 0.550, not shown to be better than chance" in said((0.05, 0.15), labels=(0.45, 0.65))
    assert "not shown to be better than chance" not in said((0.05, 0.15), labels=(0.51, 0.59))


def test_nothing_is_said_where_nothing_is_known():
    table = {"explainer": {METRIC: Estimate(0.7, None, None, 3)}}
    assert conclusion(table, {}, METRIC, CLUSTER) is None
    unknown = {**lead(0.1, 0.2), "ci_low": None, "ci_high": None}
    assert conclusion(table, {f"lead/{METRIC}": unknown}, METRIC, CLUSTER) is None
    alone = conclusion(table, {f"lead/{METRIC}": lead(0.1, 0.2)}, METRIC, "unseen_feature")
    assert alone.startswith("On 3 unseen features of known clusters,")
    assert "AUROC" not in alone


@pytest.mark.parametrize(("share", "warned"), [(0.1, False), (0.11, True)])
def test_many_near_duplicates_are_told(share, warned):
    found = warnings([], {}, [METRIC], [], {CLUSTER: share, "unseen_feature": 0.0})
    assert len(found) == warned
    assert all(text.startswith(f"11 % of {CLUSTER} vectors") for text in found)
