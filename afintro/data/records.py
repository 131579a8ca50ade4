"""Read the records of any task strictly: every error names file, record and field."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from afintro.data.samples import read_rows
from afintro.errors import UserError

Record = TypeVar("Record")


def scenario_id(text: str) -> str:
    """Identity of a scenario: a hash of its text with white space folded."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def set_fields(record: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a record that are not None, under other names where ``names`` has one."""
    found = {names.get(name, name): getattr(record, name) for name in record.__dataclass_fields__}
    return {name: value for name, value in found.items() if value is not None}


def parse_record(
    kind: type[Record], row: Any, names: Mapping[str, str], required: Sequence[str], maker: str, where: str
) -> Record:
    """Check one object against the fields of a record type.

    Args:
        kind: A dataclass with plain types: str, bool, int, float, dict, list, or one of them or None.
        row: The object.
        names: Name in the file of the fields that have another one there.
        required: Fields that must be there.
        maker: The script that makes such files, for the remedy.
        where: File and record, for the error.

    Raises:
        UserError: A missing field or a wrong type.
    """
    if not isinstance(row, dict):
        raise UserError(f"is {type(row).__name__}, not an object", where=where, remedy="give one object a record")
    hints = _types(kind)  # type: ignore[arg-type]  # mypy doubts that a class can be hashed
    values: dict[str, Any] = {}
    for name, allowed in hints.items():
        theirs = names.get(name, name)
        if theirs not in row:
            if name in required:
                raise UserError(f"has no field {theirs!r}", where=where, remedy=f"make the file with {maker}")
            continue
        if not isinstance(row[theirs], allowed) or (isinstance(row[theirs], bool) and bool not in allowed):
            expected = " or ".join(one.__name__ for one in allowed)
            raise UserError(
                f"field {theirs!r} is {type(row[theirs]).__name__}, not {expected}",
                where=where,
                remedy=f"make the file with {maker}, or mend the field",
            )
        values[name] = row[theirs]
    return kind(**values)


@cache
def _types(kind: type) -> dict[str, tuple[type, ...]]:
    """What each field may be in JSON; a whole number is a float too."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        options = (hint,) if get_origin(hint) in (dict, list) else get_args(hint) or (hint,)
        allowed = tuple(get_origin(option) or option for option in options)
        found[name] = (*allowed, int) if float in allowed else allowed
    return found


def parse_file(path: str, parse: Callable[[Any, str], Record], maker: str) -> list[Record]:
    """All records of a file, which must hold one at least; ``maker`` is the script that makes such files."""
    records = [parse(row, f"{path}, record {index}") for index, row in enumerate(read_rows(path))]
    if not records:
        raise UserError("holds no record", where=path, remedy=f"make it with {maker}")
    return records


def check_unique(uids: Sequence[str], path: str) -> None:
    """Raise a UserError where two records of a file have one uid."""
    seen: dict[str, int] = {}
    for index, uid in enumerate(uids):
        if uid in seen:
            raise UserError(
                f"uid {uid!r} stands in record {seen[uid]} already",
                where=f"{path}, record {index}",
                remedy="give every record its own uid, or remove the double",
            )
        seen[uid] = index
