"""Write descriptions of features, from clusters and their summaries or from a file of categories."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from afintro.command import run_command
from afintro.data.files import file_sha256, write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.descriptions import from_categories, from_clusters


def build(args: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Read and check the files, write the descriptions, and return cluster sizes and features without a label."""
    if args.categories and not (args.summaries or args.assignments):
        inputs = [args.categories]
        described, unlabeled = from_categories(args.categories)
    elif args.summaries and args.assignments and not args.categories:
        inputs = [args.summaries, args.assignments]
        described, unlabeled = from_clusters(args.summaries, args.assignments)
    else:
        what = "needs either --summaries and --assignments, or --categories"
        raise UserError(what, where="command line", remedy="see --help")
    clusters = Counter(description["cluster_id"] for description in described.values())
    folder = Path(args.output_dir)
    manifest = {
        "arguments": vars(args),
        "inputs": {path: file_sha256(path) for path in inputs},
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
    parser.add_argument("--summaries", help="JSON {cluster: summary}")
    parser.add_argument("--assignments", help="JSON {feature: cluster}")
    parser.add_argument("--categories", help="JSON {category: [{latent_id, reasoning, description}]}")
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
