"""Where what is costly to make again is kept: trained toys, generated data, judges' replies."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """``AFINTRO_CACHE``, or ``~/.cache/afintro``."""
    return Path(os.environ.get("AFINTRO_CACHE") or Path.home() / ".cache" / "afintro")
