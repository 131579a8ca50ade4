"""The command that computes steering directions of an organism from a contrast of prompts."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from afintro.command import check_at_least, run_command
from afintro.data.files import file_sha256
from afintro.data.records import read_object
from afintro.data.text import template_hash
from afintro.errors import UserError
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.report import cell
from afintro.generation.command import add_sample_flags, check_device, read_named_samples
from afintro.generation.inputs import prompt_inputs, refuse_equal
from afintro.generation.run_folder import PROMPT_DATE
from afintro.lm.adapter import on_base
from afintro.lm.dtypes import resolve_dtype
from afintro.lm.load import context_length, fingerprint, load_config, load_model, load_tokenizer
from afintro.tasks.steering.contrasts import Contrast, label_contrast, monitoring_contrast, split_contrast
from afintro.tasks.steering.control_vectors import gguf_writer, write_gguf
from afintro.tasks.steering.directions import Direction, resolve_layers, write_direction
from afintro.tasks.steering.fit_directions import (
    METHODS,
    SITES,
    Computed,
    best_layer,
    compute_directions,
    encode_conversations,
    tied_layers,
)
from afintro.toys.embedded import ensure_built


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    flags = argparse.ArgumentParser(
        description="Compute steering directions of an organism from a contrast of prompts, and how well each layer "
        "separates the two."
    )
    add_sample_flags(flags, 8, "prompts in a forward pass")
    flags.add_argument(
        "--contrast",
        default="monitoring",
        choices=("monitoring", "label"),
        help="monitoring: each text without and with the cue; label: alignment_faking and aligned samples under the cue "
        "(default: %(default)s)",
    )
    flags.add_argument("--layers", nargs="+", help="0-based layers, or relative depths such as 0.5 (default: all)")
    flags.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="(default: all)")
    flags.add_argument(
        "--site",
        default="last",
        choices=SITES,
        help="last token of the prompt, or mean over its tokens (default: %(default)s)",
    )
    flags.add_argument(
        "--holdout",
        type=float,
        default=0.3,
        help="share of the scenarios that AUROC is measured on (default: %(default)s)",
    )
    flags.add_argument("--gguf", action="store_true", help="write METHOD.gguf for llama.cpp too (needs gguf)")
    return flags


def check_flags(args: argparse.Namespace) -> None:
    """Refuse values that argparse accepts.

    Raises:
        UserError: Names the flag.
    """
    check_at_least(args, {"batch_size": 1, "limit": 1})
    if not 0 < args.holdout < 1:
        what = f"must be between 0 and 1, but is {args.holdout}"
        raise UserError(what, where="--holdout", remedy="use a share between 0 and 1, such as 0.3")
    if args.gguf:
        gguf_writer("--gguf")
    check_device(args.device)


@dataclass(frozen=True)
class Organism:
    """What is known of a model before its weights are loaded.

    Args:
        directory: Hub id or directory.
        config: The configuration of the whole model.
        tokenizer: The model's tokenizer.
    """

    directory: str
    config: Any
    tokenizer: PreTrainedTokenizerBase


def settings_of(
    args: argparse.Namespace, contrast: Contrast, left_out: dict[str, int], organism: Organism, layers: list[int]
) -> dict[str, Any]:
    """Return everything that decides the directions, as JSON values; it is known before the model loads.

    Args:
        args: The command's arguments.
        contrast: The two classes of texts.
        left_out: Number of samples that were left out, by reason.
        organism: The model whose activations are read, not loaded yet.
        layers: 0-based decoder layers.
    """
    source = Path(args.input_path)
    parts = split_contrast(contrast, args.holdout, args.seed)
    return {
        "contrast": args.contrast,
        "classes": list(contrast.classes),
        "layers": layers,
        "site": args.site,
        "model": args.model_name,
        "model_type": organism.config.model_type,
        "revision": args.revision or getattr(organism.config, "_commit_hash", None),
        "fingerprint": fingerprint(organism.directory),
        "template_hash": template_hash(organism.tokenizer),
        **prompt_inputs(args.chat_template_kwargs, organism.tokenizer),
        "dtype": args.dtype,
        "device": args.device,
        "batch_size": args.batch_size,
        "source": args.input_path,
        "split": args.split,
        "source_sha256": file_sha256(source) if source.is_file() else None,
        **({"label_names": args.label_names} if args.label_names else {}),
        **({"text_field": args.text_field} if args.text_field else {}),
        "limit": args.limit,
        "holdout": args.holdout,
        "seed": args.seed,
        "n": {
            name: {"train": len(parts.train[side]), "heldout": len(parts.heldout[side])}
            for side, name in enumerate(contrast.classes)
        },
        "left_out": left_out,
    }


def earlier_date(output_dir: Path, methods: Sequence[str]) -> str | None:
    """Return the date in the prompts of directions that were computed into this folder before; None without such a date."""
    sidecars = [output_dir / f"{method}.json" for method in methods]
    dates = [read_object(sidecar).get(PROMPT_DATE) for sidecar in sidecars if sidecar.is_file()]
    return next(filter(None, dates), None)


def refuse_other(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to overwrite directions of other settings, or of unknown origin.

    Raises:
        UserError: The file exists, and its sidecar is missing or names other settings.
    """
    sidecar, remedy = path.with_suffix(".json"), "use another --output_dir, or remove the file"
    if not sidecar.is_file():
        if path.exists():
            raise UserError("exists, without a sidecar that says what it holds", where=str(path), remedy=remedy)
        return
    existing = read_object(sidecar)
    keys = [key for key, value in settings.items() if existing.get(key) != value]
    if keys:
        differences = "; ".join(f"{key}: was {existing.get(key)!r}, is {settings[key]!r}" for key in keys)
        raise UserError(f"is of other settings ({differences})", where=str(sidecar), remedy=remedy)


def check_prompts(contrast: Contrast, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> None:
    """Refuse a prompt that is too long before the model loads.

    Args:
        contrast: The conversations.
        tokenizer: The model's tokenizer.
        limit: The model's context in tokens; None if it is unknown.

    Raises:
        UserError: A prompt is longer than the context, or a text has the same prompt in both classes.
    """
    encoded = []
    for name, conversations in zip(contrast.classes, contrast.conversations, strict=True):
        encoded.append(encode_conversations(tokenizer, conversations, limit, f"class {name!r}, conversation"))
    if contrast.scenarios[0] == contrast.scenarios[1]:  # the same texts under two system prompts
        for index, pair in enumerate(zip(*encoded, strict=True)):
            refuse_equal(pair, tokenizer, f"sample {index}")


def sidecar_of(settings: dict[str, Any], method: str, computed: Computed, depth: int) -> dict[str, Any]:
    """Return settings and results of one method, the content of the file beside its vectors.

    Args:
        settings: What :func:`settings_of` returned.
        method: Name of the method.
        computed: Results of all methods.
        depth: Number of layers of the model.
    """
    auroc = computed.auroc[method]
    return {
        **settings,
        "method": method,
        "best_layer": best_layer(auroc, depth),
        "tied_layers": tied_layers(auroc),
        "per_layer": {
            str(layer): {
                "norm": float((vector.astype("float64") ** 2).sum() ** 0.5),
                "residual_norm": computed.residual_norm[layer],
                "auroc": auroc[layer].as_json(),
            }
            for layer, vector in computed.vectors[method].items()
        },
    }


def print_table(computed: Computed, name: str, layers: Sequence[int], depth: int) -> None:
    """Print the AUROC of every layer and method, then the best method and layer, and the layers that do as well.

    Args:
        computed: Results of all methods.
        name: Name of the direction.
        layers: 0-based decoder layers, in the order of the rows.
        depth: Number of layers of the model.
    """
    method = max(computed.vectors, key=lambda method: _highest(computed.auroc[method]))
    chosen = best_layer(computed.auroc[method], depth)
    count = computed.auroc[method][chosen].n
    table = Table(title=f"direction {name!r}: AUROC [95 % interval] on {count} held-out conversations")
    table.add_column("layer", justify="right")
    for each in computed.vectors:
        table.add_column(each, justify="right")
    for layer in layers:
        table.add_row(str(layer), *(cell(computed.auroc[each][layer]) for each in computed.vectors))
    console = Console()
    console.print(table)
    for line in best_lines(computed.auroc[method], method, depth):
        console.print(line, highlight=False, markup=False)


def _highest(auroc: Mapping[int, Estimate]) -> float:
    return max(estimate.value or 0.0 for estimate in auroc.values())


def best_lines(auroc: Mapping[int, Estimate], method: str, depth: int) -> list[str]:
    """Return what is printed of the best layer, and of the layers from which it cannot be told.

    Args:
        auroc: AUROC of a method by layer.
        method: Name of the method.
        depth: Number of layers of the model.
    """
    chosen, tied = best_layer(auroc, depth), tied_layers(auroc)
    lines = [f"best: {method} at layer {chosen}, AUROC {cell(auroc[chosen])}, n = {auroc[chosen].n}"]
    if len(tied) > 1:
        lines.append(
            f"layers {_ranges(tied)} cannot be told apart by this AUROC; layer {chosen} is the one nearest to the "
            "middle of the model, where published steering works. Where it works here, the dose response of "
            "generate_af_steering_data.py says"
        )
    return lines


def _ranges(layers: Sequence[int]) -> str:
    """Return ascending numbers as text, with runs as ``2 to 5``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def compute(args: argparse.Namespace) -> None:
    """Check everything that can be checked before the model loads, then read, fit, write and print.

    Raises:
        UserError: A flag, the samples, the model or the output folder cannot be used.
    """
    check_flags(args)
    args.model_name = on_base(args.model_name, args.base)
    samples = read_named_samples(args)
    contrast, left_out = label_contrast(samples) if args.contrast == "label" else (monitoring_contrast(samples), {})
    split_contrast(contrast, args.holdout, args.seed)  # to fail before a toy is trained
    directory = ensure_built(args.model_name)
    args.dtype = resolve_dtype(args.dtype, directory, args.revision, args.device)
    methods = list(dict.fromkeys(args.methods))
    config, date = load_config(directory, args.revision), earlier_date(args.output_dir, methods)
    tokenizer = load_tokenizer(directory, args.revision, args.chat_template_kwargs, date)
    depth = config.get_text_config().num_hidden_layers
    layers = layers_of(args, depth)
    settings = settings_of(args, contrast, left_out, Organism(directory, config, tokenizer), layers)
    for method in methods:
        refuse_other(args.output_dir / f"{method}.safetensors", settings)
    check_prompts(contrast, tokenizer, context_length(config.get_text_config()))
    make_folder(args.output_dir)
    model: Any = load_model(directory, args.revision, args.dtype).to(args.device)
    with tqdm(total=sum(map(len, contrast.conversations)), desc="reading", unit="prompt", mininterval=2) as bar:
        computed = compute_directions(
            model, tokenizer, contrast, layers, methods, args.holdout, args.seed, args.batch_size, args.site, bar.update
        )
    for method in methods:
        metadata = sidecar_of(settings, method, computed, depth)
        write(args, Direction(contrast.name, computed.vectors[method], None, metadata))
    if left_out:
        print("left out: " + ", ".join(f"{count} samples labeled {label}" for label, count in left_out.items()))
    print_table(computed, contrast.name, layers, depth)


def layers_of(args: argparse.Namespace, depth: int) -> list[int]:
    """Return the layers that the flags ask for, of a model with ``depth`` layers.

    Raises:
        UserError: The model lacks a layer, or no layer is left for a control vector.
    """
    layers = list(range(depth)) if args.layers is None else resolve_layers(args.layers, depth, "--layers")
    if args.gguf and layers == [0]:
        what = "is layer 0 alone, where llama.cpp has no control vector"
        raise UserError(what, where="--layers", remedy="add another layer, or leave out --gguf")
    return layers


def make_folder(output_dir: Path) -> None:
    """Make the output folder, before the model loads.

    Raises:
        UserError: The folder cannot be created.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot be created ({error.strerror})"
        raise UserError(what, where=str(output_dir), remedy="use another --output_dir") from error


def write(args: argparse.Namespace, direction: Direction) -> None:
    """Write the files of one method."""
    path = args.output_dir / f"{direction.metadata['method']}.safetensors"
    write_direction(path, direction)
    if args.gguf:
        for layer in write_gguf(path.with_suffix(".gguf"), direction):
            print(f"{path.with_suffix('.gguf')}: without layer {layer}, where llama.cpp has no control vector")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    return run_command(parser(), compute, argv)
