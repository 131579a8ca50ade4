"""Keep tokenized examples on disk.

All cores make the store once. Examples are then read one by one, so that memory does not grow with the number of records.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from filelock import FileLock
from joblib import Parallel, delayed
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from afintro.data.batch import Example
from afintro.data.cache import build_once
from afintro.data.files import file_sha256
from afintro.data.text import Draft, Encoded, encode, encode_in_worker
from afintro.errors import UserError

log = logging.getLogger(__name__)

VERSION = 2  # raised when the format changes, or the way in which texts become token ids
CHUNK = 2000  # number of drafts that are tokenized at a time
ALONE = 10  # up to this number of chunks, starting other processes takes longer than it saves
COLUMNS = ("sizes", "ends", "kinds", "checks")
Ids = tuple[int, ...]


class DamagedStore(Exception):
    """A folder is not a complete store."""


class ExampleStore:
    """Read drafts and their token ids from a folder that :func:`open_store` made.

    Ids and texts are read with ``pread``, because the touched pages of a memory map would count as resident memory. The
    columns, 34 bytes an example, are mapped.

    Args:
        directory: The folder.

    Attributes:
        sizes: ``[n, 2]`` int32, numbers of tokens of prompt and answer.
        kinds: ``[n]`` int16, index of each question type in ``kind_names``.
        facts: Further facts that the task keeps of its records.

    Raises:
        DamagedStore: A file is missing or has the wrong length, or a column was changed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            about = json.loads((directory / "store.json").read_bytes())
            whole = all((directory / name).stat().st_size == size for name, size in about["bytes"].items())
            whole = whole and all(file_sha256(directory / f"{name}.npy") == about["sha256"][name] for name in COLUMNS)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedStore(str(error)) from error
        if not whole:
            raise DamagedStore("it differs from what was written")
        columns = {name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in COLUMNS}
        self.sizes: NDArray[np.int32] = columns["sizes"]
        self.kinds: NDArray[np.int16] = columns["kinds"]
        self.kind_names: list[str] = about["kinds"]
        self.facts: dict[str, Any] = about["facts"]
        self._ends, self._checks = columns["ends"], columns["checks"]
        self._ids, self._rows = (os.open(directory / name, os.O_RDONLY) for name in ("ids.bin", "rows.bin"))

    def __len__(self) -> int:
        return len(self.sizes)

    def __del__(self) -> None:
        for name in ("_ids", "_rows"):
            if name in vars(self):
                os.close(vars(self)[name])

    def read(self, index: int) -> tuple[Draft, Ids, Ids]:
        """Return one draft, and the token ids of its prompt and its answer.

        Raises:
            UserError: The stored example differs from what was written.
        """
        first, row = self._ends[index - 1].tolist() if index else (0, 0)
        last, end = self._ends[index].tolist()
        ids = os.pread(self._ids, 4 * (last - first), 4 * first)
        text = os.pread(self._rows, end - row, row)
        if crc32(text, crc32(ids)) != self._checks[index]:
            raise UserError(
                f"example {index} differs from what was written",
                where=str(self.directory),
                remedy="remove the folder and run again",
            )
        numbers = np.frombuffer(ids, np.int32).tolist()
        size = int(self.sizes[index, 0])
        return Draft(**json.loads(text)), tuple(numbers[:size]), tuple(numbers[size:])


class StoredExamples(Sequence[Example]):
    """Examples of a store, each made when it is asked for.

    Args:
        store: The store.
        finish: Makes an example of a draft and the token ids of its prompt and its answer.
        indices: ``[n]`` int32, indices in the store; None for all its examples.
    """

    def __init__(
        self,
        store: ExampleStore,
        finish: Callable[[Draft, Ids, Ids], Example],
        indices: NDArray[np.int32] | None = None,
    ) -> None:
        self.store, self._finish, self._indices = store, finish, indices
        self.sizes = store.sizes if indices is None else store.sizes[indices]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._finish(*self.store.read(self._place(index)))

    def _place(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return index if self._indices is None else int(self._indices[index])

    def take(self, indices: NDArray[np.int32]) -> "StoredExamples":
        """Return the stored examples at the given indices."""
        return StoredExamples(self.store, self._finish, indices if self._indices is None else self._indices[indices])

    def of_kinds(self, wanted: Callable[[str], bool]) -> "StoredExamples":
        """Return the stored examples whose question type ``wanted`` accepts."""
        chosen = np.array([wanted(name) for name in self.store.kind_names], dtype=bool)
        if chosen.all():
            return self
        kinds = self.store.kinds if self._indices is None else self.store.kinds[self._indices]
        return self.take(np.flatnonzero(chosen[kinds]).astype(np.int32))


def open_store(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    drafts: Callable[[], Iterable[Draft]],
    facts: Callable[[], dict[str, Any]],
    check: Callable[[Draft, Ids], None] | None = None,
    chunk: int = CHUNK,
    slot: str | None = None,
) -> ExampleStore:
    """Open the store of a folder; make the store if it is missing or damaged.

    Args:
        directory: The folder, whose name must identify everything that decides its content.
        tokenizer: The tokenizer of the ids.
        drafts: Yields the drafts; only called if the store has to be made.
        facts: Returns JSON values to keep in the store; called after all drafts were taken.
        check: Inspects a draft and the ids of its prompt, and raises an error if something is wrong.
        chunk: Number of drafts that are tokenized at a time; other processes help with more than :data:`ALONE` chunks.
        slot: The token that marks where a vector enters a prompt; None without vectors.
    """
    try:
        return ExampleStore(directory)
    except DamagedStore as reason:
        with FileLock(f"{directory}.damaged.lock"):
            if directory.is_dir() and _is_damaged(directory):
                log.warning("%s is damaged (%s) and is made again", directory, reason)
                shutil.rmtree(directory)
    build_once(directory, lambda folder: _write(folder, tokenizer, drafts(), facts, check, chunk, slot))
    return ExampleStore(directory)


def _is_damaged(directory: Path) -> bool:
    """Check again under the lock, because another process may have made the store anew."""
    try:
        ExampleStore(directory)
    except DamagedStore:
        return True
    return False


def _write(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    drafts: Iterable[Draft],
    facts: Callable[[], dict[str, Any]],
    check: Callable[[Draft, Ids], None] | None,
    size: int,
    slot: str | None,
) -> None:
    parts: list[Encoded] = []
    kinds: list[NDArray[np.int16]] = []
    names: dict[str, int] = {}
    with (folder / "ids.bin").open("wb") as ids, (folder / "rows.bin").open("wb") as rows:
        for chunk, part in _encoded(folder, tokenizer, drafts, size, slot):
            ids.write(part.ids)
            rows.write(part.rows)
            if check is not None:
                _check(chunk, part, check)
            kinds.append(np.array([names.setdefault(draft.question_type, len(names)) for draft in chunk], np.int16))
            parts.append(part._replace(ids=b"", rows=b""))
    sizes = np.concatenate([part.sizes for part in parts])
    ends = np.cumsum(np.stack([sizes.sum(1, dtype=np.int64), np.concatenate([p.ends for p in parts])], 1), axis=0)
    columns = (sizes, ends, np.concatenate(kinds), np.concatenate([part.checks for part in parts]))
    for name, column in zip(COLUMNS, columns, strict=True):
        np.save(folder / f"{name}.npy", column, allow_pickle=False)
    about = {
        "kinds": list(names),
        "facts": facts(),
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()},
        "sha256": {name: file_sha256(folder / f"{name}.npy") for name in COLUMNS},
    }
    (folder / "store.json").write_text(json.dumps(about))


def _encoded(
    folder: Path, tokenizer: PreTrainedTokenizerBase, drafts: Iterable[Draft], size: int, slot: str | None
) -> Iterator[tuple[list[Draft], Encoded]]:
    """Yield chunks of drafts and their encoding, in order; as many processes as there are cores encode them."""
    source = iter(drafts)
    first = list(islice(source, ALONE * size + 1))
    if not first:
        raise ValueError("there are no drafts to store")
    chunks = _chunks(chain(first, source), size)
    if len(first) <= ALONE * size:
        yield from ((chunk, encode(tokenizer, chunk, slot)) for chunk in chunks)
        return
    saved = folder / "tokenizer"
    tokenizer.save_pretrained(saved)
    waiting: list[list[Draft]] = []

    def calls() -> Iterator[Any]:
        for chunk in chunks:
            waiting.append(chunk)
            yield delayed(encode_in_worker)(str(saved), chunk, slot)

    processes = len(os.sched_getaffinity(0))
    log.info("tokenizing with %d processes, once", processes)
    for part in Parallel(n_jobs=processes, return_as="generator", batch_size=1, pre_dispatch="2*n_jobs")(calls()):
        yield waiting.pop(0), part
    shutil.rmtree(saved)


def _chunks(drafts: Iterator[Draft], size: int) -> Iterator[list[Draft]]:
    while chunk := list(islice(drafts, size)):
        yield chunk


def _check(chunk: Sequence[Draft], part: Encoded, check: Callable[[Draft, Ids], None]) -> None:
    ids, start = np.frombuffer(part.ids, np.int32), 0
    for draft, (prompt, answer) in zip(chunk, part.sizes.tolist(), strict=True):
        check(draft, tuple(ids[start : start + prompt].tolist()))
        start += prompt + answer


def source_hash(*paths: str | Path) -> str:
    """Return a hash of source files, which changes when the code that makes the drafts changes."""
    digest = hashlib.sha256(str(VERSION).encode())
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()
