"""The folder of one generation run: the work is done in chunks, and a killed run continues where it stopped.

Each chunk is written by atomic rename. The content of a chunk depends on the settings and its samples alone, so a run that was
killed and continued writes the same bytes as an uninterrupted run, also with another number of processes.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.lm.template_inputs import today
from afintro.ranks import ALONE, Ranks

log = logging.getLogger(__name__)
T = TypeVar("T")
SAMPLE_FACETS = "sample_facets_sha256"  # in settings.json, where samples have sources or categories
PROMPT_DATE = "prompt_date"  # in settings.json, where the chat template prints a date


def date_of_run(output_dir: Path, ranks: Ranks = ALONE) -> str:
    """Return the date for the prompts of a run: the date of the run that is continued in this folder, otherwise today.

    Args:
        output_dir: The run's folder, which may not exist.
        ranks: The processes of this run; the first process looks for all.
    """

    def look() -> str:
        path = output_dir / "settings.json"
        kept = json.loads(path.read_text()).get(PROMPT_DATE) if path.is_file() else None
        return kept or today()

    return ranks.from_first(look)


@contextmanager
def run_folder(
    output_dir: Path, identity: Mapping[str, Any], files: Sequence[str], ranks: Ranks = ALONE
) -> Iterator[dict[str, Any] | None]:
    """Reserve a folder for this run; two simultaneous runs into one folder take turns.

    Args:
        output_dir: The folder, which is created if absent.
        identity: Everything that decides the content; :func:`in_chunks` writes it to ``settings.json``.
        files: Names of the data files that a finished run has beside ``summary.json``.
        ranks: The processes of this run; the first process locks the folder for all.

    Yields:
        The summary if the run is finished, else None.

    Raises:
        UserError: The folder cannot be created, or holds the data of another run.
    """
    with ExitStack() as locks:

        def lock_and_look() -> dict[str, Any] | None:
            locks.enter_context(_exclusive(output_dir))
            _refuse_other_data(output_dir, identity, files)
            summary = output_dir / "summary.json"
            finished = summary.is_file() and all((output_dir / name).is_file() for name in files)
            return json.loads(summary.read_text()) if finished else None

        yield ranks.from_first(lock_and_look)


@contextmanager
def _exclusive(output_dir: Path) -> Iterator[None]:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be created ({error.strerror})", where=str(output_dir), remedy="use another --output_dir"
        ) from error
    descriptor = os.open(output_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the lock ends with the process, however it ends
        yield
    finally:
        os.close(descriptor)


def _refuse_other_data(output_dir: Path, identity: Mapping[str, Any], files: Sequence[str]) -> None:
    """Refuse a folder with the data of another run: two runs are never mixed in one folder."""
    path = output_dir / "settings.json"
    if path.is_file():
        other = json.loads(path.read_text())
        keys = sorted(key for key in {*identity, *other} if identity.get(key) != other.get(key))
        if SAMPLE_FACETS in keys and SAMPLE_FACETS not in other:  # of before sources and categories were kept
            keys.remove(SAMPLE_FACETS)
            log.warning("%s was begun without sources and categories of the samples: its records lack them", output_dir)
        if keys:
            differences = "; ".join(f"{key}: was {other.get(key)!r}, is {identity.get(key)!r}" for key in keys)
            raise UserError(
                f"holds data of other settings ({differences})",
                where=str(output_dir),
                remedy="use another --output_dir, or the settings of that run to continue it",
            )
        return
    present = [name for name in (*files, "summary.json", "partial") if (output_dir / name).exists()]
    if present:
        raise UserError(
            f"holds {', '.join(present)} of unknown origin", where=str(output_dir), remedy="use another --output_dir"
        )


def in_chunks(
    output_dir: Path,
    identity: Mapping[str, Any],
    items: Sequence[T],
    size: int,
    make: Callable[[Sequence[T]], dict[str, Any]],
    label: str,
    ranks: Ranks = ALONE,
    progress: bool = True,
) -> list[Path]:
    """Make the chunks that are still missing.

    Args:
        output_dir: The run's folder.
        identity: See :func:`run_folder`; it is written to ``settings.json``, which reserves the folder for good.
        items: Everything that ``make`` needs to know about each sample.
        size: Number of samples per chunk.
        make: Makes the JSON content of a chunk from its items.
        label: Label of the progress bar.
        ranks: The processes of this run, which share the missing chunks.
        progress: Whether a bar counts the chunks.

    Returns:
        The files of all chunks, in the order of the samples. Every process returns when all chunks exist.
    """

    def missing() -> list[Path]:
        write_json(output_dir / "settings.json", dict(identity))
        return [path for path in paths if not path.is_file()]

    paths = [output_dir / "partial" / f"{start:07d}.json" for start in range(0, len(items), size)]
    mine = ranks.from_first(missing)[ranks.rank :: ranks.size]
    for path in tqdm(
        mine, desc=label, unit=f" x {size} samples", mininterval=2, disable=ranks.rank > 0 or not progress
    ):
        start = int(path.stem)
        write_json(path, make(items[start : start + size]))
    ranks.gathered([])  # wait for the chunks of all processes
    return paths


def finish(output_dir: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, which marks the run as finished, and remove the chunks.

    Args:
        output_dir: The run's folder.
        summary: JSON values.
    """
    write_json(output_dir / "summary.json", dict(summary))
    shutil.rmtree(output_dir / "partial")
