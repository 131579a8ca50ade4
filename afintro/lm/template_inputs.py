"""Fix what a chat template reads beside the turns: the date of the run, and the settings that a user gives.

Both are written into the template itself, in front of its text. So the template's hash, the tokenizer that worker processes
load, and the key of stored examples follow from what is rendered, and nothing depends on the day on which a run is continued.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from afintro.errors import UserError, one_line

CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
STRING = re.compile(r"'[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\"", re.DOTALL)
RANDOM = re.compile(r"\|\s*random\b|\blipsum\b")
DATED = re.compile(r"\{# the date of this run: (\d{4}-\d\d-\d\d) #\}")
CHOSEN = re.compile(r"\{# chosen #\}\{% set (\w+) = .* %\}\n")  # a setting, as it is written into a template
DIRECTIVES = "aAbBdeFHIjmMpSuUVwWyYDhTRGgcxXC"  # of strftime, as far as a date decides them; a time is midnight
OURS = ("messages", "add_generation_prompt")


@cache
def today() -> str:
    """Return the day on which this process first asked for the date, as ``YYYY-MM-DD``: one date a run."""
    return date.today().isoformat()


def fix_inputs(
    tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any] | None, day: str | None, known_only: bool = False
) -> None:
    """Write settings and a date into the tokenizer's chat template; a template that needs neither stays as it is.

    Args:
        tokenizer: The tokenizer, which is changed.
        settings: Names and values that the template may read, such as ``{"enable_thinking": False}``, as JSON values.
        day: The date that the template prints, ``YYYY-MM-DD``; None for today. A template that prints no date ignores it.
        known_only: Leave out the settings that the template does not read, instead of refusing them.

    Raises:
        UserError: The template does not read one of the settings, or draws at random, or the date is not a date.
    """
    chosen = dict(settings or {})
    where = f"chat template of {named(tokenizer)}"
    if getattr(tokenizer, "chat_template", None) is None:
        if chosen and not known_only:
            what = f"does not exist, so nothing reads {', '.join(chosen)}"
            raise UserError(what, where=where, remedy="leave chat_template_kwargs out")
        return
    given = chosen_template(tokenizer)
    # A tokenizer that was saved with settings has them in its template, behind whose front they would win over newer ones.
    template = CHOSEN.sub(lambda match: "" if match[1] in chosen else match[0], given)
    code = _code(CHOSEN.sub("", template))
    if RANDOM.search(code):
        raise UserError("draws at random", where=where, remedy="take the random part out of the template")
    unknown = [name for name in chosen if name in OURS or not re.search(rf"(?<![.\w]){re.escape(name)}\b", code)]
    if unknown and not known_only:
        what = f"does not read {unknown[0]!r}" if unknown[0] not in OURS else f"takes no {unknown[0]!r} from a user"
        raise UserError(
            what, where=f"{where}, chat_template_kwargs", remedy="correct the name, or leave the setting out"
        )
    known = {name: value for name, value in chosen.items() if name not in unknown}
    lines = (f"{{% set {name} = {_literal(value, name)} %}}\n" for name, value in sorted(known.items()))
    front = "".join(f"{{# chosen #}}{line}" for line in lines)
    if re.search(r"\bstrftime_now\b", code) and not DATED.search(template):
        front = _dated(day or today()) + front
    if front + template != given:
        tokenizer.chat_template = front + template


def date_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the date that the tokenizer's template prints, ``YYYY-MM-DD``; None for a template that prints no date."""
    template = getattr(tokenizer, "chat_template", None)
    match = DATED.search(template) if isinstance(template, str) else None
    return None if match is None else match[1]


def named(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a message calls a tokenizer: the name or folder that it was loaded from."""
    return str(tokenizer.name_or_path or "the tokenizer")


def chosen_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template that renders conversations, of the several that a tokenizer may have.

    Raises:
        UserError: The tokenizer has several templates for conversations, and none of them is the default.
    """
    template: Any = tokenizer.chat_template
    if isinstance(template, str):
        return template
    plain = [name for name in template if name not in ("tool_use", "rag")]  # these two are for tools and documents
    if "default" in template or len(plain) == 1:
        return str(template["default" if "default" in template else plain[0]])
    raise UserError(
        f"are several, and none of them is the default: {', '.join(sorted(template))}",
        where=f"chat templates of {named(tokenizer)}",
        remedy="rename the template to use to 'default' in the tokenizer's folder",
    )


def _code(template: str) -> str:
    """Return a template's statements and expressions, without the strings in them."""
    return "\n".join(STRING.sub("''", part) for part in CODE.findall(template))


def _literal(value: Any, name: str) -> str:
    """Write a JSON value for Jinja, which reads Python's literals."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        what = f"is no JSON value ({one_line(error, 100)})"
        raise UserError(
            what, where=f"chat_template_kwargs, {name}", remedy="give texts, finite numbers, lists"
        ) from error
    return repr(value)


def _dated(day: str) -> str:
    """Return a ``strftime_now`` of one date for the front of a template.

    A newline behind a statement belongs to the statement in chat templates, so that the template's own text begins as before.
    """
    try:
        moment = date.fromisoformat(day)
    except ValueError as error:
        raise UserError(f"{day!r} is not a date", where="prompt_date", remedy="give it as YYYY-MM-DD") from error
    parts = [(f"%-{name}", moment.strftime(f"%-{name}")) for name in "dmyjeHIMS"]
    parts += [(f"%{name}", moment.strftime(f"%{name}")) for name in DIRECTIVES]
    replaced = "".join(f"|replace({name!r}, {value!r})" for name, value in parts)
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"
    return f"{{# the date of this run: {moment.isoformat()} #}}\n{macro}"
