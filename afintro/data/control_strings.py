"""Encode texts that hold control strings, such as ``<|im_end|>`` or ``</s>``, as text: only a template writes control tokens.

Control strings are a tokenizer's special tokens, and those of its other added tokens that its chat template writes. Where a
turn holds such a string, the string is marked before the template renders the turn. So the strings of the template and the
strings of the texts are told apart in what was rendered, and a text can neither end its turn nor begin another.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from afintro.data.chat_template import PROBE, Message, render_turns, without_reasoning
from afintro.errors import UserError
from afintro.lm.template_inputs import chosen_template, named

BEGIN, END = "\ufdd0", "\ufdd1"  # noncharacters of Unicode, which no text should hold
MARKED = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)
NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class ControlStrings:
    """Know the control strings of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        special: The strings of its special tokens.
        written: The strings of its other added tokens that its chat template writes.
    """

    tokenizer: PreTrainedTokenizerBase
    special: tuple[str, ...]
    written: tuple[str, ...]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Return what matches any control string, the longest first."""
        return _any_of(self.special + self.written)

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Return what matches the string of any special token."""
        return _any_of(self.special)

    @cached_property
    def backend(self) -> Tokenizer:
        """Return a tokenizer that reads control strings as text, and as control tokens only their names in marks.

        One pass encodes the whole prompt, so that all other tokens are as ever: merges, spaces and stripping included.
        """
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        tokens = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        control = [tokens[content] for content in self.special + self.written]
        backend.add_special_tokens([_like(token, token.content) for token in control])
        backend.encode_special_tokens = True  # then the strings of special tokens are text
        backend.add_tokens([_like(token, f"{BEGIN}{token.content}{END}") for token in control])
        return backend

    @cached_property
    def ids(self) -> dict[int, int]:
        """Return the id of each control token, by the id of its name in marks."""
        ids = self.tokenizer.added_tokens_encoder
        contents = self.special + self.written
        names = {content: self.backend.token_to_id(f"{BEGIN}{content}{END}") for content in contents}
        return {name: ids[content] for content, name in names.items() if name is not None}


def mark(text: str, pattern: re.Pattern[str]) -> str:
    """Mark every control string of a text.

    Raises:
        UserError: The text holds one of the noncharacters that mark.
    """
    if BEGIN in text or END in text:
        what = f"holds U+{ord(BEGIN):X} or U+{ord(END):X}, which are no characters of texts"
        raise UserError(what, where=f"text {text[:40]!r}", remedy="take them out of the text")
    return pattern.sub(lambda match: f"{BEGIN}{match[0]}{END}", text)


def unmark(text: str) -> str:
    """Return a marked text as it is read."""
    return text.replace(BEGIN, "").replace(END, "") if BEGIN in text else text


def render_marked(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answering: bool = True, slot: str | None = None
) -> str:
    """Render turns, with marks around the control strings that their texts hold.

    Args:
        tokenizer: Tokenizer with the chat template, if there is one.
        messages: The turns.
        answering: Whether the prompt ends where the model's answer begins; otherwise it ends with the last turn.
        slot: A control string that stays a control token wherever a text holds it.

    Raises:
        UserError: The template leaves out a turn's text, or reads control strings in a turn as its own.
    """
    plain, control = render_turns(tokenizer, messages, answering), control_strings(tokenizer)

    def marked(given: Sequence[Message], in_answers: re.Pattern[str]) -> list[Message]:
        patterns = {"assistant": in_answers}
        return [
            {**turn, "content": _marked_but(slot, turn["content"], patterns.get(turn["role"], control.pattern))}
            for turn in given
        ]

    # Templates take the reasoning, which the strings of added tokens enclose, out of an assistant's turn.
    answers = [{**turn, "content": without_reasoning(turn)} for turn in messages]
    for given, in_answers in (
        (messages, control.pattern), (messages, control.special_pattern), (answers, control.pattern)
    ):  # fmt: skip
        turns = marked(given, in_answers)
        text = plain if turns == list(messages) else render_turns(tokenizer, turns, answering)
        if unmark(text) == plain:
            return text
    raise UserError(
        "reads control strings in the text of a turn as its own",
        where=f"chat template of {named(tokenizer)}",
        remedy="take the control strings out of the text",
    )


def _marked_but(slot: str | None, text: str, pattern: re.Pattern[str]) -> str:
    """Mark the control strings of a text, but the slot."""
    return slot.join(mark(part, pattern) for part in text.split(slot)) if slot else mark(text, pattern)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, split_special_tokens: bool = False) -> list[int]:
    """Return the token ids of a text as it is, without adding special tokens.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        split_special_tokens: Whether the strings of special tokens are text; otherwise control strings are control tokens.
    """
    options: dict[str, Any] = {"split_special_tokens": True} if split_special_tokens else {}
    ids = tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]
    assert isinstance(ids, list)
    return ids


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a rendered text whose marked control strings are text, and whose others are control tokens.

    Without marks the ids are those that the tokenizer gives.

    Args:
        tokenizer: The tokenizer.
        text: What :func:`render_marked` returned, or a part of it.
    """
    if BEGIN not in text:
        return encode_text(tokenizer, text)
    control = control_strings(tokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        pieces = MARKED.split(text)  # every other piece was marked
        encoded = [encode_text(tokenizer, piece, split_special_tokens=at % 2 == 1) for at, piece in enumerate(pieces)]
        return [token for ids in encoded for token in ids]
    turned = re.sub(f"{BEGIN}.*?{END}|{control.pattern.pattern}", _turned, text, flags=re.DOTALL)
    return [control.ids.get(token, token) for token in control.backend.encode(turned, add_special_tokens=False).ids]


def encode_as_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text that no template wrote, such as an answer: none is a control token."""
    return encode_marked(tokenizer, mark(text, control_strings(tokenizer).pattern))


_known: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, ControlStrings]]" = WeakKeyDictionary()


def control_strings(tokenizer: PreTrainedTokenizerBase) -> ControlStrings:
    """Return the control strings of a tokenizer, which are found once."""
    template = getattr(tokenizer, "chat_template", None)
    known = _known.get(tokenizer)
    if known is None or known[0] != template:
        known = _known[tokenizer] = template, _found(tokenizer)
    return known[1]


def _found(tokenizer: PreTrainedTokenizerBase) -> ControlStrings:
    template = getattr(tokenizer, "chat_template", None)
    written = ""
    if template is not None:
        answered = [*PROBE, {"role": "assistant", "content": "Antwort"}, {"role": "user", "content": "Noch etwas"}]
        written = chosen_template(tokenizer)
        for probe in (PROBE, answered):  # some templates put their strings together of pieces
            try:
                written += render_turns(tokenizer, probe, answering=True)
            except UserError:
                continue
    added = tokenizer.added_tokens_decoder.values()
    roles = set(tokenizer.all_special_tokens)  # an end of sequence need not be marked as special
    special = tuple(token.content for token in added if token.special or token.content in roles)
    # White space that is one token is ordinary text, also where the template writes it.
    others = (token.content for token in added if token.content in written and not token.content.isspace())
    return ControlStrings(tokenizer, special, tuple(content for content in others if content not in special))


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, strings), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else NOTHING


def _turned(match: re.Match[str]) -> str:
    """Take the marks off a text's control string, and mark a template's control string."""
    return match[0][1:-1] if match[0].startswith(BEGIN) else f"{BEGIN}{match[0]}{END}"


def _like(token: AddedToken, content: str) -> AddedToken:
    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.content == content,
    )
