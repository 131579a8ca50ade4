"""The versions and the commit that a run's figures depend on."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from afintro import __version__

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "scikit-learn", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that the figures depend on."""
    return {"afintro": __version__, **{name: version(name) for name in PACKAGES}, "cuda": str(torch.version.cuda)}


def git_commit() -> str | None:
    """Return the commit of the source tree, with ``+`` if it has changes; None outside of a source tree."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()
