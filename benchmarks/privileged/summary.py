"""Rows with intervals over names, paired differences, and the Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from afintro.evaluation.intervals import Clusters
from benchmarks.privileged.plan import (
    FLIPPED,
    FROM_SCRATCH,
    NO_POLICY,
    ORGANISMS,
    SYSTEMS,
    TEXT,
    A,
    B,
    Cell,
    Plan,
)
from benchmarks.privileged.running import Result

UNDERFIT = 0.05  # a system that knows the labeled names less well than the explainer on its own organism by more proves nothing
Row = dict[str, Any]
NAMES = {
    A: "explainer on A",
    B: "explainer on B",
    NO_POLICY: "explainer on the base without a policy",
    TEXT: "reader of characters (text_chars)",
    FROM_SCRATCH: "reader from scratch (from_scratch)",
}


def rows_of(wanted: Sequence[Cell], results: Mapping[str, Result]) -> list[Row]:
    """Return a row for each cell: exact match on new names and on labeled names in new wordings, with 95 % intervals over names.

    A row is ``underfit`` if its share of labeled names is more than 0.05 below that of the explainer on the organism itself
    that had as many labels.

    Args:
        wanted: The cells; with each, the cell of the explainer on the organism itself.
        results: Results of the cells by key.
    """
    rows = []
    for cell in wanted:
        result = results[cell.key]
        shares = {side: share(result[side]["hits"], result[side]["names"]) for side in ("new", "labeled")}
        more: Row = {name: result[name] for name in ("steps", "fit", "reached", "seconds") if name in result}
        own = results[Cell(cell.seed, cell.about, cell.about, cell.names).key]["labeled"]["hits"]
        underfit = shares["labeled"]["value"] < sum(own) / len(own) - UNDERFIT
        row: Row = {**asdict(cell), **shares, "underfit": underfit, **more}
        rows.append(row)
    return rows


def share(hits: Sequence[int], names: Sequence[str]) -> Row:
    """Estimate a share with its interval over names.

    Args:
        hits: 1 for an item that is a hit, else 0.
        names: The name that each item is about.
    """
    return Clusters(names).share(hits).as_json()


def leads_of(wanted: Sequence[Cell], results: Mapping[str, Result]) -> list[Row]:
    """Return how far the explainer on an organism is ahead of each other system on new names, paired over the items.

    Args:
        wanted: The cells.
        results: Results of the cells by key.
    """
    leads = []
    for cell in wanted:
        if cell.system != cell.about:
            own = results[Cell(cell.seed, cell.about, cell.about, cell.names).key]["new"]
            other = results[cell.key]["new"]
            assert own["names"] == other["names"]
            difference = Clusters(own["names"]).difference(own["hits"], other["hits"])
            leads.append(
                {
                    "seed": cell.seed,
                    "about": cell.about,
                    "names": cell.names,
                    "against": cell.system,
                    **difference.as_json(),
                }
            )
    return leads


def flips_of(plan: Plan, seeds: Sequence[int], results: Mapping[str, Result]) -> list[Row]:
    """Return a row for each flip and base of the adapter: shares of new, old and neither behavior of the names that changed.

    Args:
        plan: The size of the measurement.
        seeds: Seeds of the measurement.
        results: Results by key.
    """
    rows = []
    for part, seed, base in product(plan.flips, seeds, ("after", "before")):
        found = results[f"{seed}-flip-{part}"][base]
        changed = {name: share(found[name], found["names"]) for name in ("new", "old", "neither")}
        kept = share(found["right"], found["kept_names"])
        rows.append(
            {"trained": part, "seed": seed, "base": base, **changed, "kept_right": kept, "alike": found["alike"]}
        )
    return rows


def organisms_of(plan: Plan, seeds: Sequence[int], results: Mapping[str, Result]) -> list[Row]:
    """Return of each organism its settings, and the rate at which it does in unseen wordings what its policy intends.

    Args:
        plan: The size of the measurement.
        seeds: Seeds of the measurement.
        results: Results by key.
    """
    return [
        {"seed": seed, "organism": name, **results[f"{seed}-organism-{name}"]}
        for seed in seeds
        for name in (*ORGANISMS, NO_POLICY, *(f"{FLIPPED}-{part}" for part in plan.flips))
    ]


def markdown(tables: Mapping[str, Any], plan: Plan) -> str:
    """Write the tables of the matrix, the curve and the flip test.

    Args:
        tables: ``cells``, ``leads`` and ``flips``.
        plan: The size of the measurement.
    """
    flips = [_flips(tables["flips"])] if tables["flips"] else []
    return "\n\n".join([_matrix(tables, plan), _curve(tables["cells"]), *flips])


def figure_of(estimate: Mapping[str, Any], sign: str = "") -> str:
    """Write a value and its interval.

    Args:
        estimate: An estimate as JSON.
        sign: ``+`` to write the sign of a difference.
    """
    if estimate["value"] is None:
        return "-"
    value = format(estimate["value"], f"{sign}.3f")
    if estimate["ci_low"] is None:
        return value
    return f"{value} [{estimate['ci_low']:{sign}.3f}, {estimate['ci_high']:{sign}.3f}]"


def _matrix(tables: Mapping[str, Any], plan: Plan) -> str:
    lines = [
        "| asked about | system | seed | new names | labeled names, new wordings | lead of the organism's own explainer | fit |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    cells = {(r["about"], r["system"], r["seed"]): r for r in tables["cells"] if r["names"] == plan.labeled}
    leads = {(r["about"], r["against"], r["seed"]): r for r in tables["leads"] if r["names"] == plan.labeled}
    for about in plan.about:
        for system in shown_of(cells.values()):
            for seed in dict.fromkeys(row["seed"] for row in cells.values()):
                row, lead = cells[about, system, seed], leads.get((about, system, seed))
                lines.append(
                    f"| {about} | {NAMES[system]} | {seed} | {figure_of(row['new'])} | {figure_of(row['labeled'])} | "
                    f"{figure_of(lead, '+') if lead else ''} | {'underfit: proves nothing' if row['underfit'] else 'equal'} |"
                )
    return "\n".join(lines)


def shown_of(rows: Iterable[Row]) -> list[str]:
    """Return the systems of rows, in the order in which they are shown."""
    there = {row["system"] for row in rows}
    return [system for system in SYSTEMS if system in there]


def _curve(cells: Sequence[Row]) -> str:
    shown = [row for row in cells if row["about"] == A and row["system"] != B]
    systems = shown_of(shown)
    heads = "".join(f" {NAMES[system]} |" for system in systems)
    lines = [f"| labeled names | seed | {NAMES[A]}, labeled names |{heads}", "|--:|--:|--:|" + "--:|" * len(systems)]
    by_cell = {(row["names"], row["seed"], row["system"]): row for row in shown}
    for names, seed in sorted({(row["names"], row["seed"]) for row in shown}):
        figures = " | ".join(figure_of(by_cell[names, seed, system]["new"]) for system in systems)
        lines.append(f"| {names} | {seed} | {figure_of(by_cell[names, seed, A]['labeled'])} | {figures} |")
    return "\n".join(lines)


def _flips(flips: Sequence[Row]) -> str:
    lines = [
        "| adapter of A, asked in | seed | changed names: new behavior | old behavior | neither | other new names: right |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in flips:
        base = (
            f"A after its bits were changed by training of: {row['trained']}"
            if row["base"] == "after"
            else "A as it was"
        )
        shares = " | ".join(figure_of(row[name]) for name in ("new", "old", "neither", "kept_right"))
        lines.append(f"| {base} | {row['seed']} | {shares} |")
    return "\n".join(lines)
