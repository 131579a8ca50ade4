"""Prove that a refactor changes nothing: record what a tree computes, before and after, and compare the two records.

    python -m benchmarks.unchanged --tree BEFORE --work WORK/before --json before.json
    python -m benchmarks.unchanged --tree AFTER --work WORK/after --json after.json
    python -m benchmarks.unchanged --compare before.json after.json

A record holds, to the last digit: the loss of each of the first 20 steps of every YAML that needs neither a model hub nor an
accelerator; metrics, baselines and predictions of every task under configs/debug.yaml; and the hashes of what the generators
write, of the embedded models and of their data. The tree is used through its command line alone, so the two trees may be
laid out differently. Record both on one machine and in one environment. A run that was interrupted continues where it
stopped. Starting from an empty cache takes about half an hour on one core; ``--cache`` names a cache to start from (name a
copy: what it lacks is made in it).
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.unchanged_jobs import INPUTS, NOT_RUN, Command, jobs

PACKAGES = ("torch", "lightning", "transformers", "peft", "tokenizers", "numpy", "scikit-learn")
NOT_HASHED = {
    "*.lock": "an empty file that processes wait for each other at",
    "*.png": "a figure: its wording may change, and its numbers are in the summary beside it",
    "examples/*": "tokenized examples, in a folder that is named by a hash of the code",
    "lightning_logs/*": "holds timings and versions; losses, metrics and predictions are recorded by value",
    "log.txt": "what the commands said",
}


def run(commands: Sequence[Command], folder: Path, tree: Path, cache: Path) -> dict[str, Any]:
    """Run a job's commands in its folder, unless that was done before, and return what is recorded of it.

    Raises:
        SystemExit: A command failed.
    """
    done = folder.with_name(f"{folder.name}.done.json")
    if done.is_file():
        return dict(json.loads(done.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    log = folder / "log.txt"
    for command in commands:
        with log.open("a") as file:
            ended = subprocess.run(
                [sys.executable, *command],
                cwd=folder,
                env=environment(tree, cache),
                stdout=file,
                stderr=file,
                check=False,
            )
        if ended.returncode:
            said = "\n".join(log.read_text().splitlines()[-15:])
            raise SystemExit(f"{said}\n{folder.name}: exit code {ended.returncode} of python {' '.join(command)}")
    found = {"losses": losses(folder), "evaluations": evaluations(folder, cache), "files": hashes(folder)}
    done.write_text(json.dumps(found))
    return found


def environment(tree: Path, cache: Path) -> dict[str, str]:
    """Return the environment of a command: the tree's package, one thread, no hub, no accelerator."""
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **alone, "PYTHONPATH": str(tree), "AFINTRO_CACHE": str(cache)}


def losses(folder: Path) -> list[str]:
    """Return the training loss of every step of the first run in a job's folder, as ``repr`` of the float."""
    rows = [row for log in folder.glob("lightning_logs/*/version_0/metrics.csv") for row in csv.DictReader(log.open())]
    return [repr(float(row["train/loss"])) for row in rows if row.get("train/loss")]


def evaluations(folder: Path, cache: Path) -> dict[str, Any]:
    """Return what the summaries in a job's folder say, by split.

    Left out are timings, versions, commit and paths, and warnings, whose wording may change.
    """
    found = {}
    for path in sorted(folder.glob("lightning_logs/*/version_*/summary.json")):
        summary = json.loads(path.read_text().replace(str(cache), "AFINTRO_CACHE"))
        found[summary["split"]] = {
            **{name: summary[name] for name in ("n", "metrics", "baselines")},
            "model": {name: value for name, value in summary["model"].items() if name != "checkpoint"},
            "data": {name: value for name, value in summary["data"].items() if name != "path"},
            "predictions": sha256(path.with_name("predictions.jsonl")),
        }
    return found


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and below that no pattern of NOT_HASHED leaves out."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: sha256(p) for name, p in paths.items() if not any(fnmatch(name, pattern) for pattern in NOT_HASHED)}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(tree: Path, work: Path, cache: Path, only: Sequence[str]) -> dict[str, Any]:
    """Run the jobs of a tree whose names match a pattern of ``only`` and return the whole record.

    Raises:
        SystemExit: A command failed, or Python would import another package than the tree's.
    """
    work.mkdir(parents=True, exist_ok=True)
    for name, content in INPUTS.items():
        (work / name).write_text(json.dumps(content))  # JSON is YAML too
    look = [sys.executable, "-c", "import afintro; print(afintro.__file__)"]
    package = subprocess.run(look, cwd=work, env=environment(tree, cache), capture_output=True, text=True, check=True)
    if not Path(package.stdout.strip()).is_relative_to(tree):
        raise SystemExit(f"{package.stdout.strip()}: would be imported instead of the package in {tree}")
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    found: dict[str, Any] = {"environment": versions, "not_run": NOT_RUN, "not_hashed": NOT_HASHED}
    found |= {"losses": {}, "evaluations": {}, "files": {}}
    chosen = {name: job for name, job in jobs(tree).items() if any(fnmatch(name, pattern) for pattern in only)}
    for number, (name, commands) in enumerate(chosen.items(), 1):
        started = time.monotonic()
        result = run(commands, work / name, tree, cache)
        for part, values in result.items():
            found[part] |= {name: values} if values else {}
        counts = ", ".join(f"{len(values)} {part}" for part, values in result.items() if values)
        print(f"{number}/{len(chosen)} {name}: {counts} ({time.monotonic() - started:.0f} s)", flush=True)
    found["files"]["cache"] = hashes(cache)
    return found


def differences(before: Any, after: Any, name: str = "") -> Iterator[str]:
    """Yield a line for everything that differs between two records; of a list of losses, for the first step alone."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key, "absent"), after.get(key, "absent"), f"{name} {key}".strip())
    elif isinstance(before, list) and isinstance(after, list):
        steps = [step for step, (one, other) in enumerate(zip(before, after, strict=False)) if one != other]
        if steps:
            yield f"{name}, step {steps[0]}: {before[steps[0]]} before, {after[steps[0]]} after"
        elif len(before) != len(after):
            yield f"{name}: {len(before)} steps before, {len(after)} after"
    elif before != after:
        yield f"{name}: {_briefly(before)} before, {_briefly(after)} after"


def _briefly(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, dict | list) else str(value)


def _count(values: dict[str, Any]) -> int:
    return sum(map(len, values.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Record a tree, or compare two records; exit code 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", nargs=2, type=Path, metavar="JSON", help="two records to compare")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="checkout (default: this one)")
    parser.add_argument("--work", type=Path, help="folder of the jobs of this tree; those done are not run again")
    parser.add_argument("--cache", type=Path, help="AFINTRO_CACHE of the jobs (default: cache in --work)")
    parser.add_argument("--json", type=Path, help="file that gets the record")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="jobs to run (default: all)")
    args = parser.parse_args(arguments)
    if args.compare:
        before, after = (json.loads(path.read_text()) for path in args.compare)
        differing = list(differences(before, after))
        print("\n".join(differing) or f"the same: {_count(before['losses'])} losses, {_count(before['files'])} files")
        return 1 if differing else 0
    if args.work is None or args.json is None:
        parser.error("to record, give --work and --json")
    work = args.work.resolve()
    found = record(args.tree.resolve(), work, (args.cache or work / "cache").resolve(), args.only)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
