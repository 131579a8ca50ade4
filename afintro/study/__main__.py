"""``python -m afintro.study {status,run,report} --config STUDY.yaml``: the introspection study as a matrix that fills itself."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from afintro.errors import UserError
from afintro.study.matrix import Matrix, coverage
from afintro.study.report.write import refresh_status, write_report
from afintro.study.runner import Runner
from afintro.study.settings import read_study
from afintro.study.workers import end_with_parent, run_workers

PROGRESS = Path("PROGRESS.md")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m afintro.study", description=__doc__, allow_abbrev=False)
    made.add_argument("command", choices=("status", "run", "report"))
    made.add_argument("--config", type=Path, required=True, help="YAML of the study")
    made.add_argument("--variants", nargs="+", help="only these")
    made.add_argument("--seeds", nargs="+", type=int, help="only these")
    made.add_argument("--evaluations", nargs="+", help="only these")
    made.add_argument("--devices", type=int, help="processes of run: one an accelerator by default, or 1 without")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


def main(args: Sequence[str] | None = None) -> int:
    """Parse, call, report; exit code 2 for wrong input, 1 where a cell failed."""
    given = list(sys.argv[1:] if args is None else args)
    chosen = parser().parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # trainings have arguments of their own
    try:
        matrix = Matrix(read_study(chosen.config), chosen.variants, chosen.seeds, chosen.evaluations)
        return {"status": _status, "run": _run, "report": _report}[chosen.command](matrix, chosen, given)
    except UserError as error:
        if os.environ.get("AFINTRO_TRACEBACK") == "1":
            raise
        print(f"afintro: error: {error}", file=sys.stderr)
        return 2


def _status(matrix: Matrix, chosen: argparse.Namespace, given: Sequence[str]) -> int:
    print(coverage(matrix))
    print(f"what is missing: python -m afintro.study run --config {chosen.config}")
    return 0


def _run(matrix: Matrix, chosen: argparse.Namespace, given: Sequence[str]) -> int:
    if chosen.worker:
        end_with_parent()
        return int(bool(Runner(matrix).run()))
    devices = max(1, torch.cuda.device_count()) if chosen.devices is None else chosen.devices
    if devices < 1:
        raise UserError(f"is {devices}", where="--devices", remedy="give 1 or more")
    code = run_workers(given, devices) if devices > 1 else int(bool(Runner(matrix).run()))
    print(coverage(matrix))
    return code


def _report(matrix: Matrix, chosen: argparse.Namespace, given: Sequence[str]) -> int:
    path = write_report(matrix.folder, matrix.plan())
    refresh_status(PROGRESS, matrix.study.settings.name, f"```\n{coverage(matrix)}\n```")
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
