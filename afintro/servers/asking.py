"""Ask a server many things at once: retries with back-off, rate limits, and errors that say what is wrong."""

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from afintro.errors import UserError
from afintro.servers.connection import KEY, api_key, client_settings, openai_package, secrets_of
from afintro.servers.errors import reason_of, server_message, without_login, without_secrets
from afintro.servers.pace import Pace

BUSY = (429, 503, 529)  # what a server says that has too much to do
AGAIN = (408, 409, 425, *BUSY)  # what is asked again, as are all other statuses from 500 on
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server names a longer time
GRACE = 5.0  # seconds in which what is under way may still be answered when all ends
PATIENCE = 900.0  # seconds that a server may ask to wait
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Server:
    """A server, and how it is asked; none of this decides what it answers.

    Args:
        url: Its base URL, such as ``http://localhost:8000/v1``.
        concurrency: Largest number of requests at once.
        timeout: Seconds without an answer after which an attempt counts as failed.
        retries: Further attempts at a request that failed.

    Raises:
        UserError: The URL cannot be one.
    """

    url: str
    concurrency: int = 64
    timeout: float = 600
    retries: int = 6

    def __post_init__(self) -> None:
        url = re.sub(r"(?:/chat)?/completions/?$", "", self.url.strip()).rstrip("/")
        object.__setattr__(self, "url", url)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("is no URL", where=self.name, remedy="give one such as http://localhost:8000/v1")
        if parts.query or parts.fragment:
            what = "has a part behind '?' or '#', which would be saved with the data"
            raise UserError(what, where=self.name, remedy=f"leave the part out; a key belongs into {KEY}")

    @property
    def name(self) -> str:
        """Return the URL as it may be written down: without a login, and without what may be a key."""
        return without_login(self.url)[0].partition("?")[0].partition("#")[0]


class NoReplyError(Exception):
    """Report that the server answered, but with nothing that is an answer of a model."""


class Asker:
    """Ask a server, in one event loop.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pace = Pace(server.concurrency)
        self.openai = openai_package()
        self.answered = 0
        self._resume_at = 0.0
        self._stopping = False

    def client(self) -> Any:
        """Return a client, an asynchronous context manager; it makes no attempts of its own."""
        return self.openai.AsyncOpenAI(**client_settings(self.server.url, self.server.timeout, 0))

    async def all(self, items: Iterable[T], ask: Callable[[T], Awaitable[float]]) -> None:
        """Ask about all items, as many at once as keep the server busy.

        The first error ends all: nothing more is sent, and what is under way has a moment to be answered.

        Args:
            items: What is asked about.
            ask: Asks about one item, and returns how much work the reply was.
        """
        waiting, running = deque(items), set[asyncio.Future[float]]()
        self.pace.begin()
        try:
            while waiting or running:
                while waiting and len(running) < self.pace.limit:
                    running.add(asyncio.ensure_future(ask(waiting.popleft())))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self.pace.done(task.result())
        except Exception:
            self._stopping = True
            if running:
                await asyncio.wait(running, timeout=GRACE)
            raise
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def patiently(self, send: Callable[[], Awaitable[R]]) -> R:
        """Send a request until it is answered.

        Errors that further attempts do not mend are raised at once; so is a failing connection to a server that has not
        answered yet. Refusals of a busy server count only while no request at all is answered.

        Args:
            send: Sends the request once.

        Raises:
            Exception: What the client raised at the last attempt.
        """
        failures, answered = 0, self.answered
        while True:
            await asyncio.sleep(max(0.0, self._resume_at - time.monotonic()))
            try:
                reply = await send()
            except (self.openai.OpenAIError, NoReplyError) as error:
                busy = getattr(error, "status_code", None) in BUSY
                failures = 1 if busy and self.answered > answered else failures + 1
                answered = self.answered
                wait = asked_to_wait(error)
                if (
                    self._stopping
                    or not self._worth_retrying(error)
                    or failures > self.server.retries
                    or (wait or 0) > PATIENCE
                ):
                    raise
                if busy:
                    self.pace.refused()
                    self._resume_at = max(self._resume_at, time.monotonic() + (wait or 0))
                backoff = min(LONGEST_WAIT, 2.0 ** (failures - 1)) * random.uniform(0.5, 1)
                await asyncio.sleep(max(backoff, wait or 0))
            else:
                self.answered += 1
                return reply

    def _worth_retrying(self, error: Exception) -> bool:
        status = getattr(error, "status_code", None)
        if status is not None:
            exhausted = getattr(error, "code", None) == "insufficient_quota"  # a 429 that no waiting mends
            return (status in AGAIN or status >= 500) and not exhausted
        return self.answered > 0

    async def complete(self, client: Any, **request: Any) -> Any:
        """Send one request for a chat completion, and return the answer, which has a choice with a message.

        Args:
            client: See :meth:`client`.
            request: The request as the client takes it.

        Raises:
            NoReplyError: The answer is no chat completion.
        """
        try:
            answer = await client.chat.completions.create(**request)
        except (self.openai.APIResponseValidationError, ValueError) as error:
            raise NoReplyError(f"malformed answer ({type(error).__name__})") from error
        if isinstance(answer, str):
            raise NoReplyError("a page that is no JSON" if answer.lstrip().startswith("<") else "text that is no JSON")
        # The SDK does not validate the answer: any part of it may be missing or of another type.
        choices = getattr(answer, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            said = server_message((getattr(answer, "model_extra", None) or {}).get("error"))
            raise NoReplyError("no choice in the answer" + (f": {said}" if said else ""))
        return answer

    def reason(self, error: Exception) -> str:
        """Say in one line what went wrong, without secrets."""
        secrets = secrets_of(self.server.url)
        if isinstance(error, NoReplyError):
            return without_secrets(str(error), secrets)
        if isinstance(error, self.openai.APITimeoutError):
            return f"no answer within {self.server.timeout:g} s"
        cause = f": {without_secrets(str(error.__cause__), secrets)}" if error.__cause__ is not None else ""
        return reason_of(error, secrets) + (cause if getattr(error, "status_code", None) is None else "")

    def user_error(self, error: Exception, kept: str, model: str, served: str = "") -> UserError:
        """Say what a person can do about an error that ended the asking.

        Args:
            error: The last error.
            kept: What is kept of the work so far, a sentence behind the remedy; "" if nothing is done yet.
            model: Name of the model.
            served: Names of the models that the server lists, if it does.
        """
        status, where, reason = getattr(error, "status_code", None), self.server.name, self.reason(error)
        if status in (401, 403):
            state = "is not accepted" if api_key() else "is not set, but asked for"
            return UserError(
                f"{state} by {where} ({reason})",
                where=f"{KEY} in the environment",
                remedy=f"set it to a valid key{kept}",
            )
        if status == 404 or served:
            listed = f"; it serves {served}" if served else ""
            remedy = f"check --model_name ({model}) and the URL, which mostly ends with /v1{kept}"
            return UserError(f"does not find what is asked for{listed} ({reason})", where=where, remedy=remedy)
        if status is not None and not self._worth_retrying(error):
            return UserError(f"refuses a request ({reason})", where=where, remedy=f"change what it names{kept}")
        if status in BUSY:
            remedy = f"wait, raise the limit of your account, or lower --concurrency{kept}"
            return UserError(f"is busy, or its limit is reached ({reason})", where=where, remedy=remedy)
        if isinstance(error, NoReplyError):
            remedy = f"give the URL of an OpenAI-compatible server, which mostly ends with /v1{kept}"
            return UserError(f"gives no chat completion, but {reason}", where=where, remedy=remedy)
        if isinstance(error, self.openai.APITimeoutError):
            return UserError(f"gave {reason}", where=where, remedy=f"raise --timeout, or lower --concurrency{kept}")
        state = "stopped answering" if self.answered else "cannot be reached"
        return UserError(f"{state} ({reason})", where=where, remedy=f"start the server, or check its URL{kept}")


def asked_to_wait(error: Exception) -> float | None:
    """Return the seconds that a server asks to wait before the next attempt; None if it does not.

    Args:
        error: An error of the client, whose response may have the header ``Retry-After``: seconds, or a date.
    """
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if re.fullmatch(r"\s*\d+(?:\.\d*)?\s*", value):
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
