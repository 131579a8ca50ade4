"""The one exception for wrong input: what is wrong, where, and what to do about it."""

from functools import partial
from typing import Any


def one_line(error: object, limit: int = 160) -> str:
    """Write another library's error in one line.

    Args:
        error: The error, or its text.
        limit: Most characters; the end is left out.
    """
    return " ".join(str(error).split())[:limit]


class UserError(Exception):
    """Report wrong input or configuration; the command line prints it in two lines and exits with code 2.

    Args:
        what: What is wrong, with the offending value: a complete predicate of ``where``, such as "does not exist" or
            "must be at least 1".
        where: File, record, field or setting.
        remedy: What the user can do.

    Attributes:
        what: The argument ``what``.
        where: The argument ``where``.
        remedy: The argument ``remedy``.
    """

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}\n  remedy: {remedy}")
        self.what, self.where, self.remedy = what, where, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild the error from its three parts: processes send it to each other, and the default keeps the message alone."""
        return partial(UserError, where=self.where, remedy=self.remedy), (self.what,)
