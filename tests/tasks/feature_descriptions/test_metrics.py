"""Metrics of descriptions by hand: per kind of held-out item, over categories, and without what could not be read."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from afintro.evaluation.metrics import Prediction, score
from afintro.tasks.feature_descriptions.metrics import (
    CATEGORIES,
    category_figure,
    category_sizes,
    description_statistics,
)

CLUSTER, FEATURE = "unseen_cluster", "unseen_feature"


def item(uid, kind, group, exact=False, **scores):
    return Prediction(uid, f"label {uid}", kind, "expected", "said", exact, group=group, scores=scores)


ITEMS = [
    item("1", FEATURE, "animals", exact=True, rouge=1.0, chrf=0.9, functional=0.8),
    item("0", CLUSTER, "animals", rouge=0.5, chrf=0.1, functional=None),
    item("2", CLUSTER, "words", rouge=0.0, chrf=0.3, functional=0.6),
    item("3", CLUSTER, "words", exact=True, rouge=None, chrf=None, functional=1.0),
    item("4", FEATURE, "animals", rouge=0.3, chrf=0.5, functional=0.2),
    item("5", CLUSTER, "odd", rouge=None, chrf=0.7, functional=None),
]
VALUES = {
    "judge/rouge": 0.25,
    "judge/rouge/unseen_feature": 0.65,
    "judge/rouge/macro": (1.8 / 3 + 0.0) / 2,
    "judge/chrf": (0.1 + 0.3 + 0.7) / 3,
    "judge/chrf/unseen_feature": 0.7,
    "judge/chrf/macro": ((0.9 + 0.1 + 0.5) / 3 + 0.3 + 0.7) / 3,
    "functional_auroc": 0.8,
    "exact_match": 0.25,
    "functional_auroc/unseen_feature": 0.5,
    "exact_match/unseen_feature": 0.5,
    "judge/rouge/category/animals": 0.6,
    "judge/rouge/category/words": 0.0,
}


def values(items, primary=CLUSTER):
    found = description_statistics(items, primary)
    return {name: statistic.value for name, (statistic, _) in found.items()}


def test_every_metric_by_hand():
    """What a judge could not score is left out of the mean: as 0 it would lower it."""
    found = values(ITEMS)
    assert found == pytest.approx(VALUES)
    assert list(found) == list(VALUES), "the order in which a table shows them"


def test_the_headline_has_no_suffix():
    found = values(ITEMS, FEATURE)
    assert found["judge/rouge"] == pytest.approx(0.65)
    assert found["judge/rouge/unseen_cluster"] == pytest.approx(0.25)
    assert found["exact_match"] == 0.5
    assert found["functional_auroc/unseen_cluster"] == pytest.approx(0.8)
    assert "exact_match/unseen_feature" not in found


def test_the_items_of_a_metric_are_those_it_is_about_in_the_order_of_uids():
    statistic, clusters = description_statistics(ITEMS, CLUSTER)["functional_auroc"]
    assert statistic.uids == ("2", "3")
    assert clusters == ["label 2", "label 3"]
    macro, clusters = description_statistics(ITEMS[::-1], CLUSTER)["judge/rouge/macro"]
    assert (macro.kind, macro.uids, len(clusters)) == ("macro", ("0", "1", "2", "4"), 4)


def test_without_scores_only_exact_match_is_known():
    """Within ``fit`` nothing is judged."""
    bare = [Prediction(p.uid, p.scenario_id, p.question_type, "e", None, p.exact_match) for p in ITEMS]
    assert values(bare) == {"exact_match": 0.25, "exact_match/unseen_feature": 0.5}
    assert values([]) == {}


def test_a_judge_that_scored_nothing_has_no_metric():
    found = values([item("0", CLUSTER, "a", rouge=None), item("1", CLUSTER, "b", rouge=None)])
    assert found == {"exact_match": 0.0}


def test_of_many_categories_the_largest_have_a_figure_and_all_make_the_macro_mean():
    items = [item(f"{i:02}", CLUSTER, f"group {i:02}", rouge=i / 100) for i in range(CATEGORIES + 2)]
    items += [item("98", CLUSTER, "group 12", rouge=0.5), item("99", CLUSTER, "group 13", rouge=0.7)]
    found = values(items)
    shown = [name.rpartition("/")[2] for name in found if "/category/" in name]
    assert shown == [f"group {i:02}" for i in (*range(CATEGORIES - 2), 12, 13)]
    assert found["judge/rouge/category/group 13"] == pytest.approx((0.13 + 0.7) / 2)
    assert found["judge/rouge/macro"] == pytest.approx((sum(range(12)) / 100 + 0.31 + 0.415) / 14)


def test_macro_and_categories_have_intervals_over_what_is_resampled():
    """Eight items in two scenarios say less than eight scenarios."""
    rng = np.random.default_rng(0)
    scores = rng.random(8).round(2)
    alone = [item(str(i), CLUSTER, "ab"[i % 2], rouge=score) for i, score in enumerate(scores)]
    joined = [replace(p, scenario_id=str(int(p.scores["rouge"] > 0.5))) for p in alone]
    widths = []
    for items in (alone, joined):
        found = score(description_statistics(items, CLUSTER))
        for name in ("judge/rouge", "judge/rouge/macro", "judge/rouge/category/a", "judge/rouge/category/b"):
            assert found[name].ci_low < found[name].value < found[name].ci_high, name
        widths.append(found["judge/rouge/macro"].ci_high - found["judge/rouge/macro"].ci_low)
    assert widths[1] > 1.2 * widths[0]


def test_category_sizes_are_sorted():
    assert list(category_sizes(ITEMS[::-1]).items()) == [("animals", 3), ("words", 2), ("odd", 1)]


def test_the_figure_shows_every_category_with_its_items():
    figure = category_figure(ITEMS, "rouge")
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["animals (3)", "words (2)", "odd (1)"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.6, 0.0])  # nothing of odd was scored
    assert axes.get_legend().get_texts()[0].get_text() == "mean over items 0.45"
    assert axes.get_xlabel() == "rouge"
    top, bottom = axes.transData.transform([(0, 0), (0, 2)])[:, 1]
    assert top > bottom, "the largest category stands on top"


def test_the_error_bars_are_the_intervals_of_the_table():
    scores = np.random.default_rng(1).random(12).round(2)
    items = [item(f"{i:02}", CLUSTER, "ab"[i % 2], rouge=value) for i, value in enumerate(scores)]
    items = [replace(p, scenario_id=p.group + str(p.scores["rouge"] > 0.5)) for p in items]
    table = score(description_statistics(items, CLUSTER))
    (axes,) = category_figure(items, "rouge").axes
    drawn = [line.get_segments()[0][:, 0].tolist() for line in axes.collections]
    wanted = [table[f"judge/rouge/category/{name}"] for name in "ab"]
    np.testing.assert_allclose(drawn, [[estimate.ci_low, estimate.ci_high] for estimate in wanted])


def test_the_figure_of_nothing_scored_draws():
    figure = category_figure([item("0", CLUSTER, "a", rouge=None)], "rouge")
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].get_legend() is None
