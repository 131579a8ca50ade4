"""What answers requests: an organism in this process, or one behind a server."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.samples import Sample
from afintro.generation.inputs import check_prompts, identity_of, provenance, way_of_asking
from afintro.generation.prompts import Prompts
from afintro.generation.prompts import Request as Request
from afintro.generation.reasoning import Reply
from afintro.generation.replies import ReplyDecoder
from afintro.generation.settings import GenerationSettings
from afintro.lm.devices import on_device
from afintro.lm.dtypes import resolve_dtype
from afintro.lm.generate import generate_greedy, generate_sampled
from afintro.lm.load import context_length, eos_ids, load_config, load_model
from afintro.lm.sampling import Sampling, stream_of
from afintro.toys.embedded import ensure_built


class Organism(Protocol):
    """Answer requests.

    The methods are called in the order in which they stand here: what is cheap, and refuses what is wrong, comes first.
    """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the organism's tokenizer; None where nobody has it."""

    def identity(self, samples: Sequence[Sample], splits: dict[str, int]) -> dict[str, Any]:
        """Return everything that decides the replies, as JSON values; no secret is among them.

        Args:
            samples: Input samples.
            splits: Name and size of each split.
        """

    def prepare(self, conversations: Sequence[Sequence[Request]]) -> None:
        """Check all that will be asked, and make the organism ready to answer.

        Args:
            conversations: The requests of each sample.

        Raises:
            UserError: The organism cannot answer, or a request is too long.
        """

    def provenance(self) -> dict[str, Any]:
        """Return what every record says about how its answers were made, as JSON values."""

    def prompt(self, request: Request) -> str | None:
        """Return the whole prompt of a request, as the organism reads it; None where nobody can see it."""

    def replies(self, requests: Sequence[Request], alone: bool = False) -> list[Reply]:
        """Answer the requests.

        Args:
            requests: What is asked.
            alone: Whether each request is answered by itself: what differs from answers that were made together is noise.

        Returns:
            The replies, in the order of the requests.
        """

    def remarks(self) -> dict[str, Any]:
        """Return what the summary of a run says of the way in which the organism was asked; mostly nothing."""


class LocalOrganism:
    """Answer with a model in this process: greedily, or by samples that depend on seed, scenario, condition and number alone.

    Args:
        settings: What to generate with.
        device: Where the model runs.
        date: Date for chat templates that print one, as ``YYYY-MM-DD``.

    Raises:
        UserError: The tokenizer cannot be loaded.
    """

    def __init__(self, settings: GenerationSettings, device: str, date: str) -> None:
        self.directory, self.device = ensure_built(settings.model), device
        dtype = resolve_dtype(settings.dtype, self.directory, settings.revision, device)
        self.settings = replace(settings, dtype=dtype)
        self._prompts = Prompts(self.directory, settings.revision, settings.chat_template_kwargs, date)
        self.tokenizer: PreTrainedTokenizerBase = self._prompts.tokenizer
        self.decode = ReplyDecoder(self.tokenizer, settings.max_new_tokens)
        self._encoded: dict[tuple[str, str], list[int]] = {}  # by scenario and condition: the turns without the prefill
        self._loaded: PreTrainedModel | None = None

    def identity(self, samples: Sequence[Sample], splits: dict[str, int]) -> dict[str, Any]:
        """See :meth:`Organism.identity`."""
        return identity_of(samples, splits, self.settings, self.directory, self.tokenizer)

    def prepare(self, conversations: Sequence[Sequence[Request]]) -> None:
        """See :meth:`Organism.prepare`; the lengths are checked before the model loads."""
        limit = context_length(load_config(self.directory, self.settings.revision))
        encoded = [[self._prompts.ids(request) for request in requests] for requests in conversations]
        prompts = [
            [ids + self._prompts.prefill_ids(request) for request, ids in zip(requests, own, strict=True)]
            for requests, own in zip(conversations, encoded, strict=True)
        ]
        check_prompts(prompts, self.tokenizer, limit, self.settings.max_new_tokens)
        self._encoded = {
            (request.uid, request.condition): ids
            for requests, own in zip(conversations, encoded, strict=True)
            for request, ids in zip(requests, own, strict=True)
        }
        if self._loaded is None:  # several runs may share an organism
            loaded = load_model(self.directory, self.settings.revision, self.settings.dtype)
            self._loaded = on_device(loaded, self.device)

    def provenance(self) -> dict[str, Any]:
        """See :meth:`Organism.provenance`."""
        return provenance(self.settings, self._model, self.tokenizer, self.directory)

    def prompt(self, request: Request) -> str:
        """See :meth:`Organism.prompt`."""
        return self._prompts.text(request)

    def replies(self, requests: Sequence[Request], alone: bool = False) -> list[Reply]:
        """See :meth:`Organism.replies`."""
        turns = [self._ids(request) for request in requests]
        prompts = [ids + self._prompts.prefill_ids(request) for request, ids in zip(requests, turns, strict=True)]
        size, sampling = 1 if alone else self.settings.batch_size, self.settings.sampling
        if sampling is not None:
            outputs = self._drawn(requests, prompts, sampling, size)
        else:
            outputs = generate_greedy(self._model, prompts, **self._limits(), batch_size=size)
        return [
            self.decode(ids, prompt, request.prefill)
            for ids, prompt, request in zip(outputs, turns, requests, strict=True)
        ]

    def _limits(self) -> dict[str, Any]:
        """Return what ends an answer."""
        ends = eos_ids(self._model, self.tokenizer)
        return {"max_new_tokens": self.settings.max_new_tokens, "eos_ids": ends}

    def _drawn(
        self, requests: Sequence[Request], prompts: Sequence[list[int]], sampling: Sampling, batch_size: int
    ) -> list[list[int]]:
        """Return the new tokens of each request; the samples of a scenario's condition share their prompt."""
        alike: dict[tuple[str, str], list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault((request.uid, request.condition), []).append(index)
        streams = [
            [stream_of(self.settings.seed, *names, requests[index].sample) for index in indices]
            for names, indices in alike.items()
        ]
        shared = [prompts[indices[0]] for indices in alike.values()]
        drawn = generate_sampled(self._model, shared, streams, sampling, **self._limits(), batch_size=batch_size)
        outputs: list[list[int]] = [[] for _ in requests]
        for indices, rows in zip(alike.values(), drawn, strict=True):
            for index, row in zip(indices, rows, strict=True):
                outputs[index] = row
        return outputs

    def remarks(self) -> dict[str, Any]:
        """See :meth:`Organism.remarks`."""
        return dict(way_of_asking(self.tokenizer))

    @property
    def _model(self) -> PreTrainedModel:
        assert self._loaded is not None, "prepare loads the model"
        return self._loaded

    def _ids(self, request: Request) -> list[int]:
        """Return the token ids of a request's turns, which need not have been announced to :meth:`prepare`."""
        known = self._encoded.get((request.uid, request.condition))
        return self._prompts.ids(request) if known is None else known
