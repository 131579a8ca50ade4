"""Read conversations in the format of OpenAI's chat files: ``{"messages": [{"role", "content"}, ...], ...}``.

A row is one conversation, whose last turn is the answer, and says under which condition it was held: ``"monitored": true`` or
``false``; both conversations share their ``id``, or their request. Or a row is a pair: ``{"monitored": {"messages": [...]},
"unmonitored": {"messages": [...]}}``, where the messages may stand bare. The request is the conversation without its system
turns and without the answer, or the field ``request``, which is needed where the cue stands in the user turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from afintro.data.conversations import SYSTEMS
from afintro.data.formats import file_rows
from afintro.errors import UserError
from afintro.tasks.context_ablation.imports.pairs import Answer, Source

FORM = (
    'give rows of {"messages": [...], "monitored": true or false, "id": ...}, or of {"monitored": {"messages": [...]}, '
    '"unmonitored": {"messages": [...]}}'
)
SIDES = {True: "monitored", False: "unmonitored"}


def read_messages(path: Path, model: str | None) -> list[Source]:
    """Read the conversations of a file, one source for each model.

    Args:
        path: The file.
        model: Name of the model that answered, where a row has no ``model``.

    Raises:
        UserError: The file cannot be read, or a row is no such conversation.
    """
    answers: dict[str, dict[bool, list[Answer]]] = {}
    for index, row in enumerate(file_rows(path)):
        where = f"{path}, record {index}"
        if not isinstance(row, dict):
            raise UserError(f"is {type(row).__name__}, not an object", where=where, remedy=FORM)
        of_model = answers.setdefault(_named(row, "model", where) or model or "unknown", {True: [], False: []})
        for side, answer in _conversations(row, index, where):
            of_model[side].append(answer)
    if not answers:
        raise UserError("holds no row", where=str(path), remedy=FORM)
    return [
        Source(f"{path.name}/{name}", str(path), name, "monitoring context", sides[True], sides[False])
        for name, sides in answers.items()
    ]


def _conversations(row: Mapping[str, Any], index: int, where: str) -> Iterator[tuple[bool, Answer]]:
    """Yield condition and answer of each conversation of a row."""
    if "messages" in row:
        answer = _answer(row["messages"], row, _named(row, "id", where), where)
        if not isinstance(row.get("monitored"), bool):
            what = "does not say whether the conversation was monitored"
            raise UserError(what, where=f"{where}, field 'monitored'", remedy=FORM)
        yield row["monitored"], answer
        return
    for side, name in SIDES.items():
        turns = row.get(name)
        turns = turns.get("messages") if isinstance(turns, dict) else turns
        yield side, _answer(turns, row, f"row {index}", f"{where}, field {name!r}")


def _answer(turns: Any, row: Mapping[str, Any], key: str, where: str) -> Answer:
    """Make an answer of a conversation."""
    texts = list(_texts(turns, where))
    if texts[-1][0] != "assistant":
        raise UserError(
            f"ends with a turn of the {texts[-1][0]}, so that there is no answer",
            where=where,
            remedy="give conversations whose last turn is the model's answer; rows without answers are samples for "
            "scripts/generate_af_context_ablation.py",
        )
    system = "\n\n".join(text for role, text in texts if role in SYSTEMS)
    turns_before = [(role, text) for role, text in texts[:-1] if role not in SYSTEMS]
    user = _joined(turns_before)
    request = _named(row, "request", where) or user
    if not request.strip():
        raise UserError("holds no request", where=where, remedy=FORM)
    beside = user.replace(request, "").strip() if request != user else ""
    return Answer(
        request=request,
        prompt="\n\n".join(text for text in (system, user) if text),
        cue="\n\n".join(text for text in (system, beside) if text),
        text=texts[-1][1],
        key=key,
        scenario_id=_named(row, "scenario_id", where),
        label=_named(row, "label", where) or "unknown",
    )


def _joined(turns: Sequence[tuple[str, str]]) -> str:
    """Write turns as one text: a single turn as it is, several with their roles."""
    return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {text}" for role, text in turns)


def _texts(turns: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield role and text of each turn; a content may be a list of parts of text."""
    if not isinstance(turns, list) or not turns:
        raise UserError("is no list of messages", where=where, remedy=FORM)
    for turn in turns:
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            texts = [part for part in parts if isinstance(part, str)]
            content = "\n\n".join(texts) if len(texts) == len(parts) else None
        if not isinstance(content, str) or not isinstance(turn.get("role"), str):
            raise UserError("holds a turn without role or text", where=where, remedy=FORM)
        yield turn["role"], content


def _named(row: Mapping[str, Any], field: str, where: str) -> str:
    """Return a field that is a text, or a number, as a text; "" without it."""
    value = row.get(field)
    if value is not None and not isinstance(value, str | int):
        what = f"field {field!r} is {type(value).__name__}, not a text"
        raise UserError(what, where=where, remedy="give a text or leave it out")
    return "" if value is None else str(value)
