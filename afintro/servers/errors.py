"""What a server says of a request that it refuses, without any secret, and which setting of the request it refuses."""

import base64
import json
import re
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from afintro.errors import one_line

LONGEST = 200  # characters of a server's message in the log
REFUSALS = (400, 422)  # what servers answer to a setting that they do not know or do not allow
WORDS = ("message", "msg", "error", "detail", "errors", "title")  # where servers put their message, the likeliest first
BEGINNING = 6  # characters of a key by which a masked copy of the key is known


def server_message(body: Any) -> str:
    """Return a server's own words out of the body of its answer; "" where it has none.

    Servers of OpenAI, Anthropic, Google, vLLM, llama.cpp, Ollama and FastAPI are understood.

    Args:
        body: The body as JSON values, or as text.
    """
    if isinstance(body, str):
        return "" if body.lstrip().startswith("<") else body.strip()  # a page of a proxy says nothing in one line
    if isinstance(body, list):
        return "; ".join(filter(None, (server_message(item) for item in body)))
    if isinstance(body, dict):
        place = ".".join(str(part) for part in body["loc"]) if isinstance(body.get("loc"), list) else ""
        said = next(filter(None, (server_message(body.get(key)) for key in WORDS)), "")
        return f"{place}: {said}" if place and said else said
    return ""


def reason_of(error: Exception, secrets: Iterable[str]) -> str:
    """Name the type and the status of an error, and what the server said.

    Args:
        error: An error of the OpenAI client.
        secrets: Keys and passwords, which servers may quote, whole or masked.
    """
    status = getattr(error, "status_code", None)
    if status is None:
        return type(error).__name__
    said = without_secrets(server_message(getattr(error, "body", None)), secrets)
    return f"{type(error).__name__} {status}" + (f": {said}" if said else "")


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return a text in one short line, in which secrets, and words that begin as secrets do, are hidden."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
        if len(secret) > 2 * BEGINNING:
            text = re.sub(re.escape(secret[:BEGINNING]) + r"\S*", "***", text)
    text = re.sub(r"\b(?:sk-|Bearer |Basic )\S+", "***", text)
    return one_line(text, LONGEST)


def setting_named_in(error: Exception, settings: Collection[str]) -> str | None:
    """Return the setting of a request that a server seems to refuse; None if its answer names none.

    Args:
        error: An error of the OpenAI client.
        settings: Names of the settings that were sent.
    """
    if getattr(error, "status_code", None) not in REFUSALS:
        return None
    body = getattr(error, "body", None)
    named = body.get("param") if isinstance(body, dict) else None
    if isinstance(named, str) and named:
        return named if named in settings else None
    text = server_message(body) or json.dumps(body, default=str)
    return next((name for name in settings if re.search(rf"\b{re.escape(name)}\b", text)), None)


def without_login(url: str) -> tuple[str, dict[str, str]]:
    """Take ``user:password@``, which the HTTP client would log, out of a URL; return the URL and the equivalent header."""
    parts = urlsplit(url)
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if parts.username is None:
        return plain, {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return plain, {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
