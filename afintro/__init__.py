"""afintro: explainer language models that say how and why an alignment-faking model behaves as it does."""

import os

# Threads that wait by spinning take the cores from each other on a busy machine. OpenMP reads the setting when it is loaded,
# with PyTorch, so that it has to stand here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["__version__"]

__version__ = "0.1.0"
