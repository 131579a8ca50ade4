"""Read what an answer in plain words says. An answer that cannot be read gives None: a guess would count as an answer."""

import re
import unicodedata
from bisect import bisect
from collections.abc import Sequence

from afintro.tasks.introspection.trials import PREFIX

LONGEST_NUMBER = 9  # digits; a longer run of digits does not estimate anything
WORD = r"[^\W_]+(?:['-][^\W_]+)*"
_OPENING, _CLOSING = r"(?<![^\W_])[\"'`*“‘«]+", r"[\"'`*”’»]+(?![^\W_])"
_LEAD = re.compile(rf"^\W*{PREFIX}\b", re.IGNORECASE)
# "no" before these nouns belongs to the noun and does not answer.
_DETERMINER = re.compile(r"\bno (?:clue|doubt|idea|letter|one|problem|question|vowel|way)\b")
_DENIAL = (
    r"(?:\b(?:not|never|no|neither|nor|cannot|without|hardly|against|avoid|hate|dislike|wrong|worse|worst|mistake)\b"
    r"|n't\b)"
)
_PREFERENCE = r"\b(?:instead of|over|than)\b"
_BETWEEN = r"\s+(?:(?:to|the|a|an|be|for)\s+)*[\"'`*“‘«(]*"
_CLAUSE_END = re.compile(r"[.,;:!?\n()—–]|\b(?:but|because|since|although|though|while|so|then)\b")


def first_character(text: str) -> str | None:
    """Return the first letter or digit, case folded."""
    return next((character for character in _folded(text) if character.isalnum()), None)


def starts_with_vowel(text: str) -> str | None:
    """Return ``yes`` if the first letter without accents is a, e, i, o or u, and ``no`` for other Latin letters, even ``y``."""
    first = next((character for character in unicodedata.normalize("NFKD", _folded(text)) if character.isalpha()), "")
    if not ("a" <= first <= "z"):
        return None
    return "yes" if first in "aeiou" else "no"


def first_word(text: str) -> str | None:
    """Return the first word, case folded. Apostrophes and hyphens within the word belong to it."""
    match = re.search(WORD, _folded(text))
    return None if match is None else match[0]


def word_count(text: str) -> int:
    """Count the stretches between white space that contain a letter or a digit."""
    return sum(any(character.isalnum() for character in part) for part in text.split())


def given_character(text: str) -> str | None:
    """Return the character that an answer gives: the whole answer, or the only one in quotation marks."""
    word = given_word(text)
    return word if word is not None and len(word) == 1 else None


def given_word(text: str) -> str | None:
    """Return the word that an answer gives: the whole answer, or the only word in quotation marks."""
    line = _first_line(text)
    words = re.findall(WORD, line)
    if len(words) > 1:
        words = list(dict.fromkeys(re.findall(_OPENING + rf"({WORD})[.,!?]?" + _CLOSING, line)))
    return words[0] if len(words) == 1 else None


def given_number(text: str) -> int | None:
    """Return the whole number that an answer gives: the only number, or the only number of words; None for a range."""
    line = _first_line(text)
    if re.search(r"\d\s*(?:-|–|—|−|/|\bto\b|\bor\b|\band\b)\s*\d", line):
        return None
    numbers = list(re.finditer(r"(?<![^\W_])(?<!\d[.,])[-−]?\d(?:[\d.,]*\d)?(?![^\W_]|[.,]\d|\s*%)", line))
    of_words = [number for number in numbers if re.match(r"\s+words?\b", line[number.end() :])]
    candidates = [number[0] for number in (numbers if len(numbers) == 1 else of_words)]
    if len(candidates) != 1 or not re.fullmatch(r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+", candidates[0]):
        return None
    digits = candidates[0].replace(",", "")
    return int(digits) if len(digits) <= LONGEST_NUMBER else None


def yes_or_no(text: str) -> str | None:
    """Return the word of yes and no that the first line contains, unless it is denied ("not yes") or part of "no doubt"."""
    line = _DETERMINER.sub(" ", _first_line(text))
    mentioned = set(re.findall(r"(?<![^\W_])(?<![^\W_]['-])(yes|no)(?![^\W_]|['-][^\W_])", line))
    denied = re.search(r"(?:\b(?:not|never)\b|n't\b)[^.;!?]*\byes\b|\b(?:not|never)\s+(?:a\s+)?[\"'“‘]*no\b", line)
    return mentioned.pop() if len(mentioned) == 1 and not denied else None


def named_option(text: str, options: Sequence[str]) -> str | None:
    """Return the option that an answer names.

    A mention does not count in a question, after "rather than", "instead of" and the like, or right after a denial ("not
    to break"; ``i do not`` does not say ``i do``). If a denial stands elsewhere in the clause, words alone cannot tell what
    is denied, and nothing is named. Inflected forms ("breaking") do not name the option.

    Args:
        text: The answer.
        options: The options. Case is ignored, and only whole words count.

    Returns:
        The option, or None if the answer names no option or several.
    """
    folded = _folded(text)
    ends = [match.start() for match in _CLAUSE_END.finditer(folded)]
    mentions = [(match, option) for option in options for match in re.finditer(_whole(_folded(option)), folded)]
    starts = [mention.start() for mention, _ in mentions]
    denials = list(re.finditer(_DENIAL, folded))
    of_mentions = {d.start() for d in denials if any(_joins(_DENIAL, folded[d.start() : s]) for s in starts)}
    named = set()
    for mention, option in mentions:
        before = folded[: mention.start()]
        if _asks(folded[mention.end() :]) or re.search(rf"(?:{_DENIAL}|{_PREFERENCE}){_BETWEEN}$", before):
            continue
        clause = [d.start() for d in denials if bisect(ends, d.start()) == bisect(ends, mention.start())]
        if any(place not in of_mentions or place < mention.start() for place in clause):
            return None
        named.add(option)
    return named.pop() if len(named) == 1 else None


def _joins(word: str, text: str) -> bool:
    return re.fullmatch(word + _BETWEEN, text) is not None


def _asks(rest: str) -> bool:
    """Return whether the sentence that ends with this text is a question."""
    end = re.search(r"[.!?\n]", rest)
    return end is not None and end[0] == "?"


def _whole(option: str) -> str:
    """Return a pattern for an option outside of words, compounds, decimal numbers, and names such as C++."""
    letter = r"[^\W_]"
    before = rf"(?<!{letter})(?<!{letter}['-])(?<!\d[.,])"
    return rf"{before}{re.escape(option)}(?!{letter}|[+#]|[.,]\d|['-]{letter})"


def _folded(text: str) -> str:
    """Fold the case, compose characters, and make apostrophes inside words straight."""
    return re.sub(r"(?<=[^\W_])’(?=[^\W_])", "'", unicodedata.normalize("NFKC", text).casefold())


def _first_line(text: str) -> str:
    """Return the first line with a letter or digit, folded, without the phrase that answers of the study begin with."""
    lines = _LEAD.sub("", text, count=1).splitlines()
    return _folded(next((line for line in lines if any(character.isalnum() for character in line)), ""))
