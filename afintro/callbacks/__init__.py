"""Callbacks that run beside every training and evaluation: preflight, throughput, and the results contract."""

from afintro.callbacks.preflight import Preflight
from afintro.callbacks.results import Results
from afintro.callbacks.throughput import Throughput

__all__ = ["Preflight", "Results", "Throughput"]
