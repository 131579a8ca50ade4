"""The one exception for wrong input: what is wrong, where, and what to do about it."""


class UserError(Exception):
    """Wrong input or configuration. The command line prints it in two lines and exits with code 2.

    Args:
        what: What is wrong, with the offending value.
        where: File, record, field or setting.
        remedy: What the user can do.
    """

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}\n  remedy: {remedy}")
