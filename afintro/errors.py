"""The error for everything that a user can put right."""


class UserError(Exception):
    """Report wrong input or configuration: the command line prints it in one or two lines and exits with code 2.

    Args:
        what: What is wrong: a complete predicate of ``where``, such as "does not exist" or "must be at least 1".
        where: The file, record or setting it is about.
        remedy: What the user can do.

    Attributes:
        what: See the argument.
        where: See the argument.
        remedy: See the argument.
    """

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}\n  remedy: {remedy}")
        self.what = what
        self.where = where
        self.remedy = remedy
