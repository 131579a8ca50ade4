"""One data module a file: what goes in, and what counts as right."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def imported_later(module: str, names: Sequence[str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a task's package, which imports the data module once it is asked for (PEP 562).

    Commands that train nothing need neither the data module nor what it imports.

    Args:
        module: The module that has the names, within the package.
        names: What the package offers.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module.rpartition('.')[0]!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    return get
