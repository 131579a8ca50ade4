"""Connect to an OpenAI-compatible server; keys come from the environment, and stay there."""

import os
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from afintro.errors import UserError
from afintro.servers.errors import setting_named_in, without_login

KEY = "OPENAI_API_KEY"
INSTEAD = {"max_tokens": "max_completion_tokens"}  # what newer models of OpenAI call the same setting
WITHOUT_KEY = "none"  # the client wants a key; a server that needs none reads none


def openai_package() -> Any:
    """Return the module ``openai``.

    Raises:
        UserError: The package is not installed.
    """
    try:
        import openai  # an optional package, which takes a second to import
    except ImportError as error:
        raise UserError("is not installed", where="package openai", remedy="pip install 'afintro[servers]'") from error
    return openai


def api_key() -> str:
    """Return the key that stands in the environment; "" without one."""
    return os.environ.get(KEY, "").strip()


def client_settings(url: str, timeout: float, retries: int) -> dict[str, Any]:
    """Return the settings of a client for one call, so that the key stays in the environment and nowhere else.

    Args:
        url: The server's URL, which may hold ``user:password@``.
        timeout: Seconds without an answer after which an attempt counts as failed.
        retries: Further attempts that the client itself makes.
    """
    plain, headers = without_login(url)
    return {
        "api_key": api_key() or WITHOUT_KEY,
        "base_url": plain,
        "default_headers": headers,
        "timeout": timeout,
        "max_retries": retries,
    }


def secrets_of(url: str) -> list[str]:
    """Return what no message may show: the key, and the password in the URL, also as the header that holds it."""
    header = without_login(url)[1].get("Authorization", "")
    return [api_key(), unquote(urlsplit(url).password or ""), header]


def otherwise(settings: Mapping[str, Any], error: Exception, kept: Collection[str] = ()) -> dict[str, Any] | None:
    """Return the settings without the one that a server refuses, which gets its newer name where there is one.

    Args:
        settings: The settings that were sent.
        error: What the client raised.
        kept: Settings without which the request would be another request.

    Returns:
        None if the error names none of the settings, or one that must be kept.
    """
    refused = setting_named_in(error, settings)
    if refused is None or (refused in kept and refused not in INSTEAD):
        return None
    instead = {INSTEAD[refused]: settings[refused]} if refused in INSTEAD else {}
    return {name: value for name, value in settings.items() if name != refused} | instead
