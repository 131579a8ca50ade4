"""Keep what is costly to make again in a cache folder: trained toys, generated data, replies of judges."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_directory() -> Path:
    """Return the cache folder: ``AFINTRO_CACHE``, or ``~/.cache/afintro``."""
    return Path(os.environ.get("AFINTRO_CACHE") or Path.home() / ".cache" / "afintro")


def build_once(directory: Path, make: Callable[[Path], None]) -> bool:
    """Build a directory unless it exists; of several threads or processes that call at once, one builds it.

    Args:
        directory: The directory, which appears complete: a process that sees the directory may use it.
        make: Fills an empty directory, which is renamed afterwards. If ``make`` raises, nothing is left.

    Returns:
        Whether this call built the directory.
    """
    if directory.is_dir():
        return False
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if directory.is_dir():
            return False
        # The same name each time, so that the next build removes what a killed build has left.
        workspace = directory.with_name(f".building-{directory.name}")
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir()
        try:
            make(workspace)
            workspace.rename(directory)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    return True
