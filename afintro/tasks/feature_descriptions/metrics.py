"""Metrics of descriptions: the judges' scores and the functional score, by kind of held-out item and by category."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from afintro.evaluation.intervals import SHARE, Clusters
from afintro.evaluation.judges import agreement
from afintro.evaluation.metrics import Prediction
from afintro.evaluation.statistic import Scores, Statistic

FUNCTIONAL = "functional"
CATEGORIES = (
    12  # the largest; more rows would not help a reader of the table, and the macro mean is over all categories
)


def description_statistics(predictions: Sequence[Prediction], primary: str) -> Scores:
    """Compute all metrics of one system.

    ``exact_match``, ``judge/<judge>`` and ``functional_auroc`` cover the items of the primary question type;
    ``.../<question type>`` covers the items of another. ``judge/<judge>/macro`` is the mean over categories of the mean
    within each category, over all items, and ``judge/<judge>/category/<name>`` is the mean within one of the largest twelve.
    A score that could not be read is left out and does not count as 0.

    Args:
        predictions: Predictions in any order, graded or not (then only exact match is known).
        primary: The question type whose metrics have the plain names.

    Returns:
        A statistic and the items' clusters, by metric.
    """
    scores: Scores = {}
    ordered = sorted(predictions, key=lambda prediction: prediction.uid)
    named = dict.fromkeys(name for prediction in ordered for name in prediction.scores)  # the first judge first
    judges = [name for name in named if name != FUNCTIONAL]

    def put(name: str, kind: str, items: Sequence[Prediction], rows: Sequence[Sequence[float]]) -> None:
        if items:
            values = np.array(rows, dtype=np.float64)
            statistic = Statistic(name, values, kind, tuple(item.uid for item in items))
            scores[name] = (statistic, [item.scenario_id for item in items])

    def put_scores(name: str, score: str, items: Sequence[Prediction]) -> None:
        known = [item for item in items if item.scores.get(score) is not None]
        put(name, "mean", known, [[float(item.scores[score] or 0.0)] for item in known])

    types = sorted({prediction.question_type for prediction in ordered}, key=lambda name: (name != primary, name))
    for judge in judges:
        for question in types:
            items = [prediction for prediction in ordered if prediction.question_type == question]
            put_scores(f"judge/{judge}" + ("" if question == primary else f"/{question}"), judge, items)
        known = [item for item in ordered if item.scores.get(judge) is not None]
        groups = sorted({item.group for item in known})
        rows = [[float(item.scores[judge] or 0.0), float(groups.index(item.group))] for item in known]
        put(f"judge/{judge}/macro", "macro", known, rows)
    for question in types:
        items = [prediction for prediction in ordered if prediction.question_type == question]
        suffix = "" if question == primary else f"/{question}"
        put_scores(f"functional_auroc{suffix}", FUNCTIONAL, items)
        put(f"exact_match{suffix}", "mean", items, [[float(item.exact_match)] for item in items])
    for judge in judges[:1]:
        for group in sorted(list(category_sizes(ordered))[:CATEGORIES]):
            put_scores(f"judge/{judge}/category/{group}", judge, [item for item in ordered if item.group == group])
    return scores


def judge_agreement(answers: Sequence[Prediction], first: str, second: str) -> dict[str, Any]:
    """Measure how far two judges agree about graded answers.

    Args:
        answers: Graded answers of all systems but the labels themselves, about which any two judges agree.
        first: Name of the first judge.
        second: Name of the second judge.

    Returns:
        JSON values: both names, and the estimates of :func:`~afintro.evaluation.judges.agreement`.
    """
    estimates = agreement(
        [answer.scores[first] for answer in answers],
        [answer.scores[second] for answer in answers],
        [answer.scenario_id for answer in answers],
    )
    return {"first": first, "second": second, **{name: value.as_json() for name, value in estimates.items()}}


def category_sizes(predictions: Sequence[Prediction]) -> dict[str, int]:
    """Count the items of each category, the largest category first, of equally large ones the first by name."""
    counts = Counter(item.group for item in predictions)
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def category_figure(predictions: Sequence[Prediction], judge: str) -> Figure:
    """Draw the mean score of each category with its 95 % interval and number of items, and the mean over all items."""
    sizes = category_sizes(predictions)
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(sizes)), layout="constrained")
    axes = figure.add_subplot()
    known = [item for item in predictions if item.scores.get(judge) is not None]
    for row, group in enumerate(sizes):
        items = [item for item in known if item.group == group]
        scores = [float(item.scores[judge] or 0.0) for item in items]
        estimate = Clusters([item.scenario_id for item in items]).mean(scores, SHARE)
        if estimate.value is None:
            continue
        error = None
        if estimate.ci_low is not None and estimate.ci_high is not None:
            error = [[estimate.value - estimate.ci_low], [estimate.ci_high - estimate.value]]
        axes.barh(row, estimate.value, xerr=error, color="C0", capsize=3)
    if known:
        mean = float(np.mean([float(item.scores[judge] or 0.0) for item in known]))
        axes.axvline(mean, color="grey", linestyle="--", label=f"mean over items {mean:.2f}")
        axes.legend(loc="lower right", fontsize=8)
    axes.set_yticks(range(len(sizes)), [f"{group} ({count})" for group, count in sizes.items()], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=judge, title="Score by category (items)")
    return figure
