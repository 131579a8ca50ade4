"""Read answers from tables: a row a pair, with columns that the user names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afintro.data.formats import DELIMITERS, READERS, file_rows
from afintro.errors import UserError
from afintro.tasks.context_ablation.imports.pairs import Answer, Source

NEEDED = ("request", "monitored", "unmonitored")
OPTIONAL = ("cue", "unmonitored_cue", "model", "scenario_id", "label")


@dataclass(frozen=True)
class Columns:
    """Say in which columns of a table the parts of a pair stand.

    Args:
        names: Name of the column by part: ``request``, ``monitored``, ``unmonitored``, and perhaps ``cue``,
            ``unmonitored_cue`` (the texts of the conditions), ``model``, ``scenario_id`` and ``label``.
        cue: Text of the monitored condition where no column has it.
        model: Name of the model that answered, where no column has it.
    """

    names: Mapping[str, str]
    cue: str | None = None
    model: str | None = None

    def check(self) -> None:
        """Refuse parts that are unknown or missing.

        Raises:
            UserError: A part is wrong.
        """
        unknown = sorted(set(self.names) - {*NEEDED, *OPTIONAL})
        if unknown:
            known = ", ".join((*NEEDED, *OPTIONAL))
            raise UserError(f"knows no part {unknown[0]!r}", where="--columns", remedy=f"use {known}")
        missing = [part for part in NEEDED if part not in self.names]
        if missing:
            raise UserError(
                f"does not name the column of {', '.join(missing)}",
                where="--columns",
                remedy="write e.g. --columns request=prompt monitored=with_cue unmonitored=without_cue",
            )
        if "cue" not in self.names and not self.cue:
            raise UserError(
                "is missing: what did the monitored prompt say that the unmonitored prompt did not?",
                where="--cue",
                remedy="add --cue TEXT, or --columns ... cue=COLUMN",
            )


def files_below(path: Path) -> list[Path]:
    """Return the tables below a folder in the order of their names, or the file itself.

    Raises:
        UserError: The path does not exist, or the folder holds no table.
    """
    if not path.exists():
        raise UserError("does not exist", where=str(path), remedy="check --input_path")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in READERS)
    if not files:
        raise UserError(
            f"holds no file that ends with {', '.join(READERS)}", where=str(path), remedy="check the folder"
        )
    return files


def read_columns(path: Path, columns: Columns) -> list[Source]:
    """Read the pairs of a table, one source for each model.

    Args:
        path: The table.
        columns: Where the parts stand.

    Raises:
        UserError: The table cannot be read, lacks a column, or holds a wrong value.
    """
    pairs: dict[str, list[tuple[Answer, Answer]]] = {}
    absent = "" if path.suffix in DELIMITERS else None  # CSV cannot say that there is no answer
    for index, row in enumerate(file_rows(path)):
        where = f"{path}, record {index}"
        parts = {part: absent if text is None else text for part, text in _parts(row, columns, where)}
        request, cue = parts["request"], parts.get("cue") or columns.cue
        if not request or not request.strip() or not cue:
            raise UserError("has an empty request or cue", where=where, remedy="remove the row, or give --cue TEXT")
        shared = {"scenario_id": parts.get("scenario_id") or "", "label": parts.get("label") or "unknown"}
        texts = {"monitored": cue, "unmonitored": parts.get("unmonitored_cue") or ""}
        answers = [
            Answer(request, f"{texts[side]}\n\n{request}".strip(), texts[side], parts[side], f"row {index}", **shared)
            for side in texts
        ]
        model = parts.get("model") or columns.model or "unknown"
        pairs.setdefault(model, []).append((answers[0], answers[1]))
    if not pairs:
        raise UserError("holds no row", where=str(path), remedy="check the file")
    return [
        Source(
            name=f"{path.name}/{model}",
            path=str(path),
            model=model,
            cue_name="monitoring context",
            monitored=[monitored for monitored, _ in answered],
            unmonitored=[unmonitored for _, unmonitored in answered],
        )
        for model, answered in pairs.items()
    ]


def _parts(row: Any, columns: Columns, where: str) -> Iterator[tuple[str, str | None]]:
    """Yield each part of a row with its text."""
    if not isinstance(row, dict):
        raise UserError(f"is {type(row).__name__}, not an object", where=where, remedy="give one object a row")
    for part, name in columns.names.items():
        if name not in row:
            known = ", ".join(map(str, row))
            raise UserError(
                f"has no column {name!r}", where=where, remedy=f"name one of {known} as {part} in --columns"
            )
        value = row[name]
        if value is not None and not isinstance(value, str):
            raise UserError(f"column {name!r} is {type(value).__name__}, not a text", where=where, remedy="give texts")
        yield part, value
