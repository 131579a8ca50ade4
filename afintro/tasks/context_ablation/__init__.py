"""The task of context ablation: its data module is named here, so that class paths in configurations stay short and valid."""

from afintro.tasks.context_ablation.task import ContextAblation

__all__ = ["ContextAblation"]
