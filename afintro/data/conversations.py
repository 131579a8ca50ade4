"""Read the request out of a conversation, as OpenAI (``messages``) and ShareGPT (``conversations``) write conversations."""

from collections.abc import Mapping, Sequence
from typing import Any

from afintro.errors import UserError

USERS = ("user", "human", "prompter")
SYSTEMS = ("system", "developer")
SYSTEM_TURN, ANSWER, LATER = "a system turn", "an answer", "further turns of the user"


def is_conversation(value: Any) -> bool:
    """Tell whether a value is a list of turns, as objects with ``role`` and ``content`` or ``from`` and ``value``."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    )


def request_of(turns: Sequence[Mapping[str, Any]], where: str) -> tuple[str, frozenset[str]]:
    """Return the first turn of the user, and what the conversation holds beside that turn.

    Args:
        turns: The turns, in order.
        where: File, record and field, for errors.

    Returns:
        The text; and those of :data:`SYSTEM_TURN`, :data:`ANSWER` and :data:`LATER` that the conversation has.

    Raises:
        UserError: No turn is the user's, or the turn holds something else than text.
    """
    roles = [_role(turn) for turn in turns]
    asked = [place for place, role in enumerate(roles) if role in USERS]
    if not asked:
        what = f"has no turn of the user, but of {', '.join(dict.fromkeys(roles))}"
        raise UserError(what, where=where, remedy="give conversations in which a turn has the role user or human")
    turn = turns[asked[0]]
    others = {SYSTEM_TURN} if set(roles) & set(SYSTEMS) else set()
    others |= {ANSWER} if set(roles) - {*USERS, *SYSTEMS} else set()
    others |= {LATER} if len(asked) > 1 else set()
    return _content(turn.get("content", turn.get("value")), f"{where}, turn {asked[0]}"), frozenset(others)


def requests_of(turns: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Return the text of every turn of the user.

    Args:
        turns: The turns, in order.
        where: File and record, for errors.

    Raises:
        UserError: A turn of the user holds something else than text.
    """
    return [
        _content(turn.get("content", turn.get("value")), f"{where}, turn {place}")
        for place, turn in enumerate(turns)
        if _role(turn) in USERS
    ]


def _role(turn: Mapping[str, Any]) -> str:
    return str(turn.get("role", turn.get("from"))).lower()


def _content(content: Any, where: str) -> str:
    """Return the text of a turn, whose content is a string or a list of parts."""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if (
            isinstance(part, dict)
            and isinstance(part.get("text"), str)
            and part.get("type") in (None, "text", "input_text")
        ):
            part = part["text"]
        if not isinstance(part, str):
            kind = f"a part of type {part.get('type')!r}" if isinstance(part, dict) else type(part).__name__
            raise UserError(f"holds {kind}, not text", where=where, remedy="give turns of text alone")
        texts.append(part)
    return "\n".join(texts)
