"""Divide text into words without case and punctuation, in scripts with and without spaces."""

import unicodedata
from string import punctuation

SPACELESS = (  # Thai, Lao, Burmese, Khmer, Japanese, Chinese
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x312F), (0x31A0, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip


class _Separated(dict[int, str]):
    """Map a character to what separates words: punctuation to a blank, a symbol or a spaceless letter to a word of its own."""

    def __missing__(self, code: int) -> str:
        character, category = chr(code), unicodedata.category(chr(code))
        if category == "Cf" or 0xFE00 <= code <= 0xFE0F:  # joiners and variation selectors are invisible
            separated = ""
        elif character in punctuation or category[0] in "PZ" or category == "Cc":
            separated = " "
        elif category[0] in "SC" or is_spaceless(character):
            separated = f" {character} "
        else:
            separated = character
        self[code] = separated
        return separated


_SEPARATED = _Separated()


def is_spaceless(word: str) -> bool:
    """Return whether a word is a character of a script that puts no spaces between words."""
    return any(first <= ord(word[0]) <= last for first, last in SPACELESS)


def normalized_words(text: str) -> list[str]:
    """Return the words of a text without case and punctuation.

    A character of a script without spaces, and a symbol such as an emoji, is a word. A text of punctuation alone consists of
    its characters, so that ``?`` and ``!`` differ.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return folded.translate(_SEPARATED).split() or list("".join(folded.split()))
