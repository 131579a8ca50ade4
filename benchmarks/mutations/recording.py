"""Which tests run a line, from one recorded run of the tests: see :mod:`benchmarks.mutations.mutation_plugin`."""

import ast
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coverage import CoverageData

from benchmarks.mutations.points import Point

PACKAGE = "afintro"


@dataclass(frozen=True)
class Chosen:
    """Tests to run.

    Attributes:
        seconds: What each takes, with the shared fixtures that it uses.
        total: Of all of them, with each fixture counted once.
    """

    seconds: dict[str, float]
    total: float


class Recording:
    """A recorded run.

    Args:
        folder: That the run was recorded to.

    Attributes:
        revision: The commit.
        select: The selection of tests.
        seconds: What each test and each shared fixture takes alone.
        fixtures: The shared fixtures of each test that passed.
        unused: Names of the tests that failed, which cannot notice anything.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "record.json").read_text())
        self.revision, self.select = about["revision"], about["select"]
        self.root = (folder / "recorded").resolve()
        self.data = CoverageData(str(folder / "coverage.all"))
        self.data.read()
        lines = [json.loads(line) for path in folder.glob("tests-*.jsonl") for line in path.read_text().splitlines()]
        self.seconds = {line["name"]: line["seconds"] for line in sorted(lines, key=lambda line: line["seconds"])}
        tests = {line["name"]: line for line in lines if "outcome" in line}
        self.unused = sorted(name for name, test in tests.items() if test["outcome"] == "failed")
        self.fixtures = {name: test["fixtures"] for name, test in tests.items() if test["outcome"] == "passed"}
        self.users: dict[str, set[str]] = defaultdict(set)
        for name, fixtures in self.fixtures.items():
            for user in (name, *fixtures):
                self.users[user].add(name)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Return whether the folder has a finished recording."""
        return (folder / "record.json").is_file()

    @staticmethod
    def close(folder: Path, revision: str, select: str) -> None:
        """Put the processes' data into one file and mark the recording as finished."""
        together = CoverageData(str(folder / "coverage.all"))
        for path in folder.glob("coverage.*.*"):
            part = CoverageData(str(path))
            part.read()
            together.update(part)
        (folder / "record.json").write_text(json.dumps({"revision": revision, "select": select}))

    def leave_out(self, tests: set[str]) -> None:
        """Do not name these tests again."""
        self.fixtures = {test: fixtures for test, fixtures in self.fixtures.items() if test not in tests}
        self.unused = sorted({*self.unused, *tests})

    def choose(self, tests: set[str], limit: float = math.inf) -> Chosen:
        """Return the fastest tests that end within so many seconds. A shared fixture is counted once."""
        whole = {
            test: self.seconds[test] + sum(self.seconds.get(each, 0) for each in self.fixtures[test]) for test in tests
        }
        chosen, total, ready = {}, 0.0, set[str]()
        for test in sorted(tests, key=lambda test: (whole[test], test)):
            more = self.seconds[test] + sum(
                self.seconds.get(each, 0) for each in self.fixtures[test] if each not in ready
            )
            if total + more <= limit:
                chosen[test], total = whole[test], total + more
                ready.update(self.fixtures[test])
        return Chosen(chosen, total)

    def covering(self, point: Point) -> set[str]:
        """Return the tests that run a mutation.

        What runs at import runs in every test. Those count that run a function which mentions the name that is set there, or
        if none does, any function of the file.
        """
        tests: set[str] = set()
        if point.names:
            tests = {test for file in self._files() for test in self._mentioning(file, point.names)}
        else:
            tests = self._running(point.file, range(point.lines[0], point.lines[1] + 1))
        if not tests and (point.names or self._contexts(point.file).keys() & range(point.lines[0], point.lines[1] + 1)):
            tests = self._running(point.file, self._in_functions(point.file))
        return tests & self.fixtures.keys()

    def _files(self) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in sorted((self.root / PACKAGE).rglob("*.py"))]

    @cache  # noqa: B019
    def _contexts(self, file: str) -> dict[int, list[str]]:
        return self.data.contexts_by_lineno(str(self.root / file))

    def _running(self, file: str, lines: range | set[int]) -> set[str]:
        contexts = self._contexts(file)
        return {test for line in lines for context in contexts.get(line, ()) for test in self.users.get(context, ())}

    def _mentioning(self, file: str, names: tuple[str, ...]) -> set[str]:
        word = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
        text = (self.root / file).read_text()
        if not word.search(text):
            return set()
        lines = {number for number, line in enumerate(text.splitlines(), 1) if word.search(line)}
        return self._running(file, lines & self._in_functions(file))

    @cache  # noqa: B019
    def _in_functions(self, file: str) -> set[int]:
        inside: set[int] = set()
        for node in ast.walk(ast.parse((self.root / file).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inside.update(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
        return inside
