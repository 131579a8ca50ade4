"""The one exception for wrong input: what is wrong, where, and what to do about it."""

from functools import partial
from typing import Any


class UserError(Exception):
    """Wrong input or configuration. The command line prints it in two lines and exits with code 2.

    Args:
        what: What is wrong, with the offending value.
        where: File, record, field or setting.
        remedy: What the user can do.
    """

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}\n  remedy: {remedy}")
        self._fields = what, where, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Processes send it to each other; by default an exception is made again from its message alone."""
        what, where, remedy = self._fields
        return partial(UserError, where=where, remedy=remedy), (what,)
