"""The explainer: its Lightning module, checkpoints, sharding over devices, and the explainers it is compared with."""

from afintro.explainer.module import ExplainerModule

__all__ = ["ExplainerModule"]
