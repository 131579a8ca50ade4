"""Write the activation matrix of a file of firings, and how selectively each feature fires on alignment faking."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from afintro.data.files import file_sha256, new_file, write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.activations import activation_matrix, read_firings, selectivity


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Read, check, write; gives the counts."""
    if args.width < 1:
        raise UserError(f"is {args.width}", where="--width", remedy="use 1 or more")
    firings = read_firings(args.firings)
    selective = selectivity(firings, args.width)  # checks the features too, before anything is written
    counts = {
        "texts": len(firings.texts),
        "labels": dict(Counter(firings.labels).most_common()),
        "width": args.width,
        "features_that_fire": len(firings.fired),
        "firings": sum(map(len, firings.fired.values())),
    }
    folder = Path(args.output_dir)
    activation_matrix(firings, args.width, folder / "activations.npy")
    with new_file(folder / "selectivity.npy") as file:
        np.save(file, selective)
    inputs = {args.firings: file_sha256(args.firings)}
    write_json(folder / "activations.manifest.json", {"arguments": vars(args), "inputs": inputs, "counts": counts})
    return counts


def main() -> int:
    """Parse, call, report; exit code 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firings", required=True, help="JSON {samples: {id: {text, label, fired_features}}}")
    parser.add_argument("--output_dir", required=True, help="gets activations.npy and selectivity.npy")
    parser.add_argument("--width", type=int, default=16384, help="features of the autoencoder (default: 16384)")
    args = parser.parse_args()
    try:
        counts = build(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{counts['texts']} texts: {', '.join(f'{count} {label}' for label, count in counts['labels'].items())}")
    print(f"{counts['features_that_fire']} of {counts['width']} features ever fire, {counts['firings']} times in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
