"""The command line: record the tests once, then try the mutations. See :mod:`benchmarks.mutations`."""

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.mutations.drawing import draw
from benchmarks.mutations.points import Point, points
from benchmarks.mutations.recording import PACKAGE, Chosen, Recording

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).with_name("mutation_plugin.py")
COVERAGE = """\
[run]
core = ctrace
parallel = true
include = {tree}/{package}/*
data_file = {folder}/coverage
patch = fork, _exit
plugins = mutation_plugin
"""
# A test that takes this many times its own seconds, and a minute more, hangs. The plugin uses half of both for single tests.
PATIENCE, EXTRA = 8, 120


def git(tree: Path, *arguments: str) -> str:
    """Return what git says about a tree."""
    return subprocess.run(
        ["git", "-C", str(tree), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def copy_of(tree: Path, folder: Path) -> Path:
    """Return a clone of the commit of a tree, with the plugin in it, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    git(tree, "clone", "--quiet", str(tree), str(folder))
    shutil.copy(PLUGIN, folder)
    with (folder / ".git" / "info" / "exclude").open("a") as file:
        file.write(f"/{PLUGIN.name}\n")
    return folder


def nameless(args: argparse.Namespace, text: str) -> str:
    """Return a text without the paths of this machine."""
    return text.replace(str(args.record), "RECORD").replace(str(args.tree), "TREE")


def environment(args: argparse.Namespace, copy: Path, cache: Path, **more: str) -> dict[str, str]:
    """Return the environment of tests in a copy: its code is imported, and stale bytecode is never used."""
    data = os.environ.get("AFINTRO_AF_DATA") or str(args.tree.parent / "shared" / "data" / "af")
    own = {"PYTHONPATH": str(copy), "AFINTRO_CACHE": str(cache), "AFINTRO_AF_DATA": data}
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MUTATION_", "COVERAGE_"))}
    return {**outside, **own, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **more}


def record(args: argparse.Namespace) -> None:
    """Run the selected tests once, and keep which test runs which line and how long it takes."""
    shutil.rmtree(args.record, ignore_errors=True)
    copy = copy_of(args.tree, args.record / "recorded")
    (args.record / "cache").mkdir()
    settings = args.record / "coverage.ini"
    settings.write_text(COVERAGE.format(tree=copy, folder=args.record, package=PACKAGE))
    command = [sys.executable, "-m", "pytest", "-p", PLUGIN.stem, "-n", str(args.workers), "--dist", "loadfile",
               "--no-loadscope-reorder", "-o", "timeout=1800", "-rfE", *shlex.split(args.select)]  # fmt: skip
    wanted = environment(args, copy, args.record / "cache", MUTATION_RECORD=str(args.record))
    done = subprocess.run(command, cwd=copy, env={**wanted, "COVERAGE_PROCESS_START": str(settings)}, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run the tests (exit code {done.returncode})")
    Recording.close(args.record, git(args.tree, "rev-parse", "HEAD"), args.select)


def run_tests(args: argparse.Namespace, copy: Path, chosen: Chosen, *options: str) -> tuple[dict[str, str], bool]:
    """Run some tests in a copy.

    Args:
        args: Of the command line.
        copy: Holds the code and gets a fresh copy of the recorded cache beside it.
        chosen: The tests.
        options: More arguments of pytest.

    Returns:
        The reason of each test or file that failed, and whether the tests did not end at all.
    """
    cache, selection = copy.with_name(f"{copy.name}-cache"), copy.with_name(f"{copy.name}-tests.json")
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(args.record / "cache", cache)
    selection.write_text(json.dumps(chosen.seconds))
    failed = selection.with_suffix(".failed")
    failed.write_text("")
    command = [sys.executable, "-m", "pytest", "-p", PLUGIN.stem, "-p", "no:cacheprovider", "--tb=short", *options,
               f"--basetemp={copy}-tmp", *sorted({test.split("::")[0] for test in chosen.seconds})]  # fmt: skip
    wanted = environment(args, copy, cache, MUTATION_SELECT=str(selection))
    # Not into a pipe: a process that a failed test leaves running would keep it open.
    with selection.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, cwd=copy, env=wanted, stdout=log, stderr=log, process_group=0)
        try:
            code = process.wait(PATIENCE * chosen.total + EXTRA)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    failures = dict(map(json.loads, failed.read_text().splitlines()))
    if code and not failures:
        failures = {"pytest": f"exit code {code}, see {selection.with_suffix('.log')}"}
    return failures, code is None


def attempt(args: argparse.Namespace, copy: Path, point: Point, recorded: Recording) -> dict[str, Any]:
    """Return what became of one mutation, which is made in a copy and taken back."""
    tests = recorded.covering(point)
    chosen = recorded.choose(tests, args.limit)
    told: dict[str, Any] = {"tests": len(tests), "left_out": len(tests) - len(chosen.seconds), "seconds": 0.0}
    if not chosen.seconds:
        return {**told, "outcome": "survived" if tests else "not covered"}
    path, start = copy / point.file, time.perf_counter()
    source = path.read_bytes()
    path.write_bytes(point.apply(source))
    try:
        failures, hangs = run_tests(args, copy, chosen, "-x")
    finally:
        path.write_bytes(source)
    told["seconds"] = round(time.perf_counter() - start, 1)
    for test, reason in failures.items():
        return {**told, "outcome": "noticed", "by": test, "reason": nameless(args, reason)}
    return {**told, "outcome": "timed out" if hangs else "survived"}


class Results:
    """The results file, which is written after every mutation and taken up again."""

    def __init__(self, args: argparse.Namespace, recorded: Recording, drawn: Sequence[Point]) -> None:
        self.path: Path = args.results / f"mutations-{args.label}.json"
        packages = ("pytest", "coverage", "torch", "transformers", "lightning")
        self.about = {
            "revision": recorded.revision, "select": recorded.select, "seed": args.seed, "count": len(drawn),
            "command": nameless(args, shlex.join(["python", "-m", "benchmarks.mutations", *sys.argv[1:]])),
            "hardware": f"{platform.machine()}-{os.cpu_count()}cpu", "workers": args.workers, "limit": args.limit,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "tests": {"passed": len(recorded.fixtures), "not used": recorded.unused},
        }  # fmt: skip
        self.drawn = [self.described(point) for point in drawn]
        self.outcomes: list[dict[str, Any] | None] = [None] * len(drawn)
        before = json.loads(self.path.read_text()) if self.path.is_file() else {}
        if all(before.get(key) == self.about[key] for key in ("revision", "select", "seed")):
            stays = args.limit <= before["limit"]  # what survived gets another try under a higher limit
            kept = [
                each for each in before["mutations"] if stays or each["outcome"] != "survived" or not each["left_out"]
            ]
            done = {json.dumps({key: each[key] for key in self.drawn[0]}): each for each in kept}
            self.outcomes = [done.get(json.dumps(point)) for point in self.drawn]
        self.start, self.new = time.monotonic(), 0

    @staticmethod
    def described(point: Point) -> dict[str, Any]:
        """Return a mutation as the file has it."""
        return {key: getattr(point, key) for key in ("room", "file", "line", "function", "kind", "before", "after")}

    def put(self, index: int, outcome: dict[str, Any]) -> None:
        """Keep an outcome, write the file, and print the outcome with the time that is left."""
        self.outcomes[index] = {**self.drawn[index], **outcome}
        done = [each for each in self.outcomes if each]
        rooms = {each["room"]: Counter() for each in [*self.drawn, {"room": "all"}]}  # type: ignore[var-annotated]
        for each in done:
            for room in (each["room"], "all"):
                rooms[room].update(["drawn", each["outcome"]])
        told = {**self.about, "rooms": rooms, "mutations": done}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".part")
        written.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        written.replace(self.path)
        self.new += 1
        left = (time.monotonic() - self.start) / self.new * (len(self.drawn) - len(done))
        point = self.drawn[index]
        print(f"{len(done)}/{len(self.drawn)}, {left / 60:.0f} min left: {outcome['outcome']:11} {point['kind']}, "
              f"{point['file']}:{point['line']} {outcome.get('by', '')}", flush=True)  # fmt: skip


def measure(args: argparse.Namespace, recorded: Recording, drawn: Sequence[Point], results: Results) -> None:
    """Make all mutations that have no outcome yet, in as many copies as there are workers.

    A test that fails without any mutation as well has noticed nothing: it is left out, and its mutations are made again.
    """
    copies: SimpleQueue[Path] = SimpleQueue()
    for number in range(args.workers):
        copies.put(copy_of(args.tree, args.record / f"copy-{number}"))

    def one(index: int) -> None:
        copy = copies.get()
        try:
            results.put(index, attempt(args, copy, drawn[index], recorded))
        finally:
            copies.put(copy)

    while missing := [index for index, outcome in enumerate(results.outcomes) if outcome is None]:
        with ThreadPoolExecutor(args.workers) as pool:
            list(pool.map(one, missing))
        noticed = {each["by"] for each in results.outcomes if each and "by" in each} & recorded.fixtures.keys()
        failures, _ = run_tests(args, args.record / "copy-0", recorded.choose(noticed)) if noticed else ({}, False)
        recorded.leave_out(set(failures))
        results.outcomes = [None if each and each.get("by") in failures else each for each in results.outcomes]


def parse(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", required=True, help="results go to mutations-LABEL.json")
    parser.add_argument(
        "--select", default="", help="which tests: arguments of pytest in one string, as \"-m 'not long'\""
    )
    parser.add_argument("--count", type=int, default=60, help="mutations to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--limit", type=float, default=300, help="seconds of tests for one mutation; slower ones are left out"
    )
    parser.add_argument("--rooms", nargs="*", default=[], metavar="PATH=ROOM", help="rooms that are named otherwise")
    parser.add_argument("--tree", type=Path, default=ROOT, help="its commit is measured, not what is uncommitted")
    parser.add_argument("--record", type=Path, help="folder of the recording and the copies (.scratch/mutations-LABEL)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args(None if arguments is None else list(arguments))
    args.tree = args.tree.resolve()
    args.record = (args.record or ROOT / ".scratch" / f"mutations-{args.label}").resolve()
    return args


def main(arguments: Iterable[str] | None = None) -> None:
    """Record unless that is done, then mutate."""
    args = parse(arguments)
    if not Recording.is_in(args.record):
        record(args)
    recorded = Recording(args.record)
    if recorded.revision != git(args.tree, "rev-parse", "HEAD") or recorded.select != args.select:
        raise SystemExit(f"{args.record} is of another commit or selection of tests: delete it, or name another folder")
    drawn = draw(
        args.tree, points(args.tree, PACKAGE, dict(each.split("=") for each in args.rooms)), args.count, args.seed
    )
    results = Results(args, recorded, drawn)
    measure(args, recorded, drawn, results)
    print("written:", results.path)


if __name__ == "__main__":
    main()
