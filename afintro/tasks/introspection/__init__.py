"""The task of introspection: its data module is named here, so that class paths in configurations stay short and valid."""

from afintro.tasks.introspection.task import Introspection

__all__ = ["Introspection"]
