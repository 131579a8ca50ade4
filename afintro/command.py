"""Run a command: parse its flags, call one function, and report wrong input in two lines."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence

from afintro.errors import UserError

# Warnings of libraries about their own code, or about what is checked or does not hold here.
IDLE_WARNINGS = (
    ".*does not have many workers.*",
    ".*The dirpath has changed from",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    ".*`is_gradient_checkpointing` is deprecated",
    ".*`ModelCheckpoint\\(monitor=.*could not find the monitored key",  # a warning of ours says it after training
    ".*Model has `tie_word_embeddings=True`",  # adapters on tied matrices are read and exported as PEFT does, and compared
)


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the flags, call the work with them, and return the exit code.

    Args:
        parser: The flags.
        work: Does everything else, and prints what it did.
        argv: The words of the command line after the program's name; None for those of this process.

    Returns:
        0, or 2 for wrong input: then standard error has two lines that say what is wrong, where, and the remedy.

    Raises:
        UserError: The input is wrong and ``AFINTRO_TRACEBACK`` is 1.
    """
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    try:
        work(args)
    except UserError as error:
        if os.environ.get("AFINTRO_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def quiet_libraries() -> None:
    """Ignore the warnings of libraries that tell a user nothing, and a line for each request to an endpoint."""
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IDLE_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def check_at_least(args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuse flags whose number is too small; a flag without a value passes.

    Args:
        args: The parsed flags.
        least: The smallest number that each flag takes, by the flag's name.

    Raises:
        UserError: A number is too small.
    """
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            what = f"must be at least {smallest}, but is {value}"
            raise UserError(what, where=f"--{name}", remedy=f"use {smallest} or more")
