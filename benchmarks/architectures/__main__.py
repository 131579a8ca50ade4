"""Write the table of architectures.

Every family of the table is made tiny, with random weights, and checked. A minute on one core::

    python -m benchmarks.architectures --output docs/models.md
"""

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.architectures.checks import CHECKS, Case
from benchmarks.architectures.families import NAMES, WRAPPERS

START, END = "<!-- table: python -m benchmarks.architectures -->", "<!-- end of table -->"


def row(name: str) -> list[str]:
    """Return the cells of a family: its name, how it reads several sequences, and the result of every check."""
    case = Case(name)
    how = "packed" if case.packed else "padded"
    marked = f"`{name.split(',')[0]}`{name[name.find(',') :] if ',' in name else ''}{' (wrapper)' if name in WRAPPERS else ''}"
    return [marked, how, *("yes" if check(case) else "no" for check in CHECKS.values())]


def table(names: Iterable[str]) -> str:
    """Return the table of some families in Markdown."""
    header = ["family", "reads", *CHECKS]
    lines = [header, ["---"] * len(header), *map(row, names)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_table(page: str, text: str) -> str:
    """Return a page with its table replaced."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{text}\n\n{END}{after}"


def main() -> None:
    """Check every family and write the table into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="page whose table is replaced (default: print the table)")
    output = parser.parse_args().output
    logging.disable(logging.WARNING)  # of experts that are not adapted
    torch.set_num_threads(1)
    text = table(NAMES)
    if output is None:
        print(text)
    else:
        output.write_text(with_table(output.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
