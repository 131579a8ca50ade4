"""Let an organism answer every sample without steering and along directions of its residual stream, and write records.

Several processes, one a GPU: torchrun --nproc-per-node 4 scripts/generate_af_steering_data.py ...
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from afintro.data.samples import read_samples
from afintro.errors import UserError
from afintro.evaluation.report import print_steering
from afintro.lm.devices import default_device
from afintro.lm.load import load_config
from afintro.ranks import join
from afintro.tasks.steering.controls import with_controls
from afintro.tasks.steering.directions import Direction, read_direction, resolve_layers
from afintro.tasks.steering.generate import generate_steering
from afintro.tasks.steering.generator import CUES, SteeringSettings
from afintro.toys.embedded import ensure_built

LAYERS, ALPHAS = ("20", "30", "40"), (0.5, 1.0, 2.0, 5.0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--input_path", required=True, help="JSON, JSONL or Parquet file, dataset directory or hub id")
    found.add_argument("--split", help="split of a dataset (default: train)")
    found.add_argument("--output_dir", required=True, type=Path)
    found.add_argument("--model_name", required=True, help="hub id, local directory, PEFT adapter directory, or toy")
    found.add_argument("--revision", help="branch, tag or commit on the hub")
    found.add_argument(
        "--direction",
        required=True,
        nargs="+",
        help="files of compute_af_direction.py, or .safetensors, .npy, .pt vectors",
    )
    found.add_argument("--layers", nargs="+", default=LAYERS, help="layers (20), or relative depths with a dot (0.5)")
    found.add_argument("--alphas", nargs="+", type=float, default=ALPHAS)
    found.add_argument(
        "--alpha_unit", choices=("raw", "residual_norm"), default="raw", help="of what alpha is a multiple"
    )
    found.add_argument(
        "--positions", choices=("last", "decode", "all"), default="last",
        help="where the vector is added: the prompt's last position; that and every new one; all of prompt and answer",
    )  # fmt: skip
    found.add_argument(
        "--cues", nargs="+", choices=tuple(CUES), default=["monitored"], help="system prompts to ask under"
    )
    found.add_argument("--cells_per_prompt", type=int, help="draw so many (layer, alpha) cells a prompt (default: all)")
    found.add_argument("--batch_size", type=int, default=64, help="rows; the conditions of a prompt run together")
    found.add_argument("--max_new_tokens", type=int, default=256)
    found.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    found.add_argument("--holdout", type=int, default=200, help="the last so many samples become test.json")
    found.add_argument("--control_samples", type=int, default=20, help="samples answered again alone; 0: none")
    found.add_argument("--limit", type=int, help="use the first so many samples")
    found.add_argument("--device", default=default_device())
    found.add_argument("--seed", type=int, default=0)
    return found


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse numbers that argparse takes."""
    least = {"batch_size": 1, "max_new_tokens": 1, "limit": 1, "control_samples": 0, "cells_per_prompt": 1}
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise UserError(f"is {value}", where=f"--{name}", remedy=f"use {smallest} or more")
    for alpha in args.alphas:
        if not 0 < abs(alpha) < float("inf"):
            raise UserError(
                f"is {alpha}", where="--alphas", remedy="use finite numbers other than 0 (which is always run)"
            )
    if len({f"{alpha:g}" for alpha in args.alphas}) < len(args.alphas) or len(set(args.cues)) < len(args.cues):
        raise UserError("names one twice", where="--alphas or --cues", remedy="name each once")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        what = f"{args.device!r} is no device here"
        raise UserError(what, where="--device", remedy="use cpu, or cuda where there is one") from error


def read_all(paths: Sequence[str]) -> list[Direction]:
    """The directions; several methods' files of one direction are told apart by their file names."""
    found = [read_direction(path) for path in paths]
    names = [direction.name for direction in found]
    return [
        replace(direction, name=f"{direction.name}/{Path(path).stem}") if names.count(direction.name) > 1 else direction
        for direction, path in zip(found, paths, strict=True)
    ]


def run(args: argparse.Namespace) -> None:
    """Check all that is wrong before the model loads, then generate and print what was found."""
    check_arguments(args)
    samples = read_samples(args.input_path, args.split)[: args.limit]
    if not 0 <= args.holdout < len(samples):
        raise UserError(
            f"{args.holdout} of {len(samples)} samples leave none for training",
            where="--holdout",
            remedy=f"use a number from 0 to {len(samples) - 1}",
        )
    config = load_config(ensure_built(args.model_name), args.revision).get_text_config()
    layers = resolve_layers(args.layers, config.num_hidden_layers, "--layers")
    directions = read_all(args.direction)
    for direction, path in zip(directions, args.direction, strict=True):
        direction.check(config.hidden_size, config.num_hidden_layers, path)
    directions = with_controls(directions, [direction.name for direction in directions], layers, args.seed)
    settings = SteeringSettings(
        model=args.model_name,
        layers=tuple(layers),
        alphas=tuple(sorted(args.alphas)),
        revision=args.revision,
        alpha_unit=args.alpha_unit,
        positions=args.positions,
        cues=tuple(args.cues),
        cells_per_prompt=args.cells_per_prompt,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
        control_samples=args.control_samples,
        seed=args.seed,
    )
    splits = {"train": len(samples) - args.holdout, "test": args.holdout}
    ranks = join()
    summary = generate_steering(samples, splits, directions, args.output_dir, settings, args.device, ranks)
    if ranks.rank == 0:
        print_steering(summary)
        print(f"dose response: {args.output_dir / 'dose_response.png'}")


def main() -> int:
    """Parse, call, report; exit code 2 for wrong input."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
