"""Measure whether an explainer reads its own organism.

    python -m benchmarks.privileged --seeds 0 1 2 --processes 16

Organism A favors some names, organism B others; both were trained from one base without a policy. Explainers on A, on B and on
the base learn the labels of some names of A or of B, each until it knows these names equally well, and are asked about names
that nobody labeled. Writes ``privileged.json`` and ``privileged.png``, and prints the tables. A run that was killed continues.
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
from benchmarks.privileged.plan import CURVE, Plan, cells
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
        "flips": flips_of(seeds, results),
        "organisms": organisms_of(seeds, results),
        "core_seconds": round(sum(result["seconds"] for result in results.values())),
    }


def main(plan: Plan | None = None) -> None:
    """Measure, print the tables, write them and plot them.

    Args:
        plan: The size of the measurement; None for the usual size.
    """
    plan = plan or Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of organisms and explainers")
    parser.add_argument("--curve", type=int, nargs="+", default=list(CURVE), help="even numbers of labeled names")
    parser.add_argument("--processes", type=int, default=1, help="jobs that run at once, one core each")
    parser.add_argument(
        "--output", type=Path, default=report.RESULTS, help="folder of privileged.json and privileged.png"
    )
    args = parser.parse_args()
    started = time.monotonic()
    tables = run(plan, args.seeds, args.curve, args.processes)
    written = {
        "command": "python -m benchmarks.privileged " + " ".join(sys.argv[1:]),
        "hardware": f"{platform.machine()}-{os.cpu_count()}cpu",  # whatever accelerator is there, none is used
        "processes": args.processes,
        "versions": {**report.versions(), "scikit-learn": version("scikit-learn")},
        "seeds": args.seeds,
        "plan": asdict(plan),
        "seconds": round(time.monotonic() - started),
        **tables,
    }
    write_json(args.output / "privileged.json", written)
    figure(tables["cells"], plan).savefig(args.output / "privileged.png", dpi=150)
    print(markdown(tables, plan))


if __name__ == "__main__":
    main()
