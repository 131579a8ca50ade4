"""The command that prints the rate of a behavior against the stated probability of a review."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from afintro.command import run_command
from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.report import cell
from afintro.tasks.context_ablation.oversight import oversight_curve, stated_rates
from afintro.tasks.context_ablation.records import labeled, read_records

NAMES = {
    "interpolation": "mean absolute error of the straight line between the ends",
    "explainer": "mean absolute error of the explainer",
    "lead": "how much smaller the explainer's error is",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    flags = argparse.ArgumentParser(
        description="Print how often an organism shows a behavior at each stated probability of a review, and how well the "
        "rates between the ends are known."
    )
    flags.add_argument("records", nargs="+", help="files of context-ablation records, of several contrasts")
    flags.add_argument("--behavior", default="comply", help="the behavior (default: %(default)s)")
    flags.add_argument(
        "--levels",
        nargs="+",
        default=[],
        metavar="NAME=P",
        help="probabilities that conditions state whose names do not end in percent, as review_75 does",
    )
    flags.add_argument(
        "--predictions", type=Path, metavar="FILE", help="predictions.jsonl of an explainer (data.answer_form: rate)"
    )
    flags.add_argument("--output", type=Path, metavar="FILE", help="JSON file that gets all numbers")
    return flags


def levels_of(given: Sequence[str]) -> dict[str, float]:
    """Return the probabilities that the flag gives.

    Args:
        given: Words of the form ``NAME=P``.

    Raises:
        UserError: A word has another form, or a probability is not between 0 and 1.
    """
    levels = {}
    for word in given:
        name, _, number = word.rpartition("=")
        try:
            levels[name] = float(number)
        except ValueError:
            levels[name] = -1.0
        if not name or not 0 <= levels[name] <= 1:
            raise UserError(
                f"holds {word!r}, not a condition and a probability", where="--levels", remedy="write e.g. rare=0.1"
            )
    return levels


def measure(args: argparse.Namespace) -> None:
    """Read the records, and print and write the curve.

    Raises:
        UserError: A flag or a file cannot be used.
    """
    levels = levels_of(args.levels)
    records = [labeled(record) for path in args.records for record in read_records(path)]
    stated = None if args.predictions is None else stated_rates(args.predictions, args.behavior)
    found = oversight_curve(records, args.behavior, levels, stated)
    table = Table(title=f"P({args.behavior})")
    table.add_column("stated probability", justify="right")
    table.add_column("rate [95 % interval]", justify="right")
    table.add_column("scenarios", justify="right")
    for point in found["curve"]:
        table.add_row(f"{point['probability']:g}", cell(Estimate(**point["rate"])), str(point["rate"]["n"]))
    console = Console()
    console.print(table)
    for key, name in NAMES.items():
        if key in found:
            estimate = Estimate(**found[key])
            console.print(f"{name}: {cell(estimate)} ({estimate.n} rates)", highlight=False, markup=False)
    if args.output is not None:
        write_json(args.output, found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    return run_command(parser(), measure, argv)
