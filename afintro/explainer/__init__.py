"""The explainer: its Lightning module, checkpoints, sharding over devices, and the explainers it is compared with."""

from afintro.explainer.module import ExplainerModule
from afintro.explainer.settings import ExplainerSettings

__all__ = ["ExplainerModule", "ExplainerSettings"]
