"""Read input samples: texts with an optional label, in the file formats that people have."""

from dataclasses import dataclass
from typing import Any

from afintro.data.formats import SHAPES
from afintro.data.sources import read_rows
from afintro.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A scenario text.

    Args:
        text: The scenario.
        label: E.g. ``aligned``, ``alignment_faking``, ``potential_faking`` or ``unknown``.
        scenario_id: Id that the texts about one scenario share, e.g. the name of an organization; "" for an id by the text.
    """

    text: str
    label: str = "unknown"
    scenario_id: str = ""


def read_samples(source: str, split: str | None = None) -> list[Sample]:
    """Read samples from a file, a dataset directory or a hub id.

    Args:
        source: Path of a ``.json``, ``.jsonl`` or ``.parquet`` file; a dataset directory; or a hub id.
        split: Split of a dataset (``train`` if None).

    Raises:
        UserError: The source cannot be read or holds a wrong sample; the error names file and record.
    """
    samples = [_sample(row, f"{source}, record {index}") for index, row in enumerate(read_rows(source, split))]
    if not samples:
        raise UserError("holds no sample", where=source, remedy=f"give {SHAPES}")
    return samples


def _sample(row: Any, where: str) -> Sample:
    if not isinstance(row, dict):
        raise UserError(f"is {type(row).__name__}, not an object", where=where, remedy="give objects with 'text'")
    text, label, identity = row.get("text"), row.get("label"), row.get("scenario_id")
    if text is None:
        raise UserError("has no field 'text'", where=where, remedy="give every sample its text under 'text'")
    if not isinstance(text, str) or not text.strip():
        kind = "empty" if isinstance(text, str) else f"{type(text).__name__}, not a string"
        raise UserError(f"field 'text' is {kind}", where=where, remedy="give the scenario as a non-empty string")
    if not _is_unicode(text):
        raise UserError("field 'text' holds a lone surrogate", where=where, remedy="correct the escape sequence")
    for name, value in (("label", label), ("scenario_id", identity)):
        if value is not None and not isinstance(value, str):
            raise UserError(
                f"field '{name}' is {type(value).__name__}, not a string",
                where=where,
                remedy="give a string or leave it out",
            )
    return Sample(text, label or "unknown", identity or "")


def _is_unicode(text: str) -> bool:
    """Return whether a text is valid: JSON can escape half of a surrogate pair, which is not valid text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
