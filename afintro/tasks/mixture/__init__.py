"""A mixture of tasks: its data module is named here, so that class paths in configurations stay short and valid."""

from typing import TYPE_CHECKING

from afintro.tasks import imported_later

if TYPE_CHECKING:
    from afintro.tasks.mixture.task import Mixture

__all__ = ["Mixture"]
__getattr__ = imported_later("afintro.tasks.mixture.task", __all__)
