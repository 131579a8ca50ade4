"""The task of context ablation: its data module is named here, so that class paths in configurations stay short and valid."""

from typing import TYPE_CHECKING

from afintro.tasks import imported_later

if TYPE_CHECKING:
    from afintro.tasks.context_ablation.task import ContextAblation

__all__ = ["ContextAblation"]
__getattr__ = imported_later("afintro.tasks.context_ablation.task", __all__)
