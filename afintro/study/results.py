"""What a study left on disk, cell by cell: rows, or the reason why there are none."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afintro.errors import UserError

REMEDY = "remove it if it is there, then python -m afintro.study run"
LOGPROBS = "logprobs"
Row = dict[str, Any]
Cell = tuple[str, str, int]
"""Variant, evaluation, seed."""

NEEDED = ("system", "question", "category", "control", "pair", "p_a", "p_yes", "mass")
"""Fields of every row of ``logprobs``. Of other evaluations the analysis reads the summary, which is of all rows."""


@dataclass(frozen=True)
class Plan:
    """What a study is to consist of.

    Args:
        study: Its name.
        evaluations: For each variant those that apply to it; both in the order of the tables.
        seeds: Of every variant.
        reasons: Cells that do not count, and why: a training that broke, or rows of another one, which may well be there.
    """

    study: str
    evaluations: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    reasons: Mapping[Cell, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Every evaluation that applies to some variant, in the order first met."""
        return list(dict.fromkeys(name for applied in self.evaluations.values() for name in applied))

    @property
    def cells(self) -> list[Cell]:
        """All cells, missing or not."""
        return [(v, name, seed) for v, applied in self.evaluations.items() for name in applied for seed in self.seeds]


class StudyResults:
    """Reads a study's folder.

    Args:
        folder: ``results/<study>``.
        plan: What to look for; other folders in it are not read.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.warnings: list[str] = []
        self.missing: dict[Cell, str] = {}  # grows as rows turn out to be broken
        self.steps: dict[Cell, int | None] = {}
        for cell in plan.cells:
            if cell in plan.reasons or not self._path(cell).is_file():
                self.missing[cell] = plan.reasons.get(cell, "not there")
                continue
            try:
                self.steps[cell] = read_header(self._path(cell), cell).get("step")
            except UserError as error:
                self.missing[cell] = str(error).partition("\n")[0]

    def _path(self, cell: Cell) -> Path:
        variant, evaluation, seed = cell
        return self.folder / variant / evaluation / f"seed_{seed}.jsonl"

    def logprobs(self, variant: str) -> list[Row]:
        """Answers to self-reports, of all seeds that have any; a broken file is missing with its reason."""
        found: list[Row] = []
        for seed in self.done(variant, LOGPROBS):
            cell = (variant, LOGPROBS, seed)
            try:
                found.extend(read_rows(self._path(cell), seed))
            except UserError as error:
                self.missing[cell] = str(error).partition("\n")[0]
                del self.steps[cell]
        return found

    def summary(self, variant: str, evaluation: str) -> dict[str, Any] | None:
        """What the evaluation makes of its rows; None, and a warning, where that is not there or of other seeds."""
        done = self.done(variant, evaluation)
        if not done:
            return None
        path = self.folder / variant / evaluation / "summary.json"
        try:
            content = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError:
            content = {}
        if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
            self.warnings.append(f"{variant}, {evaluation}: rows but no readable summary.json; left out of the tables")
            return None
        seeds = content.get("seeds", done)
        if sorted(seeds) != sorted(done):
            self.warnings.append(
                f"{variant}, {evaluation}: summary.json is of seeds {seeds}, not {done}; left out of the tables"
            )
            return None
        return content

    def done(self, variant: str, evaluation: str) -> list[int]:
        """Seeds whose rows are there."""
        return [seed for seed in self.plan.seeds if (variant, evaluation, seed) in self.steps]


def read_header(path: Path, cell: Cell) -> dict[str, Any]:
    """First line of a file of rows, which has to have rows.

    Raises:
        UserError: No rows, or it is another cell's.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        header = _object(file.readline(), f"{path.name}, line 1")
        first = file.readline()
    given = (header.get("variant"), header.get("evaluation"), header.get("seed"))
    if given != cell:
        raise UserError(f"is of {given}", where=f"{path.name}, line 1", remedy=REMEDY)
    if not first:
        raise UserError("holds no row", where=path.name, remedy=REMEDY)
    return header


def read_rows(path: Path, seed: int) -> list[Row]:
    """The rows of ``logprobs`` after the header, checked for what the analysis reads; their seed is that of the file.

    Raises:
        UserError: Names line and field.
    """
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            row = _object(line, f"{path.name}, line {number}")
            for name in NEEDED:
                if name not in row:
                    raise UserError(f"has no {name!r}", where=f"{path.name}, line {number}", remedy=REMEDY)
            rows.append({**row, "seed": seed})
    return rows


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError("is not JSON", where=where, remedy=REMEDY) from error
    if not isinstance(found, dict):
        raise UserError("is no object", where=where, remedy=REMEDY)
    return found
