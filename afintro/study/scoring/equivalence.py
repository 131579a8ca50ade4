"""Ask whether an effect is too small to matter, which an interval that holds "no effect" does not say, and whether seeds agree."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from afintro.evaluation.hierarchical import Resampled
from afintro.evaluation.intervals import Estimate

CHANCE = 0.5
"""AUROC of a system that tells nothing."""
MARGIN = 0.1
"""Largest deviation of a share or an AUROC from its value without an effect that counts as none."""
LEVEL = 0.05
"""p-value below which two values count as equivalent."""


@dataclass(frozen=True)
class Equivalence:
    """The result of two one-sided tests (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6), 657-680).

    Args:
        center: The value without an effect.
        margin: Largest deviation that counts as none.
        p: p-value of "the deviation is at least the margin"; None if it cannot be computed.
    """

    center: float
    margin: float
    p: float | None

    @property
    def shown(self) -> bool:
        """Return whether the deviation is shown to be smaller than the margin."""
        return self.p is not None and self.p < LEVEL

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def equivalence(resampled: Resampled, center: float, margin: float) -> Equivalence:
    """Test whether a statistic is within a margin of a value: the larger p-value of two one-sided tests.

    The one-sided tests invert the statistic's own interval, so that the result is shown at a level of 5 % if and only if the
    90 % interval lies within the margin.

    Args:
        resampled: The statistic.
        center: The value without an effect.
        margin: Largest deviation that counts as none.
    """
    sides = [(resampled.p_value(center + sign * margin), sign) for sign in (-1, 1)]
    tails = []
    for p, sign in sides:
        if p is None:
            return Equivalence(center, margin, None)
        inside = sign * (center + sign * margin - resampled.value) > 0
        tails.append(p / 2 if inside else 1 - p / 2)
    return Equivalence(center, margin, max(tails))


def side_of(estimate: Estimate | None) -> int:
    """Return 1 if an AUROC's interval lies above chance, -1 if it lies below, and 0 if neither or there is no interval."""
    if estimate is None or estimate.ci_low is None or estimate.ci_high is None:
        return 0
    return int(estimate.ci_low > CHANCE) - int(estimate.ci_high < CHANCE)


@dataclass(frozen=True)
class SignTest:
    """How trained seeds lie on both sides of a value (Dixon & Mood 1946, JASA 41(236), 557-566).

    Args:
        above: Number of seeds above the value.
        below: Number of seeds below it. Seeds on the value do not count.
        p: Two-sided p-value of "a seed is as likely above as below"; None without any seed.
        center: The value.
    """

    above: int
    below: int
    p: float | None
    center: float = 0.0

    @property
    def text(self) -> str:
        """Return the result in words, such as ``6 of 6 seeds above 0.5, p = 0.031``."""
        named = f"{self.above} of {self.above + self.below} seeds above {self.center:g}"
        return named if self.p is None else f"{named}, p = {self.p:.2g}"


def sign_test(values: Sequence[float], center: float) -> SignTest:
    """Compare one value of each trained seed with a value.

    Args:
        values: The values.
        center: The value without an effect.
    """
    above, below = sum(value > center for value in values), sum(value < center for value in values)
    counted = above + below
    return SignTest(above, below, float(binomtest(above, counted).pvalue) if counted else None, center)
