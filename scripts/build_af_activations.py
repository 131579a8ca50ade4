"""Write which texts activate which features as a matrix, and how selective each feature is for alignment faking."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afintro.command import run_command
from afintro.data.files import file_sha256, new_file, write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.activations import activation_matrix, read_activations, selectivity


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Read and check the file, write matrix, selectivity and manifest, and return the counts."""
    if args.width < 1:
        raise UserError(f"must be at least 1, but is {args.width}", where="--width", remedy="use 1 or more")
    activations = read_activations(args.firings)
    selective = selectivity(activations, args.width)  # checks the features too, before anything is written
    counts = {
        "texts": len(activations.texts),
        "labels": dict(Counter(activations.labels).most_common()),
        "width": args.width,
        "features_that_fire": len(activations.activating),
        "firings": sum(map(len, activations.activating.values())),
    }
    folder = Path(args.output_dir)
    activation_matrix(activations, args.width, folder / "activations.npy")
    with new_file(folder / "selectivity.npy") as file:
        np.save(file, selective)
    inputs = {args.firings: file_sha256(args.firings)}
    write_json(folder / "activations.manifest.json", {"arguments": vars(args), "inputs": inputs, "counts": counts})
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firings", required=True, help="JSON {samples: {id: {text, label, fired_features}}}")
    parser.add_argument("--output_dir", required=True, help="folder that gets activations.npy and selectivity.npy")
    parser.add_argument(
        "--width", type=int, default=16384, help="number of features of the autoencoder (default: 16384)"
    )
    return run_command(parser, report, argv)


def report(args: argparse.Namespace) -> None:
    """Write the files and print the counts."""
    counts = build(args)
    print(f"{counts['texts']} texts: {', '.join(f'{count} {label}' for label, count in counts['labels'].items())}")
    print(
        f"{counts['features_that_fire']} of {counts['width']} features are ever active, {counts['firings']} activations in all"
    )


if __name__ == "__main__":
    sys.exit(main())
