"""Number types that carry their allowed range, and the check of settings that are made without the command line."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from afintro.errors import UserError

if TYPE_CHECKING:  # for a type checker a number in a range is a number
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    OpenUnitInterval: TypeAlias = float
    ClosedUnitInterval: TypeAlias = float
else:
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        NonNegativeInt,
        OpenUnitInterval,
        PositiveFloat,
        PositiveInt,
    )

RANGES: dict[type, str] = {
    PositiveInt: "a whole number of at least 1",
    NonNegativeInt: "a whole number of at least 0",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number of at least 0",
    OpenUnitInterval: "a number between 0 and 1, both excluded",
    ClosedUnitInterval: "a number from 0 to 1",
}


def check_ranges(settings: Any, section: str) -> None:
    """Check every number of a dataclass of settings against the range that its type names.

    The command line checks the same ranges by itself; this check is for settings that are made in Python.

    Args:
        settings: An instance of a dataclass.
        section: Name of the section of the configuration that the settings belong to, such as ``data``.

    Raises:
        UserError: A number is outside of its range.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        numbers = value.values() if isinstance(value, Mapping) else [value]
        for kind in get_args(field.type) or (field.type,):
            if kind in RANGES:
                for number in numbers:
                    _check_number(number, kind, f"{section}.{field.name}")


def _check_number(number: Any, kind: Any, where: str) -> None:
    try:
        if number is not None:
            kind(number)
    except ValueError as error:
        words = RANGES[kind]
        raise UserError(f"must be {words}, but is {number}", where=where, remedy=f"use {words}") from error
