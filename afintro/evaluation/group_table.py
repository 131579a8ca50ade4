"""The short table of groups on the terminal, and the sentence that says whether any group differs."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from afintro.evaluation.groups import LEVEL
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.report import LABELS, cell, difference

ROWS = 10
"""The worst groups that a table shows."""


def print_groups(groups: dict[str, Any]) -> None:
    """Print a table for each facet, worst group first, what was left out, and whether any group differs.

    Args:
        groups: The part ``groups`` of ``summary.json``; nothing is printed of an empty part.
    """
    if not groups:
        return
    console = Console(width=None if Console().is_terminal else 120)
    metric = groups["ranked_by"]
    for facet, found in groups["by"].items():
        shown = found["groups"][:ROWS]
        if shown:
            table = Table(facet, title=f"{LABELS.get(metric, metric)} by {facet}, worst first")
            for heading in ("items", "value", "minus the rest", "p"):
                table.add_column(heading, justify="right")
            for group in shown:
                p = group["p_adjusted"]
                table.add_row(
                    escape(group["group"]),
                    str(group["n"]),
                    cell(Estimate(**group["metrics"][metric])),
                    difference(group["difference_to_rest"], 2),
                    "-" if p is None else f"{p:.3f}",
                )
            console.print(table)
        for line in left_out(facet, found, groups["smallest"], len(found["groups"]) - len(shown)):
            console.print(line, highlight=False, markup=False)
    console.print(sentence_of(groups), highlight=False, markup=False)


def left_out(facet: str, found: dict[str, Any], smallest: int, unshown: int) -> list[str]:
    """Return what a table of groups does not show.

    Args:
        facet: ``label``, ``source`` or ``category``.
        found: The facet's part of ``groups``.
        smallest: Number of scenarios from which on a group is compared.
        unshown: Number of groups in ``summary.json`` that the table leaves out.
    """
    small, lines = found["too_small"], []
    if unshown:
        lines.append(f"{facet}: {unshown} better groups more in summary.json")
    if small["groups"]:
        named = ", ".join(f"{name} ({count})" for name, count in list(small["named"].items())[:4])
        more = ", ..." if small["groups"] > 4 else ""
        few = f"{small['groups']} groups ({small['items']} items)"
        lines.append(f"{facet}: {few} with fewer than {smallest} scenarios are not compared: {named}{more}")
    if found["without"]:
        lines.append(f"{facet}: {found['without']} items without")
    return lines


def sentence_of(groups: dict[str, Any]) -> str:
    """Return the sentence that says which groups differ from the rest, whichever of them is the worst.

    Args:
        groups: The part ``groups`` of ``summary.json``.
    """
    looked = f"{groups['looked_at']} groups were looked at"
    least = groups["smallest_p_adjusted"]
    if least is None:
        return f"{looked}: too few to tell whether any differs from the rest."
    differing = [
        f"{facet} {group['group']} {difference(group['difference_to_rest'], 2)}"
        for facet, found in groups["by"].items()
        for group in found["groups"]
        if group["p_adjusted"] is not None and group["p_adjusted"] < LEVEL
    ]
    if differing:
        return f"{looked} (p is adjusted for that). These differ from the rest: {'; '.join(differing)}."
    return (
        f"{looked}; none differs from the rest by more than the most extreme of as many random groups would (smallest adjusted "
        f"p {least:.2f})."
    )
