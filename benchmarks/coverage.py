"""How often the 95 % intervals of all metrics cover the truth, on made-up evaluations of every size.

    python -m benchmarks.coverage --draws 10000 --processes 8

Every cell should be covered in 93 to 99 % of the draws from ten scenarios (and ten seeds) on, in 92 to 100 % below.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from afintro.data.files import write_json
from afintro.evaluation.intervals import FEW_CLUSTERS, Clusters, Estimate
from benchmarks.coverage_draws import KINDS, Cell, clusters_of

RESULTS = Path(__file__).parent / "results"
SHARES = (0.02, 0.1, 0.5, 0.9, 0.98)
COUNTS = (10, 30, 100, 300)
SIZES = ("1", "2", "3", "5", "1-5")
ICCS = (0.0, 0.2, 0.5, 0.8)
SEEDS = (2, 3, 5)
BAR, BAR_OF_FEW = (0.93, 0.99), (0.92, 1.0)
ROUNDING = 1e-9
Row = dict[str, Any]


def cells(kind: str) -> list[Cell]:
    """Return all cells of a kind. One item a scenario has no correlation within scenarios."""
    settings = KINDS[kind].settings
    if kind == "seeds":
        drawn = itertools.product(settings, SHARES, COUNTS, ICCS, SEEDS)
        return [Cell(kind, p, count, "1", icc, setting, seeds) for setting, p, count, icc, seeds in drawn]
    grouped = [("1", 0.0), *itertools.product(SIZES[1:], ICCS)]
    return [
        Cell(kind, p, count, sizes, icc, setting)
        for setting, p, count, (sizes, icc) in itertools.product(settings, SHARES, COUNTS, grouped)
    ]


def bar(cell: Cell) -> tuple[float, float]:
    """Return between which coverages a cell should be."""
    fewest = min(cell.clusters, cell.seeds) if cell.kind == "seeds" else cell.clusters
    return BAR_OF_FEW if fewest < FEW_CLUSTERS else BAR


def measure(cell: Cell, draws: int, estimate: Callable[[Clusters, Any], Estimate] | None = None) -> Row:
    """Count how often a cell's interval covers the truth.

    Args:
        cell: The cell.
        draws: Number of samples. A sample on which the statistic is undefined does not count.
        estimate: Another way to estimate than the package's.

    Returns:
        The cell, ``coverage``, how often the interval lay ``below`` and ``above`` the truth, the mean ``width``, the shares of
        samples that were ``undefined`` and of samples whose value is at an ``extreme`` (0, 1, or no difference), the ``bar`` and
        whether the coverage is ``inside``.
    """
    started = time.perf_counter()
    kind = KINDS[cell.kind]
    rng = np.random.default_rng([0, *repr(cell).encode()])
    truth, clusters, counts = kind.truth(cell), clusters_of(cell), dict.fromkeys(("below", "above", "extreme"), 0)
    defined, width = 0, 0.0
    for _ in range(draws):
        sample = kind.draw(cell, rng)
        found = None if sample is None else (estimate or kind.estimate)(clusters, sample)
        if found is None or found.value is None or found.ci_low is None or found.ci_high is None:
            continue
        defined += 1
        width += found.ci_high - found.ci_low
        counts["below"] += found.ci_high < truth - ROUNDING
        counts["above"] += found.ci_low > truth + ROUNDING
        counts["extreme"] += found.value in (0.0, 1.0)
    least, most = bar(cell)
    coverage = 1 - (counts["below"] + counts["above"]) / max(defined, 1)
    return {
        **asdict(cell), "truth": truth, "draws": draws, "coverage": round(coverage, 5), "bar": [least, most],
        "inside": least <= coverage <= most, "width": round(width / max(defined, 1), 5),
        "undefined": round(1 - defined / draws, 5),
        **{name: round(count / max(defined, 1), 5) for name, count in counts.items()},
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def reason(row: Row) -> str:
    """Say why a cell is outside of its bar, as far as the row shows it.

    Args:
        row: A row of :func:`measure`.
    """
    if row["coverage"] > row["bar"][1]:
        return (
            f"conservative: {row['extreme']:.0%} of the samples are at an extreme, where any interval of width above 0 covers"
            if row["extreme"] > 1 - row["bar"][1]
            else "conservative"
        )
    if row["sizes"] == "1" and row["kind"] == "share":
        return "Wilson's own coverage: the number of hits is whole"
    side = "too low" if row["below"] > row["above"] else "too high"
    return f"misses on one side: the interval is {side} in {max(row['below'], row['above']):.1%}"


def markdown(rows: Sequence[Row]) -> str:
    """Write a summary of each kind, and every cell that is outside of its bar.

    Args:
        rows: Rows of :func:`measure`.
    """
    lines = ["| statistic | cells | inside | lowest | highest |", "|---|--:|--:|--:|--:|"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        inside, found = sum(row["inside"] for row in own), [row["coverage"] for row in own]
        lines.append(f"| {kind} | {len(own)} | {inside} | {min(found):.4f} | {max(found):.4f} |")
    lines += [
        "", "Cells outside of their bar:", "",
        "| statistic | setting | p | scenarios | items each | ICC | seeds | coverage | why |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]  # fmt: skip
    for row in (row for row in rows if not row["inside"]):
        shown = ("kind", "setting", "p", "clusters", "sizes", "icc", "seeds")
        cell = " | ".join(str(row[name]) for name in shown)
        lines.append(f"| {cell} | {row['coverage']:.4f} | {reason(row)} |")
    return "\n".join(lines)


def finished(wanted: Sequence[Cell], draws: int, processes: int) -> Iterable[Row]:
    """Measure cells and yield each row when it is there.

    Args:
        wanted: The cells.
        draws: Samples of each cell.
        processes: Number of processes, one core each.
    """
    if processes == 1:
        yield from (measure(cell, draws) for cell in wanted)
        return
    with ProcessPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(measure, cell, draws) for cell in wanted]):
            yield future.result()


def kept(path: Path, draws: int, wanted: Sequence[Cell]) -> list[Row]:
    """Return the rows of an earlier, interrupted measurement that are still wanted; none at another number of draws.

    Args:
        path: ``coverage.json``, which may be absent.
        draws: Samples of each cell.
        wanted: The cells.
    """
    found = json.loads(path.read_text()) if path.is_file() else {"draws": None, "rows": []}
    names = {repr(cell) for cell in wanted}
    return [row for row in found["rows"] if found["draws"] == draws and repr(cell_of(row)) in names]


def cell_of(row: Row) -> Cell:
    """Return the cell that a row was measured of."""
    return Cell(**{field.name: row[field.name] for field in fields(Cell)})


def main() -> None:
    """Measure all cells, and write JSON and a table as they come; an interrupted measurement goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000, help="samples of each cell")
    parser.add_argument("--processes", type=int, default=1, help="cells that are measured at once, one core each")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="statistics to measure")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of coverage.json and coverage.md")
    args = parser.parse_args()
    wanted = [cell for kind in args.only for cell in cells(kind)]
    order = {repr(cell): place for place, cell in enumerate(wanted)}
    rows = kept(args.results / "coverage.json", args.draws, wanted)
    have = {repr(cell_of(row)) for row in rows}
    wanted = [cell for cell in wanted if repr(cell) not in have]
    # The largest cells first, so that no process is left with one of them at the end.
    wanted.sort(key=lambda cell: -len(cell.members) * cell.seeds)
    items, done, started, saved = sum(len(c.members) * c.seeds + 200 for c in wanted), 0, time.monotonic(), 0.0
    for row in finished(wanted, args.draws, args.processes):
        rows.append(row)
        cell = cell_of(row)
        done += len(cell.members) * cell.seeds + 200
        passed = time.monotonic() - started
        mark = "" if row["inside"] else f"  outside {row['bar']}"
        print(
            f"{len(rows)}/{len(order)} {cell} {row['coverage']:.4f}{mark}, {passed * (items / done - 1):.0f} s left",
            flush=True,
        )
        if time.monotonic() - saved > 10 or len(rows) == len(order):
            saved = time.monotonic()
            rows.sort(key=lambda row: order[repr(cell_of(row))])
            write_json(args.results / "coverage.json", {"draws": args.draws, "rows": rows})
            (args.results / "coverage.md").write_text(markdown(rows) + "\n")
    print(markdown(rows))
    print(json.dumps({"inside": sum(row["inside"] for row in rows), "cells": len(rows)}))


if __name__ == "__main__":
    main()
