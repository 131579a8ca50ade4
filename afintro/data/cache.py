"""Where what is costly to make again is kept: trained toys, generated data, judges' replies."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_directory() -> Path:
    """``AFINTRO_CACHE``, or ``~/.cache/afintro``."""
    return Path(os.environ.get("AFINTRO_CACHE") or Path.home() / ".cache" / "afintro")


def build_once(directory: Path, make: Callable[[Path], None]) -> bool:
    """Have a directory made, unless it is there; of threads and processes that ask at once, one makes it.

    Args:
        directory: It appears whole: who sees it may use it without asking here.
        make: Fills the empty directory that it is given, which gets its name afterwards. If it raises, nothing is left.

    Returns:
        Whether this call made it.
    """
    if directory.is_dir():
        return False
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if directory.is_dir():
            return False
        # One name, not a new one each time: what a killed build leaves is found by the next.
        workspace = directory.with_name(f".building-{directory.name}")
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir()
        try:
            make(workspace)
            workspace.rename(directory)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    return True
