"""afintro: explainer language models that say how and why an alignment-faking model behaves as it does."""

import os
from importlib import import_module
from typing import Any

# Threads that wait by spinning take the cores from each other on a busy machine. OpenMP reads the setting when it is loaded,
# with PyTorch, so that it has to stand here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["__version__", "load_explainer"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what asks explainers only where it is used: with it come torch and Lightning, and seconds."""
    if name == "load_explainer":
        return import_module("afintro.explain").load_explainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
