"""What every benchmark does alike: systems in processes of their own, rows of one form, a table, a JSON file."""

import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from afintro.data.files import write_json
from benchmarks import ceilings

RESULTS = Path(__file__).parent / "results"
MARK = "benchmark result: "
Row = dict[str, Any]
PACKAGES = ("torch", "transformers", "peft", "lightning", "accelerate", "trl", "liger-kernel", "triton")


def hardware() -> str:
    """Name of the accelerator, or of the machine and its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-")
    return f"{platform.machine()}-{torch.get_num_threads()}-threads"


def versions() -> dict[str, str]:
    """Versions of what takes part; what is not installed is not listed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def row(benchmark: str, shape: str, system: str, setting: str, **measured: Any) -> Row:
    """One line of results; a figure that was not measured is None, never 0."""
    fields = ("tokens_per_second", "fraction_of_ceiling", "peak_gb", "runs")
    return {
        "benchmark": benchmark, "shape": shape, "system": system, "setting": setting,
        **dict.fromkeys(fields), **measured,
    }  # fmt: skip


def in_child(module: str, arguments: Sequence[str], timeout: float) -> Any:
    """What ``python -m module arguments`` hands to :func:`hand_back`, or ``{"failed": reason}``.

    A process of its own gives each system fresh memory, an honest peak, and a crash that is nobody else's.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    said = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in said if "Error" in line and not line.startswith(" ")]
    reason = (errors or said or [f"exit code {done.returncode} without a word"])[-1].strip()
    print(done.stderr[-3000:], file=sys.stderr)
    return {"failed": reason[:300]}


def hand_back(result: Any) -> None:
    """The last word of a child process."""
    print(MARK + json.dumps(result), flush=True)


def measured_ceilings() -> dict[str, Any]:
    """Ceilings, hardware and versions; for a child process, so that the parent holds no memory of the accelerator."""
    return {"ceilings": asdict(ceilings.measure()), "hardware": hardware(), "versions": versions()}


def forget_peak() -> None:
    """Give memory back and count its peak from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float:
    """Most memory held since :func:`forget_peak`: tensors on an accelerator; the whole process so far on a CPU."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) * 1024 / 1e9, 2)
    raise RuntimeError("no VmHWM in /proc/self/status")


def table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    """Rows as aligned text.

    Args:
        rows: What :func:`row` made; of a row that failed the reason stands instead of the figures.
        columns: Heading and format of each column by its key, as ``"tokens/s:,.0f"``.
    """
    lines = [["system", "setting", *(text.split(":")[0] for text in columns.values())]]
    reasons = [""]
    for entry in rows:
        figures = [
            "-" if entry.get(key) is None else format(entry[key], text.split(":")[1]) for key, text in columns.items()
        ]
        lines.append([entry["system"], entry["setting"], *figures])
        reasons.append(f"  {entry['failed']}" if entry.get("failed") else "")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line, reason in zip(lines, reasons, strict=True):
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip() + reason)
    return "\n".join(text)


def write(folder: Path, name: str, found: dict[str, Any], rows: Sequence[Row], **more: Any) -> Path:
    """Keep rows as JSON, beside the hardware, the versions and the ceilings they were measured with."""
    path = folder / f"{name}-{found['hardware']}.json"
    threads = {"threads": os.environ.get("OMP_NUM_THREADS")} if not torch.cuda.is_available() else {}
    write_json(path, {**found, **threads, **more, "rows": list(rows)})
    return path
