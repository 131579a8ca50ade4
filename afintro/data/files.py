"""Write files so that a crash leaves the old file or the new file, never half of either."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from afintro.errors import UserError


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for bytes, which takes its name when it is complete: a crash leaves the old file or the new file.

    Raises:
        UserError: The file cannot be written; an old file stays unchanged.
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
    """Write a text file so that a crash leaves the old file or the new file, never half of either.

    Raises:
        UserError: The file cannot be written; an old file stays unchanged.
    """
    with new_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically, keys in the order given."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write a JSON list with one element a line, atomically; the rows need not fit into memory at once."""
    with new_file(path) as file:
        file.write(b"[")
        for index, row in enumerate(rows):
            file.write((",\n" if index else "\n").encode() + json.dumps(row, ensure_ascii=False).encode())
        file.write(b"\n]\n")


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
