"""Read records strictly: every error names file, record and field.

A source gives rows (raw JSON values), rows become records of a task.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from afintro.data.formats import malformed_json, read_text
from afintro.data.sources import read_rows
from afintro.errors import UserError

Record = TypeVar("Record")


def scenario_id(text: str) -> str:
    """Return the identity of a scenario: a hash of its text with white space folded."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


FACETS = ("label", "source", "category")
"""What a sample may say of itself, by which metrics are reported too: its label, where it is from, what kind it is."""


def word_of(value: Any) -> str | None:
    """Return a text or a whole number as a word; None for anything else, and for an empty text.

    Args:
        value: What other people's files hold under ``source`` or ``category``.
    """
    known = isinstance(value, str | int) and not isinstance(value, bool)
    return (str(value).strip() or None) if known else None


def facets_of(record: Any) -> dict[str, str]:
    """Return label, source and category of a record, as far as they are known.

    Args:
        record: A record with these fields.
    """
    facets = {name: getattr(record, name) for name in FACETS}
    return {name: value for name, value in facets.items() if value and (name, value) != ("label", "unknown")}


def set_fields(record: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a record that are not None, renamed by ``names`` (from our name to the name in the file)."""
    fields = {names.get(name, name): getattr(record, name) for name in record.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value is not None}


def parse_record(
    kind: type[Record], row: Any, names: Mapping[str, str], required: Sequence[str], maker: str, where: str
) -> Record:
    """Check one object against the fields of a record type.

    Args:
        kind: A dataclass whose fields have plain types: str, bool, int, float, dict, list, also with None.
        row: The object.
        names: From the name of a field to its name in the file, if the names differ.
        required: Names of the fields that must be present.
        maker: The script that makes such files, for the remedy.
        where: File and record, for the error.

    Raises:
        UserError: A field is missing or has a wrong type.
    """
    if not isinstance(row, dict):
        raise UserError(f"is {type(row).__name__}, not an object", where=where, remedy="give one object a record")
    hints = _types(kind)  # type: ignore[arg-type]  # mypy doubts that a class can be hashed
    values: dict[str, Any] = {}
    for name, allowed in hints.items():
        in_file = names.get(name, name)
        if in_file not in row:
            if name in required:
                raise UserError(f"has no field {in_file!r}", where=where, remedy=f"make the file with {maker}")
            continue
        if name in FACETS[1:]:  # people's files hold all kinds of things there, which never stopped a run
            values[name] = word_of(row[in_file])
            continue
        if not isinstance(row[in_file], allowed) or (isinstance(row[in_file], bool) and bool not in allowed):
            expected = " or ".join(allowed_type.__name__ for allowed_type in allowed)
            raise UserError(
                f"field {in_file!r} is {type(row[in_file]).__name__}, not {expected}",
                where=where,
                remedy=f"make the file with {maker}, or mend the field",
            )
        values[name] = row[in_file]
    return kind(**values)


@cache
def _types(kind: type) -> dict[str, tuple[type, ...]]:
    """Return the types that each field may have in JSON, where a whole number may stand for a float."""
    types = {}
    for name, hint in get_type_hints(kind).items():
        options = (hint,) if get_origin(hint) in (dict, list) else get_args(hint) or (hint,)
        allowed = tuple(get_origin(option) or option for option in options)
        types[name] = (*allowed, int) if float in allowed else allowed
    return types


def parse_file(path: str, parse: Callable[[Any, str], Record], maker: str) -> list[Record]:
    """Read all records of a file.

    Args:
        path: The file, which must hold at least one record.
        parse: Turns an object, and its file and record for errors, into a record.
        maker: The script that makes such files, for the remedy.

    Raises:
        UserError: The file cannot be read, holds no record, or holds a wrong record.
    """
    records = [parse(row, f"{path}, record {index}") for index, row in enumerate(read_rows(path))]
    if not records:
        raise UserError("holds no record", where=path, remedy=f"make it with {maker}")
    return records


def check_unique(uids: Sequence[str], path: str) -> None:
    """Raise a UserError if two records of a file have the same uid."""
    seen: dict[str, int] = {}
    for index, uid in enumerate(uids):
        if uid in seen:
            raise UserError(
                f"has the same uid {uid!r} as record {seen[uid]}",
                where=f"{path}, record {index}",
                remedy="give every record its own uid, or remove the duplicate",
            )
        seen[uid] = index


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON object that is not empty and has no name twice.

    Raises:
        UserError: The file cannot be read or holds something else; the error names the line, or the name that occurs twice.
    """
    try:
        content = json.loads(read_text(Path(path)), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise malformed_json(error, path, error.lineno, "correct the file") from error
    except ValueError as error:  # a name occurs twice
        raise UserError(f"cannot be read: {error}", where=str(path), remedy="correct the file") from error
    if not isinstance(content, dict):
        raise UserError(f"is {type(content).__name__}, not an object", where=str(path), remedy="give a JSON object")
    if not content:
        raise UserError("is an empty object", where=str(path), remedy="check the file")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content
