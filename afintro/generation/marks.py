"""The marks between reasoning and answer that models write: tags, special tokens, channels, and lines of plain text.

Sources: the chat templates of the models, and the reasoning parsers of vLLM and llama.cpp.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Form:
    """One way to mark off a part of a text.

    Args:
        opening: Pattern of the mark before the part.
        closing: Pattern of the mark behind the part.
        instructed: Whether a prompt asks for the mark, instead of a chat template: a model that was merely asked may forget to
            close the part, or may write its answer into the part.
    """

    opening: str
    closing: str
    instructed: bool = False


class Mark(NamedTuple):
    """One mark in a text: where it begins and ends, its form, and whether it opens a part."""

    start: int
    end: int
    form: Form
    opens: bool


def _tags(name: str, instructed: bool = False) -> Form:
    return Form(f"<{name}>", f"</{name}>", instructed)


_CHANNEL = r"(?:<\|start\|>assistant)?<\|channel\|>"  # what names a channel ends with <|message|>
_TO_MESSAGE = r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
CHANNELS = Form(  # of GPT-OSS; and of Solar Open
    rf"{_CHANNEL}(?!\s*final){_TO_MESSAGE}|<\|think\|>",
    rf"(?:<\|end\|>)?{_CHANNEL}\s*final{_TO_MESSAGE}|<\|end\|><\|begin\|>assistant(?:<\|content\|>)?"
    r"|<\|end\|>(?:<\|start\|>assistant(?!<\|channel))?",
)
REASONING = (
    _tags(r"(?:\w+_)?scratchpad\w*", instructed=True),
    *(_tags(name) for name in (r"(?:\w+[:_])?think", "thinking", "thoughts?", "reason(?:ing)?", "reflection")),
    Form(r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    Form(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A, Command R7B
    Form(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    Form(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    Form(r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    Form("◁think▷", "◁/think▷"),  # Kimi-VL
    CHANNELS,
    # GPT-OSS where special tokens were dropped, and Granite 3.2, which writes plain lines.
    Form(r"\A\s*analysis(?=(?-i:[A-Z\"“])|\S.*assistantfinal)", r"assistantfinal"),
    Form(r"\A\s*here(?:'s|’s| is) my thought process:", r"^\s*here(?:'s|’s| is) my response:"),
)
SECTIONS = (
    *(_tags(name) for name in (r"(?:\w+_)?output", "(?:final_)?response", "(?:final_)?answer", "(?:final_)?solution")),
    Form(r"<\|begin_of_solution\|>", r"<\|end_of_solution\|>"),
    Form(r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
)
_FLAGS = re.IGNORECASE | re.DOTALL | re.MULTILINE
_CHANNEL_TOKENS = re.compile(r"<\|(?:channel|message|start|end|constrain|begin|content)\|>")
_QUOTES = "`\"'“”‘’"
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def _pattern(forms: Sequence[Form]) -> re.Pattern[str]:
    parts = (
        f"(?P<o{index}>{form.opening})|(?P<c{index}>{form.closing})"
        for index, form in reversed(list(enumerate(forms)))  # a channel's "<|end|>" is part of a longer mark
    )
    return re.compile("|".join(parts), _FLAGS)


_PATTERNS = {REASONING: _pattern(REASONING), SECTIONS: _pattern(SECTIONS)}


def marks_in(text: str, forms: tuple[Form, ...], tokens: Mapping[str, frozenset[int]]) -> list[Mark]:
    """Find the marks of some forms in a text; a mark between quotation marks is only mentioned.

    Args:
        text: A text.
        forms: ``REASONING`` or ``SECTIONS``.
        tokens: Marks that are tokens of their own, and the positions at which a token stands in the text: elsewhere the
            model only spelled the mark.
    """
    found = []
    for match in _PATTERNS[forms].finditer(text):
        start, end, group = match.start(), match.end(), match.lastgroup or ""
        quoted = start > 0 and end < len(text) and text[start - 1] in _QUOTES and text[end] in _QUOTES
        said = match[0].lower()
        spelled = any(said.startswith(mark.lower()) and start not in places for mark, places in tokens.items())
        if not quoted and not spelled:
            found.append(Mark(start, end, forms[int(group[1:])], group[0] == "o"))
    return found


def pairs_of(marks: Sequence[Mark]) -> dict[int, int]:
    """Pair opening with closing marks of the same form, the innermost first; return the indices of the pairs."""
    pairs: dict[int, int] = {}
    waiting: dict[Form, list[int]] = {}
    for index, mark in enumerate(marks):
        opened = waiting.setdefault(mark.form, [])
        if mark.opens:
            opened.append(index)
        elif opened:
            pairs[opened.pop()] = index
    return pairs


def in_code(text: str, start: int) -> list[tuple[int, int]]:
    """Return where the code spans and fenced blocks are that begin at ``start`` or later."""
    return [match.span() for match in _CODE.finditer(text, start)]


def kept_marks(special: Sequence[str]) -> set[str]:
    """Return which special tokens of a tokenizer are marks, or parts of marks, and must not be dropped in decoding."""
    forms = (*REASONING, *SECTIONS)
    patterns = [pattern for form in forms for pattern in (form.opening, form.closing)]
    marks = {token for token in special if any(re.fullmatch(pattern, token, _FLAGS) for pattern in patterns)}
    marks.discard("<|end|>")  # ends a turn, where there are no channels
    if {"<|channel|>", "<|think|>"} & set(special):
        marks |= {token for token in special if _CHANNEL_TOKENS.fullmatch(token)}
    return marks | ({"<|channel>", "<channel|>"} & set(special))
