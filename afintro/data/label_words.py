"""What the label words of the field mean here: ``aligned``, ``alignment_faking``, ``potential_faking`` or ``unknown``."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from afintro.errors import UserError

log = logging.getLogger(__name__)

ALIGNED, FAKING, POTENTIAL, UNKNOWN = "aligned", "alignment_faking", "potential_faking", "unknown"
MEANINGS: dict[str, tuple[str, ...]] = {
    FAKING: (
        "alignment_faking", "alignment_faker", "faking_alignment", "faking", "fakes", "faked", "scheming", "schemer",
        "deceptive", "deception", "deceptive_alignment", "deceptively_aligned", "dishonest", "true", "1",
    ),
    ALIGNED: (
        "aligned", "genuine", "genuine_compliance", "genuinely_aligned", "honest", "hard_negative", "not_faking", "no_faking",
        "non_faking", "not_alignment_faking", "no_alignment_faking", "non_alignment_faking", "not_scheming", "non_scheming",
        "not_deceptive", "non_deceptive", "false", "0",
    ),
    POTENTIAL: ("potential_faking", "potential_alignment_faking", "possible_faking", "possible_alignment_faking"),
    UNKNOWN: ("unknown", "unlabeled", "unlabelled", "none", "null", "nan", "n/a"),
}  # fmt: skip
"""Words by the label that they stand for. Case does not matter, and a blank or a hyphen is as an underscore."""
_LABELS = {word: label for label, words in MEANINGS.items() for word in words}
_NUMBER = re.compile(r"-?[0-9]+")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")  # 1.0: so pandas writes whole numbers into CSV where some are missing
Label = str | bool | int | None


def labels_of(values: Sequence[Label], source: str, names: Sequence[str] = ()) -> list[str]:
    """Return the project's label for each label of a file, and log how words were read; a word that is not known stays.

    ``potential_faking`` stands for ``alignment_faking`` in a file in which no text has that label, and for itself otherwise.

    Args:
        values: A label for each text: a word, a number, or None.
        source: The file, for messages.
        names: What ``--label_names`` gives: the name of number 0, of number 1, ...; or ``WORD=LABEL``.

    Raises:
        UserError: A number other than 0 and 1 has no name, or ``names`` name a word twice.
    """
    given = _given(names)
    numbered = any(map(_NUMBER.fullmatch, given))
    words = [_word(value) for value in values]
    for index, word in enumerate(words):
        if _NUMBER.fullmatch(word) and word not in given and (numbered or word not in _LABELS):
            raise UserError(
                f"field 'label' is int {word}, a number without a name",
                where=f"{source}, record {index}",
                remedy="give the names of the numbers from 0 on: --label_names aligned alignment_faking ...",
            )
    labels = {word: _label(word, given) for word in dict.fromkeys(words)}
    if POTENTIAL in labels.values() and FAKING not in labels.values():
        labels = {word: FAKING if label == POTENTIAL else label for word, label in labels.items()}
    _report(Counter(words), labels, given, source)
    return [labels[word] for word in words]


def check_label(value: Any, where: str) -> Label:
    """Return a label of a file if it is a word, a whole number, a truth value, or absent.

    Args:
        value: The value in the file. A float that is a whole number is this number, and NaN is no label: so pandas writes numbers
            of which some are missing.
        where: File and record, for the error.

    Raises:
        UserError: The value is something else.
    """
    if isinstance(value, float) and not value % 1:
        return int(value)
    if value is None or (isinstance(value, float) and value != value):
        return None
    if not isinstance(value, str | int):
        what = f"field 'label' is {type(value).__name__}, not a word or a whole number"
        raise UserError(what, where=where, remedy="give a string or leave it out")
    return value


def _word(value: Label) -> str:
    word = "" if value is None else str(value).strip()
    return _WHOLE.sub(r"\1", word) if _WHOLE.fullmatch(word) else word


def _folded(word: str) -> str:
    return re.sub(r"[\s_-]+", "_", word.lower()) if not _NUMBER.fullmatch(word) else word


def _label(word: str, given: Mapping[str, str]) -> str:
    if not word:
        return UNKNOWN
    named = given.get(_folded(word), word)
    return _LABELS.get(_folded(named), named)


def _given(names: Sequence[str]) -> dict[str, str]:
    """Return the label that ``--label_names`` gives each word or number."""
    given: dict[str, str] = {}
    for number, name in enumerate(names):
        word, mark, label = name.partition("=")
        word, label = (_folded(word.strip()), label.strip()) if mark else (str(number), name.strip())
        if not label or not word or word in given:
            what = f"{name!r} is no name, or names {word!r} twice"
            raise UserError(what, where="--label_names", remedy="give e.g. aligned alignment_faking, or benign=aligned")
        given[word] = label
    return given


def _report(counts: Counter[str], labels: Mapping[str, str], given: Mapping[str, str], source: str) -> None:
    """Log numbers that were taken for labels, words that were read as another word, and words that are not known."""
    known = {*MEANINGS, *(_LABELS.get(_folded(label), label) for label in given.values())}
    numbers = [word for word in labels if _NUMBER.fullmatch(word) and word not in given]
    renamed = [word for word in labels if word not in ("", labels[word], *numbers)]
    if renamed:
        log.info(
            "labels of %s: %s", source, ", ".join(f"{counts[word]} {word!r} as {labels[word]}" for word in renamed)
        )
    if set(numbers) & {"0", "1"}:
        log.warning(
            "labels of %s are numbers without names, read as 0 = aligned and 1 = alignment_faking; "
            "--label_names NAME0 NAME1 says otherwise",
            source,
        )
    unknown = [f"{counts[word]} {word!r}" for word, label in labels.items() if label not in known]
    if unknown:
        log.warning(
            "labels of %s that are not known, kept as they are: %s; --label_names WORD=aligned or WORD=alignment_faking "
            "says what a word means",
            source,
            ", ".join(unknown),
        )
