"""Metrics by group of items (by label, source and category of the samples), and whether any group really differs.

Of many groups one is always the worst. Every group's difference to the rest is therefore compared with the largest difference
that as many groups of the same sizes show where scenarios are dealt to them at random.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.records import FACETS
from afintro.evaluation.crossed import Crossed
from afintro.evaluation.intervals import Clusters, Estimate, Floats
from afintro.evaluation.metrics import Prediction, estimate, lead
from afintro.evaluation.score_intervals import difference
from afintro.evaluation.statistic import Scores, Statistic, Units

SMALLEST = 5  # scenarios of a group that is compared; a group with fewer is named
PERMUTATIONS = 1999
LEVEL = 0.05  # probability that any group is said to differ where none does
NAMED = 20  # groups that are too small, and stand in the summary by name
OF_GROUPS = "/category/"  # metrics that are of one group already
Ints = NDArray[np.int64]


def by_group(
    systems: Mapping[str, Scores],
    explainer: str,
    predictions: Sequence[Prediction],
    metrics: Sequence[str],
    rivals: Mapping[str, str],
    seed: int = 0,
) -> dict[str, Any]:
    """Estimate every metric within each group, worst group first, and test which groups differ from the rest.

    Args:
        systems: Metrics of every system, by name.
        explainer: Name of the explainer among them.
        predictions: The explainer's predictions, which say of each item its label, source and category.
        metrics: Names of metrics, the most important first; groups are ranked by the first of them that is a mean.
        rivals: For a metric the system that the explainer is compared with within each group.
        seed: Seed of the permutations.

    Returns:
        The part ``groups`` of ``summary.json``; empty where no facet has two groups.
    """
    scores = systems[explainer]
    ranked_by = next((m for m in metrics if m in scores and scores[m][0].kind == "mean"), None)
    if ranked_by is None:
        return {}
    facets = {prediction.uid: prediction.facets for prediction in predictions}
    statistic, units = scores[ranked_by]
    scenarios = scenarios_of(units)
    columns = {
        facet: [facets[uid].get(facet) for uid in statistic.uids]
        for facet in FACETS
        if len({own[facet] for own in facets.values() if facet in own}) > 1
    }
    if not columns:
        return {}
    compared = {facet: _large_enough(column, scenarios) for facet, column in columns.items()}
    tested = [(facet, group) for facet, groups in compared.items() for group in groups]
    p_values = adjusted_p_values(statistic.values[:, 0], scenarios, columns, tested, seed)
    rival = {name: systems[name] for name in (rivals.get(ranked_by),) if name is not None}
    by: dict[str, dict[str, Any]] = {}
    for facet, column in columns.items():
        groups: list[dict[str, Any]] = []
        for group in compared[facet]:
            kept = {uid for uid, own in facets.items() if own.get(facet) == group}
            own = {name: _restricted(score, kept) for name, score in scores.items() if OF_GROUPS not in name}
            found: dict[str, Any] = {
                "group": group,
                "n": column.count(group),
                "scenarios": len({s for s, g in zip(scenarios, column, strict=True) if g == group}),
                "metrics": {name: _estimate(*score).as_json() for name, score in own.items() if score[0].uids},
                "difference_to_rest": _to_rest(statistic, units, column, group).as_json(),
                "p_adjusted": p_values[facet, group],
            }
            ahead = lead(own, rival, ranked_by)
            groups.append(found | ({"lead": {**ahead[0].as_json(), "against": ahead[1]}} if ahead else {}))
        groups.sort(key=lambda found: (found["metrics"][ranked_by]["value"], found["group"]))
        by[facet] = {"groups": groups, **_left_out(column, compared[facet])}
    known = [p for p in p_values.values() if p is not None]
    return {
        "ranked_by": ranked_by,
        "looked_at": len(tested),
        "smallest": SMALLEST,
        "permutations": PERMUTATIONS,
        "smallest_p_adjusted": min(known, default=None),
        "by": by,
    }


def scenarios_of(units: Units) -> list[str]:
    """Return the scenario of each item: the first of crossed levels."""
    return list(next(iter(units.levels.values()))) if isinstance(units, Crossed) else units


def _large_enough(column: Sequence[str | None], scenarios: Sequence[str]) -> list[str]:
    """Return the groups that have enough scenarios, where the rest has enough too."""
    members: dict[str, set[str]] = {}
    for group, scenario in zip(column, scenarios, strict=True):
        if group is not None:
            members.setdefault(group, set()).add(scenario)
    large = []
    for group in sorted(members):
        rest = set().union(*(own for other, own in members.items() if other != group))
        if len(members[group]) >= SMALLEST and len(rest) >= SMALLEST:
            large.append(group)
    return large


def _left_out(column: Sequence[str | None], compared: Sequence[str]) -> dict[str, Any]:
    """Say which groups are too small to be compared, and how many items have no group."""
    counts = Counter(group for group in column if group is not None and group not in compared)
    small = {"groups": len(counts), "items": sum(counts.values()), "named": dict(counts.most_common(NAMED))}
    return {"too_small": small, "without": sum(group is None for group in column)}


def _restricted(score: tuple[Statistic, Units], kept: set[str]) -> tuple[Statistic, Units]:
    statistic, units = score
    rows = [row for row, uid in enumerate(statistic.uids) if uid in kept]
    return statistic.restricted(rows), units.restricted(rows) if isinstance(units, Crossed) else [
        units[row] for row in rows
    ]


def _estimate(statistic: Statistic, units: Units) -> Estimate:
    """Estimate a metric of a group; macro-F1 of items that all have one verdict says how rare the other is, and is null."""
    if statistic.kind == "f1" and len(set(statistic.values[:, 0])) < 2:
        return Estimate(None, None, None, len(statistic.uids))
    return estimate(statistic, units)


def _to_rest(statistic: Statistic, units: Units, column: Sequence[str | None], group: str) -> Estimate:
    """Estimate how far a mean within a group is above the mean of the other groups, from both intervals (Zou & Donner 2008)."""
    uids = statistic.uids
    here, rest = (
        _estimate(*_restricted((statistic, units), {u for u, g in zip(uids, column, strict=True) if chosen(g)}))
        for chosen in (lambda g: g == group, lambda g: g is not None and g != group)
    )
    return apart(here, rest)


def apart(first: Estimate, second: Estimate, correlation: float = 0.0) -> Estimate:
    """Estimate the difference of two values from their own intervals.

    Args:
        first: The first value.
        second: The second value, which is subtracted.
        correlation: Correlation of both values over samples: 0 where they are of different scenarios.
    """
    n = first.n + second.n
    if first.value is None or second.value is None:
        return Estimate(None, None, None, n)
    if first.ci_low is None or first.ci_high is None or second.ci_low is None or second.ci_high is None:
        return Estimate(first.value - second.value, None, None, n)
    ends = (first.ci_low, first.ci_high), (second.ci_low, second.ci_high)
    return Estimate(
        first.value - second.value, *difference(first.value, ends[0], second.value, ends[1], correlation), n
    )


def adjusted_p_values(
    values: Floats,
    scenarios: Sequence[str],
    columns: Mapping[str, Sequence[str | None]],
    tested: Sequence[tuple[str, str]],
    seed: int = 0,
) -> dict[tuple[str, str], float | None]:
    """Test which groups differ from the rest, with the probability 0.05 that any is found where none differs.

    Source: the single-step maxT procedure of Westfall & Young (1993, Resampling-Based Multiple Testing, ch. 2.3.2). Scenarios
    with all their items exchange their groups; within a scenario whose items are of several groups, the items do. A difference
    is divided by its standard deviation over the permutations.

    Args:
        values: One number per item, ``[n]``.
        scenarios: Scenario of each item.
        columns: For each facet the group of each item; None for an item without.
        tested: Facets and groups to test.
        seed: Seed of the permutations.

    Returns:
        Adjusted p-value of each group; None where no permutation changes anything.
    """
    if not tested:
        return {}
    names, codes = np.unique(_numbers(columns.values()), axis=0, return_inverse=True)
    codes = codes.reshape(-1)
    inside, outside = _memberships(columns, names, tested)
    draw = _Dealer(values, np.unique(np.array(scenarios), return_inverse=True)[1], codes, len(names))
    rng = np.random.default_rng([seed, 5])

    def differences(sums: Floats, counts: Floats) -> Floats:
        above, below = ((side @ sums) / np.maximum(side @ counts, 1.0) for side in (inside, outside))
        return np.asarray(above - below)

    drawn = np.array([differences(*draw.once(None)), *(differences(*draw.once(rng)) for _ in range(PERMUTATIONS))])
    spread = drawn.std(axis=0)
    distances = np.abs(drawn - drawn.mean(axis=0)) / np.where(spread > 1e-12, spread, np.inf)
    largest = distances.max(axis=1)  # of the observation too, which is one of the permutations
    return {
        name: float((largest >= distance - 1e-9).mean()) if varies > 1e-12 else None
        for name, distance, varies in zip(tested, distances[0], spread, strict=True)
    }


def _numbers(columns: Any) -> Ints:
    """Return the groups of each item as numbers ``[n, facets]``, -1 for an item without a group."""
    numbered = []
    for column in columns:
        order = {group: number for number, group in enumerate(sorted({group for group in column if group is not None}))}
        numbered.append([-1 if group is None else order[group] for group in column])
    return np.array(numbered, dtype=np.int64).T


def _memberships(
    columns: Mapping[str, Sequence[str | None]], names: Ints, tested: Sequence[tuple[str, str]]
) -> tuple[Floats, Floats]:
    """Return which combinations of groups are inside of each tested group, and which are the rest: ``[tested, names]``."""
    place = {facet: number for number, facet in enumerate(columns)}
    order = {facet: sorted({group for group in column if group is not None}) for facet, column in columns.items()}
    own = [names[:, place[facet]] for facet, _ in tested]
    numbers = [order[facet].index(group) for facet, group in tested]
    inside = np.array([column == number for column, number in zip(own, numbers, strict=True)])
    outside = np.array([(column >= 0) & (column != number) for column, number in zip(own, numbers, strict=True)])
    return inside.astype(np.float64), outside.astype(np.float64)


class _Dealer:
    """Deal combinations of groups to scenarios at random.

    Args:
        values: One number per item, ``[n]``.
        members: Number of the scenario of each item.
        codes: Number of the combination of groups of each item.
        count: Number of combinations.
    """

    def __init__(self, values: Floats, members: Ints, codes: Ints, count: int) -> None:
        self.count = count
        clusters = Clusters(members.tolist())
        low, high = np.full(clusters.count, count), np.full(clusters.count, -1)
        np.minimum.at(low, members, codes)
        np.maximum.at(high, members, codes)
        pure = low == high
        self.codes, self.sums, self.sizes = low[pure], clusters.sums(values)[pure], clusters.sizes[pure]
        mixed = np.flatnonzero(~pure[members])
        mixed = mixed[np.argsort(members[mixed], kind="stable")]
        self.mixed_members, self.mixed_codes, self.mixed_values = members[mixed], codes[mixed], values[mixed]

    def once(self, rng: np.random.Generator | None) -> tuple[Floats, Floats]:
        """Return sum and number of the values of each combination of groups; as observed without a generator."""
        codes, mixed = self.codes, self.mixed_codes
        if rng is not None:
            codes = rng.permutation(codes)
            mixed = mixed[np.lexsort((rng.random(len(mixed)), self.mixed_members))]
        sums = np.bincount(codes, self.sums, self.count) + np.bincount(mixed, self.mixed_values, self.count)
        counts = np.bincount(codes, self.sizes, self.count) + np.bincount(mixed, minlength=self.count)
        return sums.astype(np.float64), counts.astype(np.float64)
