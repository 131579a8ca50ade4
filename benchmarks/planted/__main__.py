"""Make the table of planted leaks, effects and confounds.

python -m benchmarks.planted

Writes ``planted.json`` and the table ``planted.md``.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from afintro.data.files import write_json
from benchmarks import report
from benchmarks.planted import features, steering
from benchmarks.planted.leaks import LEAKS
from benchmarks.planted.systems import (
    Finding,
    leaking,
    power,
    reader_of_duplicates,
    reader_of_ids,
    reader_of_lengths,
)

TAUGHT, ASKED = 300, 300
EFFECTS = {0.02: 10_000, 0.05: 1_600, 0.1: 400, 0.3: 100}
"""The number of items at which each effect is found in about four of five evaluations, or more."""
WITHOUT = (100, 400, 1_600)
"""Numbers of items of evaluations without an effect."""
RIVALS = 5


def findings(taught: int, asked: int, seed: int) -> Iterator[tuple[str, Finding]]:
    """Yield what the evaluation says of each planted explainer, by what was planted.

    Args:
        taught: Number of training prompts.
        asked: Number of items.
        seed: Seed of the prompts.
    """
    for name in [*LEAKS, "no_leak"]:
        yield name.replace("_", " "), leaking(name, taught, asked, seed)
    yield "reads lengths", reader_of_lengths(taught, asked, seed)
    found, planted, seen = reader_of_duplicates(taught, asked, seed)
    yield f"reads duplicates ({seen} named, {planted} planted)", found
    for split, finding in reader_of_ids(taught // 3, seed).items():
        yield f"reads scenario ids: {split} scenarios", finding
    yield from features.planted(seed).items()
    yield from steering.planted(seed).items()


def markdown(tables: Mapping[str, Any]) -> str:
    """Write both tables.

    Args:
        tables: ``findings`` and ``power``, as :func:`main` writes them.
    """
    lines = [
        "| planted | explainer | best rival | lead over it | warned | credited |",
        "|---|--:|---|--:|---|---|",
    ]
    for row in tables["findings"]:
        lead = "{value:+.3f} [{ci_low:+.3f}, {ci_high:+.3f}]".format(**row["lead"])
        lines.append(
            f"| {row['planted']} | {row['explainer']['value']:.3f} | {row['rival']} {row['reached']:.3f} | {lead} "
            f"| {'yes' if row['warnings'] else 'no'} | {'no' if row['caught'] else 'yes'} |"
        )
    lines += [
        "",
        "| true lead | items | rivals | evaluations | mean lead | interval covers it | interval above 0 |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in tables["power"]:
        lines.append(
            f"| {row['effect']} | {row['items']} | {row['rivals']} | {row['seeds']} | {row['value']:+.3f} "
            f"| {row['covered']:.1%} | {row['above']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Evaluate all planted systems, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taught", type=int, default=TAUGHT, help="training prompts of each planted leak")
    parser.add_argument("--asked", type=int, default=ASKED, help="items of each planted leak")
    parser.add_argument("--evaluations", type=int, default=1000, help="evaluations drawn for each effect")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder of planted.json and planted.md")
    args = parser.parse_args()
    started, rows = time.monotonic(), []
    for planted, finding in findings(args.taught, args.asked, args.seed):
        rows.append({"planted": planted, **asdict(finding), "caught": finding.caught})
        print(f"{planted}: {time.monotonic() - started:.0f} s", flush=True)
    drawn = [power(effect, items, args.evaluations) for effect, items in EFFECTS.items()]
    drawn += [power(0.0, items, args.evaluations) for items in WITHOUT]
    drawn += [power(0.0, items, args.evaluations, RIVALS) for items in WITHOUT]
    tables = {
        "hardware": report.hardware(),
        "versions": {**report.versions(), "scikit-learn": version("scikit-learn")},
        **{name: getattr(args, name) for name in ("seed", "taught", "asked")},
        "findings": rows,
        "power": [asdict(row) for row in drawn],
    }
    write_json(args.results / "planted.json", tables)
    (args.results / "planted.md").write_text(markdown(tables) + "\n")
    print(markdown(tables))


if __name__ == "__main__":
    main()
