"""An organism behind an OpenAI-compatible server: the weights are elsewhere, and answers come over HTTP."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from afintro.data.samples import Sample
from afintro.generation.inputs import facets_identity, samples_hash
from afintro.generation.prompts import Request
from afintro.generation.reasoning import Reply
from afintro.generation.served_replies import ServedReply, served_reply
from afintro.generation.server_ways import Learning, Ways
from afintro.generation.settings import GenerationSettings
from afintro.servers.asking import Asker, NoReplyError, Server
from afintro.servers.reply_cache import ReplyCache

log = logging.getLogger(__name__)
T = TypeVar("T")
CHUNK = 10_000  # samples whose records are saved together: replies are kept one by one, and the server is kept busy

LOCAL_ONLY = ("revision", "batch_size", "dtype")  # settings that a server decides for itself
WAYS = "how requests are sent"  # the key in the cache
NOT_GIVEN = {
    "revision": "the server does not say which version of the weights it serves",
    "fingerprint": "the server does not show the weights",
    "template_hash": "the server renders the prompt, and does not show its chat template",
    "rendered_prompt": "the server renders the prompt, and does not show it",
    "token_ids": "answers come as text",
    "log_probabilities": "they are not asked for: records hold none",
    "dtype": "the server does not say it",
    "batch_size": "the server decides which requests run together",
}
WARNINGS = {
    "temperature": "the server refuses temperature 0, so the answers are samples and not greedy: the noise floor says how much "
    "of a change is chance",
    "seed": "the server refuses seeds, so that nobody can draw the same samples again",
}


class ServerOrganism:
    """Let a server answer: greedily where the server allows it, or by samples with seeds of their own.

    Replies are kept in a file as they arrive, so that a run which is killed asks only what was not answered. The file lies in
    the run's folder and not in the cache: nobody can see whether a server has other weights today under the same name.

    Args:
        settings: What to ask with; ``model`` is the name under which the server knows the organism.
        server: The server.
        folder: The run's folder.
    """

    tokenizer = None

    def __init__(self, settings: GenerationSettings, server: Server, folder: Path) -> None:
        self.settings, self.server = settings, server
        self.path = folder / "partial" / "replies.sqlite"
        self.asker = Asker(server)
        self._ways = Ways({})
        self._unkept: list[tuple[str, str]] = []  # replies to write as soon as the folder is reserved
        self._rates: list[Request] = []

    def identity(self, samples: Sequence[Sample], splits: dict[str, int]) -> dict[str, Any]:
        """See :meth:`afintro.generation.organism.Organism.identity`."""
        kept = {name: value for name, value in self.settings.as_json().items() if name not in LOCAL_ONLY}
        own = {**facets_identity(samples), "splits": splits, "samples_sha256": samples_hash(samples)}
        return {**kept, "endpoint": self.server.name, **own}

    def prepare(self, conversations: Sequence[Sequence[Request]]) -> None:
        """See :meth:`afintro.generation.organism.Organism.prepare`; the longest requests are asked, to learn how.

        Raises:
            UserError: The server does not answer, or cannot answer as asked.
        """
        self._rates = [request for requests in conversations for request in requests[:2]]
        longest: dict[str, Request] = {}  # by condition: what is too long is refused before all else is asked
        for request in sorted((r for requests in conversations for r in requests), key=_length):
            longest[request.condition] = request
        known = self._read([WAYS]) if self.path.is_file() else {}
        if WAYS in known:
            self._ways = Ways(**json.loads(known[WAYS]))
            return
        first = sorted(longest.values(), key=_length, reverse=True)
        learning = Learning(self.asker, self.settings)
        answers = _run(learning.answers(first))
        self._ways = learning.ways
        replies = [json.dumps(asdict(served_reply(answer))) for answer in answers]
        keys = [self._key(request, False) for request in first]
        self._unkept = [(WAYS, json.dumps(asdict(self._ways))), *zip(keys, replies, strict=True)]
        for name in self._ways.left_out:
            log.warning("%s refuses %s: requests are sent without it", self.server.name, name)

    def provenance(self) -> dict[str, Any]:
        """See :meth:`afintro.generation.organism.Organism.provenance`; what the server cannot give is null, with a reason."""
        return {
            "model": self.settings.model,
            "endpoint": self.server.name,
            "served_model": self._ways.served_model,
            "system_fingerprint": self._ways.system_fingerprint,
            "system_in_user": self._ways.system_in_user,
            **({"chat_template_kwargs": kwargs} if (kwargs := self.settings.chat_template_kwargs) else {}),
            "temperature": self._ways.sent.get("temperature"),
            **self.settings.drawn(),
            "max_new_tokens": self.settings.max_new_tokens,
            "seed": self.settings.seed,
            **dict.fromkeys(NOT_GIVEN),
            "not_given": NOT_GIVEN | {name: f"the server refuses {name}" for name in self._ways.left_out},
        }

    def prompt(self, request: Request) -> None:
        """See :meth:`afintro.generation.organism.Organism.prompt`: nobody sees the prompt that a server renders."""

    def replies(self, requests: Sequence[Request], alone: bool = False) -> list[Reply]:
        """See :meth:`afintro.generation.organism.Organism.replies`; ``alone`` asks once more."""
        keys = [self._key(request, alone) for request in requests]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ReplyCache([self.settings.model, self.server.name], self.path) as cache:
            for key, value in self._unkept:
                cache.write(key, value)
            self._unkept = []
            stored = cache.read(keys)
            missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in stored}
            if missing:
                self._ask(missing, cache, stored, "pairs asked again" if alone else "pairs")
        return [
            ServedReply(**json.loads(stored[key])).reply(request.prefill)
            for key, request in zip(keys, requests, strict=True)
        ]

    def remarks(self) -> dict[str, Any]:
        """See :meth:`afintro.generation.organism.Organism.remarks`."""
        drawn = [replace(request, sample=sample) for request in self._rates for sample in range(self.settings.samples)]
        keys = [self._key(request, False) for request in drawn]
        tokens = [json.loads(value)["tokens"] for value in self._read(keys).values()]
        whole = len(tokens) == len(set(keys)) and None not in tokens
        warnings = [text for name, text in WARNINGS.items() if name in self._ways.left_out]
        return {
            "mean_response_tokens": sum(tokens) / len(tokens) if whole and tokens else None,
            "server": {"endpoint": self.server.name, **asdict(self._ways), "warnings": warnings},
        }

    def _read(self, keys: Sequence[str]) -> dict[str, str]:
        with ReplyCache([self.settings.model, self.server.name], self.path) as cache:
            return cache.read(keys)

    def _key(self, request: Request, alone: bool) -> str:
        return json.dumps([asdict(request), alone], sort_keys=True)

    def _ask(self, missing: Mapping[str, Request], cache: ReplyCache, stored: dict[str, str], label: str) -> None:
        with tqdm(total=len(missing), desc=label, unit="reply", mininterval=2) as bar:

            async def ask_all() -> None:
                async with self.asker.client() as client:

                    async def ask(item: tuple[str, Request]) -> float:
                        key, request = item
                        reply = served_reply(await self._send(client, request))
                        stored[key] = json.dumps(asdict(reply))
                        cache.write(key, stored[key])
                        bar.set_postfix(at_once=self.asker.pace.limit, refresh=False)
                        bar.update()
                        return float(reply.tokens or len(reply.text) + 1)

                    await self.asker.all(missing.items(), ask)

            try:
                _run(ask_all())
            except (self.asker.openai.OpenAIError, NoReplyError) as error:
                kept = f"; {bar.n} of {bar.total} replies are kept: the same command asks only for the others"
                raise self.asker.user_error(error, kept, self.settings.model) from error

    async def _send(self, client: Any, request: Request) -> Any:
        body = self._ways.body(self.settings, request)
        return await self.asker.patiently(lambda: self.asker.complete(client, **body))


def _length(request: Request) -> int:
    """Return the number of characters of what is asked."""
    return sum(len(turn["content"]) for turn in request.messages)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end in an event loop, which this thread may have already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    results: list[Callable[[], T]] = []

    def in_thread() -> None:
        try:
            value = asyncio.run(work)
        except BaseException as error:
            caught = error

            def again() -> T:
                raise caught

            results.append(again)
        else:
            results.append(lambda: value)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    return results[0]()
