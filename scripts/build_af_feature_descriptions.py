"""Write descriptions of features, from clusters, categories, descriptions one by one, or exports of Neuronpedia."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from afintro.command import run_command
from afintro.data.files import file_sha256, write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.clusters import from_clusters
from afintro.tasks.feature_descriptions.descriptions import Description, from_categories
from afintro.tasks.feature_descriptions.latents import from_latents
from afintro.tasks.feature_descriptions.neuronpedia import from_neuronpedia


def described_by(args: argparse.Namespace) -> tuple[list[str], tuple[dict[str, Description], list[str]]]:
    """Return the paths that were given, and the descriptions and features without a label that they hold."""
    given = [name for name in ("summaries", "categories", "latents", "neuronpedia") if getattr(args, name)]
    extra = {"assignments": ("summaries", "latents"), "source": ("neuronpedia",)}
    lost = [name for name, users in extra.items() if getattr(args, name) and not set(given) & set(users)]
    if len(given) != 1 or lost:
        what = "needs either --summaries and --assignments, or --categories, or --latents, or --neuronpedia"
        raise UserError(what, where="command line", remedy="see --help")
    paths = [path for path in (getattr(args, given[0]), args.assignments) if path]
    if args.summaries:
        return paths, from_clusters(args.summaries, args.assignments)
    if args.latents:
        return paths, from_latents(args.latents, args.assignments)
    return paths, from_categories(args.categories) if args.categories else from_neuronpedia(
        args.neuronpedia, args.source
    )


def digests(paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of some files, and of all files of folders."""
    files = [file for path in map(Path, paths) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {str(file): file_sha256(file) for file in files if file.is_file()}


def build(args: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Read and check the files, write the descriptions, and return cluster sizes and features without a label."""
    inputs, (described, unlabeled) = described_by(args)
    clusters = Counter(description["cluster_id"] for description in described.values())
    folder = Path(args.output_dir)
    manifest = {
        "arguments": vars(args),
        "inputs": digests(inputs),
        "counts": {"described": len(described), "unlabelled": len(unlabeled), "clusters": len(clusters)},
        "clusters": dict(clusters.most_common()),
    }
    write_json(folder / "descriptions.json", described)
    write_json(folder / "unlabelled.json", unlabeled)
    write_json(folder / "descriptions.manifest.json", manifest)
    return clusters, unlabeled


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--summaries", help="JSON {cluster: summary}, or a list of {cluster_id, representative_desc, feature_ids}"
    )
    parser.add_argument("--assignments", help="JSON {feature: cluster}; null and -1 stand for no cluster")
    parser.add_argument("--categories", help="JSON {category: [{latent_id, reasoning, description}]}")
    parser.add_argument(
        "--latents",
        help="JSONL or JSON list of {latent_id, description}, e.g. layer_40.jsonl, or a folder of such files",
    )
    parser.add_argument("--neuronpedia", help="export of explanations: .jsonl, .jsonl.gz, or the folder of its batches")
    parser.add_argument("--source", help="which autoencoder of the export, e.g. 20-gemmascope-res-16k")
    parser.add_argument("--output_dir", required=True, help="folder that gets descriptions.json and unlabelled.json")
    return run_command(parser, report, argv)


def report(args: argparse.Namespace) -> None:
    """Write the files and print the counts."""
    clusters, unlabeled = build(args)
    largest, size = clusters.most_common(1)[0]
    print(f"{clusters.total()} features described, in {len(clusters)} clusters")
    print(f"largest cluster {largest!r}: {size} features, {size / clusters.total():.1%}")
    print(f"{len(unlabeled)} features without a label, listed in unlabelled.json")


if __name__ == "__main__":
    sys.exit(main())
