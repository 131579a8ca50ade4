"""Read the distribution over options that an answer states line by line, and compare it with the actual distribution."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SMOOTHING = 0.005  # added to each stated share: half of 1 in 100, since a stated 0 may mean any smaller share
TOLERANCE = 1.0  # the sum of rounded numbers may miss 100 by this much
_MARKS = re.compile(r"[\s*_`\"'“”|\[\]{}]+")  # marks of Markdown, JSON and quotation carry no meaning
_NUMBERING = re.compile(r"(?:[-•–]|\(?\d+[.)]) ")
# Between digits a comma may be a decimal sign and a dash may be a range: there they do not separate.
_SEPARATOR = r"(?:->|=>|→|\.{2,}|[:=]|[.,–—-](?= )|(?<!\d)[,–—-])?"
_AMOUNT = r"(?:[~≈] ?|(?:about|around|roughly|approximately) )?(?P<amount>\d+(?:\.\d+)?)"
_UNIT = r"(?:%|(?:percent|per cent|times)\b|(?:/|out of|of) ?(?:100|a hundred)\b)?"
# The rest of a line must be set apart and contain no further number: "20 or 25" and "20, blue 30" are not one statement.
_REST = r"[.,;]?(?: ?[(#–—,;-]\D*)?"


@dataclass(frozen=True)
class Stated:
    """The distribution that an answer states.

    Args:
        shares: The share of every option, in the order of the options. The shares add up to 1.
        renormalized: Whether the numbers of the answer did not add up to 100.
    """

    shares: Mapping[str, float]
    renormalized: bool


def stated_distribution(text: str, options: Sequence[str], cut: bool = False) -> Stated | None:
    """Read the number after the option on each line that gives one, and ignore other lines.

    An option without a line has a share of 0 if the other numbers add up to 100. Otherwise the list is incomplete and
    cannot be read. A list with two numbers for one option, or with zeros alone, cannot be read either.

    Args:
        text: The answer.
        options: The options that the numbers belong to. Options may be numbers themselves.
        cut: Whether the answer was cut off, so that its last line may be half a line.

    Returns:
        The distribution, or None if the answer cannot be read.
    """
    lines = (text[: text.rfind("\n") + 1] if cut else text).splitlines()
    amounts: dict[str, float] = {}
    for option, amount in filter(None, (_option_and_amount(line, options) for line in lines)):
        if amounts.setdefault(option, amount) != amount:
            return None
    total = sum(amounts.values())
    whole = abs(total - 100) <= TOLERANCE
    if total <= 0 or (len(amounts) < len(options) and not whole):
        return None
    return Stated({option: amounts.get(option, 0.0) / total for option in options}, renormalized=not whole)


def _option_and_amount(line: str, options: Sequence[str]) -> tuple[str, float] | None:
    """Return the option that a line begins with, and its number.

    The numbering of a list may look like an option ("1. 4: 20" of a die), and an option like numbering ("1. 20"): the line
    is read with and without its numbering, and only one of the two readings accounts for every number.
    """
    candidates = [_MARKS.sub(" ", line).strip()]
    while numbering := _NUMBERING.match(candidates[-1]):
        candidates.append(candidates[-1][numbering.end() :])
    for candidate in candidates:
        for option in options:
            # Something must separate option and number: "120" does not name option 1.
            named = rf"\(?{re.escape(option)}(?![^\W_]) ?\)?"
            number = rf" ?{_SEPARATOR} ?\(?{_AMOUNT} ?{_UNIT} ?\)?"
            match = re.fullmatch(named + number + _REST, candidate, re.IGNORECASE)
            if match:
                return option, float(match["amount"])
    return None


def divergence(actual: Sequence[float], stated: Sequence[float]) -> float:
    """Compute KL(actual || stated) with smoothed stated shares ``(s + SMOOTHING) / (1 + K SMOOTHING)``.

    Args:
        actual: Probabilities ``[K]``.
        stated: Shares ``[K]``.

    Returns:
        The divergence in nats, at least 0.
    """
    scale = 1 + SMOOTHING * len(stated)
    terms = (p * math.log(p * scale / (share + SMOOTHING)) for p, share in zip(actual, stated, strict=True) if p > 0)
    return max(0.0, math.fsum(terms))


def rank_of_likeliest(actual: Sequence[float], stated: Sequence[float]) -> int:
    """Return the rank, from 1, that the stated distribution gives to the option that is actually most likely.

    Args:
        actual: Probabilities ``[K]``.
        stated: Shares ``[K]``. Options with the same share as the likeliest option come first.
    """
    likeliest = max(range(len(actual)), key=lambda index: actual[index])
    return sum(share >= stated[likeliest] for share in stated)
