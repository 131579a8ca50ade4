"""Print a few answers for a person."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

SHOWN = ("uid", "answer", "verdict", "p_changed", "confidence", "mean_logprob", "answer_zero_vector")
ABSENT = "-"


def print_answers(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print answers as a table; columns in which nothing stands are left out.

    Args:
        rows: Objects as :func:`afintro.explain.answers.answered` returns them.
    """
    table = Table(title="answers")
    names = [name for name in SHOWN if any(row[name] is not None for row in rows)]
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        facts = {**row, "uid": str(row["uid"]).removesuffix(f"/{row['question_type']}")}
        table.add_row(*(Text(shown(facts[name])) for name in names))
    Console().print(table)


def shown(value: Any) -> str:
    """Return how a value is shown: numbers with three decimals, texts without control characters."""
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:.3f}"
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in str(value)
    )
