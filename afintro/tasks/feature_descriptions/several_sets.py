"""The same features on several sets of texts: does a feature that is selective on one set stay so on the others?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from afintro.errors import UserError
from afintro.evaluation.score_intervals import Ends, difference, wilson
from afintro.tasks.settings import check_set_names

TOP = 500
"""The most selective features of the first set, which are followed over the other sets."""
Selectivity = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureSet:
    """Hold the selectivity of every feature on one set of texts.

    Args:
        selectivity: Share of faking texts that activate the feature less the share of aligned texts: ``[features]``, in [-1, 1].
        rates: Both shares, ``[2, features]``: of faking texts, of aligned texts.
        texts: Numbers of faking and of aligned texts.
    """

    selectivity: Selectivity
    rates: NDArray[np.float64]
    texts: tuple[int, int]

    def interval(self, feature: int) -> Ends:
        """Return the 95 % interval of a feature's selectivity (Newcombe 1998, Statistics in Medicine 17(8), method 10)."""
        faking, aligned = self.rates[:, feature].tolist()
        ends = wilson(faking, self.texts[0]), wilson(aligned, self.texts[1])
        return difference(faking, ends[0], aligned, ends[1], 0.0)


def named_sources(given: Sequence[str], flag: str) -> dict[str, str]:
    """Return sources by the name of their set: ``NAME=PATH``, or a path whose stem is the name.

    Args:
        given: What the command line gives.
        flag: The flag, for the error.

    Raises:
        UserError: Two sources have the same name, or a name cannot name a folder.
    """
    named: dict[str, str] = {}
    for text in given:
        name, mark, path = text.partition("=")
        name, path = (name, path) if mark and not Path(text).exists() else (Path(text).stem, text)
        if name in named:
            raise UserError(f"names two sets {name!r}", where=flag, remedy="write NAME=PATH with a name for each")
        named[name] = path
    check_set_names(named, flag)
    return named


def over_sets(sets: Mapping[str, FeatureSet], top: int = TOP) -> dict[str, Any]:
    """Follow the features that are most selective on the first set over all sets.

    Args:
        sets: The sets by name, the first set first.
        top: Number of features that are followed, those with the largest selectivity of either sign.

    Returns:
        JSON values: for each other set how far its selectivity agrees with the first (``spearman`` over features that are
        active on either, ``same_sign`` and ``holds`` as shares of the followed features with a selectivity in the first set
        whose interval is apart from 0, ``top_shared``), and every followed feature with its selectivity, interval and drop by set.

    Raises:
        UserError: The sets have different numbers of features.
    """
    name, first = next(iter(sets.items()))
    for other, found in sets.items():
        if len(found.selectivity) != len(first.selectivity):
            what = f"has {len(found.selectivity)} features, but {name} has {len(first.selectivity)}"
            raise UserError(what, where=f"set {other}", remedy="give activations of one autoencoder")
    followed = _most_selective(first.selectivity, top)
    sure = [feature for feature in followed if _sign(first.interval(feature))]
    return {
        "first": name,
        "followed": len(followed),
        "apart_from_0": len(sure),
        "sets": {other: _agreement(first, found, followed, sure) for other, found in sets.items() if other != name},
        "features": {str(feature): _of_feature(feature, sets, first) for feature in followed},
    }


def _most_selective(selectivity: Selectivity, top: int) -> list[int]:
    """Return the features with the largest selectivity of either sign, in order; features without any are left out."""
    order = np.lexsort((np.arange(len(selectivity)), -np.abs(selectivity)))[:top]
    return [int(feature) for feature in order if selectivity[feature] != 0]


def _sign(ends: Ends) -> int:
    """Return the sign of an interval that is apart from 0, else 0."""
    return int(ends[0] > 0) - int(ends[1] < 0)


def _agreement(
    first: FeatureSet, other: FeatureSet, followed: Sequence[int], sure: Sequence[int]
) -> dict[str, float | int | None]:
    """Measure how far the selectivity of a set agrees with that of the first set."""
    active = (first.rates.sum(0) > 0) | (other.rates.sum(0) > 0)
    one, two = first.selectivity[active], other.selectivity[active]
    varied = len(one) > 2 and np.ptp(one) > 0 and np.ptp(two) > 0
    own = set(_most_selective(other.selectivity, len(followed)))
    same = [bool(first.selectivity[f] * other.selectivity[f] > 0) for f in sure]
    holds = [_sign(first.interval(f)) == _sign(other.interval(f)) for f in sure]
    return {
        "spearman": float(spearmanr(one, two).statistic) if varied else None,
        "features_active": int(active.sum()),
        "same_sign": float(np.mean(same)) if sure else None,
        "holds": float(np.mean(holds)) if sure else None,
        "top_shared": len(own & set(followed)) / len(followed) if followed else None,
    }


def _of_feature(feature: int, sets: Mapping[str, FeatureSet], first: FeatureSet) -> dict[str, dict[str, float]]:
    """Return selectivity and drop from the first set of one feature, with intervals, by set."""
    found: dict[str, dict[str, float]] = {}
    value, ends = float(first.selectivity[feature]), first.interval(feature)
    for name, other in sets.items():
        own, own_ends = float(other.selectivity[feature]), other.interval(feature)
        found[name] = {"value": own, "ci_low": own_ends[0], "ci_high": own_ends[1]}
        if other is not first:
            low, high = difference(value, ends, own, own_ends, 0.0)
            found[name] |= {"drop": value - own, "drop_ci_low": low, "drop_ci_high": high}
    return found
