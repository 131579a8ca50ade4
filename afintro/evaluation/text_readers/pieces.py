"""What a text holds, as numbers: characters with case and line breaks, ordered pairs of words, lengths and amounts."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LONGEST = 5  # characters in the longest run
WINDOW = 8  # words from the first to the second word of a pair, at most
START, END = "\x02", "\x03"  # so that the first and the last character are seen as such
Floats = NDArray[np.float32]


def words(text: str) -> list[str]:
    """Return words of any length in lower case, and pairs of neighboring words."""
    single = re.findall(r"\w+", text.lower())
    return single + [f"{a} {b}" for a, b in pairwise(single)]


def characters(text: str) -> list[str]:
    """Return all runs of one to five characters, as they stand: case, punctuation, blanks and line breaks count."""
    text = START + text + END
    return [text[at : at + size] for size in range(1, LONGEST + 1) for at in range(len(text) - size + 1)]


def skip_bigrams(text: str) -> list[str]:
    """Return words and marks with their case, and all ordered pairs of them that stand at most eight apart.

    Skip-bigrams were introduced for ROUGE-S (Lin 2004).
    """
    tokens = [START, *re.findall(r"\w+|[^\w\s]", text), END]
    pairs = (f"{first} {second}" for at, first in enumerate(tokens) for second in tokens[at + 1 : at + 1 + WINDOW])
    return [*tokens, *pairs]


def numbers(texts: Sequence[str]) -> Floats:
    """Measure texts: lengths, counts of kinds of characters, and the amounts that the text names.

    Args:
        texts: n texts.

    Returns:
        ``[n, 14]`` float32: characters, words by blanks, words, line breaks; digits, capitals, white space, marks, characters
        beyond ASCII; the largest, least, first and last amount on a logarithmic scale (0 without amounts), and their number.
    """
    return np.array([_measure(text) for text in texts], dtype=np.float32)


def _measure(text: str) -> list[float]:
    amounts = [float(found.replace(",", "")) for found in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]
    lengths = [len(text), len(text.split()), len(re.findall(r"\w+", text)), text.count("\n")]
    kinds = [
        sum(map(str.isdigit, text)),
        sum(map(str.isupper, text)),
        sum(map(str.isspace, text)),
        sum(not character.isalnum() and not character.isspace() for character in text),
        sum(not character.isascii() for character in text),
    ]
    named = [max(amounts), min(amounts), amounts[0], amounts[-1]] if amounts else []
    return [*lengths, *kinds, *(float(np.log1p(amount)) for amount in named or [0.0] * 4), len(amounts)]
