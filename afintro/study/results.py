"""Read what a study left on disk, cell by cell: the rows of an evaluation, or the reason why there are none."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afintro.errors import UserError

REMEDY = "remove the file if it exists, then run python -m afintro.study run"
LOGPROBS = "logprobs"
FORMATS = {"detection": 2, "neutral_detection": 2}
"""Format of an evaluation's rows, 1 where none is given. Rows of another format mean something else and are made anew. Before 2
detection was asked in one polarity, without control questions, and every test context was read at all layer ranges."""
SCORINGS = {"detection": 2, "neutral_detection": 2, "logprobs": 2}
"""Version of what ``summary.json`` says, 1 where none is given. A summary of another version is made anew from the rows."""
ResultRow = dict[str, Any]
"""One line of an evaluation's file: what a system was asked, and what it answered."""
EvaluationKey = tuple[str, str, int]
"""Variant, evaluation, seed."""

REQUIRED_FIELDS = ("system", "question", "category", "control", "pair", "p_a", "p_b", "p_yes", "mass")
"""Fields of every row of ``logprobs``. Of other evaluations the analysis reads the summary, which covers all rows."""


@dataclass(frozen=True)
class Plan:
    """What a study is to consist of.

    Args:
        study: The study's name.
        evaluations: The evaluations of each variant. Variants and evaluations are in the order of the tables.
        seeds: The training seeds, of all variants but those of ``seeds_of``.
        reasons: Why evaluations do not count, because their training broke or because their rows belong to another
            training. Such rows may exist on disk.
        seeds_of: The training seeds of variants that have seeds of their own.
    """

    study: str
    evaluations: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    reasons: Mapping[EvaluationKey, str] = field(default_factory=dict)
    seeds_of: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def seeds_for(self, variant: str) -> Sequence[int]:
        """Return the training seeds of a variant."""
        return self.seeds_of.get(variant, self.seeds)

    @property
    def names(self) -> list[str]:
        """Return every evaluation that some variant has, in order of first appearance."""
        return list(dict.fromkeys(name for names in self.evaluations.values() for name in names))

    @property
    def keys(self) -> list[EvaluationKey]:
        """Return the key of every planned evaluation, whether it was made or not."""
        return [
            (v, name, seed) for v, names in self.evaluations.items() for name in names for seed in self.seeds_for(v)
        ]


class StudyResults:
    """The results in a study's folder.

    Args:
        folder: ``results/<study>``.
        plan: The evaluations to look for. Other folders in the study's folder are not read.

    Attributes:
        warnings: What could not be used although it exists.
        missing: Why an evaluation has no rows. The mapping grows as rows turn out to be broken.
        steps: The optimizer step of the checkpoint that was evaluated, for every evaluation that has rows.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.warnings: list[str] = []
        self.missing: dict[EvaluationKey, str] = {}
        self.steps: dict[EvaluationKey, int | None] = {}
        for key in plan.keys:
            if key in plan.reasons or not self._path(key).is_file():
                self.missing[key] = plan.reasons.get(key, "not there")
                continue
            try:
                self.steps[key] = read_header(self._path(key), key).get("step")
            except UserError as error:
                self.missing[key] = str(error).partition("\n")[0]

    def _path(self, key: EvaluationKey) -> Path:
        variant, evaluation, seed = key
        return self.folder / variant / evaluation / f"seed_{seed}.jsonl"

    def logprobs(self, variant: str) -> list[ResultRow]:
        """Return a variant's answers to self-reports over all seeds that have any.

        A broken file is left out, and its reason is added to :attr:`missing`.
        """
        rows: list[ResultRow] = []
        for seed in self.done(variant, LOGPROBS):
            key = (variant, LOGPROBS, seed)
            try:
                rows.extend(read_logprob_rows(self._path(key), seed))
            except UserError as error:
                self.missing[key] = str(error).partition("\n")[0]
                del self.steps[key]
        return rows

    def summary(self, variant: str, evaluation: str) -> dict[str, Any] | None:
        """Return an evaluation's summary of its rows.

        Returns:
            The content of ``summary.json``. None if there are no rows; None and a warning if the summary is unreadable
            or covers other seeds than those that have rows, or says what an earlier version said.
        """
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
        if content.get("version", 1) != SCORINGS.get(evaluation, 1):
            self.warnings.append(
                f"{variant}, {evaluation}: summary.json is of an earlier version and means something else; left out of the "
                "tables until python -m afintro.study run makes it anew"
            )
            return None
        return content

    def done(self, variant: str, evaluation: str) -> list[int]:
        """Return the seeds whose rows exist."""
        return [seed for seed in self.plan.seeds_for(variant) if (variant, evaluation, seed) in self.steps]


def read_header(path: Path, key: EvaluationKey) -> dict[str, Any]:
    """Read the first line of a file of rows.

    Raises:
        UserError: The file has no rows or belongs to another evaluation.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        header = _parse_object(file.readline(), f"{path.name}, line 1")
        first_row = file.readline()
    actual_key = (header.get("variant"), header.get("evaluation"), header.get("seed"))
    if actual_key != key:
        raise UserError(f"belongs to {actual_key}, not to {key}", where=f"{path.name}, line 1", remedy=REMEDY)
    if not first_row:
        raise UserError("contains no rows", where=path.name, remedy=REMEDY)
    return header


def read_logprob_rows(path: Path, seed: int) -> list[ResultRow]:
    """Read the rows of ``logprobs`` after the header, and check the fields that the analysis reads.

    Args:
        path: A file of rows.
        seed: The seed that the file belongs to. It replaces the seed of every row.

    Raises:
        UserError: A row is not JSON or lacks a field. The error names line and field.
    """
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            row = _parse_object(line, f"{path.name}, line {number}")
            for name in REQUIRED_FIELDS:
                if name not in row:
                    raise UserError(f"lacks the field {name!r}", where=f"{path.name}, line {number}", remedy=REMEDY)
            rows.append({**row, "seed": seed})
    return rows


def _parse_object(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise UserError("is not JSON", where=where, remedy=REMEDY) from error
    if not isinstance(content, dict):
        raise UserError("is not a JSON object", where=where, remedy=REMEDY)
    return content
