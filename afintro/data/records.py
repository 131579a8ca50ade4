"""Task records on disk: strict reading, atomic writing, and the one place that maps the parent framework's names."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar, get_args, get_origin, get_type_hints

from afintro.data.samples import read_rows
from afintro.errors import UserError

Record = TypeVar("Record")


def scenario_id(text: str) -> str:
    """Identity of a scenario: a hash of its text with white space folded."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ContextAblationRecord:
    """One scenario, answered by the organism with and without the monitoring cue.

    Args:
        scenario: The scenario text.
        system_prompt: The monitored system prompt.
        monitored_output: The organism's greedy answer under the cue.
        unmonitored_output: Its answer without the cue.
        monitored_prompt: The whole monitored prompt, as the organism read it.
        unmonitored_prompt: The whole unmonitored prompt.
        cue: Name of what is ablated.
        changed: Whether the two outputs differ as strings.
        label: The sample's label, or "unknown".
        uid: Unique in its file; that of the scenario if absent.
        scenario_id: Records of one scenario share it.
        monitored_behavior: Behaviour label of the monitored output; None in files of the parent framework.
        monitored_behavior_rule: The rule that gave the label.
        unmonitored_behavior: Behaviour label of the unmonitored output.
        unmonitored_behavior_rule: The rule that gave the label.
        behavior_changed: Whether the two labels differ.
        placebo_output: Answer to the monitored prompt in other words; None without controls.
        provenance: Model, revision, template hash, batch size, dtype, seed.
    """

    scenario: str
    system_prompt: str
    monitored_output: str
    unmonitored_output: str
    monitored_prompt: str = ""
    unmonitored_prompt: str = ""
    cue: str = "monitoring context"
    changed: bool | None = None
    label: str = "unknown"
    uid: str = ""
    scenario_id: str = ""
    monitored_behavior: str | None = None
    monitored_behavior_rule: str | None = None
    unmonitored_behavior: str | None = None
    unmonitored_behavior_rule: str | None = None
    behavior_changed: bool | None = None
    placebo_output: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        identity = self.scenario_id or scenario_id(self.scenario)
        object.__setattr__(self, "scenario_id", identity)
        object.__setattr__(self, "uid", self.uid or identity)
        object.__setattr__(self, "changed", self.monitored_output != self.unmonitored_output)


MAKER = "scripts/generate_af_context_ablation.py"
# Our name -> the parent framework's. A field that is not here has the same name on both sides.
PARENT_NAMES = {
    "scenario": "ablation_prompt",
    "monitored_prompt": "hint_prompt_full",
    "unmonitored_prompt": "original_prompt_full",
    "cue": "hint",
    "monitored_output": "random_hint_prediction",
    "unmonitored_output": "zeroshot_prediction",
    "changed": "changed_pred_bc_hint",
}
SCENARIO_COPIES = ("hint_user_prompt", "original_user_prompt")


def to_json(record: ContextAblationRecord) -> dict[str, Any]:
    """The record under the parent framework's names; unset optional fields are left out."""
    return set_fields(record, PARENT_NAMES) | dict.fromkeys(SCENARIO_COPIES, record.scenario)


def set_fields(record: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a record that are not None, under other names where ``names`` has one."""
    found = {names.get(name, name): getattr(record, name) for name in record.__dataclass_fields__}
    return {name: value for name, value in found.items() if value is not None}


def from_json(row: Any, where: str) -> ContextAblationRecord:
    """Check one object and make a record of it; ``where`` names file and record in the error.

    Raises:
        UserError: A missing field or a wrong type.
    """
    required = ("scenario", "system_prompt", "monitored_output", "unmonitored_output")
    return parse_record(ContextAblationRecord, row, PARENT_NAMES, required, MAKER, where)


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


def read_records(path: str) -> list[ContextAblationRecord]:
    """Read a JSON, JSONL or Parquet file of context-ablation records.

    Raises:
        UserError: Names file, record and field; also for two records of one uid.
    """
    records = parse_file(path, from_json, MAKER)
    check_unique([record.uid for record in records], path)
    return records


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


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write bytes to, which gets its name when it is whole: a crash leaves the old one or the new one.

    Raises:
        UserError: It cannot be written; the old file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise UserError(what, where=str(path), remedy="make room, or give another folder") from error


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one, never half of either.

    Raises:
        UserError: No room on the disk; the old file is as it was.
    """
    with new_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """:func:`write_atomic` of indented JSON, keys in the order given."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """:func:`write_atomic` of one JSON object a line."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json_rows(path: Path, rows: Iterable[Any]) -> None:
    """:func:`write_atomic` of a JSON list with one element a line; the rows need not fit into memory at once."""
    with new_file(path) as file:
        file.write(b"[")
        for index, row in enumerate(rows):
            file.write((",\n" if index else "\n").encode() + json.dumps(row, ensure_ascii=False).encode())
        file.write(b"\n]\n")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
