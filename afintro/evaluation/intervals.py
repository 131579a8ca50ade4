"""Confidence intervals over clusters of items, e.g. over scenarios: in closed form, with coverage also near 0 and 1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from afintro.evaluation.score_intervals import NORMAL, TAIL, Ends, paired, wilson

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], Floats]
"""A statistic: maps item weights ``[draws, n]`` to values ``[draws]``, NaN where the statistic is undefined."""
CHUNK = 2**21  # number of weights that a statistic is given at once
FEW_CLUSTERS = 10
SHARE = (0.0, 1.0)
PRIOR = 0.5  # items of the rarer outcome that the prior of the intraclass correlation is worth


@dataclass(frozen=True)
class Estimate:
    """Hold a value with its 95 % interval and the number of items behind it; None stands for what cannot be computed."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        """Return the estimate as ``summary.json`` holds it."""
        return {"value": self.value, "ci_low": self.ci_low, "ci_high": self.ci_high, "n": self.n}


@dataclass(frozen=True)
class Effect:
    """Hold what clusters do to a variance.

    Args:
        design: Variance divided by the variance of as many independent items (Kish's design effect), at least 1.
        quantile: Quantile of the standardized difference: normal for independent items, else Student's.
        correlation: Intraclass correlation.
    """

    design: float = 1.0
    quantile: float = NORMAL
    correlation: float = 0.0


class Clusters:
    """Hold which items belong together, and estimate means, shares and other statistics with intervals over clusters.

    Items of one cluster (e.g. a scenario) may agree by nature, so that ``n`` items are worth fewer than ``n`` independent
    items. A single cluster says nothing about others: below two clusters there is no interval.

    Args:
        clusters: The cluster of each item, e.g. its scenario.
    """

    def __init__(self, clusters: Sequence[str] | Sequence[int]) -> None:
        names, self.members = np.unique(np.array(clusters), return_inverse=True)
        self.n = len(clusters)
        self.count = len(names)
        self.sizes: Floats = np.bincount(self.members, minlength=self.count).astype(np.float64)

    @property
    def alone(self) -> bool:
        """Return whether every cluster is a single item."""
        return self.n == self.count

    def sums(self, values: Floats) -> Floats:
        """Sum one number per item, ``[n]``, within each cluster: ``[count]``."""
        return np.bincount(self.members, values, minlength=self.count).astype(np.float64)

    def effect(self, influence: Floats, evidence: float) -> Effect:
        """Estimate what the clusters do to the variance of a statistic.

        The design effect is ``1 + (m - 1) ICC`` (Kish 1965, Survey Sampling, sec. 5.4) with the mean size ``m`` of an item's
        cluster. The intraclass correlation is that of the analysis of variance (Ridout, Demétrio & Firth 1999, Biometrics
        55(1)) of what each item adds to the statistic. Few errors cannot show that errors come in clusters, and no error
        shows nothing at all. The correlation is therefore a mean: of 1, with the weight of half an item, and of the
        estimate, with the weight of the items that are evidence.

        Clusters add the share ``1 - 1 / design`` of the variance, and this share alone is known with ``count - 1`` degrees
        of freedom. The total has ``count - 1`` divided by this share, which is more cautious than Satterthwaite's (1946,
        Biometrics Bulletin 2(6)) division by its square.

        Args:
            influence: What each item adds to the statistic, ``[n]`` float64.
            evidence: Number of items of the rarer outcome.
        """
        if self.alone or self.count < 2:
            return Effect()
        of_an_item = float((self.sizes**2).sum()) / self.n
        centered = influence - influence.mean()
        explained = float((self.sums(centered) ** 2 / self.sizes).sum())
        between = explained / (self.count - 1)
        within = max(float((centered**2).sum()) - explained, 0.0) / (self.n - self.count)
        size = (self.n - of_an_item) / (self.count - 1)
        total = between + (size - 1) * within
        correlation = float(np.clip((between - within) / total, 0.0, 1.0)) if total > 0 else 1.0
        correlation = (evidence * correlation + PRIOR) / (evidence + PRIOR)
        design = 1 + (of_an_item - 1) * correlation
        return Effect(design, float(t.ppf(1 - TAIL, (self.count - 1) * design / (design - 1))), correlation)

    def among(self, kept: Sequence[float] | Floats) -> "Clusters":
        """Return the clusters of some of the items alone.

        Args:
            kept: ``[n]``, 1 for an item that counts, else 0.
        """
        return Clusters(self.members[np.asarray(kept, dtype=np.float64) > 0].tolist())

    def share(self, hits: Sequence[float] | Floats, among: Sequence[float] | Floats | None = None) -> Estimate:
        """Estimate the share of hits: Wilson's interval at the number of independent items that the items are worth.

        Where every cluster is a single item this is Wilson's interval and nothing else.

        Args:
            hits: ``[n]``, 1 for an item that is a hit, else 0.
            among: ``[n]``, 1 for an item that counts, else 0; None if all count.

        Returns:
            The estimate; its ``n`` is the number of items that count.
        """
        numbers = np.asarray(hits, dtype=np.float64)
        if among is not None:
            return self.among(among).share(numbers[np.asarray(among, dtype=np.float64) > 0])
        if self.n == 0:
            return Estimate(None, None, None, 0)
        share = float(numbers.mean())
        if self.count < 2:
            return Estimate(share, None, None, self.n)
        return Estimate(share, *self._share_ends(numbers), self.n)

    def _share_ends(self, hits: Floats) -> Ends:
        effect = self.effect(hits, min(hits.sum(), self.n - hits.sum()))
        return wilson(float(hits.mean()), self.n / effect.design, effect.quantile)

    def difference(self, first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> Estimate:
        """Estimate the difference of two shares of the same items: Tango's interval at the effective number of items.

        Args:
            first: ``[n]``, 1 for a hit of the first system, else 0.
            second: ``[n]``, 1 for a hit of the second system, else 0.
        """
        differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
        if self.n == 0:
            return Estimate(None, None, None, 0)
        value = float(differences.mean())
        if self.count < 2:
            return Estimate(value, None, None, self.n)
        one, other = float((differences > 0).sum()), float((differences < 0).sum())
        effect = self.effect(differences, one + other)
        ends = paired(one / effect.design, other / effect.design, self.n / effect.design, effect.quantile)
        return Estimate(value, *ends, self.n)

    def mean(self, values: Sequence[float] | Floats, bounds: Ends | None = None) -> Estimate:
        """Estimate the mean of one number per item.

        With bounds the interval has Wilson's form, at the number of independent items of the values' own variance, see
        :func:`effective_count`. Values that are all at one bound or the other are a share. Without bounds it is Student's
        interval, and there is none where all values are equal, since nothing then says how far another value might be.

        Args:
            values: ``[n]``.
            bounds: Smallest and largest possible value.
        """
        numbers = np.asarray(values, dtype=np.float64)
        if self.n == 0:
            return Estimate(None, None, None, 0)
        if bounds is not None:
            return self.weighted_mean(numbers, np.zeros(self.n), bounds)
        value, spread = float(numbers.mean()), float(numbers.var())
        if self.count < 2 or np.ptp(numbers) == 0:
            return Estimate(value, None, None, self.n)
        effect = self.effect(numbers, _unlike(numbers))
        half = self._student(effect) * np.sqrt(effect.design * spread / (self.n - 1))
        return Estimate(value, float(value - half), float(value + half), self.n)

    def weighted_mean(self, values: Floats, groups: Floats, bounds: Ends, differences: bool = False) -> Estimate:
        """Estimate the mean over groups of the mean within each group: a large group counts no more than a small group.

        The variance is the sum over groups of the variances of their means (Cochran 1977, Sampling Techniques, ch. 5).
        The variance of a group with a single item is unknown: the item's distance from the mean over groups stands for it
        (Lumley 2010, Complex Surveys, "adjust" of single units).

        Args:
            values: ``[n]`` float64.
            groups: The group of each item, ``[n]``.
            bounds: Smallest and largest possible value.
            differences: Whether the values are differences of scores of the same items. Where all scores are equal, other
                items would rarely differ, whereas equal scores between the bounds say nothing about other items.
        """
        low, high = bounds
        shares = (values - low) / (high - low)
        _, member = np.unique(groups, return_inverse=True)
        sizes = np.bincount(member).astype(np.float64)
        means = np.bincount(member, shares) / sizes
        share, weights = float(means.mean()), 1 / (len(sizes) * sizes[member])
        value = low + share * (high - low)
        if self.count < 2:
            return Estimate(value, None, None, self.n)
        if len(sizes) == 1 and np.isin(shares, SHARE).all():
            ends = self._share_ends(shares)
        else:
            distances = np.where(sizes[member] > 1, shares - means[member], shares - share)
            unbiased = np.sqrt(sizes / np.maximum(sizes - 1, 1))[member]
            influence = weights * distances * unbiased
            evidence = _unlike(values) if differences else self.n * min(share, 1 - share)
            effect = self.effect(influence, evidence)
            count = 1 / float((weights**2).sum())
            # With this ratio the ends are those of Tango's interval where no item differs.
            unknown = NORMAL**2 * effect.design / count if differences else 1.0
            worth = effective_count(share, float((influence**2).sum()), count, evidence, unknown) / effect.design
            ends = wilson(share, worth, self._student(effect))
        return Estimate(value, low + ends[0] * (high - low), low + ends[1] * (high - low), self.n)

    def estimate(self, statistic: Weighted, bounds: Ends = SHARE) -> Estimate:
        """Compute any statistic and its interval, from the values without each cluster in turn.

        The variance is that of the jackknife (Efron & Tibshirani 1993, sec. 11.2), the interval has Wilson's form between
        the bounds, see :func:`effective_count`, with Student's quantile.

        Args:
            statistic: The statistic. Leaving out a cluster on which it depends so much that it is undefined without it, does
                not count.
            bounds: Smallest and largest possible value.
        """
        if self.n == 0:
            return Estimate(None, None, None, 0)
        [value] = statistic(np.ones((1, self.n)))
        if not np.isfinite(value):
            return Estimate(None, None, None, self.n)
        values = self._without_each(statistic) if self.count > 1 else np.zeros(0)
        values = values[np.isfinite(values)]
        if len(values) < 2:
            return Estimate(float(value), None, None, self.n)
        low, high = bounds
        share = float(np.clip((value - low) / (high - low), 0, 1))
        variance = (self.count - 1) * float(values.var()) / (high - low) ** 2
        evidence = float((np.abs(values - value) > 1e-12).sum())
        worth = effective_count(share, variance, self.count, evidence)
        ends = [low + end * (high - low) for end in wilson(share, worth, float(t.ppf(1 - TAIL, self.count - 1)))]
        return Estimate(float(value), ends[0], ends[1], self.n)

    def _without_each(self, statistic: Weighted) -> Floats:
        """Compute a statistic without each cluster in turn: ``[count]``."""
        size = max(1, CHUNK // self.n)
        left_out = [np.arange(start, min(start + size, self.count)) for start in range(0, self.count, size)]
        return np.concatenate([statistic((self.members != some[:, None]).astype(np.float64)) for some in left_out])

    def _student(self, effect: Effect) -> float:
        """Return Student's quantile of a variance that was estimated from the items, or that of the clusters if larger."""
        return max(effect.quantile, float(t.ppf(1 - TAIL, self.n - 1)))


def effective_count(share: float, variance: float, count: float, evidence: float, ratio: float = 1.0) -> float:
    """Compute the number of independent hits and misses whose share would have a variance.

    A variance is known as well as there are items that differ from the others: it is a mean of the estimate and of the
    variance of hits and misses, which has the weight of one item. Where all items agree, hits and misses are all that is left.

    Args:
        share: The value, between 0 and 1.
        variance: Its variance, estimated for independent items.
        count: Number of items.
        evidence: Number of items that differ from the others.
        ratio: Variance divided by that of hits and misses, which is expected where nothing is known.
    """
    model = share * (1 - share) / count
    estimated = variance / model if model > 0 else ratio
    return count * (evidence + 1) / (evidence * estimated + ratio)


def _unlike(values: Floats) -> float:
    """Count the items whose value is not the most common value."""
    return float(len(values) - np.unique(values, return_counts=True)[1].max())


def mean_of(values: Sequence[float] | Floats) -> Weighted:
    """Make a statistic of the weighted mean of one number per item; its value is NaN where all weights are 0."""
    numbers = np.asarray(values, dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        return ratio(weights @ numbers, weights.sum(-1))

    return statistic


def ratio(above: Floats, below: Floats) -> Floats:
    """Divide elementwise; the quotient is NaN where the denominator is 0."""
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)
