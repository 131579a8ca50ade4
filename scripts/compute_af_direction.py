"""Compute steering directions of an organism from a contrast of prompts, and how well each layer separates the two."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.files import file_sha256
from afintro.data.records import scenario_id
from afintro.data.samples import Sample, read_object, read_samples
from afintro.data.text import chat, template_hash
from afintro.errors import UserError
from afintro.evaluation.report import cell
from afintro.lm.devices import default_device
from afintro.lm.load import context_length, fingerprint, load_config, load_model, load_tokenizer
from afintro.tasks.steering.directions import Direction, gguf_writer, resolve_layers, write_direction, write_gguf
from afintro.tasks.steering.fit_directions import (
    METHODS,
    SITES,
    Computed,
    Contrast,
    compute_directions,
    encode_conversations,
    split_contrast,
)
from afintro.toys.embedded import ensure_built


def monitoring_contrast(samples: Sequence[Sample]) -> Contrast:
    """Every text without the monitoring cue (class 1) and with it (class 0)."""
    scenarios = [scenario_id(sample.text) for sample in samples]
    monitored, unmonitored = (
        [chat(cue, sample.text) for sample in samples] for cue in (MONITORED_SYSTEM, UNMONITORED_SYSTEM)
    )
    return Contrast(("monitored", "unmonitored"), (monitored, unmonitored), (scenarios, scenarios))


def label_contrast(samples: Sequence[Sample]) -> tuple[Contrast, dict[str, int]]:
    """Texts labelled ``alignment_faking`` (class 1) and ``aligned`` (class 0), and how often each other label occurs."""
    classes = ("aligned", "alignment_faking")
    texts0, texts1 = ([sample.text for sample in samples if sample.label == label] for label in classes)
    zero, one = ([chat(MONITORED_SYSTEM, text) for text in texts] for texts in (texts0, texts1))
    ids0, ids1 = ([scenario_id(text) for text in texts] for texts in (texts0, texts1))
    others = Counter(sample.label for sample in samples if sample.label not in classes)
    return Contrast(classes, (zero, one), (ids0, ids1)), dict(sorted(others.items()))


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that argparse cannot."""
    for name in ("batch_size", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"is {value}", where=f"--{name}", remedy="use 1 or more")
    if not 0 < args.holdout < 1:
        raise UserError(f"is {args.holdout}", where="--holdout", remedy="use a share between 0 and 1, such as 0.3")
    if args.gguf:
        gguf_writer("--gguf")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        what = f"{args.device!r} is no device here"
        raise UserError(what, where="--device", remedy="use cpu, or cuda where there is one") from error


@dataclass(frozen=True)
class Organism:
    """What is known of a model before its weights are loaded."""

    directory: str
    config: Any
    tokenizer: PreTrainedTokenizerBase


def settings_of(
    args: argparse.Namespace, contrast: Contrast, left_out: dict[str, int], organism: Organism, layers: list[int]
) -> dict[str, Any]:
    """What decides the directions, known before the model loads."""
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
        "dtype": args.dtype,
        "device": args.device,
        "batch_size": args.batch_size,
        "source": args.input_path,
        "split": args.split,
        "source_sha256": file_sha256(source) if source.is_file() else None,
        "limit": args.limit,
        "holdout": args.holdout,
        "seed": args.seed,
        "n": {
            name: {"train": len(parts.train[side]), "heldout": len(parts.heldout[side])}
            for side, name in enumerate(contrast.classes)
        },
        "left_out": left_out,
    }


def refuse_other(path: Path, settings: dict[str, Any]) -> None:
    """Directions of other settings, or of unknown origin, are not overwritten."""
    sidecar, remedy = path.with_suffix(".json"), "use another --output_dir, or remove the file"
    if not sidecar.is_file():
        if path.exists():
            raise UserError("exists, without a sidecar that tells of what", where=str(path), remedy=remedy)
        return
    other = read_object(sidecar)
    keys = [key for key, value in settings.items() if other.get(key) != value]
    if keys:
        differences = "; ".join(f"{key}: {other.get(key)!r} there, {settings[key]!r} now" for key in keys)
        raise UserError(f"is of other settings ({differences})", where=str(sidecar), remedy=remedy)


def check_prompts(contrast: Contrast, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> None:
    """A prompt that is too long is found out before the model loads."""
    for name, conversations in zip(contrast.classes, contrast.conversations, strict=True):
        encode_conversations(tokenizer, conversations, limit, f"class {name!r}, conversation")


def sidecar_of(settings: dict[str, Any], method: str, computed: Computed) -> dict[str, Any]:
    """Settings and results of one method."""
    auroc = computed.auroc[method]
    return {
        **settings,
        "method": method,
        "best_layer": best_layer(computed, method),
        "per_layer": {
            str(layer): {
                "norm": float((vector.astype("float64") ** 2).sum() ** 0.5),
                "residual_norm": computed.residual_norm[layer],
                "auroc": auroc[layer].as_json(),
            }
            for layer, vector in computed.vectors[method].items()
        },
    }


def best_layer(computed: Computed, method: str) -> int:
    """That of the highest AUROC; of equals the lowest."""
    auroc = computed.auroc[method]
    return max(auroc, key=lambda layer: (auroc[layer].value or 0.0, -layer))


def print_table(computed: Computed, name: str, layers: Sequence[int]) -> None:
    """AUROC of every layer and method, then the best of each."""
    table = Table(title=f"direction {name!r}: AUROC [95 % interval] on held-out scenarios")
    table.add_column("layer", justify="right")
    for method in computed.vectors:
        table.add_column(method, justify="right")
    for layer in layers:
        table.add_row(str(layer), *(cell(computed.auroc[method][layer]) for method in computed.vectors))
    console = Console()
    console.print(table)
    method = max(computed.vectors, key=lambda method: computed.auroc[method][best_layer(computed, method)].value or 0.0)
    layer = best_layer(computed, method)
    best = f"best: {method} at layer {layer}, AUROC {cell(computed.auroc[method][layer])}"
    console.print(best, highlight=False, markup=False)


def compute(args: argparse.Namespace) -> None:
    """Check all that can be checked before the model loads, then read, fit, write and print."""
    check_arguments(args)
    samples = read_samples(args.input_path, args.split)[: args.limit]
    contrast, left_out = label_contrast(samples) if args.contrast == "label" else (monitoring_contrast(samples), {})
    split_contrast(contrast, args.holdout, args.seed)  # fails before a toy is trained
    directory = ensure_built(args.model_name)
    config, tokenizer = load_config(directory, args.revision), load_tokenizer(directory, args.revision)
    layers = layers_of(args, config.get_text_config().num_hidden_layers)
    settings = settings_of(args, contrast, left_out, Organism(directory, config, tokenizer), layers)
    methods = list(dict.fromkeys(args.methods))
    for method in methods:
        refuse_other(args.output_dir / f"{method}.safetensors", settings)
    check_prompts(contrast, tokenizer, context_length(config.get_text_config()))
    make(args.output_dir)
    model: Any = load_model(directory, args.revision, args.dtype).to(args.device)
    with tqdm(total=sum(map(len, contrast.conversations)), desc="reading", unit="prompt", mininterval=2) as bar:
        computed = compute_directions(
            model, tokenizer, contrast, layers, methods, args.holdout, args.seed, args.batch_size, args.site, bar.update
        )
    for method in methods:
        metadata = sidecar_of(settings, method, computed)
        write(args, Direction(contrast.name, computed.vectors[method], None, metadata))
    if left_out:
        print("left out: " + ", ".join(f"{count} samples labelled {label}" for label, count in left_out.items()))
    print_table(computed, contrast.name, layers)


def layers_of(args: argparse.Namespace, depth: int) -> list[int]:
    """The layers asked for, of so many."""
    layers = list(range(depth)) if args.layers is None else resolve_layers(args.layers, depth, "--layers")
    if args.gguf and layers == [0]:
        what = "is layer 0 alone, where llama.cpp has no control vector"
        raise UserError(what, where="--layers", remedy="add another layer, or leave out --gguf")
    return layers


def make(output_dir: Path) -> None:
    """A folder that cannot be made is found out before the model loads."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot be made ({error.strerror})"
        raise UserError(what, where=str(output_dir), remedy="use another --output_dir") from error


def write(args: argparse.Namespace, direction: Direction) -> None:
    """The files of one method."""
    path = args.output_dir / f"{direction.metadata['method']}.safetensors"
    write_direction(path, direction)
    if args.gguf:
        for layer in write_gguf(path.with_suffix(".gguf"), direction):
            print(f"{path.with_suffix('.gguf')}: without layer {layer}, where llama.cpp has no control vector")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--input_path", required=True, help="JSON, JSONL or Parquet file, dataset directory or hub id")
    flags.add_argument("--split", help="split of a dataset (default: train)")
    flags.add_argument("--output_dir", required=True, type=Path, help="gets METHOD.safetensors and METHOD.json")
    flags.add_argument("--model_name", required=True, help="hub id, local directory, PEFT adapter directory, or toy")
    flags.add_argument("--revision", help="branch, tag or commit on the hub")
    flags.add_argument(
        "--contrast", default="monitoring", choices=("monitoring", "label"),
        help="monitoring: each text without and with the cue; label: alignment_faking and aligned samples under the cue",
    )  # fmt: skip
    flags.add_argument("--layers", nargs="+", help="0-based layers, or relative depths such as 0.5 (default: all)")
    flags.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    flags.add_argument(
        "--site", default="last", choices=SITES, help="last token of the prompt, or mean over its tokens"
    )
    flags.add_argument("--holdout", type=float, default=0.3, help="share of the scenarios that AUROC is measured on")
    flags.add_argument("--batch_size", type=int, default=8, help="prompts a forward pass")
    flags.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    flags.add_argument("--device", default=default_device())
    flags.add_argument("--limit", type=int, help="use the first so many samples")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--gguf", action="store_true", help="write METHOD.gguf for llama.cpp too (needs gguf)")
    return flags


def main() -> int:
    """Parse, call, report; exit code 2 for wrong input."""
    args = parser().parse_args()
    try:
        compute(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
