"""A folder that belongs to one generation run: work is done in chunks, and a killed run is continued, not repeated.

Each chunk is written by atomic rename. What a chunk holds depends on the settings and its samples alone, so a run that
was killed and continued gives the same bytes.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from afintro.data.records import write_json
from afintro.errors import UserError


@contextmanager
def run_folder(output_dir: Path, identity: Mapping[str, Any], files: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Make the folder this run's own; two runs at once into one folder take turns.

    Args:
        output_dir: Made if absent.
        identity: Everything that decides the content; ``settings.json`` keeps it once :func:`in_chunks` begins.
        files: The data files that a finished run has beside ``summary.json``.

    Yields:
        The summary of the finished run, or None where there is work to do.

    Raises:
        UserError: The folder cannot be made, or holds another run's data.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be made ({error.strerror})", where=str(output_dir), remedy="use another --output_dir"
        ) from error
    descriptor = os.open(output_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with the process
        _refuse_other_data(output_dir, identity, files)
        done = output_dir / "summary.json"
        finished = done.is_file() and all((output_dir / name).is_file() for name in files)
        yield json.loads(done.read_text()) if finished else None
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
    count: int,
    size: int,
    make: Callable[[range], dict[str, Any]],
    label: str,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Make what is missing of ``count`` samples, ``size`` at a time, and yield every chunk as it stands on disk.

    Args:
        output_dir: This run's folder.
        identity: See :func:`run_folder`; from here on the folder is this run's.
        count: Number of samples.
        size: Samples a chunk.
        make: Gives the JSON content of a chunk, whose samples are the range.
        label: What the progress bar says.
    """
    write_json(output_dir / "settings.json", dict(identity))
    with tqdm(total=count, desc=label, unit="sample", mininterval=2) as bar:
        for start in range(0, count, size):
            path = output_dir / "partial" / f"{start:07d}.json"
            rows = range(start, min(start + size, count))
            if not path.is_file():
                write_json(path, make(rows))
            yield path, json.loads(path.read_text())
            bar.update(len(rows))


def finish(output_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, which says that the run is done, and remove its chunks."""
    write_json(output_dir / "summary.json", dict(summary))
    shutil.rmtree(output_dir / "partial")
