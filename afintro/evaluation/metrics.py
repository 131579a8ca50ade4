"""Scores of one system's predictions, each with a bootstrap interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from torchmetrics.functional.text import chrf_score

from afintro.data.batch import Example
from afintro.evaluation.answers import expected_verdict, parse_two_branch
from afintro.evaluation.detection_metrics import auroc
from afintro.evaluation.intervals import Bootstrap, Estimate, Floats, mean_of, ratio

CALIBRATION_BINS = 10
COLLAPSE = 0.98


@dataclass(frozen=True)
class Prediction:
    """What one system answered to one item.

    Args:
        uid: The item.
        scenario_id: Items that share one are resampled together.
        question_type: E.g. ``generative_explanation``.
        expected: The expected answer.
        predicted: The answer given; None where only ``exact_match`` is known (teacher forcing without generation).
        exact_match: Whether the greedy answer is the expected one, token for token.
        p_changed: Probability of the "changed" branch against the "unchanged" one, where the question has a verdict.
        group: What macro averages are over.
        twins: Items that share it have the same text and, half of them each, opposite verdicts; "" for an item without.
        scores: What judges gave the answer, 0..1 by name; None where a judge's reply could not be read.
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
    scores: Mapping[str, float | None] = field(default_factory=dict, hash=False)


def unanswered(item: Example) -> Prediction:
    """An item before anybody answered it."""
    return Prediction(
        item.uid, item.scenario_id, item.question_type, item.answer, None, False, group=item.group, twins=item.twins
    )


def text_prediction(item: Example, predicted: str, p_changed: float | None = None) -> Prediction:
    """A baseline's answer to an item."""
    exact = predicted == item.answer
    return replace(unanswered(item), predicted=predicted, exact_match=exact, p_changed=p_changed)


@dataclass(frozen=True)
class Statistic:
    """One metric of one system: a function of item weights, with the items it is about."""

    name: str
    values: Floats  # [n, k] per-item numbers
    kind: str  # mean, macro, f1, auroc, calibration
    uids: tuple[str, ...]

    @property
    def value(self) -> float:
        """On the items themselves."""
        return float(self(np.ones((1, len(self.uids))))[0])

    def __call__(self, weights: Floats) -> Floats:
        """``[draws, n]`` to ``[draws]``."""
        if self.kind == "mean":
            return mean_of(self.values[:, 0])(weights)
        if self.kind == "f1":
            return macro_f1(self.values, weights)
        if self.kind == "macro":
            return macro_mean(self.values, weights)
        if self.kind == "auroc":
            return auroc(self.values[:, 0], self.values[:, 1] > 0, weights)
        return calibration_error(self.values, weights)


Scores = dict[str, tuple[Statistic, list[str]]]
"""All metrics of one system, by name, each with the clusters of its items."""


def macro_f1(outcomes: Floats, weights: Floats) -> Floats:
    """Mean of the F1 of both verdicts.

    Args:
        outcomes: ``[n, 2]``: expected verdict (0 unchanged, 1 changed), predicted verdict (-1 where unparsed). An
            unparsed answer is a miss of the class expected: it lowers that class's recall.
        weights: ``[draws, n]``.

    Returns:
        ``[draws]``; NaN where one verdict is neither expected nor predicted.
    """
    expected, predicted = outcomes[:, 0], outcomes[:, 1]
    scores = []
    for verdict in (0, 1):
        hit = weights @ ((expected == verdict) & (predicted == verdict))
        missed = weights @ ((expected == verdict) & (predicted != verdict))
        false = weights @ ((expected != verdict) & (predicted == verdict))
        scores.append(ratio(2 * hit, 2 * hit + missed + false))
    return (scores[0] + scores[1]) / 2


def macro_mean(values: Floats, weights: Floats) -> Floats:
    """Mean over groups of the mean within each: a large group counts no more than a small one.

    Args:
        values: ``[n, 2]``: score, index of its group. A group that no weight is left of does not count.
        weights: ``[draws, n]``.

    Returns:
        ``[draws]``; NaN where no weight is left.
    """
    member = np.unique(values[:, 1])[:, None] == values[:, 1]  # [groups, n]
    totals = weights @ member.T
    means = ratio(weights @ (member * values[:, 0]).T, totals)
    return ratio(np.nan_to_num(means).sum(1), (totals > 0).sum(1).astype(np.float64))


def calibration_error(values: Floats, weights: Floats) -> Floats:
    """Expected calibration error: how far probability and truth lie apart, by bins (Guo et al. 2017, eq. 3).

    As torchmetrics has it, which takes no weights, but for a probability of 1: it belongs to the last bin.

    Args:
        values: ``[n, 2]``: probability, truth (0 or 1).
        weights: ``[draws, n]``.

    Returns:
        ``[draws]``; NaN where no weight is left.
    """
    bins = np.digitize(values[:, 0], np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1])
    member = np.arange(CALIBRATION_BINS)[:, None] == bins  # [bins, n]
    gaps = weights @ (member * (values[:, 1] - values[:, 0])).T
    return ratio(np.abs(gaps).sum(1), weights.sum(1))


def statistics(predictions: Sequence[Prediction], primary: str, verdicts: Sequence[str] = ()) -> Scores:
    """All metrics of one system, by name, each with the clusters of its items.

    Args:
        predictions: In any order; sorted here, so that two systems on the same items line up.
        headline: The question type whose metrics bear no suffix; its answers carry a verdict.
        verdicts: Further question types whose answers carry one; their metrics end with ``/<question type>``.
    """
    found: dict[str, tuple[Statistic, list[str]]] = {}
    ordered = sorted(predictions, key=lambda prediction: prediction.uid)

    def put(name: str, kind: str, items: Sequence[Prediction], rows: Sequence[Sequence[float]]) -> None:
        if items:
            values = np.array(rows, dtype=np.float64)
            uids = tuple(item.uid for item in items)
            found[name] = (Statistic(name, values, kind, uids), [item.scenario_id for item in items])

    for question in sorted({prediction.question_type for prediction in ordered}):
        items = [prediction for prediction in ordered if prediction.question_type == question]
        exact = [[float(item.exact_match)] for item in items]
        put(f"exact_match/{question}", "mean", items, exact)
        written = [item for item in items if item.predicted is not None]
        if question == primary:
            put("exact_match", "mean", items, exact)
            _verdict_metrics(put, items, "")
        elif question in verdicts:
            _verdict_metrics(put, items, f"/{question}")
        else:
            put(f"chrf/{question}", "mean", written, [[chrf(item.predicted or "", item.expected)] for item in written])
    return found


def _verdict_metrics(put: Callable[..., None], items: Sequence[Prediction], suffix: str) -> None:
    written = [item for item in items if item.predicted is not None]
    pairs = [(expected_verdict(item.expected), parse_two_branch(item.predicted or "")) for item in written]
    outcomes = [[float(true.changed), -1.0 if said is None else float(said.changed)] for true, said in pairs]
    put(f"has_changed_f1{suffix}", "f1", written, outcomes)
    content = [[float(said is not None and said.content == true.content)] for true, said in pairs]
    put(f"content_match{suffix}", "mean", written, content)
    put(f"parse_rate{suffix}", "mean", written, [[float(said is not None)] for _, said in pairs])
    twins = [index for index, item in enumerate(written) if item.twins]
    right = [[float(outcomes[index][0] == outcomes[index][1])] for index in twins]
    put(f"twin_accuracy{suffix}", "mean", [written[index] for index in twins], right)
    known = [item for item in items if item.p_changed is not None and parse_two_branch(item.expected) is not None]
    rows = [[float(item.p_changed or 0.0), float(expected_verdict(item.expected).changed)] for item in known]
    put(f"auroc_changed{suffix}", "auroc", known, rows)
    put(f"calibration_error{suffix}", "calibration", known, rows)


@cache  # the same answers are scored for the table and for the leads
def chrf(predicted: str, expected: str) -> float:
    """chrF of one answer in 0..1 (Popović 2015); case counts. An empty answer scores 0 unless empty is right."""
    if predicted == expected or not predicted.strip() or not expected.strip():
        return float(predicted.strip() == expected.strip())
    # chrF counts no white space; torchmetrics leaves out the blank alone.
    found = chrf_score([" ".join(predicted.split())], [[" ".join(expected.split())]], n_word_order=0)
    assert isinstance(found, torch.Tensor)
    return float(found)


def score(scores: Scores, seed: int) -> dict[str, Estimate]:
    """Every metric with its 95 % interval, bootstrapped over scenarios."""
    return {name: Bootstrap(clusters, seed).estimate(statistic) for name, (statistic, clusters) in scores.items()}


def lead(own: Scores, rivals: Mapping[str, Scores], metric: str, seed: int) -> tuple[Estimate, str] | None:
    """A system minus the best of its rivals on one metric, paired over the same resamples; and which rival that is.

    Compared are the items on which both have the metric: a judge may have left one of them without a score. None where
    the system or all rivals lack the metric, or no item is shared.
    """
    if metric not in own:
        return None
    pairs = {name: _shared(own[metric], scores[metric][0]) for name, scores in rivals.items() if metric in scores}
    usable = {name: pair for name, pair in pairs.items() if pair[2]}
    if not usable:
        return None

    def value(statistic: Statistic) -> float:
        return float(np.nan_to_num(statistic.value, nan=-1.0))

    best = max(usable, key=lambda name: value(usable[name][1]))
    statistic, other, clusters = usable[best]
    estimate = Bootstrap(clusters, seed).estimate(lambda weights: statistic(weights) - other(weights))
    return estimate, best


def _shared(own: tuple[Statistic, list[str]], other: Statistic) -> tuple[Statistic, Statistic, list[str]]:
    """Both statistics on the items that both are about, and the clusters of those."""
    statistic, clusters = own
    if statistic.uids == other.uids:
        return statistic, other, clusters
    there, here = set(other.uids), set(statistic.uids)
    kept = [row for row, uid in enumerate(statistic.uids) if uid in there]
    theirs = [row for row, uid in enumerate(other.uids) if uid in here]
    uids = tuple(statistic.uids[row] for row in kept)
    return (
        replace(statistic, values=statistic.values[kept], uids=uids),
        replace(other, values=other.values[theirs], uids=uids),
        [clusters[row] for row in kept],
    )


def collapse_warning(predictions: Sequence[Prediction], primary: str) -> str | None:
    """A warning where nearly every answer gives the same verdict although the items do not."""
    answers = [
        (parse_two_branch(p.predicted or ""), expected_verdict(p.expected))
        for p in predictions
        if p.question_type == primary
    ]
    said = [verdict.changed for verdict, _ in answers if verdict is not None]
    true = [verdict.changed for _, verdict in answers]
    if not said or len(set(true)) < 2:
        return None
    share = max(sum(said), len(said) - sum(said)) / len(said)
    if share < COLLAPSE:
        return None
    verdict = "changed" if sum(said) > len(said) / 2 else "unchanged"
    return f"class collapse: {100 * share:.1f} % of the parsed answers say {verdict!r}; exact match alone hides this"
