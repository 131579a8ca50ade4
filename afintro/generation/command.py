"""The flags that all commands share which let an organism read samples, and their checks."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from afintro.command import check_at_least
from afintro.data.samples import Sample, read_samples
from afintro.errors import UserError
from afintro.lm.devices import default_device
from afintro.lm.dtypes import AUTO

INPUT_HELP = "JSON, JSONL, CSV or Parquet file, dataset directory, hub id, or DATASET::SPLIT"
HOLDOUT = 200  # samples that are kept for the test where there are more
MODEL_HELP = "hub id, local directory, GGUF file, PEFT adapter directory, toy or smollm2"


def add_sample_flags(parser: argparse.ArgumentParser, batch_size: int, batch_help: str) -> None:
    """Add the flags that name samples, an organism and an output folder.

    Args:
        parser: The parser that gets the flags.
        batch_size: Default of ``--batch_size``.
        batch_help: What the batch size counts.
    """
    parser.add_argument("--input_path", required=True, help=INPUT_HELP)
    add_reading_flags(parser)
    parser.add_argument("--output_dir", required=True, type=Path, help="folder that gets the files")
    parser.add_argument("--model_name", required=True, help=MODEL_HELP)
    parser.add_argument("--base", help="base model of an adapter, instead of the base that the adapter names")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--batch_size", type=int, default=batch_size, help=f"{batch_help} (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        default=AUTO,
        choices=(AUTO, "float32", "bfloat16", "float16"),
        help="auto (the default): the checkpoint's own on an accelerator, float32 on a CPU",
    )
    parser.add_argument(
        "--chat_template_kwargs",
        type=json_object,
        metavar="JSON",
        help="settings that the model's chat template reads, e.g. '{\"enable_thinking\": false}'",
    )
    parser.add_argument("--limit", type=int, help="use only the first samples, at most this many")
    parser.add_argument("--device", default=default_device(), help="device of torch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn (default: %(default)s)")


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how samples are read out of their source.

    Args:
        parser: The parser that gets the flags.
    """
    add_label_flags(parser)
    parser.add_argument(
        "--text_field", help="field that holds the text (default: text, or the request of other projects' files)"
    )


def add_label_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which split of a dataset is read, and what the labels in it mean.

    Args:
        parser: The parser that gets the flags.
    """
    parser.add_argument("--split", help="split of a dataset (default: train)")
    parser.add_argument(
        "--label_names",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what labels mean: the names of the numbers 0, 1, ..., or WORD=LABEL, e.g. benign=aligned",
    )


def read_named_samples(args: argparse.Namespace) -> list[Sample]:
    """Read the samples that the flags of :func:`add_sample_flags` name.

    Raises:
        UserError: The file is wrong.
    """
    samples = read_samples(args.input_path, args.split, args.label_names, args.text_field)
    return samples[: args.limit]


def json_object(text: str) -> dict[str, Any] | None:
    """Parse the JSON object of a flag; an empty object is as no flag.

    Raises:
        argparse.ArgumentTypeError: The text is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"must be a JSON object such as '{{\"enable_thinking\": false}}', not {text!r}"
        )
    return value or None


def add_generation_flags(
    parser: argparse.ArgumentParser, batch_size: int, batch_help: str, control_samples: int, control_help: str
) -> None:
    """Add the flags of :func:`add_sample_flags` and those of commands that write records of answers.

    Args:
        parser: The parser that gets the flags.
        batch_size: Default of ``--batch_size``.
        batch_help: What the batch size counts.
        control_samples: Default of ``--control_samples``.
        control_help: What the control samples are for.
    """
    add_sample_flags(parser, batch_size, batch_help)
    parser.add_argument(
        "--max_new_tokens", type=int, default=256, help="limit of an answer in tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--holdout",
        type=int,
        help=f"number of samples, the last ones, that go to test.json (default: {HOLDOUT}, of {HOLDOUT} samples or fewer a fifth)",
    )
    parser.add_argument(
        "--control_samples", type=int, default=control_samples, help=f"{control_help} (default: %(default)s)"
    )


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that let answers be drawn several times.

    Args:
        parser: The parser that gets the flags.
    """
    parser.add_argument(
        "--samples", type=int, default=1, help="answers to each prompt; more than 1 needs --temperature (default: 1)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="temperature at which answers are drawn (default: 0, greedy)"
    )
    parser.add_argument(
        "--top_p", type=float, default=1.0, help="draw among the likeliest tokens of this probability (default: 1)"
    )


def check_sampling_flags(args: argparse.Namespace) -> None:
    """Refuse numbers of :func:`add_sampling_flags` that are out of range or contradict each other.

    Raises:
        UserError: A flag cannot be used.
    """
    check_at_least(args, {"samples": 1})
    if not 0 <= args.temperature < float("inf"):
        raise UserError(
            f"must be 0 or above, and is {args.temperature}",
            where="--temperature",
            remedy="use 0 (greedy), or e.g. 0.9",
        )
    if not 0 < args.top_p <= 1:
        raise UserError(
            f"must be above 0 and at most 1, and is {args.top_p}",
            where="--top_p",
            remedy="use e.g. 0.95, or leave it out",
        )
    for flag, given in (("--samples", args.samples > 1), ("--top_p", args.top_p < 1)):
        if given and args.temperature == 0:
            raise UserError(
                "has no effect on greedy answers, which are all the same",
                where=flag,
                remedy="give --temperature too, e.g. --temperature 0.9",
            )


def add_cue_file_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names a file of conditions.

    Args:
        parser: The parser that gets the flag.
    """
    parser.add_argument(
        "--cue_file", type=Path, metavar="FILE", help="YAML or JSON file with conditions of your own, see docs/cues.md"
    )


def check_generation_flags(args: argparse.Namespace) -> None:
    """Refuse numbers that are too small, and a device that this machine lacks.

    Raises:
        UserError: A flag of :func:`add_generation_flags` has a value that cannot be used.
    """
    check_at_least(args, {"batch_size": 1, "max_new_tokens": 1, "limit": 1, "control_samples": 0})
    check_device(args.device)


def check_device(device: str) -> None:
    """Refuse a device that is not available, before anything is read.

    Raises:
        UserError: The device is not available on this machine.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        what = f"{device!r} is not available on this machine"
        raise UserError(what, where="--device", remedy="use cpu, or cuda where there is one") from error


def read_splits(args: argparse.Namespace) -> tuple[list[Sample], dict[str, int]]:
    """Read the samples, and divide them into training and test.

    Returns:
        The samples in the order of the file, and the number of samples in each split.

    Raises:
        UserError: The file is wrong, or ``--holdout`` leaves no sample for training.
    """
    samples = read_named_samples(args)
    if args.holdout is None:
        args.holdout = HOLDOUT if len(samples) > HOLDOUT else len(samples) // 5
    if not 0 <= args.holdout < len(samples):
        raise UserError(
            f"{args.holdout} of {len(samples)} samples leave none for training",
            where="--holdout",
            remedy=f"use a number from 0 to {len(samples) - 1}",
        )
    return samples, {"train": len(samples) - args.holdout, "test": args.holdout}
