"""Measure whether an explainer reads its own organism.

    python -m benchmarks.privileged --seeds 0 1 2 --processes 16

Organism A favors some names, organism B others; both were trained from one base without a policy. Explainers on A, on B and on
the base learn the labels of some names of A or of B, each until it knows these names equally well, and are asked about names
that nobody labeled. With ``--model smollm2`` the organisms are that model, all of its weights trained to fake, and the base is
the model itself; several processes use all accelerators that there are. Writes ``privileged.json`` and ``privileged.png`` (with
a model ``privileged-MODEL.json``), and prints the tables. Each result is saved when it is there: a run that was killed continues.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import afintro
from afintro.data.cache import cache_directory
from afintro.data.example_store import source_hash
from afintro.data.files import write_json
from benchmarks import report
from benchmarks.privileged.explaining import DEMO
from benchmarks.privileged.figure import figure
from benchmarks.privileged.jobs import jobs
from benchmarks.privileged.plan import CURVE, ORGANISMS, A, Plan, cells, plan_of
from benchmarks.privileged.running import run_all
from benchmarks.privileged.summary import flips_of, leads_of, markdown, organisms_of, rows_of


def work_folder(plan: Plan) -> Path:
    """Return the folder of what runs of this plan have finished; another state of the code or of the demo's settings has another.

    Args:
        plan: The size of the measurement.
    """
    roots = (Path(afintro.__file__).parent, Path(__file__).parent)
    code = source_hash(*(path for root in roots for path in sorted(root.rglob("*.py"))))
    return (
        cache_directory()
        / "privileged"
        / hashlib.sha256(json.dumps([asdict(plan), DEMO, code]).encode()).hexdigest()[:12]
    )


def run(plan: Plan, seeds: Sequence[int], curve: Sequence[int], processes: int) -> dict[str, Any]:
    """Measure everything that is not measured yet, and return all tables.

    Args:
        plan: The size of the measurement.
        seeds: Seeds of organisms and explainers.
        curve: Numbers of labeled names.
        processes: Number of jobs that run at once, one core each.
    """
    work, wanted = work_folder(plan), cells(plan, seeds, curve)
    results = run_all(jobs(plan, seeds, curve, work), work / "results", processes, lambda line: print(line, flush=True))
    return {
        "cells": rows_of(wanted, results),
        "leads": leads_of(wanted, results),
        "flips": flips_of(plan, seeds, results),
        "organisms": organisms_of(plan, seeds, results),
        "core_seconds": round(sum(result["seconds"] for result in results.values())),
    }


def plan_asked_for(args: argparse.Namespace) -> Plan:
    """Return the plan that the flags ask for."""
    asked = {"labeled": args.labels, "new": args.new, "records": args.records, "scenarios": args.scenarios}
    size = {name: value for name, value in asked.items() if value is not None}
    if args.steps is not None:
        between = min(plan_of(args.model).round_steps, args.steps)
        size |= {"round_steps": between, "rounds": args.steps // between}
    return plan_of(args.model, about=(A,) if args.about_a else tuple(ORGANISMS), **size)


def main(plan: Plan | None = None) -> None:
    """Measure, print the tables, write them and plot them.

    Args:
        plan: The size of the measurement; None for the usual size.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of organisms and explainers")
    parser.add_argument("--curve", type=int, nargs="+", help="even numbers of labeled names")
    parser.add_argument(
        "--processes", type=int, default=1, help="jobs that run at once, one core each, spread over the accelerators"
    )
    parser.add_argument(
        "--output", type=Path, default=report.RESULTS, help="folder of privileged.json and privileged.png"
    )
    parser.add_argument("--about_a", action="store_true", help="ask about organism A alone, not about B too")
    parser.add_argument("--model", help="make the organisms of this model, e.g. smollm2 (default: toys from scratch)")
    parser.add_argument("--labels", type=int, help="labeled names of the matrix (default: 200)")
    parser.add_argument("--new", type=int, help="names that are new to every explainer, a multiple of 4 (default: 200)")
    parser.add_argument("--records", type=int, help="training records of each labeled name (default: 4)")
    parser.add_argument(
        "--steps", type=int, help="most optimizer steps of an explainer (default: 600; with --model 800)"
    )
    parser.add_argument(
        "--scenarios", type=int, help="scenarios that make an organism (default: 10,000; with --model 20,000)"
    )
    args = parser.parse_args()
    plan = plan or plan_asked_for(args)
    curve = args.curve or [names for names in CURVE if names <= plan.labeled]
    started = time.monotonic()
    tables = run(plan, args.seeds, curve, args.processes)
    written = {
        "command": "python -m benchmarks.privileged " + " ".join(sys.argv[1:]),
        "hardware": report.hardware() if plan.device != "cpu" else f"{platform.machine()}-{os.cpu_count()}cpu",
        "processes": args.processes,
        "versions": {**report.versions(), "scikit-learn": version("scikit-learn")},
        "seeds": args.seeds,
        "plan": asdict(plan),
        "seconds": round(time.monotonic() - started),
        **tables,
    }
    name = "privileged" if plan.model is None else f"privileged-{Path(plan.model).name}"
    write_json(args.output / f"{name}.json", written)
    figure(tables["cells"], plan).savefig(args.output / f"{name}.png", dpi=150)
    print(markdown(tables, plan))


if __name__ == "__main__":
    main()
