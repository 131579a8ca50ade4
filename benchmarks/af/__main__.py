"""Measure what can be told of real monitored and unmonitored answers from the text, within and between the models that answered.

    make benchmark-af VLAF=PATH
    python -m benchmarks.af --vlaf PATH --model smollm2 --device cuda

PATH is a copy of the repository launchnlp/VLAF, or any folder of its ``data``. Writes ``af.json`` and ``af.md`` (with a model
``af-MODEL.json`` and ``.md``), and prints the tables. Each result is saved when it is there: a run that was killed continues.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import afintro
from afintro.command import check_at_least, run_command
from afintro.data.cache import cache_directory
from afintro.data.example_store import source_hash
from afintro.data.files import file_sha256, write_atomic, write_json
from afintro.generation.command import check_device
from afintro.lm.devices import default_device
from afintro.lm.threads import available_cores
from afintro.tasks.context_ablation.imports.vlaf import find_pairs
from afintro.toys.embedded import ensure_built
from benchmarks import report
from benchmarks.af import answering, groups
from benchmarks.af.chance import compared
from benchmarks.af.groups import SETTINGS, Group, groups_of, splits_hash, write
from benchmarks.af.summary import group_row, markdown, rows_of
from benchmarks.privileged.running import Job, run_all


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--vlaf", type=Path, required=True, help="copy of launchnlp/VLAF, or a folder of its data")
    flags.add_argument(
        "--processes",
        type=int,
        default=available_cores(),
        help="jobs that run at once, one core each (default: %(default)s)",
    )
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder that gets the files")
    flags.add_argument("--model", help="train an explainer on this model too, e.g. smollm2")
    flags.add_argument("--device", default=default_device(), help="device of the explainer (default: %(default)s)")
    flags.add_argument("--steps", type=int, default=300, help="optimizer steps of the explainer (default: %(default)s)")
    flags.add_argument("--batch_size", type=int, default=16, help="questions of a step (default: %(default)s)")
    flags.add_argument("--learning_rate", type=float, default=2e-4, help="of the explainer (default: %(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="seed of the explainer (default: %(default)s)")
    return flags


def measure(args: argparse.Namespace) -> None:
    """Label the answers, let all systems answer, and write and print the tables.

    Raises:
        UserError: The folder holds no pairs that can be asked about, or a flag cannot be used.
    """
    check_at_least(args, {"processes": 1, "steps": 1, "batch_size": 1})
    started = time.monotonic()
    pairs, unpaired = find_pairs(args.vlaf / "data" if (args.vlaf / "data").is_dir() else args.vlaf)
    explainer = _explainer(args)
    work = work_folder(pairs)
    labeled = run_all(label_jobs(pairs, work), work / "results", args.processes, _say)
    found = groups_of([work / f"labels-{number}.json" for number in range(len(pairs))])
    jobs = {group.name: answer_jobs(work / group.key, group.key, explainer) for group in found if not group.left_out}
    for group in found:
        write(group, found, work / group.key)
    results = run_all([job for own in jobs.values() for job in own], work / "results", args.processes, _say)
    seconds = [result["seconds"] for result in [*labeled.values(), *results.values()]]
    tables = {
        **_about(explainer),
        "seconds": round(time.monotonic() - started),
        "core_seconds": round(sum(seconds)),
        "files": {
            "pairs": len(pairs),
            "unpaired": [os.path.relpath(path, args.vlaf) for path in unpaired],
            "counts": list(labeled.values()),
        },
        **_measured(found, jobs, results),
    }
    name = "af" if args.model is None else f"af-{Path(args.model).name}"
    write_json(args.results / f"{name}.json", tables)
    write_atomic(args.results / f"{name}.md", markdown(tables) + "\n")
    print(markdown(tables))
    print(f"written: {args.results / name}.json and .md ({tables['seconds']} s)")


def _explainer(args: argparse.Namespace) -> answering.Explainer | None:
    """Return how an explainer is trained, once everything that it needs was found to be there; None for none."""
    if args.model is None:
        return None
    check_device(args.device)
    ensure_built(args.model)
    return answering.Explainer(args.model, args.device, args.steps, args.batch_size, args.learning_rate, args.seed)


def _about(explainer: answering.Explainer | None) -> dict[str, Any]:
    """Return command (without the places of this machine), hardware, versions and settings."""
    asked = {} if explainer is None else {**asdict(explainer), "model": Path(explainer.model).name}
    on_cpu = explainer is None or explainer.device == "cpu"
    return {
        "command": " ".join(["python -m benchmarks.af --vlaf PATH", *(f"--{name} {asked[name]}" for name in asked)]),
        "hardware": f"{platform.machine()}-{os.cpu_count()}cpu" if on_cpu else report.hardware(),
        "versions": {**report.versions(), "scikit-learn": version("scikit-learn"), "afintro": afintro.__version__},
        "settings": {**asdict(SETTINGS), "labeler": "rules", "explainer": asked or None},
    }


def _measured(
    found: Sequence[Group], jobs: Mapping[str, Sequence[Job]], results: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return all tables.

    Args:
        found: All groups.
        jobs: The jobs of each group that takes part, by its name.
        results: The result of each job.
    """
    taking_part = [group for group in found if not group.left_out]
    parts = ("taught", "steps", "validation", "seconds")
    return {
        "splits_sha256": splits_hash(found),
        "groups": [group_row(group) for group in found],
        "rows": rows_of(taking_part, {name: [results[job.key] for job in own] for name, own in jobs.items()}),
        "compared": compared(taking_part),
        "training": [
            {"group": name, **{part: results[job.key][part] for part in parts}}
            for name, own in jobs.items()
            for job in own
            if "steps" in results[job.key]
        ],
    }


def work_folder(pairs: Sequence[tuple[Path, Path]]) -> Path:
    """Return the folder of what was measured of these files before; another state of the code has another.

    Args:
        pairs: The files.
    """
    roots = [Path(afintro.__file__).parent, Path(__file__).parent]
    code = source_hash(*(path for root in roots for path in sorted(root.rglob("*.py"))))
    files = [[str(path.resolve()), file_sha256(path)] for pair in pairs for path in pair]
    key = json.dumps([code, files, asdict(SETTINGS)])
    return cache_directory() / "benchmark-af" / hashlib.sha256(key.encode()).hexdigest()[:12]


def label_jobs(pairs: Sequence[tuple[Path, Path]], work: Path) -> list[Job]:
    """Return the jobs that label the answers of each pair of files."""
    return [
        Job(
            f"labels-{number}",
            path.stat().st_size / 1e5,
            groups.label,
            (*map(str, pair), str(work / f"labels-{number}.json")),
        )
        for number, pair in enumerate(pairs)
        for path in pair[:1]
    ]


def answer_jobs(folder: Path, key: str, explainer: answering.Explainer | None) -> list[Job]:
    """Return the jobs in which the systems of a group learn and answer.

    Args:
        folder: The folder of the group.
        key: The group's name in names of files.
        explainer: How an explainer is trained; None for none.
    """
    jobs = [Job(f"texts-{key}", 30, answering.read_texts, (str(folder),))]
    if explainer is not None:
        own = hashlib.sha256(json.dumps(asdict(explainer)).encode()).hexdigest()[:8]
        jobs.append(Job(f"explainer-{own}-{key}", 300, answering.explain, (str(folder), explainer)))
    return jobs


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, 2 for wrong input."""
    return run_command(parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
