"""Measure how well the behavior rules agree with labels given by hand.

Prints agreement and Cohen's kappa with 95 % bootstrap intervals over items (seed 0), and the confusion matrix, for the
half on which the rules were tuned, for the half held back from tuning, and for both; the parts of each half by source.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.command import run_command
from afintro.errors import UserError
from afintro.evaluation.intervals import Clusters, Floats
from afintro.generation.behavior import LABELS, RuleLabeler

Labels = NDArray[np.int64]
ROOT = Path(__file__).resolve().parents[1]
HAND_LABELS = ROOT / "tests" / "generation" / "behavior_hand_labels.json"
HALVES = {"development": "development", "held_back": "held back"}


def texts(data: Path, items: Sequence[dict[str, Any]]) -> list[str]:
    """Read the labeled texts.

    Args:
        data: Folder of the texts.
        items: The labels; ``file`` is relative to the folder, ``index`` counts the file's samples from 0.

    Raises:
        UserError: A text file is missing.
    """
    names = sorted({item["file"] for item in items})
    if missing := [name for name in names if not (data / name).is_file()]:
        what = f"does not hold {missing[0]}"
        raise UserError(what, where=str(data), remedy="give the folder of the sample texts with --data DIR")
    files = {name: json.loads((data / name).read_text()) for name in names}
    samples = {name: file if isinstance(file, list) else file["samples"] for name, file in files.items()}
    found = [samples[item["file"]][item["index"]] for item in items]
    return [sample["text"] if "text" in sample else sample["response"] for sample in found]


def confusion(hand: Labels, rule: Labels, weights: Floats) -> Floats:
    """[label by hand, label by rule]: sum of the weights of such items."""
    size = len(LABELS)
    counts = np.bincount(hand * size + rule, weights=weights, minlength=size**2)
    return counts.astype(np.float64).reshape(size, size)


def kappa(hand: Labels, rule: Labels, weights: Floats) -> float:
    """Cohen's kappa; not a number where chance alone would agree on everything."""
    shares = confusion(hand, rule, weights) / weights.sum()
    chance = float(shares.sum(1) @ shares.sum(0))
    return float(np.trace(shares) - chance) / (1 - chance) if chance < 1 else float("nan")


def report(name: str, hand: Labels, rule: Labels) -> None:
    """Print agreement, kappa and the confusion matrix of one part of the labels.

    Args:
        name: What the part is called.
        hand: Index of each passage's label by hand, int64 ``[n]``.
        rule: Index of each passage's label by rule, int64 ``[n]``.
    """
    passages = Clusters([str(item) for item in range(len(hand))])
    print(f"\n{name}: {len(hand)} passages")
    for what, estimate in (
        ("agreement", passages.share(hand == rule)),
        (
            "kappa",
            passages.estimate(lambda drawn: np.array([kappa(hand, rule, weights) for weights in drawn]), (-1.0, 1.0)),
        ),
    ):
        print(f"  {what:<10} {estimate.value:.3f}   95 % [{estimate.ci_low:.3f}, {estimate.ci_high:.3f}]")
    print("  hand \\ rule" + "".join(f"{label:>9}" for label in LABELS))
    for index, row in enumerate(confusion(hand, rule, np.ones(len(hand)))):
        if row.sum():
            counts = "".join(f"{int(count):>9}" for count in row)
            print(f"  {LABELS[index]:<11}{counts}   recall {row[index] / row.sum():.3f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the texts")
    return run_command(parser, measure, argv)


def measure(args: argparse.Namespace) -> None:
    """Label the texts by rule, and print how well the rules agree with the hand.

    Raises:
        UserError: A text file is missing.
    """
    items = json.loads(HAND_LABELS.read_text())["items"]
    told = RuleLabeler().label_all(texts(args.data, items))
    hand = np.array([LABELS.index(item["label"]) for item in items])
    rule = np.array([LABELS.index(behavior.label or "other") for behavior in told])
    half = np.array([item["half"] for item in items])
    source = np.array([Path(item["file"]).parts[0] for item in items])
    for name, said in HALVES.items():
        for one in sorted(set(source)):
            kept = (half == name) & (source == one)
            report(f"{said}, {one}", hand[kept], rule[kept])
        report(said, hand[half == name], rule[half == name])
    report("all", hand, rule)


if __name__ == "__main__":
    sys.exit(main())
