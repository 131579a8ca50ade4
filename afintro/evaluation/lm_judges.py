"""Language models as judges: a local model, and a model behind an OpenAI-compatible endpoint."""

import base64
import logging
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.text import encode_prompt, template_hash
from afintro.errors import UserError
from afintro.evaluation.judges import GRADES, SIMILARITY, Judge, Rubric, TextPair
from afintro.evaluation.reply_cache import ReplyCache
from afintro.lm.devices import default_device
from afintro.lm.dtypes import AUTO, resolve_dtype
from afintro.lm.generate import generate_greedy
from afintro.lm.load import context_length, eos_ids, fingerprint, load_config, load_model, load_tokenizer
from afintro.toys.embedded import ensure_built

if TYPE_CHECKING:
    from openai import OpenAI  # an optional package, imported only by the judge that needs it

log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
MARKUP = " \t\r*_`"
SCORE_LINE = re.compile(r"^[ \t*_#>`-]*score[ \t*_`]*[:=](.*\d.*)$", re.IGNORECASE | re.MULTILINE)
GRADE = re.compile(rf"([1-{GRADES}])(?: ?/ ?{GRADES}| out of {GRADES})?\.?")


def parse_grade(reply: str) -> int | None:
    """Read the grade of a reply: a line ``Score: N``, or ``N`` alone on the last line; ``N/5`` is accepted too.

    Args:
        reply: The judge's reply.

    Returns:
        A grade in 1..5; None for a reply without a grade, with a grade out of range, or with two different grades.
    """
    last = reply.strip().rpartition("\n")[2].strip(MARKUP)
    matches = [GRADE.fullmatch(line.strip(MARKUP)) for line in SCORE_LINE.findall(reply)]
    if bare := GRADE.fullmatch(last):
        matches.append(bare)
    grades = {int(match[1]) if match else None for match in matches}
    return grades.pop() if len(grades) == 1 else None


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
        failures |= {prompt: "no grade in the reply" for prompt, grade in grades.items() if grade is None}
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
        distinct = list(dict.fromkeys(prompts))
        with ReplyCache(self._identity()) as cache:
            replies = cache.read(distinct)
            missing = [prompt for prompt in distinct if prompt not in replies]

            def keep(prompt: str, reply: str) -> None:
                cache.write(prompt, reply)
                replies[prompt] = reply

            failures = self._ask(missing, keep) if missing else {}
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


class EndpointJudge(LanguageModelJudge):
    """Judge with a model behind an OpenAI-compatible endpoint, at temperature 0.

    The key is read from ``OPENAI_API_KEY``. A reply that is refused, malformed, empty or still failing after all retries
    gives no score and never ends the run.

    Args:
        model: Name of the model at the endpoint.
        base_url: E.g. ``http://localhost:8000/v1``; the default is ``OPENAI_BASE_URL``, or OpenAI itself.
        concurrency: Number of simultaneous requests.
        retries: Further attempts after a failed connection, a time-out or status 408, 409, 429, 5xx, with back-off.
        timeout: Seconds without an answer after which an attempt counts as failed.
    """

    def __init__(
        self, model: str, base_url: str | None = None, concurrency: int = 8, retries: int = 5, timeout: float = 60
    ) -> None:
        self.name = f"endpoint:{model}"
        self.model = model
        self.base_url = base_url
        self.concurrency = concurrency
        self.retries = retries
        self.timeout = timeout

    def check(self) -> None:
        """See :meth:`LanguageModelJudge.check`."""
        self._client().close()

    def _identity(self) -> list[object]:
        return ["endpoint", self.model, _without_login(self._url())[0].rstrip("/"), {"temperature": 0}]

    def _url(self) -> str:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL

    def _ask(self, prompts: Sequence[str], keep: Callable[[str, str], None]) -> dict[str, str]:
        failures: dict[str, str] = {}
        with (
            self._client() as client,
            ThreadPoolExecutor(self.concurrency) as pool,
            tqdm(total=len(prompts), desc=self.name, unit="prompt", mininterval=2, disable=None) as bar,
        ):

            def ask(prompt: str) -> None:
                try:
                    reply = self._reply(client, prompt)
                except Exception as error:  # whatever is wrong with one reply must not end the run
                    failures[prompt] = _reason(error)
                else:
                    keep(prompt, reply)

            for _ in pool.map(ask, prompts):
                bar.update()
        return failures

    def _client(self) -> "OpenAI":
        """Make a client for one call, so that the key stays in the environment and nowhere else."""
        try:
            from openai import OpenAI
        except ImportError as error:
            raise UserError(
                "is not installed", where="package openai", remedy="pip install 'afintro[judges]'"
            ) from error

        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key:
            raise UserError(
                "is not set",
                where="OPENAI_API_KEY in the environment",
                remedy="set it to your key; a local server that needs no key accepts any value",
            )
        url, headers = _without_login(self._url())
        return OpenAI(
            api_key=key, base_url=url, default_headers=headers, timeout=self.timeout, max_retries=self.retries
        )

    def _reply(self, client: "OpenAI", prompt: str) -> str:
        answer = client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": prompt}], temperature=0
        )
        # The SDK does not validate the answer: any part of it may be missing or of another type.
        if not answer.choices:
            raise _NoReplyError("no choice in the reply")
        choice = answer.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise _NoReplyError("refused")
        content = choice.message.content or ""
        if not content.strip():
            raise _NoReplyError("empty reply")
        return content


class _NoReplyError(Exception):
    """Report that the endpoint answered, but with nothing to read a grade from."""


def _reason(error: Exception) -> str:
    """Name the type and the status of an error, never its message: messages of the SDK and of servers may quote the key."""
    if isinstance(error, _NoReplyError):
        return str(error)
    status = getattr(error, "status_code", None)
    return type(error).__name__ if status is None else f"{type(error).__name__} {status}"


def _without_login(url: str) -> tuple[str, dict[str, str]]:
    """Take ``user:password@``, which the HTTP client would log, out of a URL; return the URL and the equivalent header."""
    parts = urlsplit(url)
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if parts.username is None:
        return plain, {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return plain, {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
