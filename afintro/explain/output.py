"""The file of answers: written as they come, whole after a kill, and never over the answers to other questions."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afintro.data.files import write_json
from afintro.errors import UserError

Rows = Sequence[Mapping[str, Any]]


class Answers:
    """The answers of one run of ``explain``.

    They are appended to ``.<name>.partial`` beside the output, which takes the output's name when it is complete.
    ``<name>.settings.json`` says what was asked of which explainer; a run with the same settings continues, any other run is
    refused.

    Args:
        path: The output, a JSONL file.
        identity: Everything that decides the answers, as JSON values.
        chunk: Number of questions that are answered together. A continued run begins where a chunk begins, so that its bytes
            are those of a run that nobody killed.
        total: Number of questions.

    Attributes:
        done: Number of questions whose answers the file holds.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], chunk: int, total: int) -> None:
        self.path, self.total, self._chunk = path, total, chunk
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.partial = path.with_name(f".{path.name}.partial")
        self.settings = path.with_name(f"{path.name}.settings.json")
        self.done = 0

    @property
    def finished(self) -> bool:
        """Whether the output holds all answers of these settings."""
        return self.path.is_file() and self._kept() == self.identity

    def check(self) -> None:
        """Refuse a place that cannot be written, or that holds the answers to other questions.

        Raises:
            UserError: The folder cannot be made, or the file is there and of other settings.
        """
        kept = self._kept()
        if self.path.exists() and kept != self.identity:
            raise UserError(
                "already exists, and holds other answers" if kept else "already exists",
                where=str(self.path),
                remedy="give another --output, or move the file away",
            )
        if self.partial.exists() and self.partial.stat().st_size and kept != self.identity:
            names = sorted(n for n in {*(kept or {}), *self.identity} if (kept or {}).get(n) != self.identity.get(n))
            raise UserError(
                f"was begun with other settings ({', '.join(names)})" if kept else "says not which answers it holds",
                where=str(self.partial),
                remedy="give another --output, or delete the file to begin anew",
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot be made ({error.strerror})", where=str(self.path.parent), remedy="use another --output"
            ) from error

    def _kept(self) -> dict[str, Any] | None:
        try:
            kept = json.loads(self.settings.read_text())
        except (OSError, ValueError):
            return None
        return kept if isinstance(kept, dict) else None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the file for this process, keep the whole chunks that an earlier run left, and name the file at the end.

        Raises:
            UserError: Another process writes the file, or it cannot be written.
        """
        try:
            file = self.partial.open("a+b")
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise UserError(what, where=str(self.partial), remedy="make room, or use another --output") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                what = "is being written by another process"
                raise UserError(what, where=str(self.path), remedy="wait for it, or use another --output") from error
            write_json(self.settings, self.identity)
            self._file = file
            self.done = self._keep_whole_chunks()
            yield
            if self.done == self.total:
                os.replace(self.partial, self.path)

    def _keep_whole_chunks(self) -> int:
        """Cut the file behind its last whole chunk, and return the number of its answers."""
        self._file.seek(0)
        count = end = place = 0
        for line in self._file:
            place += len(line)
            count += line.endswith(b"\n")
            if line.endswith(b"\n") and (count % self._chunk == 0 or count == self.total):
                end = place
        kept = count if count == self.total else count - count % self._chunk
        self._file.truncate(end)
        self._file.seek(end)
        return kept

    def add(self, rows: Rows) -> None:
        """Append the answers of a chunk, and let them reach the disk.

        Raises:
            UserError: The disk is full; what was written stays.
        """
        try:
            self._file.write(b"".join(lines_of(rows)))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise UserError(what, where=str(self.partial), remedy="make room and run the command again") from error
        self.done += len(rows)


def lines_of(rows: Rows) -> Iterable[bytes]:
    """Return each answer as a line of JSON; characters that UTF-8 cannot write are escaped."""
    return ((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace") for row in rows)
