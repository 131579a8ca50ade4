"""What an answer in plain words says. What cannot be read is None: a guess would count as an answer."""

import re
import unicodedata
from bisect import bisect
from collections.abc import Sequence

from afintro.tasks.introspection.trials import PREFIX

LONGEST_NUMBER = 9  # digits; a longer run of them is no estimate of anything
WORD = r"[^\W_]+(?:['-][^\W_]+)*"
_OPENING, _CLOSING = r"(?<![^\W_])[\"'`*“‘«]+", r"[\"'`*”’»]+(?![^\W_])"
_LEAD = re.compile(rf"^\W*{PREFIX}\b", re.IGNORECASE)
# "no" that says something of the noun after it, and does not answer.
_DETERMINER = re.compile(r"\bno (?:clue|doubt|idea|letter|one|problem|question|vowel|way)\b")
_DENIAL = (
    r"(?:\b(?:not|never|no|neither|nor|cannot|without|hardly|against|avoid|hate|dislike|wrong|worse|worst|mistake)\b"
    r"|n't\b)"
)
_PREFERENCE = r"\b(?:instead of|over|than)\b"
_BETWEEN = r"\s+(?:(?:to|the|a|an|be|for)\s+)*[\"'`*“‘«(]*"
_CLAUSE_END = re.compile(r"[.,;:!?\n()—–]|\b(?:but|because|since|although|though|while|so|then)\b")


def first_character(text: str) -> str | None:
    """The first letter or digit, case folded."""
    return next((character for character in _folded(text) if character.isalnum()), None)


def starts_with_vowel(text: str) -> str | None:
    """``yes`` if the first letter is a, e, i, o or u, accents apart; ``no`` for another Latin letter, ``y`` among them."""
    first = next((character for character in unicodedata.normalize("NFKD", _folded(text)) if character.isalpha()), "")
    if not ("a" <= first <= "z"):
        return None
    return "yes" if first in "aeiou" else "no"


def first_word(text: str) -> str | None:
    """The first word, case folded; apostrophes and hyphens within belong to it."""
    found = re.search(WORD, _folded(text))
    return None if found is None else found[0]


def word_count(text: str) -> int:
    """Stretches between white space that hold a letter or a digit."""
    return sum(any(character.isalnum() for character in part) for part in text.split())


def given_character(text: str) -> str | None:
    """The character that an answer gives: all that it says, or the only one in quotation marks."""
    given = _given(text)
    return given if given is not None and len(given) == 1 else None


def given_word(text: str) -> str | None:
    """The word that an answer gives: all that it says, or the only one in quotation marks."""
    return _given(text)


def given_number(text: str) -> int | None:
    """The whole number that an answer gives: the only one, or the only one of words; None for a range."""
    line = _terse(text)
    if re.search(r"\d\s*(?:-|–|—|−|/|\bto\b|\bor\b|\band\b)\s*\d", line):
        return None
    numbers = list(re.finditer(r"(?<![^\W_])(?<!\d[.,])[-−]?\d(?:[\d.,]*\d)?(?![^\W_]|[.,]\d|\s*%)", line))
    of_words = [number for number in numbers if re.match(r"\s+words?\b", line[number.end() :])]
    given = [number[0] for number in (numbers if len(numbers) == 1 else of_words)]
    if len(given) != 1 or not re.fullmatch(r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+", given[0]):
        return None
    digits = given[0].replace(",", "")
    return int(digits) if len(digits) <= LONGEST_NUMBER else None


def yes_or_no(text: str) -> str | None:
    """The one of both words that an answer's first line holds, unless it is denied ("not yes") or part of "no doubt"."""
    line = _DETERMINER.sub(" ", _terse(text))
    said = set(re.findall(r"(?<![^\W_])(?<![^\W_]['-])(yes|no)(?![^\W_]|['-][^\W_])", line))
    denied = re.search(r"(?:\b(?:not|never)\b|n't\b)[^.;!?]*\byes\b|\b(?:not|never)\s+(?:a\s+)?[\"'“‘]*no\b", line)
    return said.pop() if len(said) == 1 and not denied else None


def named_option(text: str, options: Sequence[str]) -> str | None:
    """The option that an answer names, by whole words; None where it names none or several.

    A mention does not count in a question, after "rather than", "instead of" and the like, or right after a denial ("not
    to break": ``i do`` is not said by ``i do not``). Where a denial stands elsewhere in the clause, what it is of cannot be
    told from words alone, and nothing is named. Inflected forms ("breaking") are not the option.

    Args:
        text: The answer.
        options: What may be named; case does not count.
    """
    folded = _folded(text)
    ends = [found.start() for found in _CLAUSE_END.finditer(folded)]
    mentions = [(found, option) for option in options for found in re.finditer(_whole(_folded(option)), folded)]
    starts = [found.start() for found, _ in mentions]
    denials = list(re.finditer(_DENIAL, folded))
    of_mentions = {d.start() for d in denials if any(_joins(_DENIAL, folded[d.start() : s]) for s in starts)}
    named = set()
    for found, option in mentions:
        before = folded[: found.start()]
        if _asks(folded[found.end() :]) or re.search(rf"(?:{_DENIAL}|{_PREFERENCE}){_BETWEEN}$", before):
            continue
        clause = [d.start() for d in denials if bisect(ends, d.start()) == bisect(ends, found.start())]
        if any(place not in of_mentions or place < found.start() for place in clause):
            return None
        named.add(option)
    return named.pop() if len(named) == 1 else None


def _joins(word: str, text: str) -> bool:
    return re.fullmatch(word + _BETWEEN, text) is not None


def _asks(rest: str) -> bool:
    """Whether the sentence of which this is the end is a question."""
    end = re.search(r"[.!?\n]", rest)
    return end is not None and end[0] == "?"


def _whole(option: str) -> str:
    """A pattern for an option that is no part of a word, a compound, a decimal number, or a name such as C++."""
    letter = r"[^\W_]"
    before = rf"(?<!{letter})(?<!{letter}['-])(?<!\d[.,])"
    return rf"{before}{re.escape(option)}(?!{letter}|[+#]|[.,]\d|['-]{letter})"


def _folded(text: str) -> str:
    """Case folded, in composed characters, with straight apostrophes inside words."""
    return re.sub(r"(?<=[^\W_])’(?=[^\W_])", "'", unicodedata.normalize("NFKC", text).casefold())


def _terse(text: str) -> str:
    """The first line that says something, folded, without the phrase that answers of the study begin with."""
    lines = _LEAD.sub("", text, count=1).splitlines()
    return _folded(next((line for line in lines if any(character.isalnum() for character in line)), ""))


def _given(text: str) -> str | None:
    line = _terse(text)
    words = re.findall(WORD, line)
    if len(words) > 1:
        words = list(dict.fromkeys(re.findall(_OPENING + rf"({WORD})[.,!?]?" + _CLOSING, line)))
    return words[0] if len(words) == 1 else None
