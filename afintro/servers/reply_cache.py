"""Keep replies of models on disk, so that a run that is stopped or repeated asks only what was never answered."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from afintro.data.cache import cache_directory
from afintro.errors import UserError

BUSY_SECONDS = 60.0  # how long one process waits for the write of another process


class ReplyCache:
    """Store raw replies of one model in an SQLite file, by the SHA-256 of model and prompt.

    Threads may share a cache. Several processes may write at once, and a killed process loses nothing that it wrote.

    Args:
        identity: Everything that the reply depends on besides the prompt, as JSON values. Only its hash is stored.
        path: The file, made if absent; ``judges.sqlite`` of the cache directory, if none is given.
    """

    def __init__(self, identity: Sequence[object], path: Path | None = None) -> None:
        self._identity = list(identity)
        self._lock = threading.Lock()
        self.path = cache_directory() / "judges.sqlite" if path is None else path

    def __enter__(self) -> "ReplyCache":
        with _translated_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
            )
            # Where several processes turn a new file to WAL at once, SQLite refuses all but one without waiting.
            with FileLock(f"{self.path}.lock"):
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def read(self, prompts: Sequence[str]) -> dict[str, str]:
        """Look up prompts.

        Args:
            prompts: Any number of prompts.

        Returns:
            The stored replies by prompt; prompts without a reply are left out.
        """
        replies = {}
        with self._lock, _translated_errors(self.path):
            for prompt in prompts:
                key = (self._key(prompt),)
                row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", key).fetchone()
                if row is not None:
                    replies[prompt] = str(row[0])
        return replies

    def write(self, prompt: str, reply: str) -> None:
        """Store a reply; the reply is on disk when this method returns.

        Args:
            prompt: The prompt that was asked.
            reply: The model's reply.

        Raises:
            UserError: The disk is full, or the file is not writable.
        """
        row = (self._key(prompt), reply)
        with self._lock, _translated_errors(self.path):
            self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", row)

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self._identity, prompt]).encode()).hexdigest()


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise UserError(
            f"cannot be used ({type(error).__name__}: {error})",
            where=str(path),
            remedy="make room, set AFINTRO_CACHE to another folder, or remove the file if it is damaged",
        ) from error
