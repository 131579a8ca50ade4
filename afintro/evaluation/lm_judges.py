"""Language models as judges: a local model, and a model behind an OpenAI-compatible endpoint."""

import logging
import os
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.text import encode_prompt, template_hash
from afintro.errors import UserError
from afintro.evaluation.grades import parse_grade, without_reasoning
from afintro.evaluation.judges import GRADES, SIMILARITY, Judge, Rubric, TextPair
from afintro.lm.devices import default_device
from afintro.lm.dtypes import AUTO, resolve_dtype
from afintro.lm.generate import generate_greedy
from afintro.lm.load import context_length, eos_ids, fingerprint, load_config, load_model, load_tokenizer
from afintro.servers.connection import KEY, api_key, client_settings, openai_package, otherwise, secrets_of
from afintro.servers.errors import reason_of, server_message, without_login, without_secrets
from afintro.servers.reply_cache import ReplyCache
from afintro.toys.embedded import ensure_built

if TYPE_CHECKING:
    from openai import OpenAI  # an optional package, imported only by the judge that needs it

log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"


class LanguageModelJudge(Judge):
    """Share what all language models need: equal prompts are asked once, replies are cached, failures are counted."""

    def score(self, pairs: Sequence[TextPair], rubric: Rubric = SIMILARITY) -> list[float | None]:
        """See :meth:`Judge.score`. Grades 1..5 become 0, 0.25, ... 1. One warning counts the pairs without a score.

        Raises:
            UserError: The model cannot be loaded, the API key is absent, or the cache cannot be written.
        """
        prompts = [rubric.fill(pair) for pair in pairs]
        replies, failures = self._replies(prompts)
        grades = {prompt: parse_grade(reply) for prompt, reply in replies.items()}
        failures |= {prompt: _without_grade(replies[prompt]) for prompt, grade in grades.items() if grade is None}
        self._warn(
            Counter(failures[prompt] for prompt in prompts if prompt in failures), f"score for %d of {len(pairs)} pairs"
        )
        return [None if (grade := grades.get(prompt)) is None else (grade - 1) / (GRADES - 1) for prompt in prompts]

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """Return the replies to prompts, in order; None where there is none. One warning counts the prompts without a reply.

        Raises:
            UserError: The model cannot be loaded, the API key is absent, or the cache cannot be written.
        """
        replies, failures = self._replies(prompts)
        self._warn(
            Counter(failures[prompt] for prompt in prompts if prompt in failures),
            f"reply to %d of {len(prompts)} prompts",
        )
        return [replies.get(prompt) for prompt in prompts]

    def _replies(self, prompts: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Return the reply to each prompt, from the cache if it is there, and why other prompts have no reply."""
        if not prompts:
            return {}, {}
        distinct, replies = list(dict.fromkeys(prompts)), dict[str, str]()
        while True:  # an endpoint may have to be asked with other settings, which its replies are kept under
            identity = self._identity()
            with ReplyCache(identity) as cache:
                replies |= cache.read([prompt for prompt in distinct if prompt not in replies])
                missing = [prompt for prompt in distinct if prompt not in replies]
                failures = self._ask(missing, partial(_keep, cache, replies)) if missing else {}
            if self._identity() == identity:
                return replies, failures

    def _warn(self, reasons: Counter[str], what: str) -> None:
        if reasons:
            listed = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
            log.warning("%s gave no %s: %s", self.name, what % reasons.total(), listed)

    @abstractmethod
    def check(self) -> None:
        """Look for what the judge needs, before any long work.

        Raises:
            UserError: There is no such model, or the package or the key of an endpoint is absent.
        """

    @abstractmethod
    def _identity(self) -> list[object]:
        """Return everything that a reply depends on besides the prompt, as JSON values, without any secret."""

    @abstractmethod
    def _ask(self, prompts: Sequence[str], keep: Callable[[str, str], None]) -> dict[str, str]:
        """Ask distinct prompts, hand each reply to ``keep`` as it arrives, and return why other prompts have no reply."""


class LocalJudge(LanguageModelJudge):
    """Judge with a local causal language model and greedy decoding. A prompt that exceeds its context gets no score.

    Args:
        model: Hub id, local model directory, GGUF file, PEFT adapter directory, or the name of an embedded model. The model is
            loaded at the first question.
        revision: Branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``; ``auto`` is the checkpoint's own on an accelerator and
            float32 on a CPU.
        batch_size: Prompts per forward pass.
        max_new_tokens: Maximum length of a reply in tokens; a model that reasons before it grades needs more.
        chat_template_kwargs: Settings that the model's chat template reads, such as ``{"enable_thinking": False}``.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: str = AUTO,
        batch_size: int = 16,
        max_new_tokens: int = 16,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.name = f"local:{Path(model).name}"
        self.model = model
        self.revision = revision
        self.dtype = dtype
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.chat_template_kwargs = chat_template_kwargs

    def check(self) -> None:
        """See :meth:`LanguageModelJudge.check`."""
        assert self._config is not None

    @cached_property
    def _directory(self) -> str:
        return ensure_built(self.model)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._directory, self.revision, self.chat_template_kwargs)

    @cached_property
    def _config(self) -> Any:
        return load_config(self._directory, self.revision)

    @cached_property
    def _dtype(self) -> str:
        return resolve_dtype(self.dtype, self._directory, self.revision, default_device())

    @cached_property
    def _weights(self) -> PreTrainedModel:
        return load_model(self._directory, self.revision, self._dtype).to(default_device())  # type: ignore[arg-type]

    def _identity(self) -> list[object]:
        commit = getattr(self._config, "_commit_hash", None)  # a branch moves; None for a directory
        weights = fingerprint(self._directory)
        settings = [self._dtype, self.max_new_tokens, template_hash(self._tokenizer)]
        return ["local", self.model, self.revision, commit, weights, *settings]

    def _ask(self, prompts: Sequence[str], keep: Callable[[str, str], None]) -> dict[str, str]:
        encoded = {prompt: encode_prompt(self._tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts}
        limit = context_length(self._config)
        fitting = [p for p in prompts if limit is None or len(encoded[p]) + self.max_new_tokens <= limit]
        fitting.sort(key=lambda prompt: len(encoded[prompt]))  # batches of like lengths need little padding
        with tqdm(total=len(fitting), desc=self.name, unit="prompt", mininterval=2, disable=None) as bar:
            for start in range(0, len(fitting), self.batch_size):
                batch = fitting[start : start + self.batch_size]
                replies = generate_greedy(
                    self._weights,
                    [encoded[prompt] for prompt in batch],
                    max_new_tokens=self.max_new_tokens,
                    eos_ids=eos_ids(self._weights, self._tokenizer),
                    batch_size=self.batch_size,
                )
                for prompt, reply in zip(batch, replies, strict=True):
                    keep(prompt, str(self._tokenizer.decode(reply, skip_special_tokens=True)))
                bar.update(len(batch))
        return dict.fromkeys(set(prompts) - set(fitting), f"prompt longer than the context of {limit} tokens")


def _keep(cache: ReplyCache, replies: dict[str, str], prompt: str, reply: str) -> None:
    cache.write(prompt, reply)
    replies[prompt] = reply


def _without_grade(reply: str) -> str:
    return "no grade in the reply" if without_reasoning(reply).strip() else "reply ended within its reasoning"


class EndpointJudge(LanguageModelJudge):
    """Judge with a model behind an OpenAI-compatible endpoint, at temperature 0.

    The key is read from ``OPENAI_API_KEY``. A reply that is refused, malformed, empty or still failing after all retries
    gives no score and never ends the run. A setting that the endpoint refuses (temperature 0, ``max_tokens``) is left out of all
    further requests of the judge, with a warning, and replies are kept under what was asked.

    Args:
        model: Name of the model at the endpoint.
        base_url: E.g. ``http://localhost:8000/v1``; the default is ``OPENAI_BASE_URL``, or OpenAI itself.
        concurrency: Number of simultaneous requests.
        retries: Further attempts after a failed connection, a time-out or status 408, 409, 429, 5xx, with back-off.
        timeout: Seconds without an answer after which an attempt counts as failed.
        max_new_tokens: Maximum length of a reply in tokens, reasoning included; None leaves it to the endpoint.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 60,
        max_new_tokens: int | None = None,
    ) -> None:
        self.name = f"endpoint:{model}"
        self.model = model
        self.base_url = base_url
        self.concurrency = concurrency
        self.retries = retries
        self.timeout = timeout
        self._settings: dict[str, int] = {"temperature": 0}
        if max_new_tokens is not None:
            self._settings["max_tokens"] = max_new_tokens

    def check(self) -> None:
        """See :meth:`LanguageModelJudge.check`."""
        self._client().close()

    def _identity(self) -> list[object]:
        return ["endpoint", self.model, without_login(self._url())[0].rstrip("/"), self._settings]

    def _url(self) -> str:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL

    def _ask(self, prompts: Sequence[str], keep: Callable[[str, str], None]) -> dict[str, str]:
        failures: dict[str, str] = {}
        said: dict[str, str] = {}  # by type and status the first message, since messages may hold numbers of requests
        settings, lock = self._settings, threading.Lock()
        with (
            self._client() as client,
            ThreadPoolExecutor(self.concurrency) as pool,
            tqdm(total=len(prompts), desc=self.name, unit="prompt", mininterval=2, disable=None) as bar,
        ):

            def ask(prompt: str) -> None:
                if self._settings is not settings:
                    return  # the endpoint refused a setting: the next round asks without
                try:
                    reply = self._reply(client, prompt, settings)
                except Exception as error:  # whatever is wrong with one reply must not end the run
                    with lock:
                        if self._settings is settings and not self._asked_otherwise(client, prompt, error):
                            reason = self._reason(error)
                            failures[prompt] = said.setdefault(reason.partition(":")[0], reason)
                else:
                    keep(prompt, reply)

            for _ in pool.map(ask, prompts):
                bar.update()
        return failures

    def _asked_otherwise(self, client: "OpenAI", prompt: str, error: Exception) -> bool:
        """Ask without the settings that an error names; if the endpoint answers that, ask so from now on, and tell of it."""
        settings, first = self._settings, self._reason(error)
        while (changed := otherwise(settings, error)) is not None:
            settings = changed
            try:
                reply = self._reply(client, prompt, settings)
            except Exception as further:
                error = further
                continue
            left_out = ", ".join(name for name in self._settings if name not in settings)
            added = "".join(f", with {name}" for name in settings if name not in self._settings)
            log.warning("%s is asked without %s%s, since it answered %s", self.name, left_out, added, first)
            self._settings = settings
            with ReplyCache(self._identity()) as cache:
                cache.write(prompt, reply)
            return True
        return False

    def _reason(self, error: Exception) -> str:
        secrets = secrets_of(self._url())
        return without_secrets(str(error), secrets) if isinstance(error, _NoReplyError) else reason_of(error, secrets)

    def _client(self) -> "OpenAI":
        """Make a client for one call."""
        openai = openai_package()
        if not api_key():
            raise UserError(
                "is not set",
                where=f"{KEY} in the environment",
                remedy="set it to your key; a local server that needs no key accepts any value",
            )
        client: OpenAI = openai.OpenAI(**client_settings(self._url(), self.timeout, self.retries))
        return client

    def _reply(self, client: "OpenAI", prompt: str, settings: dict[str, Any]) -> str:
        answer = client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": prompt}], **settings
        )
        # The SDK does not validate the answer: any part of it may be missing or of another type.
        if not answer.choices:
            said = server_message((answer.model_extra or {}).get("error"))  # of a router that hides the status
            raise _NoReplyError("no choice in the reply" + (f": {said}" if said else ""))
        choice = answer.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise _NoReplyError("refused")
        content = choice.message.content or ""
        if not content.strip():
            raise _NoReplyError("empty reply")
        return content


class _NoReplyError(Exception):
    """Report that the endpoint answered, but with nothing to read a grade from."""
