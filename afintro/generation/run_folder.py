"""A folder that belongs to one generation run: work is done in chunks, and a killed run is continued, not repeated.

Each chunk is written by atomic rename. What a chunk holds depends on the settings and its samples alone, so a run that
was killed and continued gives the same bytes, also by another number of processes.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.ranks import ALONE, Ranks

T = TypeVar("T")


@contextmanager
def run_folder(
    output_dir: Path, identity: Mapping[str, Any], files: Sequence[str], ranks: Ranks = ALONE
) -> Iterator[dict[str, Any] | None]:
    """Make the folder this run's own; two runs at once into one folder take turns.

    Args:
        output_dir: Made if absent.
        identity: Everything that decides the content; ``settings.json`` keeps it once :func:`in_chunks` begins.
        files: The data files that a finished run has beside ``summary.json``.
        ranks: The processes of this run; the first of them takes the folder for all.

    Yields:
        The summary of the finished run, or None where there is work to do.

    Raises:
        UserError: The folder cannot be made, or holds another run's data.
    """
    with ExitStack() as taken:

        def take() -> dict[str, Any] | None:
            taken.enter_context(_exclusive(output_dir))
            _refuse_other_data(output_dir, identity, files)
            done = output_dir / "summary.json"
            finished = done.is_file() and all((output_dir / name).is_file() for name in files)
            return json.loads(done.read_text()) if finished else None

        yield ranks.from_first(take)


@contextmanager
def _exclusive(output_dir: Path) -> Iterator[None]:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be made ({error.strerror})", where=str(output_dir), remedy="use another --output_dir"
        ) from error
    descriptor = os.open(output_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with the process
        yield
    finally:
        os.close(descriptor)


def _refuse_other_data(output_dir: Path, identity: Mapping[str, Any], files: Sequence[str]) -> None:
    """Two runs are never mixed in one folder."""
    path = output_dir / "settings.json"
    if path.is_file():
        other = json.loads(path.read_text())
        keys = sorted(key for key in {*identity, *other} if identity.get(key) != other.get(key))
        if keys:
            differences = "; ".join(f"{key}: {other.get(key)!r} there, {identity.get(key)!r} now" for key in keys)
            raise UserError(
                f"holds data of other settings ({differences})",
                where=str(output_dir),
                remedy="use another --output_dir, or the settings of that run to continue it",
            )
        return
    found = [name for name in (*files, "summary.json", "partial") if (output_dir / name).exists()]
    if found:
        raise UserError(
            f"holds {', '.join(found)} of unknown origin", where=str(output_dir), remedy="use another --output_dir"
        )


def in_chunks(
    output_dir: Path,
    identity: Mapping[str, Any],
    items: Sequence[T],
    size: int,
    make: Callable[[Sequence[T]], dict[str, Any]],
    label: str,
    ranks: Ranks = ALONE,
) -> list[Path]:
    """Make what is missing of the chunks of ``items``, ``size`` samples each.

    Args:
        output_dir: This run's folder.
        identity: See :func:`run_folder`; from here on the folder is this run's.
        items: What there is to know of each sample.
        size: Samples a chunk.
        make: Gives the JSON content of a chunk from its items.
        label: What the progress bar says.
        ranks: The processes of this run, which take the missing chunks in turn.

    Returns:
        The files of all chunks, in the order of the samples; each process has them when all are made.
    """

    def missing() -> list[Path]:
        write_json(output_dir / "settings.json", dict(identity))
        return [path for path in paths if not path.is_file()]

    paths = [output_dir / "partial" / f"{start:07d}.json" for start in range(0, len(items), size)]
    mine = ranks.from_first(missing)[ranks.rank :: ranks.size]
    for path in tqdm(mine, desc=label, unit=f" x {size} samples", mininterval=2, disable=ranks.rank > 0):
        start = int(path.stem)
        write_json(path, make(items[start : start + size]))
    ranks.gathered([])  # all are there
    return paths


def finish(output_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, which says that the run is done, and remove its chunks."""
    write_json(output_dir / "summary.json", dict(summary))
    shutil.rmtree(output_dir / "partial")
