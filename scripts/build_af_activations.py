"""Write which texts activate which features as a matrix, and how selective each feature is for alignment faking."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.command import run_command
from afintro.data.files import file_sha256, new_file, write_json
from afintro.errors import UserError
from afintro.generation.command import add_label_flags
from afintro.tasks.feature_descriptions.activations import activation_matrix, read_activations, selectivity
from afintro.tasks.feature_descriptions.matrix_labels import matrix_selectivity, read_labels


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Read and check the file, write matrix, selectivity and manifest, and return the counts."""
    if args.width < 1:
        raise UserError(f"must be at least 1, but is {args.width}", where="--width", remedy="use 1 or more")
    activations = read_activations(args.firings, args.split, args.label_names)
    selective = selectivity(activations, args.width)  # checks the features too, before anything is written
    counts = {
        "texts": len(activations.texts),
        "labels": dict(Counter(activations.labels).most_common()),
        "width": args.width,
        "features_that_fire": len(activations.activating),
        "firings": sum(map(len, activations.activating.values())),
    }
    activation_matrix(activations, args.width, Path(args.output_dir) / "activations.npy")
    write(args, selective, counts, "activations.manifest.json")
    return counts


def build_selectivity(args: argparse.Namespace) -> dict[str, Any]:
    """Read labels and the matrix beside them, write selectivity and manifest, and return the counts."""
    labels = read_labels(args.labels, args.split, args.label_names)
    selective = matrix_selectivity(Path(args.activations), labels, args.labels)
    counts = {"texts": len(labels), "labels": dict(Counter(labels).most_common()), "width": len(selective)}
    write(args, selective, counts, "selectivity.manifest.json")
    return counts


def write(args: argparse.Namespace, selective: NDArray[np.float64], counts: dict[str, Any], manifest: str) -> None:
    """Write the selectivity, and the manifest that says what it was made of."""
    folder = Path(args.output_dir)
    with new_file(folder / "selectivity.npy") as file:
        np.save(file, selective)
    given = [path for path in (args.firings, args.activations, args.labels) if path]
    inputs = {path: file_sha256(path) for path in given if Path(path).is_file()}
    write_json(folder / manifest, {"arguments": vars(args), "inputs": inputs, "counts": counts})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--firings",
        help="JSON {samples: {id: {text, label, fired_features}}}; also JSONL, Parquet or a dataset of such rows",
    )
    parser.add_argument(
        "--activations", help="instead: .npy file [texts, features], of which the selectivity is computed"
    )
    parser.add_argument(
        "--labels", help="label of each row of --activations: JSON {labels: [...]}, or any file of samples"
    )
    parser.add_argument("--output_dir", required=True, help="folder that gets activations.npy and selectivity.npy")
    add_label_flags(parser)
    parser.add_argument(
        "--width", type=int, default=16384, help="number of features of the autoencoder (default: 16384)"
    )
    return run_command(parser, report, argv)


def report(args: argparse.Namespace) -> None:
    """Write the files and print the counts."""
    if bool(args.activations) != bool(args.labels) or bool(args.firings) == bool(args.activations):
        what = "needs either --firings, or --activations and --labels"
        raise UserError(what, where="command line", remedy="see --help")
    counts = build(args) if args.firings else build_selectivity(args)
    print(f"{counts['texts']} texts: {', '.join(f'{count} {label}' for label, count in counts['labels'].items())}")
    if args.firings:
        print(
            f"{counts['features_that_fire']} of {counts['width']} features are ever active, {counts['firings']} activations in all"
        )


if __name__ == "__main__":
    sys.exit(main())
