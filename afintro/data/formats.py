"""Read the rows of one file: JSON, JSONL, CSV, TSV or Parquet. Files are opened for reading only."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from afintro.errors import UserError

SHAPES = "a JSON list of {text, label}, an object with 'samples', JSONL, CSV, Parquet, or a Hugging Face dataset"
WRAPPERS = ("samples", "data", "examples", "records", "rows", "items", "instances")
"""Keys under which an object may hold the list of its rows."""
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}


def file_rows(path: Path) -> Iterable[Any]:
    """Read the rows of a file in the format that its ending names; any unknown ending is taken for JSON.

    Raises:
        UserError: The file is unreadable, empty or malformed; the error names the line.
    """
    return READERS.get(path.suffix.lower(), _json_rows)(path)


def is_file_name(path: Path) -> bool:
    """Tell whether a path is called as a file, so that it is no folder and no hub id."""
    return path.suffix.lower() in READERS


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 as JSON allows them; a byte order mark is no part of the text.

    Raises:
        UserError: The file cannot be read, or holds something else than such text.
    """
    try:
        content = path.read_bytes()
        encoding = json.detect_encoding(content)
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"cannot be read: it is not {encoding.upper().removesuffix('-SIG')} text (byte {error.start})"
        raise UserError(what, where=str(path), remedy="save the file as UTF-8") from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise UserError(
            what, where=str(path), remedy="check the path" if missing else "check its permissions"
        ) from error


def _text(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise UserError("is empty", where=str(path), remedy=f"give {SHAPES}")
    return text


def _json_rows(path: Path) -> list[Any]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        remedy = "correct the file, or name it .jsonl if it holds one object a line"
        raise malformed_json(error, path, error.lineno, remedy) from error
    if isinstance(content, list):
        return content
    rows = unwrapped(content, str(path)) if isinstance(content, dict) else None
    if rows is None:
        raise UserError("holds no list of records", where=str(path), remedy=f"give {SHAPES}")
    return rows


def unwrapped(content: Mapping[str, Any], where: str) -> list[Any] | None:
    """Return the rows that an object holds under one of :data:`WRAPPERS`, as a list or by their ids; None if it holds none.

    Args:
        content: The object.
        where: The file, for the error.

    Raises:
        UserError: Several keys hold rows.
    """
    held = {key: _rows_in(content[key]) for key in WRAPPERS if key in content}
    found = {key: rows for key, rows in held.items() if rows is not None}
    if len(found) > 1:
        what = f"holds rows under {' and under '.join(map(repr, found))}, and only one of them can be meant"
        raise UserError(what, where=where, remedy="keep one of them")
    rows = next(iter(found.values()), None)
    return None if rows is None else _viewed(rows, content.get("features"))


def _rows_in(value: Any) -> list[Any] | None:
    """Return a list of rows, or the rows of an object that holds rows by their ids."""
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return list(value.values())
    return value if isinstance(value, list) else None


def _viewed(rows: list[Any], features: Any) -> list[Any]:
    """Take the rows of the dataset viewer's answers, ``{features, rows: [{row_idx, row}]}``, out of their wrapping."""
    if not all(isinstance(row, dict) and isinstance(row.get("row"), dict) and "row_idx" in row for row in rows):
        return rows
    kinds = {
        entry["name"]: entry["type"]["names"]
        for entry in (features if isinstance(features, list) else [])
        if isinstance(entry, dict) and (entry.get("type") or {}).get("_type") == "ClassLabel"
    }
    return [with_class_names(row["row"], kinds) for row in rows]


def with_class_names(row: dict[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a row in which the numbers of classes are the names of the classes; -1 stands for no class."""
    chosen = {}
    for field, classes in names.items():
        number = row.get(field)
        if isinstance(number, int) and number < len(classes):
            chosen[field] = classes[number] if number >= 0 else None
    return {**row, **chosen}


def _jsonl_rows(path: Path) -> Iterator[Any]:
    lines = re.split("\r\n?|\n", _text(path))  # a string in JSON holds none of these
    yield from json_lines(lines, path, "put one complete JSON object on every line")


def json_lines(lines: Iterable[str], path: Path, remedy: str) -> Iterator[Any]:
    """Read a JSON value out of every line that is not blank.

    Args:
        lines: The lines.
        path: Their file, for the error.
        remedy: What to do about a malformed line.

    Raises:
        UserError: A line is malformed; the error names it.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise malformed_json(error, path, number, remedy) from error


def malformed_json(error: json.JSONDecodeError, path: str | Path, line: int, remedy: str) -> UserError:
    """Return the error of malformed JSON.

    Args:
        error: What the parser says.
        path: The file.
        line: Number of the line in the file, from 1 on.
        remedy: What to do.
    """
    return UserError(
        f"is malformed JSON: {error.msg} (column {error.colno})", where=f"{path}, line {line}", remedy=remedy
    )


def _table_rows(path: Path) -> Iterator[dict[str, str | None]]:
    """Read a CSV or TSV file with a header; an empty field becomes None."""
    text = _text(path)
    header_line = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = max(DELIMITERS[path.suffix.lower()], key=header_line.count)
    csv.field_size_limit(sys.maxsize)  # a text may be longer than the module's 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(row for row in reader if row)]
        double = next((name for name in header if name and header.count(name) > 1), None)
        if double is not None:
            raise UserError(f"has two columns {double!r}", where=str(path), remedy="give every column its own name")
        for row in reader:
            if row and len(row) != len(header):
                what = f"has {len(row)} fields, but the header has {len(header)}"
                remedy = "put texts with commas or line breaks in double quotes"
                raise UserError(what, where=f"{path}, line {reader.line_num}", remedy=remedy)
            if row:
                yield {name: value or None for name, value in zip(header, row, strict=True) if name}
    except csv.Error as error:
        raise UserError(
            f"is malformed CSV: {error}",
            where=f"{path}, line {reader.line_num}",
            remedy="write a double quote within a quoted field twice, and close every quoted field",
        ) from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = _class_names(file.schema_arrow)
        index = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield with_class_names(_decoded(row, f"{path}, record {index}"), names)
                index += 1
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"is not Parquet ({error})", where=str(path), remedy=f"give {SHAPES}") from error


def _decoded(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row whose binary values, as some tools write strings, are strings."""
    try:
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in row.items()}
    except UnicodeDecodeError as error:
        raise UserError("holds bytes that are not UTF-8 text", where=where, remedy="write texts as strings") from error


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes of each column that ``datasets`` wrote as ``ClassLabel`` into a Parquet file."""
    about = (schema.metadata or {}).get(b"huggingface")
    features = (json.loads(about).get("info") or {}).get("features") or {} if about else {}
    return {
        name: kind["names"]
        for name, kind in features.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and kind.get("names")
    }


READERS: dict[str, Callable[[Path], Iterable[Any]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _table_rows,
    ".tsv": _table_rows,
    ".parquet": _parquet_rows,
}
"""How rows are read from a file, by its ending."""
