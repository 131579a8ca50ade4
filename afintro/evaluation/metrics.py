"""Metrics of one system's predictions, each with its interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from torchmetrics.functional.text import chrf_score

from afintro.data.batch import Example
from afintro.evaluation.answers import expected_verdict, parse_two_branch
from afintro.evaluation.crossed import Crossed
from afintro.evaluation.intervals import FEW_CLUSTERS, Clusters, Estimate
from afintro.evaluation.statistic import Scores, Statistic, Units

COLLAPSE = 0.98  # share of one verdict from which a system counts as collapsed


@dataclass(frozen=True)
class Prediction:
    """Hold what one system answered to one item.

    Args:
        uid: Unique id of the item.
        scenario_id: Id of the scenario; items of one scenario are one cluster of the intervals.
        question_type: E.g. ``generative_explanation``.
        expected: The expected answer.
        predicted: The system's answer; None where only ``exact_match`` is known (teacher forcing without generation).
        exact_match: Whether the greedy answer is the expected answer, token for token.
        p_changed: Probability of the "changed" branch against the "unchanged" branch, where the question has a verdict.
        group: Group over which macro averages are taken.
        twins: Id of a set of items with the same text, half of which have the opposite verdict; "" for other items.
        cut: Whether the expected answer was cut, so that an answer is right which begins with it.
        truncated: Whether the limit of tokens ended the answer, not the system; None if unknown.
        scores: Scores of judges in 0..1 by the judge's name; None where a judge's reply could not be read.
        facets: Label, source and category of the item, see :class:`afintro.data.batch.Example`.
    """

    uid: str
    scenario_id: str
    question_type: str
    expected: str
    predicted: str | None
    exact_match: bool
    p_changed: float | None = None
    group: str = ""
    twins: str = ""
    cut: bool = False
    truncated: bool | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict, hash=False)
    facets: Mapping[str, str] = field(default_factory=dict, hash=False)


def unanswered(item: Example) -> Prediction:
    """Make the prediction of an item that no system has answered yet."""
    return Prediction(
        item.uid, item.scenario_id, item.question_type, item.answer, None, False,
        group=item.group, twins=item.twins, cut=item.cut, facets=item.facets,
    )  # fmt: skip


def text_prediction(item: Example, predicted: str, p_changed: float | None = None) -> Prediction:
    """Make the prediction of a baseline. A cut answer is matched up to its length.

    Args:
        item: The item.
        predicted: The baseline's answer.
        p_changed: The baseline's probability of "changed", where it has one.
    """
    exact = predicted.startswith(item.answer) if item.cut else predicted == item.answer
    return replace(unanswered(item), predicted=predicted, exact_match=exact, p_changed=p_changed)


def statistics(
    predictions: Sequence[Prediction], primary: str, verdicts: Sequence[str] = (), primary_verdict: bool = True
) -> Scores:
    """Compute all metrics of one system.

    Args:
        predictions: Predictions in any order; they are sorted here, so that two systems on the same items line up.
        primary: The question type whose metric names have no suffix.
        verdicts: Further question types whose answers carry a verdict; their metric names end with ``/<question type>``.
        primary_verdict: Whether the answers to the primary question carry a verdict.

    Returns:
        Metrics by name, each with the clusters of its items.
    """
    scores: Scores = {}
    ordered = sorted(predictions, key=lambda prediction: prediction.uid)

    def put(name: str, kind: str, items: Sequence[Prediction], rows: Sequence[Sequence[float]]) -> None:
        if items:
            values = np.array(rows, dtype=np.float64)
            uids = tuple(item.uid for item in items)
            scores[name] = (Statistic(name, values, kind, uids), [item.scenario_id for item in items])

    for question in sorted({prediction.question_type for prediction in ordered}):
        items = [prediction for prediction in ordered if prediction.question_type == question]
        exact = [[float(item.exact_match)] for item in items]
        put(f"exact_match/{question}", "mean", items, exact)
        written = [item for item in items if item.predicted is not None]
        if question == primary:
            put("exact_match", "mean", items, exact)
        if question == primary and primary_verdict:
            _verdict_metrics(put, items, "")
        elif question in verdicts:
            _verdict_metrics(put, items, f"/{question}")
        else:
            put(f"chrf/{question}", "mean", written, [[chrf(item.predicted or "", item.expected)] for item in written])
    return scores


def _verdict_metrics(put: Callable[..., None], items: Sequence[Prediction], suffix: str) -> None:
    written = [item for item in items if item.predicted is not None]
    pairs = [(expected_verdict(item.expected), parse_two_branch(item.predicted or "", item.cut)) for item in written]
    outcomes = [[float(true.changed), -1.0 if parsed is None else float(parsed.changed)] for true, parsed in pairs]
    put(f"has_changed_f1{suffix}", "f1", written, outcomes)
    content = [
        [float(parsed is not None and _same_content(parsed.content, true.content, item.cut))]
        for item, (true, parsed) in zip(written, pairs, strict=True)
    ]
    put(f"content_match{suffix}", "mean", written, content)
    put(f"parse_rate{suffix}", "mean", written, [[float(parsed is not None)] for _, parsed in pairs])
    twins = [index for index, item in enumerate(written) if item.twins]
    right = [[float(outcomes[index][0] == outcomes[index][1])] for index in twins]
    put(f"twin_accuracy{suffix}", "mean", [written[index] for index in twins], right)
    known = [
        item for item in items if item.p_changed is not None and parse_two_branch(item.expected, item.cut) is not None
    ]
    rows = [[float(item.p_changed or 0.0), float(expected_verdict(item.expected).changed)] for item in known]
    put(f"auroc_changed{suffix}", "auroc", known, rows)
    put(f"calibration_error{suffix}", "calibration", known, rows)


def _same_content(content: str, expected: str, cut: bool) -> bool:
    return content.startswith(expected) if cut else content == expected


@cache  # the same answers are scored for the table and for the leads
def chrf(predicted: str, expected: str) -> float:
    """Compute chrF of one answer in 0..1 (Popović 2015); case counts.

    Args:
        predicted: The answer. An empty answer scores 0, unless the expected answer is empty too.
        expected: The expected answer.
    """
    if predicted == expected or not predicted.strip() or not expected.strip():
        return float(predicted.strip() == expected.strip())
    # chrF ignores white space; torchmetrics ignores the blank only.
    value = chrf_score([" ".join(predicted.split())], [[" ".join(expected.split())]], n_word_order=0)
    assert isinstance(value, torch.Tensor)
    return float(value)


def score(scores: Scores) -> dict[str, Estimate]:
    """Estimate every metric with its 95 % interval over scenarios, or over all levels of crossed units.

    Args:
        scores: Metrics of one system, as :func:`statistics` returns them.
    """
    return {name: estimate(statistic, units) for name, (statistic, units) in scores.items()}


def estimate(statistic: Statistic, units: Units) -> Estimate:
    """Estimate one metric with its 95 % interval.

    Args:
        statistic: The metric.
        units: What its items share.
    """
    return units.estimate(statistic) if isinstance(units, Crossed) else statistic.estimate(Clusters(units))


def lead(scores: Scores, rivals: Mapping[str, Scores], metric: str) -> tuple[Estimate, str] | None:
    """Estimate how far a system is ahead of its best rival on one metric, paired over the items.

    Only items on which both systems have the metric are compared: a judge may have left an item without a score.

    The best rival is chosen on the same items. Of several rivals of equal worth the luckiest is taken, so that the lead is too
    small rather than too large: an interval above 0 can be believed, while an interval below 0 may owe its place to the choice.

    Args:
        scores: Metrics of the system.
        rivals: Metrics of the other systems, by name.
        metric: Name of the metric.

    Returns:
        The estimated difference and the name of the best rival; None where the system or all rivals lack the metric, or no
        item is shared.
    """
    if metric not in scores:
        return None
    pairs = {name: _shared(scores[metric], others[metric][0]) for name, others in rivals.items() if metric in others}
    usable = {name: pair for name, pair in pairs.items() if pair[0].uids}
    if not usable:
        return None

    def value(statistic: Statistic) -> float:
        return float(np.nan_to_num(statistic.value, nan=-1.0))

    best = max(usable, key=lambda name: value(usable[name][1]))
    statistic, other, units = usable[best]
    found = units.lead(statistic, other) if isinstance(units, Crossed) else statistic.lead(other, Clusters(units))
    return found, best


def _shared(score: tuple[Statistic, Units], other: Statistic) -> tuple[Statistic, Statistic, Units]:
    """Restrict two statistics to the items that they share, and return the units of these items too."""
    statistic, units = score
    if statistic.uids == other.uids:
        return statistic, other, units
    shared = set(statistic.uids) & set(other.uids)
    rows = [row for row, uid in enumerate(statistic.uids) if uid in shared]
    other_rows = [row for row, uid in enumerate(other.uids) if uid in shared]
    kept = units.restricted(rows) if isinstance(units, Crossed) else [units[row] for row in rows]
    return statistic.restricted(rows), other.restricted(other_rows), kept


def few_clusters_warning(scores: Scores) -> str | None:
    """Warn if metrics of a system rest on fewer than ten clusters, whose intervals are wide and cover less surely.

    Args:
        scores: Metrics of one system, as :func:`statistics` returns them.

    Returns:
        One warning that names all such metrics, or None.
    """
    counts = {
        name: min(units.counts.values()) if isinstance(units, Crossed) else len(set(units))
        for name, (_, units) in scores.items()
    }
    few = {name: count for name, count in counts.items() if count < FEW_CLUSTERS}
    if not few:
        return None
    named = ", ".join(f"{name} ({count})" for name, count in few.items())
    return (
        f"fewer than {FEW_CLUSTERS} scenarios (or other clusters of items) are behind {named}: such intervals are rough, and "
        "below two clusters there is none"
    )


def collapse_warning(predictions: Sequence[Prediction], primary: str) -> str | None:
    """Warn if nearly all answers give the same verdict although the expected answers do not.

    Args:
        predictions: Predictions of one system.
        primary: The question type whose answers carry a verdict.

    Returns:
        The warning, or None.
    """
    answers = [
        (parse_two_branch(p.predicted or "", p.cut), expected_verdict(p.expected))
        for p in predictions
        if p.question_type == primary
    ]
    predicted = [verdict.changed for verdict, _ in answers if verdict is not None]
    expected = [verdict.changed for _, verdict in answers]
    if not predicted or len(set(expected)) < 2:
        return None
    share = max(sum(predicted), len(predicted) - sum(predicted)) / len(predicted)
    if share < COLLAPSE:
        return None
    verdict = "changed" if sum(predicted) > len(predicted) / 2 else "unchanged"
    return f"class collapse: {100 * share:.1f} % of the parsed answers say {verdict!r}; exact match alone hides this"
