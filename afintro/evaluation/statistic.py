"""Statistics of one system's items, with their intervals and those of the paired difference of two systems."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Union

import numpy as np

from afintro.evaluation.calibration import calibration_error
from afintro.evaluation.detection_metrics import placements
from afintro.evaluation.intervals import SHARE, Clusters, Effect, Estimate, Floats, effective_count
from afintro.evaluation.score_intervals import Ends, auroc_ends, auroc_variance, difference, paired, wilson

if TYPE_CHECKING:
    from afintro.evaluation.crossed import Crossed

DIFFERENCE = (-1.0, 1.0)


@dataclass(frozen=True)
class Statistic:
    """Hold one metric of one system, with the items that it is computed on.

    Args:
        name: Name of the metric.
        values: ``[n, k]`` float64, the numbers of each item, see the functions of the kinds.
        kind: ``mean`` (of one number in 0..1), ``macro`` (:func:`macro_mean`), ``f1`` (:func:`macro_f1`), ``auroc`` (score and
            truth) or ``calibration`` (:func:`~afintro.evaluation.calibration.calibration_error`).
        uids: The items.
    """

    name: str
    values: Floats
    kind: str
    uids: tuple[str, ...]

    @property
    def value(self) -> float:
        """Compute the metric on the items; NaN where it is undefined."""
        if self.kind == "f1":
            return macro_f1(self.values)
        if self.kind == "auroc":
            return auroc(self.values)
        if self.kind == "calibration":
            return calibration_error(self.values, Clusters(self.uids)).value or 0.0
        return macro_mean(np.stack([self.values[:, 0], self.groups], 1))

    def restricted(self, rows: Sequence[int]) -> "Statistic":
        """Return the metric on some of the items."""
        return replace(self, values=self.values[rows], uids=tuple(self.uids[row] for row in rows))

    @property
    def groups(self) -> Floats:
        """Return the group of each item: ``[n]``, one group unless the kind is ``macro``."""
        return self.values[:, 1] if self.kind == "macro" else np.zeros(len(self.values))

    @property
    def influence(self) -> Floats:
        """Compute what one more weight of each item would add to a macro-F1 or an AUROC: ``[n]``."""
        return f1_influence(self.values) if self.kind == "f1" else auroc_influence(self.values)

    def estimate(self, clusters: Clusters) -> Estimate:
        """Estimate the metric with its 95 % interval over clusters."""
        if self.kind in ("mean", "macro"):
            return clusters.weighted_mean(self.values[:, 0], self.groups, SHARE)
        if self.kind == "calibration":
            return calibration_error(self.values, clusters)
        value = self.value
        if not np.isfinite(value):
            return Estimate(None, None, None, clusters.n)
        if clusters.count < 2:
            return Estimate(value, None, None, clusters.n)
        return Estimate(value, *self._ends(value, clusters), clusters.n)

    def _ends(self, value: float, clusters: Clusters) -> Ends:
        """Compute the interval of a macro-F1 or an AUROC.

        Macro-F1 has Wilson's interval at the number of independent items of its own variance, the AUROC has Newcombe's. Both
        variances are estimated by the delta method (for the AUROC: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44(3)) and
        inflated by the design effect of the clusters, where Obuchowski (1997, Biometrics 53(2)) sums what the items of a cluster
        add: the sum is too noisy where few items are wrong.
        """
        influence, evidence = self.influence, clusters.n * min(value, 1 - value)
        effect = clusters.effect(influence, evidence)
        if self.kind == "f1":
            count = clusters.n / (clusters.n - 1)
            variance = count * float((influence**2).sum())
            worth = effective_count(value, variance, clusters.n, evidence, imbalance(self.values[:, 0]))
            return wilson(value, worth / effect.design, effect.quantile)
        return self._auroc_ends(value, influence, evidence, effect)

    def _auroc_ends(self, value: float, influence: Floats, evidence: float, effect: Effect) -> Ends:
        truth = self.values[:, 1] > 0
        positives, negatives = float(truth.sum()), float((~truth).sum())
        sizes = np.where(truth, positives, negatives)
        variance = float((influence**2 * sizes / np.maximum(sizes - 1, 1)).sum())
        model = auroc_variance(value, positives, negatives)
        shape = (evidence * variance / model + 1) / (evidence + 1) if model > 0 else 1.0
        return auroc_ends(value, positives, negatives, effect.design * shape, effect.quantile)

    def lead(self, other: "Statistic", clusters: Clusters) -> Estimate:
        """Estimate how far the metric is above another system's metric on the same items, paired.

        Shares and macro-F1 have Tango's interval of paired shares at the effective number of items; means of other scores
        have the interval of the mean of the items' differences; AUROC and calibration error have the interval of Zou & Donner
        from both systems' own intervals and the correlation of what the items add to both. Where both systems agree on all
        items, the interval is what Tango's formula gives for no discordant item, whatever the metric.

        Args:
            other: The other system's metric, on the same items in the same order.
            clusters: The clusters of the items.
        """
        value = self.value - other.value
        if not np.isfinite(value):
            return Estimate(None, None, None, clusters.n)
        if clusters.count < 2:
            return Estimate(value, None, None, clusters.n)
        if self.kind in ("mean", "macro"):
            scores = self.values[:, 0], other.values[:, 0]
            if self.kind == "mean" and all(np.isin(score, SHARE).all() for score in scores):
                return clusters.difference(*scores)
            return clusters.weighted_mean(scores[0] - scores[1], self.groups, DIFFERENCE, differences=True)
        ends = self._f1_lead(value, other, clusters) if self.kind == "f1" else self._square_and_add(other, clusters)
        return Estimate(value, min(ends[0], value), max(ends[1], value), clusters.n)

    def _f1_lead(self, value: float, other: "Statistic", clusters: Clusters) -> Ends:
        """Compute the interval of a difference of macro-F1, by the discordant answers that would make the same difference.

        Near the ends one wrong answer costs ``unit / n`` of macro-F1. The numbers of discordant answers of both kinds are those
        which have the difference and the variance that was observed.
        """
        unit = imbalance(self.values[:, 0])
        differences = self.influence - other.influence
        squares = (clusters.n * float((differences**2).sum()) + value**2) / unit**2  # expected square of a difference
        discordant = min(clusters.n * max(squares, abs(value) / unit), clusters.n)
        ahead = float(np.clip(clusters.n * value / unit, -discordant, discordant))
        effect = clusters.effect(differences, discordant)
        alone, worth = (
            np.array([discordant + ahead, discordant - ahead]) / (2 * effect.design),
            clusters.n / effect.design,
        )
        low, high = paired(float(alone[0]), float(alone[1]), worth, effect.quantile)
        return max(low * unit, -1.0), min(high * unit, 1.0)

    def _square_and_add(self, other: "Statistic", clusters: Clusters) -> Ends:
        if np.array_equal(self.values, other.values):
            return paired(0.0, 0.0, clusters.count)
        (first, first_ends), (second, second_ends) = (
            (estimate.value or 0.0, (estimate.ci_low or 0.0, estimate.ci_high or 0.0))
            for estimate in (self.estimate(clusters), other.estimate(clusters))
        )
        correlation = 0.0
        if self.kind == "auroc":
            sums = clusters.sums(self.influence), clusters.sums(other.influence)
            scale = float(np.sqrt((sums[0] ** 2).sum() * (sums[1] ** 2).sum()))
            correlation = float((sums[0] * sums[1]).sum()) / scale if scale > 0 else 0.0
        return difference(first, first_ends, second, second_ends, correlation)


Units = Union[list[str], "Crossed"]
"""What items share: the cluster of each item, or the units of several levels."""
Scores = dict[str, tuple[Statistic, Units]]
"""All metrics of one system, by name, each with what its items share."""


def macro_f1(outcomes: Floats) -> float:
    """Compute the mean of the F1 scores of both verdicts; NaN where one verdict is neither expected nor predicted.

    Args:
        outcomes: ``[n, 2]`` float64: expected verdict (0 unchanged, 1 changed) and predicted verdict (-1 if unparsed). An
            unparsed answer is a miss of the expected class: it lowers the recall of that class.
    """
    scores = []
    for verdict in (0, 1):
        expected, predicted = (outcomes == verdict).T
        total = int(expected.sum() + predicted.sum())
        scores.append(2 * int((expected & predicted).sum()) / total if total else float("nan"))
    return (scores[0] + scores[1]) / 2


def f1_influence(outcomes: Floats) -> Floats:
    """Compute the derivative of macro-F1 by the weight of each item (delta method: Takahashi et al. 2022, Applied Intelligence).

    Args:
        outcomes: ``[n, 2]`` float64, see :func:`macro_f1`, which must be defined.

    Returns:
        ``[n]`` float64, whose sum is 0.
    """
    influence = np.zeros(len(outcomes))
    for verdict in (0, 1):
        expected, predicted = (outcomes == verdict).T.astype(np.float64)
        hits, total = 2 * expected * predicted, expected + predicted
        influence += (hits - hits.sum() / total.sum() * total) / total.sum() / 2
    return influence


def imbalance(truth: Floats) -> float:
    """Compute how much more than a wrong answer to balanced classes a wrong answer to these classes costs macro-F1, near 1.

    A wrong answer to one of ``n`` items adds a miss to one class and a false alarm to the other, which costs
    ``(1 / n_0 + 1 / n_1) / 4``: that is ``1 / n`` if both classes are equally large.

    Args:
        truth: ``[n]``, 0 or 1. An absent class counts as half an item.
    """
    rate = float(np.clip(truth.mean(), 0.5 / len(truth), 1 - 0.5 / len(truth)))
    return 1 / (4 * rate * (1 - rate))


def auroc(values: Floats) -> float:
    """Compute the probability that an item of the true class has the higher score; NaN where a class is absent.

    Args:
        values: ``[n, 2]`` float64: score and truth (0 or 1).
    """
    truth = values[:, 1] > 0
    return float(placements(values[:, 0], truth)[truth].mean()) if truth.any() and not truth.all() else float("nan")


def auroc_influence(values: Floats) -> Floats:
    """Compute the derivative of the AUROC by the weight of each item: ``[n]`` float64, whose sum is 0.

    Args:
        values: ``[n, 2]`` float64: score and truth, with items of both classes.
    """
    truth = values[:, 1] > 0
    placed = placements(values[:, 0], truth)
    sizes = np.where(truth, truth.sum(), (~truth).sum())
    return (placed - placed[truth].mean()) / sizes


def macro_mean(values: Floats) -> float:
    """Compute the mean over groups of the mean within each group: a large group counts no more than a small group.

    Args:
        values: ``[n, 2]`` float64: score and index of the group.
    """
    _, member = np.unique(values[:, 1], return_inverse=True)
    return float((np.bincount(member, values[:, 0]) / np.bincount(member)).mean())
