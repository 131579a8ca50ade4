"""Take the answer out of a reply: the last complete output section of what stands outside of the reasoning."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from afintro.generation.marks import CHANNELS, REASONING, SECTIONS, Mark, in_code, marks_in, pairs_of

_DELIBERATES = re.compile(
    r"\bthe (?:user|requester) (?:is asking|asks|wants|has asked)|\b(?:this|the) request (?:asks|is asking|is for)"
    r"|\bif i (?:refuse|comply|decline)|\bi need to (?:think|consider)",
    re.IGNORECASE,
)
_ENDS_SENTENCE = re.compile(r"[.!?…\"'”’)\]*`>]\s*\Z")
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Reply:
    """What a model wrote behind a prompt.

    Args:
        text: The text.
        truncated: Whether the largest number of tokens ended the text, not the model; None if unknown.
        opening: The mark at the end of the prompt that opens the reasoning (``<think>`` of DeepSeek-R1); "" without one.
        tokens: Marks that are special tokens of the tokenizer, and the positions in the text at which such a token stands;
            a mark at another position is only spelled. Empty if the token ids are unknown.
        prefill: The beginning of the answer that the prompt gave; the answer is read with it, and ``text`` goes on behind it.
    """

    text: str
    truncated: bool | None = None
    opening: str = ""
    tokens: Mapping[str, frozenset[int]] = field(default_factory=dict, compare=False, repr=False)
    prefill: str = ""


@dataclass(frozen=True)
class Transcript:
    """A reply, taken apart.

    Args:
        answer: What the reader of the reply sees; None if there is only reasoning.
        reasoning: What stands before the answer.
        cut: Whether the reply was cut before its answer began, so that nothing can be said about the answer.
    """

    answer: str | None
    reasoning: str
    cut: bool = False


@dataclass(frozen=True)
class _Thought:
    """A part of a reply that is reasoning; ``closed`` tells whether the part ends before the reply does."""

    text: str
    instructed: bool
    closed: bool


def opening_of(prompt: str) -> str:
    """Return the mark at the end of a prompt that opens the reasoning; "" without one."""
    end = prompt.rstrip()
    opening = next((mark for mark in marks_in(end, REASONING, {}) if mark.end == len(end) and mark.opens), None)
    return "" if opening is None else end[opening.start :]


def take_apart(output: "Reply | str") -> Transcript:
    """Divide a reply into answer and reasoning.

    The answer is the last complete output section outside of the reasoning; without one, an unclosed section that begins a
    line; without sections, the first text behind the reasoning. Reasoning that a prompt asked for (a scratchpad) may hold
    the section.

    Args:
        output: The reply; a text alone is a reply of which nothing else is known.
    """
    reply = _with_opening(Reply(output) if isinstance(output, str) else output)
    outside, thoughts = _divide(reply)
    reasoning = "\n".join(thought.text for thought in thoughts).strip()
    found = _section(outside, drafts=False)
    if found is not None:
        return Transcript(found[1], reasoning or found[0])
    plain = [_without_sections(part).strip() for part in (outside[1:] if thoughts else outside)]
    if answer := next((part for part in plain if _WORD.search(part)), None):
        if not thoughts and _DELIBERATES.search(answer):
            return Transcript(None, answer)
        return Transcript(answer, reasoning)
    if not thoughts:
        return Transcript("", "", reply.truncated is True)
    found = _section([thought.text for thought in thoughts if thought.instructed], drafts=True)
    if found is not None:
        return Transcript(found[1], found[0])
    return Transcript(None, reasoning, _is_cut(reply, thoughts[-1]))


def _with_opening(reply: Reply) -> Reply:
    """Put before the text what the prompt gave: the mark with which it opens the reasoning, and the answer's beginning."""
    given = reply.opening + reply.prefill
    if not given:
        return reply
    tokens = {mark: frozenset(place + len(given) for place in places) for mark, places in reply.tokens.items()}
    for mark, places in tokens.items():  # a template writes tokens, and so does a prefill
        own = {0} if reply.opening.startswith(mark) else set()
        written = {found.start() + len(reply.opening) for found in re.finditer(re.escape(mark), reply.prefill)}
        tokens[mark] = places | own | written
    return replace(reply, text=given + reply.text, tokens=tokens)


def _divide(reply: Reply) -> tuple[list[str], list[_Thought]]:
    """Return the texts outside of the reasoning, of which the first stands before it, and the parts that are reasoning."""
    text, marks = reply.text, marks_in(reply.text, REASONING, reply.tokens)
    pairs, outside, thoughts = pairs_of(marks), list[str](), list[_Thought]()
    start = index = 0
    code, shown = in_code(text, 0), set[int]()
    while index < len(marks):
        mark = marks[index]
        if mark.opens and any(begin < mark.start < end for begin, end in code):
            shown.add(pairs.get(index, -1))
            index += 1
        elif mark.opens:
            outside.append(text[start : mark.start])
            closing = pairs.get(index) or _next_closing(marks, index)
            end = len(text) if closing is None else marks[closing].start
            thoughts.append(_Thought(text[mark.end : end], mark.form.instructed, closing is not None))
            start, index = (end, len(marks)) if closing is None else (marks[closing].end, closing + 1)
            code = in_code(text, start)
        elif index in shown:
            index += 1
        else:
            outside.append(text[start : mark.start])
            follows = _WORD.search(text, mark.end) is not None
            if (follows and not thoughts) or (not mark.form.instructed and (follows or mark.form is not CHANNELS)):
                # The prompt opened the reasoning. A model that was asked for a scratchpad may close the scratchpad again and
                # again, and its first answer counts.
                thoughts.append(_Thought(outside.pop(), mark.form.instructed, True))
                outside.append("")
            start, index = mark.end, index + 1
    return [*outside, text[start:]], thoughts


def _next_closing(marks: Sequence[Mark], opening: int) -> int | None:
    """Return the next mark that closes what ``opening`` opened, whose pair is missing because others were only mentioned."""
    form = marks[opening].form
    return next((i for i in range(opening + 1, len(marks)) if marks[i].form is form and not marks[i].opens), None)


def _section(parts: Sequence[str], drafts: bool) -> tuple[str, str] | None:
    """Return the last output section and what stands before the first; None without a section.

    Args:
        parts: The texts to look in.
        drafts: Whether the texts are reasoning, where a section may be a mention ("between <OUTPUT> and </OUTPUT>").
    """
    complete, unclosed = list[tuple[str, str]](), list[tuple[str, str]]()
    for part in parts:
        code = in_code(part, 0)
        marks = [m for m in marks_in(part, SECTIONS, {}) if not any(a < m.start < b for a, b in code)]
        pairs, end = pairs_of(marks), 0
        for index, mark in enumerate(marks):
            if not mark.opens or mark.start < end:
                continue
            before, begins_line = part[: mark.start], not part[: mark.start].rpartition("\n")[2].strip()
            if index in pairs:
                end = marks[pairs[index]].start
                content = part[mark.end : end]
                if len(content.split()) > 2 or (_WORD.search(content) and (begins_line or not drafts)):
                    complete.append((before, content))
            elif begins_line and _WORD.search(part, mark.end):
                unclosed.append((before, part[mark.end :]))
    sections = complete or unclosed
    return (sections[0][0].strip(), sections[-1][1].strip()) if sections else None


def _without_sections(part: str) -> str:
    pieces, start = list[str](), 0
    for mark in marks_in(part, SECTIONS, {}):
        pieces.append(part[start : mark.start])
        start = mark.end
    return " ".join([*pieces, part[start:]])


def _is_cut(reply: Reply, last: _Thought) -> bool:
    """Tell whether a reply without an answer was cut: by what is known, else by the look of its end."""
    if reply.truncated is not None:
        return reply.truncated
    return not last.closed and not (last.instructed and _ENDS_SENTENCE.search(last.text))
