"""Intervals and p-values for items that share trained seeds, contexts, vectors and questions; and many tests at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.stats import norm, t

from afintro.evaluation.intervals import CHUNK, RESAMPLES, Estimate, Floats, Weighted, mean_of

LEVELS = ("seed", "context", "vector", "question")
LEVEL_RESAMPLES = 200  # for the variance of a level alone, of which no tail is asked
UNBOUNDED = (-np.inf, np.inf)


@dataclass(frozen=True)
class Resampled:
    """A statistic on the items and on every resample, and how far out in the latter its interval ends.

    The resamples alone would mislead in two ways, put right as in the expanded percentile interval (Hesterberg 2015, "What
    Teachers Should Know About the Bootstrap", The American Statistician 69(4)), which ends at other percentiles:

    - Of ``n`` units they have the spread divided by ``n``, not ``n - 1``, and normal tails where Student's are called for: the
      intervals of five questions or three seeds are far too narrow. Degrees of freedom of several levels are pooled
      (Satterthwaite 1946, Biometrics Bulletin 2(6)).
    - What an item has of its own, apart from its units, they count ``2 ** k - 1`` times for ``k`` levels. The standard error
      is taken from each level redrawn alone, whose sum counts it ``k`` times: more than once, so still wide rather than
      narrow (Cameron, Gelbach & Miller 2011, Journal of Business & Economic Statistics 29(2), subtract the rest).

    With many units of one level it is the plain percentile interval. Of two or three units no resample is far enough out: the
    distance of the outermost one from the value is then stretched. The interval leaves ``null`` out just where
    :meth:`p_value` is below 0.05, but for rounding.

    Args:
        value: On the items themselves.
        draws: ``[resamples]``, those on which it is undefined left out.
        n: Number of items.
        bounds: What the statistic cannot leave.
        inflation: Standard error over that of the resamples.
        freedom: Degrees of freedom of that standard error; None where no level varies, so that nothing can be said of it.
    """

    value: float
    draws: Floats
    n: int
    bounds: tuple[float, float] = UNBOUNDED
    inflation: float = 1.0
    freedom: float | None = None

    @property
    def estimate(self) -> Estimate:
        """The value with its 95 % interval; without one where no level has two units."""
        if not np.isfinite(self.value):
            return Estimate(None, None, None, self.n)
        if self.freedom is None or not len(self.draws):
            return Estimate(self.value, None, None, self.n)
        wanted = self.inflation * t.ppf(0.025, self.freedom)
        reached = max(wanted, norm.ppf(1 / (len(self.draws) + 1)))
        tail = 100 * norm.cdf(reached)
        ends = np.percentile(self.draws, [tail, 100 - tail])
        low, high = np.clip(self.value + (ends - self.value) * wanted / reached, *self.bounds)
        return Estimate(self.value, float(low), float(high), self.n)

    def p_value(self, null: float = 0.0) -> float | None:
        """Two-sided p-value of "the statistic is ``null``", by inverting the interval.

        With ``B`` resamples ``d``, ``q = (1 + min(#{d <= null}, #{d >= null})) / (B + 1)`` is the smaller tail, the value
        itself counted as a resample so that it is never 0 (Davison & Hinkley 1997, sec. 4.2.3). With many units
        ``p = min(1, 2 q)``; with few it is ``2 T(z / inflation)``, where ``z`` is the normal quantile of ``q`` (stretched as
        the interval is for a ``null`` beyond all resamples) and ``T`` Student's distribution with ``freedom`` degrees. Never
        below ``2 / (B + 1)``. None where the interval has no ends.
        """
        if self.freedom is None or not len(self.draws) or not np.isfinite(self.value):
            return None
        least = 1 / (len(self.draws) + 1)
        beyond = min(np.sum(self.draws <= null), np.sum(self.draws >= null))
        quantile = norm.ppf((1 + beyond) * least)
        if beyond == 0:
            end = self.draws.min() if null < self.value else self.draws.max()
            quantile *= max(1.0, (null - self.value) / (end - self.value)) if end != self.value else np.inf
        return float(np.clip(2 * t.cdf(quantile / self.inflation, self.freedom), 2 * least, 1.0))


@lru_cache(maxsize=64)  # a study asks for the same few ones hundreds of times
def multiplicities(units: int, level: str, seed: int, resamples: int) -> Floats:
    """How often each unit of a level is drawn: ``[resamples, units + 1]``, of which the last is that of items without a unit."""
    rng = np.random.default_rng([seed, *level.encode()])
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=resamples)
    found = np.pad(drawn.astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0)
    found.setflags(write=False)
    return found


class HierarchicalBootstrap:
    """Resamples that redraw the units of every level, shared by everything that is compared on the same items.

    Every resample draws, with replacement, as many seeds as there are, as many contexts, and so on, each level by itself,
    and weighs an item by the product of how often its units were drawn: the pigeonhole bootstrap of Owen (2007, Annals of
    Applied Statistics 1(2), 386-411), for any number of crossed levels Owen & Eckles (2012, ibid. 6(3), 895-927). An item
    without a unit at a level (an unsteered one has no vector) is not redrawn there. Paired differences: one statistic that
    takes both from the same weights. How intervals come from resamples: :class:`Resampled`.

    **A level with one unit does not vary.** One trained seed gives no variance between seeds: the interval then speaks of
    that one training run, on other contexts, vectors and questions. :attr:`fixed` names such levels, for the report to say.

    Args:
        levels: For each level the unit of every item, ``[n]``; None for an item that has none.
        seed: Seeds the draws. Levels of the same units get the same draws in every bootstrap of that seed.
        resamples: How many; the smallest p-value is about two over it.
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
        """Levels that have a single unit, over which the intervals say nothing."""
        return tuple(level for level, count in self.units.items() if count == 1)

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Levels that have more."""
        return tuple(level for level, count in self.units.items() if count > 1)

    def weights(self, start: int, stop: int, levels: Sequence[str] | None = None) -> Floats:
        """``[stop - start, n]``: how often each item was drawn, in these resamples; of all levels, or of some."""
        found = np.ones((stop - start, self.n))
        for level in self.varying if levels is None else levels:
            found *= np.take(self._counts[level][start:stop], self._members[level], axis=1)
        return found

    def resample(
        self, statistics: Mapping[str, Weighted], bounds: tuple[float, float] = UNBOUNDED
    ) -> dict[str, Resampled]:
        """Statistics on the items and on every resample, all from the same weights; ``bounds`` are what they cannot leave."""
        if self.n == 0:
            return {name: Resampled(float("nan"), np.zeros(0), 0) for name in statistics}
        named = list(statistics.values())
        values = [float(statistic(np.ones((1, self.n)))[0]) for statistic in named]
        if not self.varying:
            return {name: Resampled(value, np.zeros(0), self.n) for name, value in zip(statistics, values, strict=True)}
        draws = self._draws(named, self.resamples)
        alone = [self._draws(named, min(self.resamples, LEVEL_RESAMPLES), [level]) for level in self.varying]
        found = {}
        for index, (name, value) in enumerate(zip(statistics, values, strict=True)):
            spread = [variance(level[index]) for level in alone]
            defined = draws[index][np.isfinite(draws[index])]
            found[name] = Resampled(value, defined, self.n, bounds, *self._small_sample(variance(defined), spread))
        return found

    def estimate(self, statistic: Weighted, bounds: tuple[float, float] = UNBOUNDED) -> Estimate:
        """Value on the items, and its interval over resamples (those it is undefined on left out)."""
        return self.resample({"": statistic}, bounds)[""].estimate

    def mean(self, values: Sequence[float] | Floats) -> Estimate:
        """Mean of one number an item."""
        return self.estimate(mean_of(values))

    def _draws(self, statistics: Sequence[Weighted], resamples: int, levels: Sequence[str] | None = None) -> Floats:
        """``[statistics, resamples]``."""
        size = max(1, CHUNK // self.n)
        chunks = []
        for start in range(0, resamples, size):
            weights = self.weights(start, min(start + size, resamples), levels)
            chunks.append(np.array([statistic(weights) for statistic in statistics]).reshape(-1, len(weights)))
        return np.concatenate(chunks, axis=1)

    def _small_sample(self, drawn: float, spread: Sequence[float]) -> tuple[float, float]:
        """Standard error over that of the resamples, and its degrees of freedom.

        Args:
            drawn: Variance over resamples of all levels.
            spread: Variance over resamples of each level alone.
        """
        free = [self.units[level] - 1 for level in self.varying]
        true = [found * (freedom + 1) / freedom for found, freedom in zip(spread, free, strict=True)]
        if drawn == 0 or sum(true) == 0:
            return 1.0, float(min(free))
        pooled = sum(found**2 / freedom for found, freedom in zip(true, free, strict=True))
        return float(np.sqrt(sum(true) / drawn)), sum(true) ** 2 / pooled


def variance(draws: Floats) -> float:
    """Over the resamples on which the statistic is defined; 0 where there is none."""
    defined = draws[np.isfinite(draws)]
    return float(defined.var()) if len(defined) else 0.0


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: the false discovery rate at which each test would just be among the discoveries.

    Benjamini & Hochberg (1995, Journal of the Royal Statistical Society B 57(1), 289-300): of ``m`` sorted p-values the
    ``i``-th becomes ``min(p_j m / j over j >= i)``, at most 1.

    Args:
        p_values: Of one family; None for a test that could not be made, which stays None and is not counted.
    """
    made = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 1.0
    for rank in range(len(made), 0, -1):
        p, index = made[rank - 1]
        least = min(least, p * len(made) / rank)
        adjusted[index] = least
    return adjusted
