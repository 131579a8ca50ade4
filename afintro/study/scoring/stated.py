"""A distribution over options as an answer states it, line by line, and how far it is from another."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SMOOTHING = 0.005  # added to each stated share: half of the smallest whole number in a hundred, as 0 may be any less
TOLERANCE = 1.0  # by which rounded numbers may miss a hundred
_MARKS = re.compile(r"[\s*_`\"'“”|\[\]{}]+")  # of Markdown, JSON and quotation, which say nothing
_NUMBERING = re.compile(r"(?:[-•–]|\(?\d+[.)]) ")
# Between digits, what may be a decimal sign or a range is no separator.
_SEPARATOR = r"(?:->|=>|→|\.{2,}|[:=]|[.,–—-](?= )|(?<!\d)[,–—-])?"
_AMOUNT = r"(?:[~≈] ?|(?:about|around|roughly|approximately) )?(?P<amount>\d+(?:\.\d+)?)"
_UNIT = r"(?:%|(?:percent|per cent|times)\b|(?:/|out of|of) ?(?:100|a hundred)\b)?"
# What follows has to be set apart, and to hold no further number: "20 or 25" and "20, blue 30" are no single statement.
_REST = r"[.,;]?(?: ?[(#–—,;-]\D*)?"


@dataclass(frozen=True)
class Stated:
    """What an answer states.

    Args:
        shares: Of every option, in their order; they add up to 1.
        renormalised: Whether the numbers did not add up to a hundred.
    """

    shares: Mapping[str, float]
    renormalised: bool


def stated_distribution(text: str, options: Sequence[str], cut: bool = False) -> Stated | None:
    """Read the number after the option on each line that gives one; other lines say nothing.

    An option that no line gives has a share of 0 if the others come to a hundred; if not, the list is incomplete and
    cannot be read. Nor can one that gives an option two numbers, or numbers that are all 0.

    Args:
        text: The answer.
        options: What the numbers are of; they may be numbers themselves.
        cut: Whether the answer was cut off, so that its last line may be half a line.
    """
    lines = (text[: text.rfind("\n") + 1] if cut else text).splitlines()
    found: dict[str, float] = {}
    for option, amount in filter(None, (_given(line, options) for line in lines)):
        if found.setdefault(option, amount) != amount:
            return None
    total = sum(found.values())
    whole = abs(total - 100) <= TOLERANCE
    if total <= 0 or (len(found) < len(options) and not whole):
        return None
    return Stated({option: found.get(option, 0.0) / total for option in options}, renormalised=not whole)


def _given(line: str, options: Sequence[str]) -> tuple[str, float] | None:
    """The option that a line begins with, and its number.

    The number of a list may look like an option ("1. 4: 20" of a die), and an option like the number of a list ("1. 20"):
    the line is read with and without its numbering, and only one of the two leaves no number over.
    """
    candidates = [_MARKS.sub(" ", line).strip()]
    while numbering := _NUMBERING.match(candidates[-1]):
        candidates.append(candidates[-1][numbering.end() :])
    for candidate in candidates:
        for option in options:
            # Something has to stand between them: option 1 is not named by "120".
            named = rf"\(?{re.escape(option)}(?![^\W_]) ?\)?"
            number = rf" ?{_SEPARATOR} ?\(?{_AMOUNT} ?{_UNIT} ?\)?"
            match = re.fullmatch(named + number + _REST, candidate, re.IGNORECASE)
            if match:
                return option, float(match["amount"])
    return None


def divergence(actual: Sequence[float], stated: Sequence[float]) -> float:
    """KL(actual || stated) in nats, the stated shares smoothed: ``(s + SMOOTHING) / (1 + K SMOOTHING)`` of K options."""
    scale = 1 + SMOOTHING * len(stated)
    terms = (p * math.log(p * scale / (share + SMOOTHING)) for p, share in zip(actual, stated, strict=True) if p > 0)
    return max(0.0, math.fsum(terms))


def place_of_likeliest(actual: Sequence[float], stated: Sequence[float]) -> int:
    """Place, from 1, that the stated distribution gives to what is most likely in fact; what ties with it comes first."""
    likeliest = max(range(len(actual)), key=lambda index: actual[index])
    return sum(share >= stated[likeliest] for share in stated)
