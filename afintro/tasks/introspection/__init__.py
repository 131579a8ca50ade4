"""The task of introspection: its data module is named here, so that class paths in configurations stay short and valid."""

from typing import TYPE_CHECKING

from afintro.tasks import imported_later

if TYPE_CHECKING:
    from afintro.tasks.introspection.task import Introspection

__all__ = ["Introspection"]
__getattr__ = imported_later("afintro.tasks.introspection.task", __all__)
