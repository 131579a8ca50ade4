"""What all benchmarks share: systems in processes of their own, rows of one form, a table, a JSON file."""

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
    """Name the accelerator, or the machine and its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-")
    return f"{platform.machine()}-{torch.get_num_threads()}-threads"


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part and are installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def row(benchmark: str, shape: str, system: str, setting: str, **measured: Any) -> Row:
    """Make one row of results; a figure that was not measured is None, never 0.

    Args:
        benchmark: Name of the benchmark.
        shape: Name of the model shape.
        system: Name of the system.
        setting: The system's setting.
        measured: Figures by name.
    """
    fields = ("tokens_per_second", "fraction_of_ceiling", "peak_gb", "runs")
    return {
        "benchmark": benchmark, "shape": shape, "system": system, "setting": setting,
        **dict.fromkeys(fields), **measured,
    }  # fmt: skip


def in_child(module: str, arguments: Sequence[str], timeout: float) -> Any:
    """Run ``python -m module arguments`` and return what it gives to :func:`hand_back`, or ``{"failed": reason}``.

    A process of its own gives each system fresh memory and an honest peak, and keeps a crash away from other systems.

    Args:
        module: Name of the module.
        arguments: Its arguments.
        timeout: Seconds after which the process is ended.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"did not finish within {timeout:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    reason = (errors or lines or [f"ended with exit code {done.returncode} and without output"])[-1].strip()
    print(done.stderr[-3000:], file=sys.stderr)
    return {"failed": reason[:300]}


def hand_back(result: Any) -> None:
    """Print the result of a child process for :func:`in_child`."""
    print(MARK + json.dumps(result), flush=True)


def measured_ceilings() -> dict[str, Any]:
    """Measure ceilings, hardware and versions in a child process, so that the parent holds no accelerator memory."""
    return {"ceilings": asdict(ceilings.measure()), "hardware": hardware(), "versions": versions()}


def forget_peak() -> None:
    """Release memory, and count its peak from now on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float:
    """Return the peak memory in GB: of tensors since :func:`forget_peak` on an accelerator, of the whole process on a CPU."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) * 1024 / 1e9, 2)
    raise RuntimeError("/proc/self/status has no field VmHWM")


def table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    """Format rows as aligned text.

    Args:
        rows: Rows made by :func:`row`; a row that failed shows the reason instead of figures.
        columns: Heading and format of each column by its key, such as ``"tokens/s:,.0f"``.
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


def write(folder: Path, name: str, machine: dict[str, Any], rows: Sequence[Row], **more: Any) -> Path:
    """Write rows as JSON, beside the hardware, versions and ceilings that they were measured with.

    Args:
        folder: Gets the file.
        name: Begins the name of the file, which ends with the hardware.
        machine: Hardware, versions and ceilings.
        rows: The rows.
        more: Further entries of the file.

    Returns:
        Path of the file.
    """
    path = folder / f"{name}-{machine['hardware']}.json"
    threads = {"threads": os.environ.get("OMP_NUM_THREADS")} if not torch.cuda.is_available() else {}
    write_json(path, {**machine, **threads, **more, "rows": list(rows)})
    return path
