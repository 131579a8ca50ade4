"""Show, run and report the introspection study: ``python -m afintro.study {status,run,report} --config STUDY.yaml``."""

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
from afintro.study.report.write import write_report, write_status
from afintro.study.runner import Runner
from afintro.study.settings import read_study
from afintro.study.workers import end_with_parent, run_workers


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m afintro.study", description=__doc__, allow_abbrev=False)
    parser.add_argument("command", choices=("status", "run", "report"))
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the study")
    parser.add_argument("--variants", nargs="+", help="only these variants")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    parser.add_argument("--evaluations", nargs="+", help="only these evaluations")
    parser.add_argument(
        "--devices", type=int, help="processes of run: by default one per accelerator, or 1 without any"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Parse the command line and run the command.

    Args:
        args: The arguments. None means those of the process.

    Returns:
        The exit code: 0 if everything is done, 1 if a cell failed, 2 for wrong input.
    """
    given = list(sys.argv[1:] if args is None else args)
    options = make_parser().parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # trainings have arguments of their own
    try:
        matrix = Matrix(read_study(options.config), options.variants, options.seeds, options.evaluations)
        return {"status": _status, "run": _run, "report": _report}[options.command](matrix, options, given)
    except UserError as error:
        if os.environ.get("AFINTRO_TRACEBACK") == "1":
            raise
        print(f"afintro: error: {error}", file=sys.stderr)
        return 2


def _status(matrix: Matrix, options: argparse.Namespace, given: Sequence[str]) -> int:
    print(coverage(matrix))
    print(f"to do what is missing: {_run_command(options.config)}")
    return 0


def _run(matrix: Matrix, options: argparse.Namespace, given: Sequence[str]) -> int:
    if options.worker:
        end_with_parent()
        return int(bool(Runner(matrix).run()))
    devices = max(1, torch.cuda.device_count()) if options.devices is None else options.devices
    if devices < 1:
        raise UserError(f"must be at least 1, not {devices}", where="--devices", remedy="give 1 or more")
    code = run_workers(given, devices) if devices > 1 else int(bool(Runner(matrix).run()))
    print(coverage(matrix))
    return code


def _report(matrix: Matrix, options: argparse.Namespace, given: Sequence[str]) -> int:
    report = write_report(matrix.folder, matrix.plan())
    status = write_status(matrix.folder, matrix.study.settings.name, coverage(matrix), _run_command(options.config))
    print(f"status: {status}")
    print(f"report: {report}")
    return 0


def _run_command(config: Path) -> str:
    return f"python -m afintro.study run --config {config}"


if __name__ == "__main__":
    sys.exit(main())
