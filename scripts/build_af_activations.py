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
from afintro.tasks.feature_descriptions.activations import (
    CONTRAST,
    activation_matrix,
    activation_rates,
    read_activations,
    selectivity,
)
from afintro.tasks.feature_descriptions.matrix_labels import matrix_rates, matrix_selectivity, read_labels
from afintro.tasks.feature_descriptions.several_sets import FeatureSet, named_sources, over_sets


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


def build_sets(args: argparse.Namespace) -> dict[str, Any]:
    """Make the files of every set in a folder of its name, and follow the selective features over the sets."""
    flags = ("firings",) if args.firings else ("activations", "labels")
    named = {flag: named_sources(getattr(args, flag), f"--{flag}") for flag in flags}
    names = list(named[flags[0]])
    if args.labels:
        if len(named["labels"]) != len(names):
            raise UserError(
                f"gives {len(named['labels'])} files for {len(names)} sets",
                where="--labels",
                remedy="give one for each",
            )
        common = {*names} & {*named["labels"]}
        if common and len(common) < len(names):
            what = f"names {', '.join(named['labels'])}, the activations {', '.join(names)}"
            raise UserError(what, where="--labels", remedy="use the same names")
        if not common:  # files of other names belong together by their order
            named["labels"] = dict(zip(names, named["labels"].values(), strict=True))
    sets = {name: read_set(args, {flag: sources[name] for flag, sources in named.items()}) for name in names}
    followed = over_sets(sets)  # refuses sets that do not go together, before anything is written
    counts = {}
    for name in names:
        own = {flag: sources[name] for flag, sources in named.items()}
        alone = argparse.Namespace(**{**vars(args), **own, "output_dir": str(Path(args.output_dir) / name)})
        counts[name] = build(alone) if args.firings else build_selectivity(alone)
    write_json(Path(args.output_dir) / "selectivity_over_sets.json", followed)
    return {"sets": counts, "over_sets": followed}


def read_set(args: argparse.Namespace, sources: dict[str, str]) -> FeatureSet:
    """Read how often each feature is active on both kinds of texts of a set."""
    if args.firings:
        activations = read_activations(sources["firings"], args.split, args.label_names)
        rates, labels = activation_rates(activations, args.width), list(activations.labels)
    else:
        labels = read_labels(sources["labels"], args.split, args.label_names)
        rates = matrix_rates(Path(sources["activations"]), labels, sources["labels"])
    faking, aligned = (labels.count(label) for label in CONTRAST)
    return FeatureSet(rates[0] - rates[1], rates, (faking, aligned))


def print_sets(found: dict[str, Any]) -> None:
    """Print the counts of each set, and how far each agrees with the first."""
    for name, counts in found["sets"].items():
        print(f"{name}: {texts_of(counts)}")
    followed = found["over_sets"]
    print(
        f"{followed['followed']} features followed, the most selective on {followed['first']}; on "
        f"{followed['apart_from_0']} of them the interval is apart from 0, and of these:"
    )
    for name, agreement in followed["sets"].items():
        same, holds = (
            "-" if agreement[key] is None else f"{100 * agreement[key]:.0f} %" for key in ("same_sign", "holds")
        )
        rank = "-" if agreement["spearman"] is None else f"{agreement['spearman']:+.2f}"
        print(f"  {name}: {same} have the same sign, {holds} beyond their interval; rank correlation {rank}")


def texts_of(counts: dict[str, Any]) -> str:
    """Return how many texts there are, and how many of each label."""
    return f"{counts['texts']} texts: {', '.join(f'{count} {label}' for label, count in counts['labels'].items())}"


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
        nargs="+",
        help="JSON {samples: {id: {text, label, fired_features}}}; also JSONL, Parquet or a dataset of such rows; several "
        "sets of texts as NAME=PATH, each of which gets a folder",
    )
    parser.add_argument(
        "--activations",
        nargs="+",
        help="instead: .npy file [texts, features], of which the selectivity is computed; several as NAME=PATH",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        help="label of each row of --activations: JSON {labels: [...]}, or any file of samples; one for each set",
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
    if len(args.firings or args.activations) > 1:
        print_sets(build_sets(args))
        return
    for name in ("firings", "activations", "labels"):  # the manifest holds a path, as before there were several
        setattr(args, name, next(iter(getattr(args, name) or []), None))
    counts = build(args) if args.firings else build_selectivity(args)
    print(texts_of(counts))
    if args.firings:
        print(
            f"{counts['features_that_fire']} of {counts['width']} features are ever active, {counts['firings']} activations in all"
        )


if __name__ == "__main__":
    sys.exit(main())
