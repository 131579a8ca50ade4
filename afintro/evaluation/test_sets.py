"""One system on several test sets: how far every metric drops from the first set, paired where the sets share items."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from afintro.data.batch import Example
from afintro.evaluation.crossed import CLOSED, Crossed
from afintro.evaluation.groups import apart, scenarios_of
from afintro.evaluation.intervals import Clusters, Estimate, Floats
from afintro.evaluation.report import LABELS, cell, difference
from afintro.evaluation.statistic import Scores, Statistic, Units

EXPLAINER = "explainer"
PAIRED, PARTLY, UNPAIRED = "paired", "partly paired", "unpaired"
TABLES = 3  # metrics that get a table on the terminal
SHARED = 10  # items from which on the shared items of two sets are compared on their own


@dataclass(frozen=True)
class TestSet:
    """Hold what was reported of one set.

    Args:
        scores: Metrics by system.
        table: Estimates by system and metric.
        best: For a metric the best baseline.
        items: The items.
        data: What the summary says of the file.
    """

    __test__ = False  # no test of pytest, whatever its name begins with

    scores: Mapping[str, Scores]
    table: Mapping[str, Mapping[str, Estimate]]
    best: Mapping[str, str]
    items: Sequence[Example]
    data: Mapping[str, Any]

    @property
    def keys(self) -> dict[str, str]:
        """Return for each uid what items of several sets share if they ask the same: type, prompt, vector, and which of equals."""
        seen: Counter[str] = Counter()
        keys = {}
        for item in sorted(self.items, key=lambda item: item.uid):
            digest = hashlib.sha256(f"{item.question_type}\0{item.prompt}".encode(errors="surrogatepass"))
            if item.slot is not None:
                digest.update(item.slot.vector.tobytes())
            asked = digest.hexdigest()
            keys[item.uid] = f"{asked}/{seen[asked]}"
            seen[asked] += 1
        return keys


def compared_sets(sets: Mapping[str, TestSet], metrics: Sequence[str]) -> dict[str, Any]:
    """Compare every set with the first one.

    Args:
        sets: What was reported of each set, the first set first.
        metrics: The metrics that matter, the most important first; baselines are compared on these alone.

    Returns:
        JSON values: the name of the first set, the metrics, and for each set its file, estimates and drops.
    """
    first_name = next(iter(sets))
    first, found = sets[first_name], {}
    first_keys = first.keys
    for name, other in sets.items():
        shown = [metric for metric in metrics if metric in other.table[EXPLAINER]]
        found[name] = {
            "summary": f"{name}/summary.json",
            "data": dict(other.data),
            "metrics": {metric: value.as_json() for metric, value in other.table[EXPLAINER].items()},
            "best_baseline": {
                metric: {"name": other.best[metric], **other.table[other.best[metric]][metric].as_json()}
                for metric in shown
                if metric in other.best
            },
        }
        if name == first_name:
            continue
        other_keys = other.keys
        drops: dict[str, dict[str, Any]] = {}
        for system in (system for system in first.scores if system in other.scores):
            wanted = first.scores[system] if system == EXPLAINER else metrics
            drops[system] = {
                metric: drop(first, other, system, metric, (first_keys, other_keys))
                for metric in wanted
                if metric in first.scores[system] and metric in other.scores[system]
            }
        found[name] |= {"drop": drops.pop(EXPLAINER), "baselines_drop": drops}
    return {"first": first_name, "reported": [m for m in metrics if m in first.table[EXPLAINER]], "sets": found}


def drop(
    first: TestSet, other: TestSet, system: str, metric: str, keys: tuple[Mapping[str, str], Mapping[str, str]]
) -> dict[str, Any]:
    """Estimate how far a system's metric is lower in another set than in the first; positive where it is worse there.

    Where both sets ask the same items the difference is that of paired items. Otherwise it follows from both intervals (Zou &
    Donner 2008), with the correlation of what scenarios that are in both sets add to both values, 0 where there are none.

    Args:
        first: The first set.
        other: The other set.
        system: Name of the system.
        metric: Name of the metric.
        keys: What items of the first and of the other set share if they ask the same.

    Returns:
        The estimate, how it was paired, how many items are shared, and the paired estimate on shared items alone where only a
        part of the items is shared.
    """
    (one, units), (two, other_units) = first.scores[system][metric], other.scores[system][metric]
    places = {keys[1][uid]: row for row, uid in enumerate(two.uids)}
    rows = [(row, places[keys[0][uid]]) for row, uid in enumerate(one.uids) if keys[0][uid] in places]
    shared: dict[str, Any] = {"shared": len(rows)}
    if rows and len(rows) == len(one.uids) == len(two.uids):
        return {**_paired(one, units, two, rows).as_json(), "pairing": PAIRED, **shared}
    estimates = first.table[system][metric], other.table[system][metric]
    together = correlation((one, scenarios_of(units)), (two, scenarios_of(other_units)))
    if len(rows) >= SHARED:
        shared["on_shared"] = _paired(one, units, two, rows).as_json()
    return {**apart(*estimates, together).as_json(), "pairing": PARTLY if rows else UNPAIRED, **shared}


def _paired(one: Statistic, units: Units, two: Statistic, rows: Sequence[tuple[int, int]]) -> Estimate:
    """Estimate the difference on shared items, given by their rows in both sets."""
    here = [row for row, _ in rows]
    first, second = one.restricted(here), two.restricted([row for _, row in rows])
    if isinstance(units, Crossed):
        kept = units.restricted(here)
        if one.kind == CLOSED:  # which has no weighted form: the widest of the intervals over each level alone
            leads = [first.lead(second, Clusters(level)) for level in kept.levels.values()]
            return max(leads, key=lambda found: (found.ci_high or 0.0) - (found.ci_low or 0.0))
        return kept.lead(first, second)
    return first.lead(second, Clusters([units[row] for row in here]))


def correlation(first: tuple[Statistic, Sequence[str]], second: tuple[Statistic, Sequence[str]]) -> float:
    """Estimate the correlation of a metric's values in two sets, from the scenarios that are in both.

    Args:
        first: The metric in the first set, and the scenario of each item.
        second: The metric in the second set, likewise.
    """
    sums: list[dict[str, float]] = []
    for statistic, scenarios in (first, second):
        of_scenario: dict[str, float] = {}
        for scenario, value in zip(scenarios, _influence(statistic), strict=True):
            of_scenario[scenario] = of_scenario.get(scenario, 0.0) + float(value)
        sums.append(of_scenario)
    scale = float(np.sqrt(np.prod([sum(value**2 for value in own.values()) for own in sums])))
    both = sum(sums[0][scenario] * sums[1][scenario] for scenario in sums[0].keys() & sums[1].keys())
    return float(np.clip(both / scale, -1, 1)) if scale > 0 else 0.0


def _influence(statistic: Statistic) -> Floats:
    """Return what each item adds to a metric; zeros where nobody can say, which leaves the sets uncorrelated."""
    if statistic.kind in ("f1", "auroc") and np.isfinite(statistic.value):
        return statistic.influence
    if statistic.kind == "mean":
        values = statistic.values[:, 0]
        return (values - values.mean()) / len(values)
    return np.zeros(len(statistic.uids))


def print_sets(table: Mapping[str, Any]) -> None:
    """Print a table over sets for each of the most important metrics, with the drop from the first set.

    Args:
        table: What :func:`compared_sets` returns.
    """
    console = Console(width=None if Console().is_terminal else 120)
    for metric in table["reported"][:TABLES]:
        shown = Table("set", title=f"{LABELS.get(metric, metric)} by test set, and the drop from {table['first']}")
        for heading in ("items", "explainer", "drop"):
            shown.add_column(heading, justify="right", no_wrap=True)
        shown.add_column("best baseline", overflow="fold")
        for name, found in table["sets"].items():
            value, dropped = found["metrics"].get(metric), found.get("drop", {}).get(metric)
            best = found["best_baseline"].get(metric)
            shown.add_row(
                name,
                "-" if value is None else str(value["n"]),
                "-" if value is None else cell(Estimate(**value), 2),
                "" if dropped is None else difference(dropped, 2),
                "-" if best is None or best["value"] is None else f"{best['value']:.2f} {best['name']}",
            )
        console.print(shown)
    for name, found in table["sets"].items():
        kinds = {value["pairing"]: value["shared"] for value in found.get("drop", {}).values()}
        for kind, count in list(kinds.items())[:1]:
            beside = "" if kind == UNPAIRED else f", {count} items in both"
            console.print(f"{name}: {kind} with {table['first']}{beside}", highlight=False, markup=False)
