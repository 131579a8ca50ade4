"""Generation: this project's engine beside transformers' ``generate`` and ``generate_batch``, and shared prefixes.

The systems of a group continue the same prompts on the same random model (the toy organism for ``tiny``) and take turns in
one process; every group has a process of its own. Nothing ends a sequence, so every row costs its full length. Tokens per
second count new tokens. The prefill is part of the time, except in the rows ``decode step``, which are the difference between
a long and a short run.
"""

import argparse
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from afintro.errors import one_line
from benchmarks import report
from benchmarks.generation import GROUPS, Group, Shape, System, Tokens, model_bytes, shapes

TIMEOUT = 600.0
COLUMNS = {
    "tokens_per_second": "new tokens/s:,.0f", "step_ms": "step ms:.2f", "fraction_of_ceiling": "of bandwidth:.1%",
    "peak_gb": "peak GB:.1f", "times_the_first": "times the first:.2f", "same_rows": "rows as the first:d", "rows": "rows:d",
}  # fmt: skip


def timed(system: System, new: int) -> tuple[float, Tokens]:
    """Run a system once; return seconds and tokens."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    tokens = system.run(new)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, tokens


def run_group(systems: list[System], runs: int) -> list[report.Row]:
    """Measure a group's systems, which take turns after one warm-up each; a failure affects one system alone."""
    rows: list[report.Row] = [{"system": s.name, "setting": s.setting, "times": []} for s in systems]
    for turn in range(-1, runs):
        for system, row in zip(systems, rows, strict=True):
            if "failed" in row:
                continue
            try:
                report.forget_peak()
                seconds, tokens = timed(system, system.new if turn >= 0 else system.warm_up)
            except Exception as error:  # whatever a peer raises becomes its row
                row["failed"] = f"{type(error).__name__}: {one_line(error, 200)}"
                continue
            if turn >= 0:
                row["times"].append(seconds)
                row["written"] = sum(len(line) for prompt in tokens for line in prompt)
                row["sums"] = [zlib.crc32(str(line).encode()) for prompt in tokens for line in prompt]
                row["peak_gb"] = report.peak_gb()
    return rows


def figures(rows: list[report.Row]) -> list[report.Row]:
    """Add rates to measured rows, and compare each system with the first of the group."""
    first = rows[0]
    for row in rows:
        times, sums = row.pop("times"), row.get("sums", [])
        if "failed" in row:
            continue
        row |= {"tokens_per_second": round(row["written"] / median(times), 1), "runs": len(times), "seconds": times}
        row["rows"] = len(sums)
        if "sums" in first:
            row["same_rows"] = sum(a == b for a, b in zip(first["sums"], sums, strict=False))
            if len(first["sums"]) == len(sums):
                pairs = zip(first["seconds"], times, strict=True)
                row["times_the_first"] = round(median(b / a for a, b in pairs), 3)
    for row in rows:
        row.pop("sums", None)
        row.pop("written", None)
    return rows


def decode_steps(shape: Shape, group: Group, runs: int) -> list[report.Row]:
    """Measure one decode step of each batch size, and count the bytes that the step must read."""
    network = shape.model()
    weights, token = model_bytes(network)
    rows: list[report.Row] = []
    for system in group.systems(network, shape):
        short, long = shape.new // 4, shape.new
        try:
            timed(system, long)
            timed(system, short)
            report.forget_peak()
            spans = [(timed(system, long)[0] - timed(system, short)[0]) / (long - short) for _ in range(runs)]
        except RuntimeError as error:
            rows.append({"system": system.name, "setting": system.setting, "failed": str(error).splitlines()[0][:200]})
            continue
        live = system.prompt_tokens + system.rows * (short + long) / 2
        step = median(spans)
        rows.append({
            "system": f"{system.name}, one decode step", "setting": system.setting, "step_ms": round(step * 1000, 3), "runs": runs,
            "tokens_per_second": round(system.rows / step, 1), "peak_gb": report.peak_gb(), "rows": system.rows,
            "bytes": weights + int(live * token), "step_ms_of_each_run": [round(span * 1000, 3) for span in spans],
        })  # fmt: skip
    return rows


def child(shape: Shape, group: Group, runs: int) -> list[report.Row]:
    """Measure one group in the calling process."""
    if group.steps:
        return decode_steps(shape, group, runs)
    return figures(run_group(group.systems(shape.model(), shape), runs))


def main() -> None:
    """Measure every group in its own process, print one table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=shapes(), default="tiny")
    parser.add_argument("--runs", type=int, help="number of timed runs of each system; the median counts")
    parser.add_argument("--systems", help=f"comma-separated list of {', '.join(GROUPS)}")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = shapes()[args.shape]
    runs = args.runs or shape.runs
    if args.child:
        measured: Any = report.measured_ceilings if args.child == "ceilings" else None
        report.hand_back(measured() if measured else child(shape, GROUPS[args.child], runs))
        return
    names = args.systems.split(",") if args.systems else list(shape.groups)
    if unknown := sorted(set(names) - set(GROUPS)):
        parser.error(f"unknown groups: {', '.join(unknown)}; the groups are {', '.join(GROUPS)}")
    call: Callable[[str], Any] = lambda name: report.in_child(  # noqa: E731
        "benchmarks.generate", ["--shape", args.shape, "--runs", str(runs), "--child", name], TIMEOUT
    )
    machine = call("ceilings")
    if "failed" in machine:
        raise SystemExit(f"the ceilings could not be measured: {machine['failed']}")
    rows = []
    for name in names:
        started = time.perf_counter()
        answers = call(name)
        if isinstance(answers, dict):
            answers = [{"system": name, "setting": "the whole group", **answers}]
        for answer in answers:
            row = report.row("generate", args.shape, answer.pop("system"), answer.pop("setting"), **answer)
            if row.get("bytes"):
                least = row["bytes"] / machine["ceilings"]["copy_gb_per_s"] / 1e9
                row["fraction_of_ceiling"] = round(least / (row["step_ms"] / 1000), 4)
            rows.append(row)
        print(f"{name}: done ({time.perf_counter() - started:.0f} s)", flush=True)
        # The file is written after every group, so that a stopped run keeps its results.
        left_out = [name for name in GROUPS if name not in names]
        path = report.write(args.results, f"generate-{args.shape}", machine, rows, not_run=left_out)
    print(report.table(rows, COLUMNS))
    print(f"ceilings: {machine['ceilings']}\nnot run: {', '.join(left_out) or 'nothing left out'}\nwritten: {path}")


if __name__ == "__main__":
    main()
