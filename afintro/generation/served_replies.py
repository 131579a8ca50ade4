"""Make replies of what a server answers."""

from dataclasses import dataclass
from typing import Any

from afintro.generation.reasoning import Reply

CUT = {"length": True, "content_filter": True, "stop": False, "tool_calls": False, "function_call": False}
"""Whether an answer ended before the model ended it, by its ``finish_reason``; other reasons tell nothing."""


@dataclass(frozen=True)
class ServedReply:
    """What is kept of a server's answer.

    Args:
        text: The text, with its reasoning between marks.
        truncated: See :class:`afintro.generation.reasoning.Reply`.
        tokens: Number of new tokens, reasoning included; None if the server does not say.
    """

    text: str
    truncated: bool | None
    tokens: int | None

    def reply(self, prefill: str) -> Reply:
        """Return the reply to a request that gave the beginning of the answer, ``prefill``; mostly none."""
        return Reply(self.text, self.truncated, prefill=prefill)


def served_reply(answer: Any) -> ServedReply:
    """Take the reply out of a chat completion.

    Servers that take reasoning apart give it in a field of its own, ``reasoning_content`` (SGLang, DeepSeek, older vLLM) or
    ``reasoning`` (vLLM, OpenRouter). It is put before the answer between ``<think>`` and ``</think>``, where it stands in what
    a model itself writes, so that records look alike and the answer alone is labeled.

    Args:
        answer: A chat completion of the client, any part of which may be missing or of another type.
    """
    choice = answer.choices[0]
    message = choice.message
    text = _text(message.content) or _text(getattr(message, "refusal", None))
    truncated = CUT.get(str(getattr(choice, "finish_reason", None)))
    reasoning = _text(getattr(message, "reasoning_content", None)) or _text(getattr(message, "reasoning", None))
    if reasoning.strip():
        closed = "" if truncated and not text.strip() else f"</think>\n\n{text}"
        text = f"<think>\n{reasoning.strip()}\n{closed}"
    tokens = getattr(getattr(answer, "usage", None), "completion_tokens", None)
    known = isinstance(tokens, int) and not isinstance(tokens, bool)
    return ServedReply(text, truncated, tokens if known else None)


def _text(content: Any) -> str:
    """Return the text of a message's content, which some servers give in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
