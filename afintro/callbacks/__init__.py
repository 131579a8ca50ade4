"""Callbacks that run beside every training and evaluation: preflight, throughput, the last checkpoint, and the results contract."""

from afintro.callbacks.last_checkpoint import LastCheckpoint
from afintro.callbacks.preflight import Preflight
from afintro.callbacks.results import Results
from afintro.callbacks.throughput import Throughput

__all__ = ["LastCheckpoint", "Preflight", "Results", "Throughput"]
