"""Agreement of two labelers of the same answers: Cohen's kappa, and the best score that labels of such quality allow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from afintro.evaluation.intervals import Clusters, Estimate, Floats

Labels = Sequence[str | None]


def confusion(one: Labels, other: Labels, classes: Sequence[str]) -> NDArray[np.int64]:
    """Count the answers by label of the first and of the second labeler: ``[class, class]``."""
    return np.asarray(confusion_matrix(list(one), list(other), labels=list(classes)), dtype=np.int64)


def kappa(one: Labels, other: Labels, clusters: Clusters) -> Estimate:
    """Estimate Cohen's kappa (1960, Educational and Psychological Measurement 20(1)), with a jackknife interval over clusters.

    Args:
        one: The labels of one labeler, ``[n]``.
        other: The labels of another labeler, ``[n]``.
        clusters: The cluster of each answer.

    Returns:
        The estimate; its value is None where chance alone would agree on everything.
    """
    if not len(one):
        return Estimate(None, None, None, 0)
    classes, numbers = np.unique([*map(str, one), *map(str, other)], return_inverse=True)
    first, second = (np.eye(len(classes))[half] for half in np.split(numbers, 2))
    agree = (first * second).sum(1)

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(1)
        chance = ((weights @ first) * (weights @ second)).sum(1) / total**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(chance < 1, (weights @ agree / total - chance) / (1 - chance), np.nan)

    estimate = clusters.estimate(statistic, (-1.0, 1.0))
    value = float(cohen_kappa_score(list(map(str, one)), list(map(str, other)))) if len(classes) > 1 else None
    return Estimate(value, estimate.ci_low, estimate.ci_high, estimate.n)


def label_agreement(
    sides: Sequence[tuple[Labels, Labels]], scenarios: Sequence[str], names: Sequence[object], untold: str
) -> dict[str, Any]:
    """Compare two labelers of the same records, as ``summary.json`` holds it.

    ``ceiling_exact_match`` is the share of the verdicts of the first labeler (did the behavior change, and into what) that the
    second shares: whoever knows the behavior exactly as the second labeler sees it scores as much, and no more.

    Args:
        sides: For each condition the labels of both labelers, None where a labeler says nothing (such an answer counts nowhere,
            ``unanswered`` is their number); the content of a verdict is the label of the last condition.
        scenarios: The scenario of each record.
        names: Names of both labelers.
        untold: The label of an answer of which nothing can be told: a record with such an answer has no verdict.
    """
    known = [
        (a, b, scenario)
        for one, other in sides
        for a, b, scenario in zip(one, other, scenarios, strict=True)
        if a is not None and b is not None
    ]
    first, second, clusters = ([row[i] for row in known] for i in range(3))
    verdicts = list(zip(*(_verdicts([side[which] for side in sides], untold) for which in (0, 1)), strict=True))
    over = Clusters(clusters)
    answered = [None not in labels for labels in zip(*(other for _, other in sides), strict=True)]
    same = [one == other for one, other in verdicts]
    told = [one is not None and both for (one, _), both in zip(verdicts, answered, strict=True)]
    return {
        "labelers": list(names),
        "unanswered": sum(None in labels for one, other in sides for labels in zip(one, other, strict=True)),
        "agreement": over.share([a == b for a, b in zip(first, second, strict=True)]).as_json(),
        "kappa": kappa(first, second, over).as_json(),
        "ceiling_exact_match": Clusters(list(scenarios)).share(same, told).as_json(),
    }


def _verdicts(sides: Sequence[Labels], untold: str) -> list[tuple[bool, str] | None]:
    """Return whether the label changes, and the last label; None for a record with a label that says nothing."""
    return [
        None if before in (None, untold) or after in (None, untold) else (before != after, str(after))
        for before, after in zip(sides[0], sides[-1], strict=True)
    ]
