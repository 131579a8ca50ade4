"""The command that writes steering records: an organism answers every sample unsteered and along directions."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from afintro.command import check_at_least, run_command
from afintro.data.cue_file import read_cues
from afintro.errors import UserError
from afintro.evaluation.report import print_steering
from afintro.generation.command import add_cue_file_flag, add_generation_flags, check_generation_flags, read_splits
from afintro.lm.adapter import on_base
from afintro.lm.load import load_config, load_tokenizer
from afintro.ranks import join
from afintro.tasks.labelers import add_labeler_flags, labeling_of, stop_at_others
from afintro.tasks.steering.controls import with_controls
from afintro.tasks.steering.direction_files import read_direction
from afintro.tasks.steering.directions import Direction, resolve_layers
from afintro.tasks.steering.generate import generate_steering
from afintro.tasks.steering.generator import CUES, SteeringSettings
from afintro.tasks.steering.patches import write_patching
from afintro.toys.embedded import ensure_built

LAYERS, ALPHAS = ("20", "30", "40"), (0.5, 1.0, 2.0, 5.0)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    flags = argparse.ArgumentParser(
        description="Let an organism answer every sample without steering and along directions of its residual stream, and "
        "write records. Several processes, one a GPU: torchrun --nproc-per-node 4 scripts/generate_af_steering_data.py ..."
    )
    add_generation_flags(
        flags, 64, "rows; the conditions of a prompt run together", 20, "samples answered again alone; 0: none"
    )
    flags.add_argument(
        "--direction",
        required=True,
        nargs="+",
        help="files of compute_af_direction.py, or .safetensors, .npy, .pt, .gguf vectors; FILE::NAME is one of several in a file",
    )
    flags.add_argument(
        "--layers",
        nargs="+",
        default=LAYERS,
        help="layers (20), or relative depths with a dot (0.5) (default: 20 30 40)",
    )
    flags.add_argument(
        "--alphas",
        nargs="+",
        type=float,
        default=ALPHAS,
        help="strengths: multiples of --alpha_unit (default: 0.5 1 2 5)",
    )
    flags.add_argument(
        "--alpha_unit",
        choices=("raw", "residual_norm"),
        default="raw",
        help="what alpha multiplies: the vector as it is, or the unit vector times the norm of the residual stream, which makes "
        "doses comparable over layers and models: use it for real models (default: %(default)s)",
    )
    flags.add_argument(
        "--positions",
        choices=("last", "decode", "all"),
        default="decode",
        help="where the vector is added: decode, at the prompt's last position and every new token, as hidden[:, -1, :] += "
        "alpha * v does under generate; last, at the prompt's last position alone; all, everywhere (default: %(default)s)",
    )
    flags.add_argument(
        "--cues",
        nargs="+",
        default=["monitored"],
        metavar="NAME",
        help="conditions to ask under: monitored, unmonitored, another that comes with the package, or one of --cue_file "
        "(default: monitored)",
    )
    add_cue_file_flag(flags)
    flags.add_argument("--cells_per_prompt", type=int, help="(layer, alpha) cells drawn for each prompt (default: all)")
    flags.add_argument(
        "--patching",
        action="store_true",
        help="write SPLIT.patching.jsonl too, in the schema of activation patching of introspective-interp; also of a finished run",
    )
    add_labeler_flags(flags)
    return flags


def check_flags(args: argparse.Namespace) -> None:
    """Refuse values that argparse accepts.

    Raises:
        UserError: Names the flag.
    """
    check_generation_flags(args)
    check_at_least(args, {"cells_per_prompt": 1})
    for alpha in args.alphas:
        if not 0 < abs(alpha) < float("inf"):
            what = f"must be finite and other than 0, but is {alpha}"
            raise UserError(what, where="--alphas", remedy="use finite numbers other than 0 (which is always run)")
    if len({f"{alpha:g}" for alpha in args.alphas}) < len(args.alphas) or len(set(args.cues)) < len(args.cues):
        raise UserError("name a value twice", where="--alphas or --cues", remedy="name each value once")


def read_directions(paths: Sequence[str], depth: int) -> list[Direction]:
    """Read the direction files; files that give their direction the same name are told apart by their file names.

    Args:
        paths: The files; ``FILE::NAME`` is one direction of a file that names several.
        depth: Number of layers of the model.

    Raises:
        UserError: A file is not a direction file.
    """
    directions = [read_direction(path, depth=depth) for path in paths]
    names = [direction.name for direction in directions]
    return [
        replace(direction, name=f"{direction.name}/{Path(path).stem}") if names.count(direction.name) > 1 else direction
        for direction, path in zip(directions, paths, strict=True)
    ]


def generate(args: argparse.Namespace) -> None:
    """Check everything that can be checked before the model loads, then generate and print the summary.

    Raises:
        UserError: A flag, the samples, a direction, the model or the output folder cannot be used; or, when all is written,
            too many answers have no behavior that can be told.
    """
    check_flags(args)
    conditions = read_cues(args.cue_file).named(args.cues, "--cues")
    labeling = labeling_of(args)
    args.model_name = on_base(args.model_name, args.base)
    samples, splits = read_splits(args)
    config = load_config(ensure_built(args.model_name), args.revision).get_text_config()
    layers = resolve_layers(args.layers, config.num_hidden_layers, "--layers")
    directions = read_directions(args.direction, config.num_hidden_layers)
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
        conditions=tuple(condition for condition in conditions if condition.name not in CUES),
        cells_per_prompt=args.cells_per_prompt,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
        control_samples=args.control_samples,
        chat_template_kwargs=args.chat_template_kwargs,
        seed=args.seed,
    )
    ranks = join()
    summary = generate_steering(
        samples, splits, directions, args.output_dir, settings, args.device, ranks, labeling=labeling
    )
    if ranks.rank == 0:
        if args.patching:
            directory = ensure_built(args.model_name)
            write_patching(args.output_dir, list(splits), load_tokenizer(directory, args.revision))
        print_steering(summary)
        print(f"dose response: {args.output_dir / 'dose_response.png'}")
    stop_at_others(summary, args.output_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    return run_command(parser(), generate, argv)
