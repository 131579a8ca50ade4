"""Write the vectors of an autoencoder's most selective features: their activation profiles, or their decoder rows."""

import argparse
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.command import check_at_least, run_command
from afintro.data.files import file_sha256, new_file, write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.features import write_features
from afintro.tasks.feature_descriptions.profiles import (
    activation_profiles,
    by_signed_selectivity,
    map_array,
    most_selective,
)
from afintro.tasks.feature_descriptions.sae import Decoder, decoder_rows, find_decoder

DEFAULT_TOP_K = 500


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse combinations of arguments that argparse cannot refuse."""
    check_at_least(args, {"layer": 0})
    if not args.sae and not (args.activations and args.selectivity):
        what = "needs --activations and --selectivity, or --sae"
        raise UserError(what, where="command line", remedy="see --help")
    if not args.sae and args.layer is None:
        what = "is missing, and activations do not say of which layer they are"
        raise UserError(what, where="--layer", remedy="give the 0-based layer that the features belong to")
    if args.top_k is not None and not args.selectivity:
        what = f"is {args.top_k}, but without a selectivity the features have no order"
        raise UserError(what, where="--top_k", remedy="give --selectivity, or leave --top_k out to take all features")


def number_of_features(args: argparse.Namespace, decoder: Decoder | None) -> tuple[int, int]:
    """Return the number of features and the width of their vectors; matrix and autoencoder must agree."""
    texts, columns = map_array(Path(args.activations), 2).shape if args.activations else (0, 0)
    if decoder is None:
        return columns, texts
    if args.activations and columns != decoder.features:
        what = f"has {columns} columns, but the autoencoder has {decoder.features} features"
        raise UserError(what, where=args.activations, remedy="give the activations of this autoencoder")
    return decoder.features, decoder.width


def layer_of(args: argparse.Namespace, decoder: Decoder | None) -> int:
    """Return the layer that the features belong to: what the autoencoder says, else the flag."""
    layer = args.layer if decoder is None or decoder.layer is None else decoder.layer
    if layer is None:
        what = "names no layer, neither in a file beside the weights nor in the path"
        raise UserError(what, where=args.sae, remedy="give --layer, the 0-based layer to which the decoder writes")
    return int(layer)


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
    top_k = min(DEFAULT_TOP_K, features) if args.top_k is None else args.top_k
    chosen = most_selective(selectivity, top_k, args.selectivity)
    return chosen, by_signed_selectivity(selectivity, top_k, args.selectivity), selectivity


def extract(args: argparse.Namespace) -> dict[str, Any]:
    """Check everything before the first byte is written, then write the files; return the manifest."""
    check_arguments(args)
    decoder = find_decoder(Path(args.sae), args.layer) if args.sae else None
    layer = layer_of(args, decoder)
    features, width = number_of_features(args, decoder)
    chosen, ranked, selectivity = choose(args, features)
    source = Path(args.sae or args.activations)

    def vectors(indices: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        return decoder_rows(decoder, indices) if decoder else activation_profiles(source, indices)

    read = np.union1d(chosen, ranked)
    active = read[np.concatenate([block.any(axis=1) for block in vectors(read)])]
    indices, inactive = np.intersect1d(chosen, active), np.setdiff1d(chosen, active).tolist()
    if not len(indices):
        what = f"the decoder rows of all {len(chosen)} features are zero" if decoder else ""
        what = what or f"none of the {len(chosen)} features is ever active"
        raise UserError(what, where=str(source), remedy="check the files")
    files = {path: path for path in (args.activations, args.selectivity) if path}
    digests = {
        name: file_sha256(file) for name, file in (files | ({args.sae: decoder.file} if decoder else {})).items()
    }
    metadata = {
        "layer": str(layer),
        "source": str(source),
        "source_sha256": digests[str(args.sae or args.activations)],
        "kind": "decoder" if decoder else "activations",
    }
    if decoder:
        metadata |= {"weights": str(decoder.file), "tensor": decoder.tensor, "hook": decoder.hook}
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
    path = Path(args.output_dir) / "features" / f"layer_{layer}.safetensors"
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
    parser.add_argument(
        "--sae",
        help="file or folder of an autoencoder (SAELens, Gemma Scope, Llama Scope, sparsify, Goodfire, "
        "dictionary_learning): the vectors are its decoder rows instead",
    )
    parser.add_argument(
        "--top_k", type=int, help=f"how many features (default with --selectivity: {DEFAULT_TOP_K}, or all of fewer)"
    )
    parser.add_argument(
        "--layer",
        type=int,
        help="0-based layer that the features belong to (with --sae: which of several autoencoders; default: what its files say)",
    )
    parser.add_argument(
        "--output_dir", required=True, help="folder that gets features/layer_N.safetensors, .pkl, .manifest.json"
    )
    return run_command(parser, report, argv)


def layouts(args: argparse.Namespace, layer: str, pickled: dict[str, Any]) -> str:
    """Say how the two files of vectors differ."""
    chosen = ", of the largest selectivity of either sign" if args.selectivity else ""
    silent, absent, lacks = (len(pickled[name]) for name in ("never_fire", "not_in_safetensors", "only_in_safetensors"))
    features = (
        f"of its {pickled['features']} features {silent} are silent and {absent} are not in the safetensors file, "
        f"of which it lacks {lacks}"
    )
    return (
        f"layer_{layer}.safetensors (for afintro): [features, {'width' if args.sae else 'samples'}], by number{chosen}\n"
        f"layer_{layer}.pkl (for other tools): {pickled['activations']}, by {pickled['order']}; "
        f"{features if silent or absent or lacks else 'the same features'}"
    )


def decoder_place(metadata: dict[str, str]) -> str:
    """Say which tensor was read and where it writes."""
    hook = metadata["hook"] or f"layer {metadata['layer']} (its files name no hook)"
    text = f"decoder rows of {metadata['tensor'] or 'the matrix'} in {metadata['weights']}, which write to {hook}"
    before = ", the residual stream before that block: the layer is the number that the hook is named after"
    return text + (before if hook.endswith("hook_resid_pre") else "")


def report(args: argparse.Namespace) -> None:
    """Write the files and print the counts."""
    manifest = extract(args)
    counts, metadata = manifest["counts"], manifest["metadata"]
    print(f"layer {metadata['layer']}: {counts['written']} of {counts['features']} features, width {metadata['width']}")
    if args.sae:
        print(decoder_place(metadata))
    if args.selectivity:
        low, high = float(metadata["selectivity_min"]), float(metadata["selectivity_max"])
        print(f"selectivity {low:.3f} to {high:.3f}")
    print(layouts(args, metadata["layer"], manifest["pickle"]))
    if counts["never_fire"]:
        reason = "their decoder rows are zero" if args.sae else "they are never active (all zero)"
        print(f"left out because {reason}: {counts['never_fire']} features, listed in the manifest")


if __name__ == "__main__":
    sys.exit(main())
