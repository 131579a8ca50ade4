"""What an organism is asked once, and the prompt that its chat template makes of that."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from afintro.data.cue import Condition
from afintro.data.text import Message, encode_prompt, encode_text, render
from afintro.lm.load import load_tokenizer


@dataclass(frozen=True)
class Request:
    """What an organism is asked once.

    Args:
        uid: Unique id of the scenario.
        condition: Name of the condition under which the scenario is asked; unique among the requests of a scenario.
        messages: The turns.
        sample: Which of several answers to the same turns is wanted, from 0.
        prefill: The beginning of the answer, which the organism continues.
        chat_template_kwargs: Settings of the chat template for this request, beside the settings of the whole run.
    """

    uid: str
    condition: str
    messages: Sequence[Message]
    sample: int = 0
    prefill: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def request_of(uid: str, name: str, condition: Condition, scenario: str) -> Request:
    """Return the request that asks a scenario under a condition.

    Args:
        uid: Unique id of the scenario.
        name: What the request calls the condition.
        condition: The condition.
        scenario: The scenario text.
    """
    settings = condition.chat_template_kwargs
    return Request(uid, name, condition.messages(scenario), prefill=condition.prefill, chat_template_kwargs=settings)


class Prompts:
    """Make prompts of requests; settings of the chat template may differ by request.

    Args:
        directory: Directory or hub id of the organism.
        revision: Branch, tag or commit on the hub.
        chat_template_kwargs: Settings of the chat template for all requests; a request's own win over them.
        date: Date for chat templates that print one, as ``YYYY-MM-DD``.

    Raises:
        UserError: The tokenizer cannot be loaded, or its chat template does not read one of the settings.
    """

    def __init__(
        self, directory: str, revision: str | None, chat_template_kwargs: Mapping[str, Any] | None, date: str | None
    ) -> None:
        self._place, self._settings, self._date = (directory, revision), dict(chat_template_kwargs or {}), date
        self.tokenizer = load_tokenizer(directory, revision, chat_template_kwargs, date)
        self._others: dict[str, PreTrainedTokenizerBase] = {}

    def text(self, request: Request) -> str:
        """Return the whole prompt as the organism reads it, up to the beginning of its answer.

        Raises:
            UserError: The chat template leaves out a turn, or does not read one of the request's settings.
        """
        return render(self._tokenizer_of(request), request.messages) + request.prefill

    def ids(self, request: Request) -> list[int]:
        """Return the token ids of the turns, behind which the answer begins.

        Raises:
            UserError: See :meth:`text`.
        """
        return encode_prompt(self._tokenizer_of(request), request.messages)

    def prefill_ids(self, request: Request) -> list[int]:
        """Return the token ids of the answer's beginning, which follow those of the turns.

        A cue file's author writes them as a template writes its own: control strings such as ``<think>`` are control tokens.
        """
        return encode_text(self.tokenizer, request.prefill) if request.prefill else []

    def _tokenizer_of(self, request: Request) -> PreTrainedTokenizerBase:
        """Return the tokenizer whose template holds the request's settings; equal settings share one."""
        if not request.chat_template_kwargs:
            return self.tokenizer
        settings = {**self._settings, **request.chat_template_kwargs}
        key = json.dumps(settings, sort_keys=True)
        if key not in self._others:
            self._others[key] = load_tokenizer(*self._place, settings, self._date)
        return self._others[key]
