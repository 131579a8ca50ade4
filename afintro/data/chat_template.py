"""Render conversations with a tokenizer's chat template so that every turn's text is in the prompt, or refuse.

A template may know no system turn, read content as a list of parts, or leave a turn out without a word. The forms in which a
conversation can be given to a template are tried in order, and what was rendered is looked through for every turn's text.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from html import unescape
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from afintro.errors import UserError, one_line
from afintro.lm.template_inputs import chosen_template, named

log = logging.getLogger(__name__)

Message = dict[str, str]
Form = Callable[[Sequence[Message]], list[dict[str, Any]]]

WITHOUT_TEMPLATE = "has no chat template: it reads the turns as paragraphs, after the last of which it continues"
LEAVES_OUT = "leaves out the text of a turn"
PROBE = [{"role": "system", "content": "Zwei Anfragen"}, {"role": "user", "content": "Kurze Frage"}]
PART = re.compile(r"""["']type["']: ?["']text["']""")
REASONED = re.compile(r".*(?:</(?:\w+:)?think(?:ing)?>|\[/THINK\])", re.DOTALL)


def as_is(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Give the turns as they are."""
    return [dict(message) for message in messages]


def system_in_user(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Put the text of all system turns at the head of the first user turn, which is made where no user turn comes first."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    rest = [dict(message) for message in messages if message["role"] != "system"]
    if len(rest) == len(messages):
        return rest
    if rest and rest[0]["role"] == "user":
        rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
        return rest
    return [{"role": "user", "content": system}, *rest]


def in_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Give the content of each turn as a list of parts, as templates of models that also see images read it."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def system_in_user_in_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Put the system text at the head of the first user turn, and give the content of each turn as a list of parts."""
    return in_parts(system_in_user(messages))


FORMS: tuple[Form, ...] = (as_is, system_in_user, in_parts, system_in_user_in_parts)
SAID = {
    system_in_user: "does not render system turns: their text stands at the head of the first user turn",
    in_parts: "reads the content of a turn as a list of parts",
    system_in_user_in_parts: "reads lists of parts and no system turns: their text stands at the head of the first user turn",
}


def paragraphs(messages: Sequence[Message]) -> str:
    """Render turns for a base model without a chat template: paragraphs, after the last of which the answer begins."""
    return "".join(f"{message['content']}\n\n" for message in messages)


def render_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answering: bool) -> str:
    """Render turns in the first form in which the template keeps the text of all turns.

    Args:
        tokenizer: Tokenizer with the chat template, if there is one.
        messages: The turns.
        answering: Whether the prompt ends where the model's answer begins; otherwise it ends with the last turn.

    Raises:
        UserError: The template fails, or leaves out the text of a turn, in every form.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        _say_once(named(tokenizer), WITHOUT_TEMPLATE)
        return (tokenizer.bos_token or "") + paragraphs(messages)
    reason = ""
    for form in forms(tokenizer).usable:
        text, fault = _tried(tokenizer, form, messages, answering)
        if text is not None:
            return text
        reason = reason or fault
    raise UserError(
        reason,
        where=f"chat template of {named(tokenizer)}",
        remedy="use a model whose template renders these turns, or repair chat_template in the tokenizer's folder",
    )


def holds(text: str, messages: Sequence[Message]) -> bool:
    """Tell whether a rendered prompt holds the text of every turn, each at a place of its own.

    White space at the ends of a turn does not count, nor the reasoning before the answer of an assistant's turn, both of which
    many templates take away. A text that a template writes as a JSON or HTML string is held, and so is a text of which white
    space and punctuation alone are changed.
    """
    texts = [without_reasoning(message).strip() for message in messages]
    if _each_in(text, texts):
        return True
    quoted = [json.dumps(turn, ensure_ascii=False)[1:-1] for turn in texts]
    if _each_in(text, quoted) or _each_in(unescape(text), texts):
        return True
    words = [_letters(turn) for turn in texts]
    return all(words) and _each_in(_letters(text), words)


def without_reasoning(message: Message) -> str:
    """Return the text of a turn; of an assistant's turn what follows the reasoning."""
    text = message["content"]
    return REASONED.sub("", text).lstrip() if message["role"] == "assistant" and REASONED.match(text) else text


def _each_in(text: str, parts: Sequence[str]) -> bool:
    """Tell whether all parts stand in a text without sharing a character; long parts are looked for first."""
    for part in sorted(parts, key=len, reverse=True):
        before, found, after = text.partition(part) if part else (text, " ", "")
        if not found:
            return False
        text = f"{before}\0{after}" if part else text
    return True


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _tried(
    tokenizer: PreTrainedTokenizerBase, form: Form, messages: Sequence[Message], answering: bool
) -> tuple[str | None, str]:
    """Return what the template makes of the turns in a form, or None and why the form cannot be used."""
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": answering}
    if not isinstance(tokenizer.chat_template, str):
        options["chat_template"] = chosen_template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(form(messages), **options)
    except Exception as error:  # a template is code, and raises what it likes
        return None, f"cannot render the turns ({one_line(error, 200) or type(error).__name__})"
    assert isinstance(text, str)
    whole = holds(text, messages) and not _prints_parts(text, form, messages)
    return (text, "") if whole else (None, f"{LEAVES_OUT} ({_roles(messages)})")


def _prints_parts(text: str, form: Form, messages: Sequence[Message]) -> bool:
    """Tell whether a template that reads no lists has printed the list of parts itself."""
    if form not in (in_parts, system_in_user_in_parts):
        return False
    return PART.search(text) is not None and not any(PART.search(message["content"]) for message in messages)


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(message["role"] for message in messages)


@dataclass(frozen=True)
class Forms:
    """Hold the forms in which a template keeps a system and a user turn.

    Args:
        template: The template, or the templates.
        usable: The forms, the best first; all forms where none keeps both turns.
        adapted: Name of the form if the template takes the turns as they are and leaves a text out; otherwise empty.
    """

    template: Any
    usable: tuple[Form, ...]
    adapted: str


_known: "WeakKeyDictionary[PreTrainedTokenizerBase, Forms]" = WeakKeyDictionary()


def forms(tokenizer: PreTrainedTokenizerBase) -> Forms:
    """Find, once for a tokenizer, in which forms its template keeps system and user turn.

    A probe decides, because its texts are in no template and in no other turn.
    """
    known = _known.get(tokenizer)
    if known is None or known.template != tokenizer.chat_template:
        tried = {form: _tried(tokenizer, form, PROBE, True) for form in FORMS}
        found = tuple(form for form in FORMS if tried[form][0] is not None)
        best = found[0] if found else as_is
        if best in SAID:
            _say_once(f"chat template of {named(tokenizer)}", SAID[best])
        adapted = best.__name__ if best is not as_is and tried[as_is][1].startswith(LEAVES_OUT) else ""
        known = _known[tokenizer] = Forms(tokenizer.chat_template, found or FORMS, adapted)
    return known


@cache
def _say_once(name: str, said: str) -> None:
    log.info("%s %s", name, said)
