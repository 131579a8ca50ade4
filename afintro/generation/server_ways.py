"""Learn how a server must be asked: which settings it takes, whether it reads system turns, prefills and template settings."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from afintro.data.chat_template import system_in_user
from afintro.data.text import Message
from afintro.errors import UserError
from afintro.generation.prompts import Request
from afintro.generation.settings import GenerationSettings
from afintro.lm.sampling import stream_of
from afintro.servers.asking import Asker, NoReplyError
from afintro.servers.connection import otherwise

LIMITS = ("max_tokens", "max_completion_tokens")
TEMPLATE, SEED = "chat_template_kwargs", "seed"
CONTINUES = {"continue_final_message": True, "add_generation_prompt": False}
READ_TEMPLATE_SETTINGS = ("vllm", "sglang", "llamacpp")  # as they name themselves in their lists of models
CONTINUE_ANSWERS = ("vllm", "sglang")
NO_SYSTEM = re.compile(r"system\W+(?:role|message|prompt)|role\W+.{0,20}system", re.IGNORECASE)


@dataclass(frozen=True)
class Ways:
    """How requests are sent to a server.

    Args:
        sent: Settings of all requests.
        system_in_user: Whether the system text stands at the head of the user's turn, since the server refuses system turns.
        left_out: Settings that the server refuses.
        served_model: The model that the server says it is.
        system_fingerprint: What the server says of its own state.
    """

    sent: dict[str, Any]
    system_in_user: bool = False
    left_out: tuple[str, ...] = ()
    served_model: str | None = None
    system_fingerprint: str | None = None

    def body(self, settings: GenerationSettings, request: Request) -> dict[str, Any]:
        """Return a request as the client takes it.

        Args:
            settings: Settings of the run.
            request: What is asked.
        """
        messages = system_in_user(request.messages) if self.system_in_user else [dict(m) for m in request.messages]
        template = {**(settings.chat_template_kwargs or {}), **request.chat_template_kwargs}
        extra: dict[str, Any] = {TEMPLATE: template} if template else {}
        if request.prefill:
            messages.append({"role": "assistant", "content": request.prefill})
            extra |= CONTINUES
        body = {"model": settings.model, "messages": messages, **self.sent}
        if SEED in body:  # of each sample its own; servers take 31 bits
            body[SEED] = stream_of(settings.seed, request.uid, request.condition, request.sample) & 0x7FFFFFFF
        return body | {"extra_body": extra} if extra else body


class Learning:
    """Ask a server a first request under every condition, and learn how.

    Args:
        asker: Asks the server.
        settings: Settings of the run.
    """

    def __init__(self, asker: Asker, settings: GenerationSettings) -> None:
        self.asker, self.settings = asker, settings
        drawn = {"temperature": settings.temperature, "top_p": settings.top_p, SEED: settings.seed}
        how = {"temperature": 0} if settings.sampling is None else drawn
        self.kept = LIMITS if settings.sampling is None else (*LIMITS, "temperature", "top_p")
        self.ways = Ways({**how, "max_tokens": settings.max_new_tokens})

    async def answers(self, requests: Sequence[Request]) -> list[Any]:
        """Return the answers to the requests; ``ways`` says then how they were sent.

        Raises:
            UserError: The server cannot be asked as is wanted.
        """
        async with self.asker.client() as client:
            await self._refuse_unread(client, requests)
            answers = [await self._answer(client, request) for request in requests]
            await self._refuse_without_system(client, requests[0], answers[0])
        model, state = (getattr(answers[0], name, None) for name in ("model", "system_fingerprint"))
        self.ways = replace(
            self.ways,
            served_model=model if isinstance(model, str) else None,
            system_fingerprint=state if isinstance(state, str) else None,
        )
        return answers

    async def _answer(self, client: Any, request: Request) -> Any:
        while True:
            send = partial(self.asker.complete, client, **self.ways.body(self.settings, request))
            try:
                return await self.asker.patiently(send)
            except (self.asker.openai.OpenAIError, NoReplyError) as error:
                changed = otherwise(self.ways.sent, error, kept=self.kept)
                if changed is not None:
                    gone = tuple(name for name in self.ways.sent if name not in changed and name not in LIMITS)
                    self.ways = replace(self.ways, sent=changed, left_out=(*self.ways.left_out, *gone))
                elif NO_SYSTEM.search(self.asker.reason(error)) and not self.ways.system_in_user:
                    self.ways = replace(self.ways, system_in_user=True)
                else:
                    raise await self._refusal(client, request, error) from error

    async def _models(self, client: Any) -> list[Any]:
        """Return what the server lists as its models; nothing if it lists none."""
        try:
            return [model async for model in client.models.list()]
        except Exception:  # only more can be said with the list: any server may answer anything here
            return []

    async def _refusal(self, client: Any, request: Request, error: Exception) -> UserError:
        status = getattr(error, "status_code", None)
        served = [str(model.id) for model in await self._models(client)] if status in (400, 404) else []
        unknown = served and self.settings.model not in served
        found = self.asker.user_error(error, "", self.settings.model, ", ".join(served[:5]) if unknown else "")
        if status in (400, 413, 422) and not unknown:
            remedy = (
                "shorten the text or lower --max_new_tokens if the request is too long; otherwise change what is named"
            )
            return UserError(found.what, where=f"{found.where}, scenario {request.uid}", remedy=remedy)
        return found

    async def _refuse_unread(self, client: Any, requests: Sequence[Request]) -> None:
        """Refuse settings that a server may read over in silence: prefills, and settings of the chat template."""
        bodies = [self.ways.body(self.settings, request).get("extra_body", {}) for request in requests]
        wanted = {name for body in bodies for name in body}
        if not wanted:
            return
        owners = {str(getattr(model, "owned_by", "")).lower() for model in await self._models(client)}
        asked = (("prefill", "continue_final_message", CONTINUE_ANSWERS), (TEMPLATE, TEMPLATE, READ_TEMPLATE_SETTINGS))
        for what, name, servers in asked:
            if name in wanted and not owners & set(servers):
                raise UserError(
                    f"is not known to read {name}, which the {what} of a condition or of the run needs",
                    where=self.asker.server.name,
                    remedy=f"serve the model with one of {', '.join(servers)}, or leave out the {what}",
                )

    async def _refuse_without_system(self, client: Any, request: Request, answer: Any) -> None:
        """Refuse a server whose chat template leaves out the system turn: a longer one then makes no longer prompt."""
        tokens = _prompt_tokens(answer)
        if tokens is None or self.ways.system_in_user or request.messages[0]["role"] != "system":
            return
        system = request.messages[0]["content"]
        longer: list[Message] = [{"role": "system", "content": f"{system}\n\n{system}"}, *request.messages[1:]]
        body = self.ways.body(self.settings, replace(request, messages=longer))
        body |= {name: 1 for name in LIMITS if name in body}
        try:
            again = await self.asker.complete(client, **body)
        except (self.asker.openai.OpenAIError, NoReplyError):
            return  # such as a prompt that is too long now: nothing is known then
        if _prompt_tokens(again) == tokens:
            raise UserError(
                "leaves out the system turn: a longer one makes no longer prompt, so conditions are not told apart",
                where=f"{self.asker.server.name}, model {self.settings.model}",
                remedy="serve the model with a chat template that renders the system turn",
            )


def _prompt_tokens(answer: Any) -> int | None:
    tokens = getattr(getattr(answer, "usage", None), "prompt_tokens", None)
    return tokens if isinstance(tokens, int) and tokens > 0 else None
