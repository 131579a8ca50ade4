"""Write the vectors of an autoencoder's most selective features: their activation profiles, or their decoder rows."""

import argparse
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.command import run_command
from afintro.data.files import file_sha256, new_file, write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.features import write_features
from afintro.tasks.feature_descriptions.profiles import (
    activation_profiles,
    by_signed_selectivity,
    map_array,
    most_selective,
)
from afintro.tasks.feature_descriptions.sae import decoder_file, decoder_rows, decoder_width

DEFAULT_TOP_K = 500


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse combinations of arguments that argparse cannot refuse."""
    if args.layer < 0:
        raise UserError(f"must be at least 0, but is {args.layer}", where="--layer", remedy="use 0 or more")
    if not args.sae and not (args.activations and args.selectivity):
        what = "needs --activations and --selectivity, or --sae"
        raise UserError(what, where="command line", remedy="see --help")
    if args.top_k is not None and not args.selectivity:
        what = f"is {args.top_k}, but without a selectivity the features have no order"
        raise UserError(what, where="--top_k", remedy="give --selectivity, or leave --top_k out to take all features")


def number_of_features(args: argparse.Namespace) -> tuple[int, int]:
    """Return the number of features and the width of their vectors; matrix and autoencoder must agree."""
    texts, columns = map_array(Path(args.activations), 2).shape if args.activations else (0, 0)
    if not args.sae:
        return columns, texts
    features, width, layer = decoder_width(Path(args.sae))
    if args.activations and columns != features:
        what = f"has {columns} columns, but the autoencoder has {features} features"
        raise UserError(what, where=args.activations, remedy="give the activations of this autoencoder")
    if layer is not None and layer != args.layer:
        what = f"belongs to layer {layer}, but --layer is {args.layer}"
        raise UserError(what, where=args.sae, remedy="give the layer that the autoencoder was trained on")
    return features, width


def choose(args: argparse.Namespace, features: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any] | None]:
    """Choose the features to extract.

    Returns:
        The features of the safetensors file in ascending order, the features of the pickle in its order, and the
        selectivity if there is one.
    """
    if not args.selectivity:
        return np.arange(features), np.arange(features), None
    selectivity = map_array(Path(args.selectivity), 1)
    if len(selectivity) != features:
        what = f"holds {len(selectivity)} values for {features} features"
        raise UserError(what, where=args.selectivity, remedy="give the selectivity of these features")
    top_k = DEFAULT_TOP_K if args.top_k is None else args.top_k
    chosen = most_selective(selectivity, top_k, args.selectivity)
    return chosen, by_signed_selectivity(selectivity, top_k, args.selectivity), selectivity


def extract(args: argparse.Namespace) -> dict[str, Any]:
    """Check everything before the first byte is written, then write the files; return the manifest."""
    check_arguments(args)
    features, width = number_of_features(args)
    chosen, ranked, selectivity = choose(args, features)
    source = Path(args.sae or args.activations)

    def vectors(indices: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        return decoder_rows(source, indices) if args.sae else activation_profiles(source, indices)

    read = np.union1d(chosen, ranked)
    active = read[np.concatenate([block.any(axis=1) for block in vectors(read)])]
    indices, inactive = np.intersect1d(chosen, active), np.setdiff1d(chosen, active).tolist()
    if not len(indices):
        raise UserError(
            f"none of the {len(chosen)} features is ever active", where=str(source), remedy="check the files"
        )
    inputs = [Path(path) for path in (args.activations, args.selectivity, args.sae) if path]
    digests = {str(path): file_sha256(decoder_file(path)) for path in inputs}
    metadata = {
        "layer": str(args.layer),
        "source": str(source),
        "source_sha256": digests[str(source)],
        "kind": "decoder" if args.sae else "activations",
    }
    if selectivity is not None:
        kept = selectivity[indices]
        metadata |= {"selectivity_min": str(float(kept.min())), "selectivity_max": str(float(kept.max()))}
    manifest = {
        "arguments": vars(args),
        "inputs": digests,
        "counts": {"features": features, "chosen": len(chosen), "written": len(indices), "never_fire": len(inactive)},
        "never_fire": inactive,
        "pickle": {
            "activations": f"[{'width' if args.sae else 'samples'}, features]",
            "order": "number" if selectivity is None else "signed selectivity, the largest first",
            "features": len(ranked),
            "never_fire": np.setdiff1d(ranked, active).tolist(),
            "not_in_safetensors": np.setdiff1d(ranked, indices).tolist(),
            "only_in_safetensors": np.setdiff1d(indices, ranked).tolist(),
        },
        "metadata": metadata | {"width": str(width)},
    }
    path = Path(args.output_dir) / "features" / f"layer_{args.layer}.safetensors"
    write_features(path, vectors(indices), indices, width, metadata)
    write_pickle(path.with_suffix(".pkl"), vectors(np.sort(ranked)), ranked)
    write_json(path.with_suffix(".manifest.json"), manifest)
    return manifest


def write_pickle(path: Path, blocks: Iterator[NDArray[np.float32]], ranked: NDArray[np.int64]) -> None:
    """Pickle ``{"activations": [width, k], "feature_indices": [k]}`` for other tools; this project never reads it.

    A column is a feature, as in the matrix that activations come in, where the width is the number of samples.

    Args:
        path: File to write.
        blocks: Vectors [any number, width] of the features, in ascending order of the features.
        ranked: The features [k] in the order of the columns.
    """
    columns = np.concatenate(list(blocks)).T[:, np.argsort(np.argsort(ranked))]
    content = {"activations": np.ascontiguousarray(columns), "feature_indices": ranked}
    with new_file(path) as file:
        pickle.dump(content, file)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--activations", help=".npy file [texts, features]: the vectors are its columns")
    parser.add_argument("--selectivity", help=".npy file [features]: the largest absolute values are chosen")
    parser.add_argument("--sae", help="SAELens folder or safetensors file: the vectors are its decoder rows instead")
    parser.add_argument("--top_k", type=int, help=f"how many features (default with --selectivity: {DEFAULT_TOP_K})")
    parser.add_argument("--layer", type=int, required=True, help="0-based layer that the features belong to")
    parser.add_argument(
        "--output_dir", required=True, help="folder that gets features/layer_N.safetensors, .pkl, .manifest.json"
    )
    return run_command(parser, report, argv)


def layouts(args: argparse.Namespace, pickled: dict[str, Any]) -> str:
    """Say how the two files of vectors differ."""
    chosen = ", of the largest selectivity of either sign" if args.selectivity else ""
    return (
        f"layer_{args.layer}.safetensors (for afintro): [features, {'width' if args.sae else 'samples'}], by number{chosen}\n"
        f"layer_{args.layer}.pkl (for other tools): {pickled['activations']}, by {pickled['order']}; of its "
        f"{pickled['features']} features {len(pickled['never_fire'])} are silent and "
        f"{len(pickled['not_in_safetensors'])} are not in the safetensors file, of which it lacks "
        f"{len(pickled['only_in_safetensors'])}"
    )


def report(args: argparse.Namespace) -> None:
    """Write the files and print the counts."""
    manifest = extract(args)
    counts, metadata = manifest["counts"], manifest["metadata"]
    print(f"layer {args.layer}: {counts['written']} of {counts['features']} features, width {metadata['width']}")
    if args.selectivity:
        print(f"selectivity {metadata['selectivity_min']} to {metadata['selectivity_max']}")
    print(layouts(args, manifest["pickle"]))
    if counts["never_fire"]:
        print(
            f"left out because they are never active (all zero): {counts['never_fire']} features, listed in the manifest"
        )


if __name__ == "__main__":
    sys.exit(main())
