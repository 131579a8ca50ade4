"""Read input samples: texts with an optional label, in the file formats that people have."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afintro.data.conversations import is_conversation, request_of
from afintro.data.formats import SHAPES
from afintro.data.label_words import check_label, labels_of
from afintro.data.records import word_of
from afintro.data.sources import read_rows
from afintro.errors import UserError

log = logging.getLogger(__name__)

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Fields that hold a conversation."""
OF_RECORDS = ("original_user_prompt", "ablation_prompt")
"""Fields of context-ablation records that hold the scenario without the cue, the first that is there."""
PROMPTS = (
    "prompt",
    "goal",
    "question",
    "instruction",
    "query",
    "request",
    "forbidden_prompt",
    "user_prompt",
    "scenario",
)
"""Fields in which other projects keep the request; a sample may have one of them."""
COMPANIONS = ("input", "context", "contextstring")
"""Fields that belong to the request of such a project where they are not empty."""
SAME_FACET = {
    "source": ("source", "dataset", "origin"),
    "category": ("category", "semanticcategory", "semantic_category", "harm_category", "risk_area"),
}
"""Fields that say where a sample is from and of what kind it is, in lower case; the first that holds a word counts."""


@dataclass(frozen=True)
class Sample:
    """A scenario text.

    Args:
        text: The scenario.
        label: E.g. ``aligned``, ``alignment_faking``, ``potential_faking`` or ``unknown``.
        scenario_id: Id that the texts about one scenario share, e.g. the name of an organization; "" for an id by the text.
        source: Where the sample is from; None if the file does not say.
        category: What kind of scenario the text is; None likewise.
    """

    text: str
    label: str = "unknown"
    scenario_id: str = ""
    source: str | None = None
    category: str | None = None


def read_samples(
    source: str, split: str | None = None, label_names: Sequence[str] = (), text_field: str | None = None
) -> list[Sample]:
    """Read samples from a file, a dataset directory or a hub id.

    A row is a text; an object with ``text``; or an object with a conversation or with one of the fields :data:`PROMPTS`. Upper
    and lower case of field names are equal. What is read otherwise than it stands in the file is logged.

    Args:
        source: Path of a JSON, JSONL, CSV or Parquet file; a dataset directory; or a hub id, perhaps with ``::SPLIT`` behind it.
        split: Split of a dataset (``train`` if None).
        label_names: Names of numbers that are labels, or ``WORD=LABEL``, see :func:`afintro.data.label_words.labels_of`.
        text_field: The field that holds the text; None for the known fields.

    Raises:
        UserError: The source cannot be read or holds a wrong sample; the error names file and record.
    """
    texts, labels, identities, facets = [], [], [], []
    left_out: Counter[str] = Counter()
    kind: type[Any] | None = None
    for index, row in enumerate(read_rows(source, split)):
        where = f"{source}, record {index}"
        kind = kind or type(row)
        if kind is dict and not isinstance(row, dict):
            raise UserError(
                f"is {type(row).__name__}, not an object", where=where, remedy="give objects alone, or texts alone"
            )
        fields = _fields(row)
        text, others = text_of(row, where, text_field)
        left_out.update(others)
        texts.append(text)
        labels.append(check_label(fields.get("label"), where))
        identities.append(_identity(fields.get("scenario_id"), where))
        facets.append({name: _first_word(fields, known, text_field) for name, known in SAME_FACET.items()})
    if not texts:
        raise UserError("holds no sample", where=source, remedy=f"give {SHAPES}")
    for what, count in sorted(left_out.items()):
        log.warning("%s: %d of %d conversations have %s, left out: the first turn of the user alone is asked",
                    source, count, len(texts), what)  # fmt: skip
    words = labels_of(labels, source, label_names)
    return [
        Sample(text, label, identity, **own)
        for text, label, identity, own in zip(texts, words, identities, facets, strict=True)
    ]


def text_of(row: Any, where: str, text_field: str | None = None) -> tuple[str, frozenset[str]]:
    """Return the text of a row, and what a conversation holds beside the text.

    Args:
        row: A string, an object, or a list of turns.
        where: File and record, for errors.
        text_field: The field that holds the text; None for the known fields.

    Raises:
        UserError: The row has no text, or several fields that might be the text.
    """
    if isinstance(row, str) or is_conversation(row):
        return _checked(row, "the text", where)
    if not isinstance(row, dict):
        what = f"is {type(row).__name__}, not an object"
        raise UserError(what, where=where, remedy="give texts, or objects with 'text'")
    fields = _fields(row)
    name = text_field or _text_field(fields, where)
    value = fields.get(name.lower())
    if value is None:
        names = ", ".join(map(str, row))[:200]
        remedy = (
            f"give every sample its text under 'text', or name its field with --text_field; the fields are: {names}"
        )
        raise UserError(f"has no field {name!r}", where=where, remedy=remedy)
    return _checked(value, f"field {name!r}", where)


def _fields(row: Any) -> dict[str, Any]:
    """Return the fields of an object by their names in lower case; a name in lower case wins over another spelling."""
    return {str(name).strip().lower(): value for name, value in row.items()} | row if isinstance(row, dict) else {}


def _text_field(fields: Mapping[str, Any], where: str) -> str:
    """Return the name of the field that holds the text."""
    for name in ("text", *CONVERSATIONS, *OF_RECORDS):
        if fields.get(name) is not None:
            return name
    found = [name for name in PROMPTS if fields.get(name) not in (None, "")]
    found += [name for name in COMPANIONS if found and fields.get(name) not in (None, "")]
    if len({str(fields[name]) for name in found}) > 1:
        raise UserError(
            f"has several fields that may be the text: {', '.join(found)}",
            where=where,
            remedy=f"name the field: --text_field {found[0]}",
        )
    return found[0] if found else "text"


def _checked(value: Any, subject: str, where: str) -> tuple[str, frozenset[str]]:
    """Return a text that is not empty and valid, also out of a conversation."""
    text, others = request_of(value, where) if is_conversation(value) else (value, frozenset())
    if not isinstance(text, str) or not text.strip():
        kind = "empty" if isinstance(text, str) else f"{type(text).__name__}, not a string"
        raise UserError(f"{subject} is {kind}", where=where, remedy="give the scenario as a non-empty string")
    if not _is_unicode(text):
        raise UserError(f"{subject} holds a lone surrogate", where=where, remedy="correct the escape sequence")
    return text, others


def _first_word(fields: Mapping[str, Any], names: Sequence[str], text_field: str | None) -> str | None:
    """Return the first of some fields that holds a word and is not the text."""
    given = (word_of(fields.get(name)) for name in names if name != (text_field or "").lower())
    return next((word for word in given if word is not None), None)


def _identity(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, str):
        what = f"field 'scenario_id' is {type(value).__name__}, not a string"
        raise UserError(what, where=where, remedy="give a string or leave it out")
    return value or ""


def _is_unicode(text: str) -> bool:
    """Return whether a text is valid: JSON can escape half of a surrogate pair, which is not valid text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
