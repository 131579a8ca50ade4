"""Intervals and p-values for items that share trained seeds, contexts, vectors and questions, and for many tests at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import t

from afintro.evaluation.intervals import CHUNK, SHARE, Estimate, Floats, Weighted, mean_of
from afintro.evaluation.score_intervals import TAIL, Ends, wilson

LEVELS = ("seed", "context", "vector", "question")
RESAMPLES = 1000
LEVEL_RESAMPLES = 200  # for the variance of a single level, whose tails are not used
UNBOUNDED = (-np.inf, np.inf)
ROUNDING = 1e-12


@dataclass(frozen=True)
class Resampled:
    """Hold a statistic on the items and on every resample, and compute its interval and p-values.

    The resamples alone would mislead in two ways. Both are corrected as in the expanded percentile interval (Hesterberg 2015,
    "What Teachers Should Know About the Bootstrap", The American Statistician 69(4)), which ends at other percentiles:

    - The spread of resamples of ``n`` units is divided by ``n``, not by ``n - 1``, and their tails are normal where Student's
      tails are needed: the intervals of five questions or three seeds would be far too narrow. The degrees of freedom of
      several levels are pooled (Satterthwaite 1946, Biometrics Bulletin 2(6)).
    - The resamples count the variance that belongs to a single item, apart from its units, ``2 ** k - 1`` times for ``k``
      levels. The standard error is therefore taken from resamples of each level alone, whose sum counts this variance ``k``
      times: more than once, so that the interval is too wide rather than too narrow (Cameron, Gelbach & Miller 2011, Journal
      of Business & Economic Statistics 29(2), subtract the rest).

    With many units of one level the interval is the plain percentile interval. With two or three units no resample is far
    enough out; the distance of the outermost resample from the value is then stretched.

    Percentiles of a share near 0 or 1 end too early, since all resamples are drawn from the few errors that were seen. A
    statistic between 0 and 1 therefore has Wilson's interval at the number of independent items that would have the same
    standard error, with Student's quantile. Where no resample differs from the value, the units of the largest level stand for
    that number, and a difference, whose bounds are opposite, ends where Tango's interval of as many items does that all agree.
    Nothing can be said about a statistic without bounds that never varies.

    The interval excludes ``null`` if and only if :meth:`p_value` is below 0.05, apart from rounding.

    Args:
        value: The statistic on the items.
        draws: ``[resamples]`` float64, without the resamples on which the statistic is undefined.
        n: Number of items.
        bounds: Lowest and highest possible value of the statistic.
        inflation: Ratio of the standard error to the standard error of the resamples.
        freedom: Degrees of freedom of that standard error; None where no level varies and nothing can be said about it.
        units: Number of units of the largest level.
    """

    value: float
    draws: Floats
    n: int
    bounds: tuple[float, float] = UNBOUNDED
    inflation: float = 1.0
    freedom: float | None = None
    units: int = 0

    @cached_property
    def agrees(self) -> bool:
        """Return whether no resample differs from the value, but for rounding."""
        return bool(np.ptp(self.draws) < ROUNDING)

    @cached_property
    def count(self) -> float:
        """Compute the number of independent items that a statistic between 0 and 1 is worth."""
        error, model = self.inflation**2 * float(self.draws.var()), self.value * (1 - self.value)
        return self.units if self.agrees or model <= 0 else model / error

    @cached_property
    def degrees(self) -> float:
        """Return the degrees of freedom; those of the largest level where nothing varies."""
        return self.units - 1 if self.agrees or self.freedom is None else self.freedom

    @property
    def known(self) -> bool:
        """Return whether there is an interval."""
        finite = np.isfinite(self.value) and self.freedom is not None and len(self.draws) > 0
        return bool(finite and (np.isfinite(self.bounds).all() or not self.agrees))

    @property
    def estimate(self) -> Estimate:
        """Return the value with its 95 % interval; the interval is None where no level has two units."""
        if not np.isfinite(self.value):
            return Estimate(None, None, None, self.n)
        if not self.known:
            return Estimate(self.value, None, None, self.n)
        return Estimate(self.value, *self._ends(), self.n)

    def _ends(self) -> Ends:
        quantile = float(t.ppf(1 - TAIL, self.degrees))
        if self.bounds == SHARE:
            return wilson(float(np.clip(self.value, *SHARE)), self.count, quantile)
        if self.agrees:
            reach = self.bounds[1] * quantile**2 / (self.units + quantile**2)
            return max(self.value - reach, self.bounds[0]), min(self.value + reach, self.bounds[1])
        wanted = -self.inflation * quantile
        reached = max(wanted, ndtri(1 / (len(self.draws) + 1)))
        tail = 100 * ndtr(reached)
        ends = np.percentile(self.draws, [tail, 100 - tail])
        low, high = np.clip(self.value + (ends - self.value) * wanted / reached, *self.bounds)
        return float(low), float(high)

    def p_value(self, null: float = 0.0) -> float | None:
        """Compute the two-sided p-value of "the statistic is ``null``" by inverting the interval.

        With ``B`` resamples ``d``, ``q = (1 + min(#{d <= null}, #{d >= null})) / (B + 1)`` is the smaller tail; the value
        itself counts as a resample, so that the tail is never 0 (Davison & Hinkley 1997, sec. 4.2.3). With many units
        ``p = min(1, 2 q)``. With few units ``p = 2 T(z / inflation)``, where ``z`` is the normal quantile of ``q`` (stretched
        like the interval for a ``null`` beyond all resamples) and ``T`` is Student's distribution with ``freedom`` degrees. Where
        the interval is Wilson's or Tango's, ``p = 2 T(-q)`` with the quantile ``q`` at which that interval ends at ``null``.

        Args:
            null: The value under the null hypothesis.

        Returns:
            The p-value, never below ``2 / (B + 1)``; None where the interval has no ends.
        """
        if not self.known:
            return None
        least = 1 / (len(self.draws) + 1)
        if self.bounds == SHARE or self.agrees:
            return float(np.clip(2 * t.cdf(-self._quantile_at(null), self.degrees), 2 * least, 1.0))
        beyond = min(np.sum(self.draws <= null), np.sum(self.draws >= null))
        quantile = ndtri((1 + beyond) * least)
        if beyond == 0:
            end = self.draws.min() if null < self.value else self.draws.max()
            quantile *= max(1.0, (null - self.value) / (end - self.value)) if end != self.value else np.inf
        return float(np.clip(2 * t.cdf(quantile / self.inflation, self.freedom), 2 * least, 1.0))

    def _quantile_at(self, null: float) -> float:
        """Compute the quantile at which the interval of a share, or of a difference that never varies, ends at ``null``."""
        distance = abs(self.value - null)
        if self.bounds == SHARE:
            variance = null * (1 - null) / self.count
            return float(np.inf if variance <= 0 < distance else distance / np.sqrt(variance or 1.0))
        part = distance / self.bounds[1]
        return float(np.inf if part >= 1 else np.sqrt(self.units * part / (1 - part)))


@lru_cache(maxsize=64)  # a study asks for the same few arrays hundreds of times
def multiplicities(units: int, level: str, seed: int, resamples: int) -> Floats:
    """Draw how often each unit of a level is in each resample.

    Args:
        units: Number of units.
        level: Name of the level, which is part of the seed.
        seed: Seed of the draws.
        resamples: Number of resamples.

    Returns:
        ``[resamples, units + 1]`` float64, read-only; the last column, all ones, is for items without a unit.
    """
    rng = np.random.default_rng([seed, *level.encode()])
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=resamples)
    counts = np.pad(drawn.astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0)
    counts.setflags(write=False)
    return counts


class HierarchicalBootstrap:
    """Hold resamples that redraw the units of every level, shared by all systems that are compared on the same items.

    Every resample draws, with replacement, as many seeds as exist, as many contexts, and so on, each level independently, and
    weighs an item by the product of the counts of its units: the pigeonhole bootstrap of Owen (2007, Annals of Applied
    Statistics 1(2), 386-411), for any number of crossed levels Owen & Eckles (2012, ibid. 6(3), 895-927). An item without a
    unit at a level (an unsteered item has no vector) is not redrawn at that level. A paired difference is one statistic that
    computes both sides from the same weights. :class:`Resampled` says how intervals follow from resamples.

    **A level with one unit does not vary.** One trained seed gives no variance between seeds: the interval then describes that
    one training run, on other contexts, vectors and questions. :attr:`fixed` names such levels, so that a report can say so.

    Args:
        levels: For each level the unit of every item, ``[n]``; None for an item without a unit.
        seed: Seed of the draws. Levels with the same number of units get the same draws in every bootstrap of that seed.
        resamples: Number of resamples; the smallest p-value is about ``2 / resamples``.
    """

    def __init__(
        self, levels: Mapping[str, Sequence[str | int | None]], seed: int = 0, resamples: int = RESAMPLES
    ) -> None:
        self.n = len(next(iter(levels.values()), ()))
        self.resamples = resamples
        self.units: dict[str, int] = {}
        self._members: dict[str, np.ndarray] = {}
        self._counts: dict[str, Floats] = {}
        for level, column in levels.items():
            names = sorted({str(unit) for unit in column if unit is not None})
            if not names:
                continue
            index = {name: position for position, name in enumerate(names)}
            self.units[level] = len(names)
            self._members[level] = np.array([len(names) if unit is None else index[str(unit)] for unit in column])
            self._counts[level] = multiplicities(len(names), level, seed, resamples)

    @property
    def fixed(self) -> tuple[str, ...]:
        """Name the levels with a single unit, about whose variation the intervals say nothing."""
        return tuple(level for level, count in self.units.items() if count == 1)

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Name the levels with at least two units."""
        return tuple(level for level, count in self.units.items() if count > 1)

    def weights(self, start: int, stop: int, levels: Sequence[str] | None = None) -> Floats:
        """Compute how often each item was drawn.

        Args:
            start: First resample.
            stop: End of the resamples, exclusive.
            levels: Levels to redraw; None for all levels that vary.

        Returns:
            ``[stop - start, n]`` float64.
        """
        weights = np.ones((stop - start, self.n))
        for level in self.varying if levels is None else levels:
            weights *= np.take(self._counts[level][start:stop], self._members[level], axis=1)
        return weights

    def resample(
        self, statistics: Mapping[str, Weighted], bounds: tuple[float, float] = UNBOUNDED
    ) -> dict[str, Resampled]:
        """Compute statistics on the items and on every resample, all from the same weights.

        Args:
            statistics: Statistics by name.
            bounds: Lowest and highest possible value of all of them.

        Returns:
            The resampled statistics by name.
        """
        if self.n == 0:
            return {name: Resampled(float("nan"), np.zeros(0), 0) for name in statistics}
        named = list(statistics.values())
        values = [float(statistic(np.ones((1, self.n)))[0]) for statistic in named]
        if not self.varying:
            return {name: Resampled(value, np.zeros(0), self.n) for name, value in zip(statistics, values, strict=True)}
        draws = self._draws(named, self.resamples)
        alone = [self._draws(named, min(self.resamples, LEVEL_RESAMPLES), [level]) for level in self.varying]
        resampled = {}
        for index, (name, value) in enumerate(zip(statistics, values, strict=True)):
            spread = [variance(level[index]) for level in alone]
            defined = draws[index][np.isfinite(draws[index])]
            small = self._small_sample(variance(defined), spread)
            resampled[name] = Resampled(value, defined, self.n, bounds, *small, max(self.units.values()))
        return resampled

    def estimate(self, statistic: Weighted, bounds: tuple[float, float] = UNBOUNDED) -> Estimate:
        """Compute a statistic on the items and its interval over the resamples on which it is defined."""
        return self.resample({"": statistic}, bounds)[""].estimate

    def mean(self, values: Sequence[float] | Floats) -> Estimate:
        """Estimate the mean of one number per item."""
        return self.estimate(mean_of(values))

    def _draws(self, statistics: Sequence[Weighted], resamples: int, levels: Sequence[str] | None = None) -> Floats:
        """Compute statistics on resamples: ``[statistics, resamples]`` float64."""
        size = max(1, CHUNK // self.n)
        chunks = []
        for start in range(0, resamples, size):
            weights = self.weights(start, min(start + size, resamples), levels)
            chunks.append(np.array([statistic(weights) for statistic in statistics]).reshape(-1, len(weights)))
        return np.concatenate(chunks, axis=1)

    def _small_sample(self, drawn: float, spread: Sequence[float]) -> tuple[float, float]:
        """Compute the inflation of the standard error and its degrees of freedom, see :class:`Resampled`.

        Args:
            drawn: Variance over resamples of all levels.
            spread: Variance over resamples of each level alone.
        """
        free = [self.units[level] - 1 for level in self.varying]
        unbiased = [biased * (freedom + 1) / freedom for biased, freedom in zip(spread, free, strict=True)]
        if drawn == 0 or sum(unbiased) == 0:
            return 1.0, float(min(free))
        pooled = sum(part**2 / freedom for part, freedom in zip(unbiased, free, strict=True))
        return float(np.sqrt(sum(unbiased) / drawn)), sum(unbiased) ** 2 / pooled


def variance(draws: Floats) -> float:
    """Compute the variance over the resamples on which a statistic is defined; 0 if it is defined on none."""
    defined = draws[np.isfinite(draws)]
    return float(defined.var()) if len(defined) else 0.0


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values: the false discovery rate at which each test would just be among the discoveries.

    Source: Benjamini & Hochberg (1995, Journal of the Royal Statistical Society B 57(1), 289-300). The ``i``-th of ``m``
    sorted p-values becomes ``min(p_j m / j over j >= i)``, at most 1.

    Args:
        p_values: The p-values of one family of tests; None for a test that could not be computed, which stays None and does
            not count.
    """
    computed = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 1.0
    for rank in range(len(computed), 0, -1):
        p, index = computed[rank - 1]
        least = min(least, p * len(computed) / rank)
        adjusted[index] = least
    return adjusted
