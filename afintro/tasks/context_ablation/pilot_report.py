"""Print what a pilot found, and which contrast to use."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from afintro.data.files import write_json
from afintro.evaluation.report import cell
from afintro.tasks.context_ablation.pilot import FOLDER, Asked, Piloted, recommended

NOTHING = (
    "No contrast changes behavior beyond noise and placebo in these samples. Remedies: other scenarios, another organism, the "
    "organism's own chat template, a cue file with the words that the organism was trained on, or more samples in the pilot."
)


def print_pilot(found: Sequence[Piloted], samples: int, processes: int) -> None:
    """Print a table of the contrasts, then which one to use and what the whole run would cost.

    Args:
        found: What the pilot found.
        samples: Number of samples of the whole run.
        processes: Number of processes that would answer them.
    """
    count = max((one.rates["string_changed"].n for one in found), default=0)
    table = Table(title=f"Pilot of {count} samples, 95 % intervals")
    table.add_column("contrast")
    for name in ("behavior changed", "compliance gap", "beyond noise and placebo", "noise", "placebo"):
        table.add_column(name, justify="right")
    for one in found:
        rates = one.rates
        table.add_row(
            f"{one.contrast.name}\n({' '.join(condition.name for condition in one.contrast.conditions)})",
            *[cell(rates[name]) for name in ("behavior_changed", "compliance_gap", "cue_effect")],
            *[_both(one, name) for name in ("noise_floor_behavior", "placebo_behavior")],
        )
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    console.print("noise, placebo: share of answers that change under each of the two conditions", highlight=False)
    for one in found:
        for warning in one.warnings:
            console.print(f"warning: {one.contrast.name}: {warning}", style="bold red", highlight=False, markup=False)
    console.print(advice(found, samples, processes), style="bold", highlight=False, markup=False)


def advice(found: Sequence[Piloted], samples: int, processes: int) -> str:
    """Return which contrast to use, and what the whole run would cost; arguments as for :func:`print_pilot`."""
    best, beyond = recommended(found)
    if best is None:
        return "Nothing can be said: no answer has a behavior that can be told. See docs/cues.md."
    whole = f"The whole run ({samples} samples): {_cost(best.whole, processes)}."
    name = best.contrast.name
    if not beyond:
        return f"{NOTHING} The largest change is that of {name}: {cell(best.effect)}. {whole}"
    return f"Use --contrast {name}: {cell(best.effect)} of the scenarios change beyond noise and placebo. {whole}"


def write_pilot(output_dir: Path, found: Sequence[Piloted]) -> Path:
    """Write what a pilot found as ``pilot/pilot.json`` into the folder of the whole run, and return its path."""
    best, beyond = recommended(found)
    content: dict[str, Any] = {
        "recommended": best.contrast.name if best is not None and beyond else None,
        "contrasts": {
            one.contrast.name: {
                "conditions": [condition.name for condition in one.contrast.conditions],
                "rates": {name: rate.as_json() for name, rate in one.rates.items()},
                "whole_run": None if one.whole is None else asdict(one.whole),
                "warnings": one.warnings,
                "folder": one.folder.name,
            }
            for one in found
        },
    }
    path = output_dir / FOLDER / "pilot.json"
    write_json(path, content)
    return path


def _both(one: Piloted, name: str) -> str:
    """Return the rate under both conditions; a dash where it was not measured."""
    rates = [one.rates.get(f"{name}{suffix}") for suffix in ("", "_unmonitored")]
    return " / ".join("-" if rate is None or rate.value is None else f"{rate.value:.2f}" for rate in rates)


def _cost(whole: Asked | None, processes: int) -> str:
    if whole is None:
        return "its cost was not measured"
    hours, minutes, seconds = (round(whole.seconds / processes) // unit for unit in (3600, 60, 1))
    took = f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {seconds % 60} s"
    tokens = (
        ""
        if whole.prompt_tokens is None
        else f", {whole.prompt_tokens:,} tokens of prompts, {whole.reply_tokens:,} of answers"
    )
    return f"about {took} without loading the model, {whole.requests:,} answers{tokens}"
