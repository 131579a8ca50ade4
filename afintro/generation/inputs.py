"""The inputs of a generation run: samples with unique ids, prompts that fit the model, and the identity of the run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.chat_template import WITHOUT_TEMPLATE
from afintro.data.records import scenario_id
from afintro.data.samples import Sample
from afintro.data.text import template_hash
from afintro.errors import UserError
from afintro.generation.run_folder import PROMPT_DATE, SAMPLE_FACETS
from afintro.generation.settings import GenerationSettings
from afintro.lm.load import fingerprint
from afintro.lm.template_inputs import date_of, named


def identity_of(
    samples: Sequence[Sample],
    splits: dict[str, int],
    settings: GenerationSettings,
    directory: str,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Collect everything that decides what a run writes, as JSON values.

    Args:
        samples: Input samples.
        splits: Name and size of each split.
        settings: Settings of the run.
        directory: Directory or hub id of the organism.
        tokenizer: The organism's tokenizer.
    """
    return {
        **settings.as_json(),
        **prompt_inputs(None, tokenizer),
        **facets_identity(samples),
        "splits": splits,
        "samples_sha256": samples_hash(samples),
        "model_fingerprint": fingerprint(directory),
        "template_hash": template_hash(tokenizer),
    }


def samples_hash(samples: Sequence[Sample]) -> str:
    """Return the hash of everything that a run reads of its samples, in their order."""
    # Without ids the content is as it was before samples had ids, so that older folders are still found.
    ids = [[sample.scenario_id] if sample.scenario_id else [] for sample in samples]
    content = json.dumps([[sample.text, sample.label, *own] for sample, own in zip(samples, ids, strict=True)])
    return hashlib.sha256(content.encode()).hexdigest()


def facets_identity(samples: Sequence[Sample]) -> dict[str, str]:
    """Return a hash of the samples' sources and categories, which records keep; nothing where no sample has any.

    Args:
        samples: Input samples.
    """
    facets = [[sample.source, sample.category] for sample in samples]
    if not any(value is not None for own in facets for value in own):
        return {}
    return {SAMPLE_FACETS: hashlib.sha256(json.dumps(facets).encode()).hexdigest()}


def prompt_inputs(chat_template_kwargs: Mapping[str, Any] | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what prompts depend on beside their turns, as JSON values; empty for most templates.

    Args:
        chat_template_kwargs: Settings that the chat template reads.
        tokenizer: The tokenizer, whose template may print a date.
    """
    date = date_of(tokenizer)
    return {
        **({"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}),
        **({PROMPT_DATE: date} if date is not None else {}),
    }


def way_of_asking(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what a summary says of how prompts are made for a base model without a chat template; otherwise nothing."""
    return {"prompts": WITHOUT_TEMPLATE} if getattr(tokenizer, "chat_template", None) is None else {}


def provenance(
    settings: GenerationSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str,
) -> dict[str, Any]:
    """Collect what every record says about how it was generated.

    Args:
        settings: Settings of the run.
        model: The organism.
        tokenizer: The organism's tokenizer.
        directory: Directory or hub id of the organism.
    """
    return {
        "model": settings.model,
        "revision": settings.revision or getattr(model.config, "_commit_hash", None),
        "fingerprint": fingerprint(directory),
        "template_hash": template_hash(tokenizer),
        **prompt_inputs(settings.chat_template_kwargs, tokenizer),
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
        "dtype": settings.dtype,
        "seed": settings.seed,
        **settings.drawn(),
    }


def check_prompts(
    prompts: Sequence[Sequence[Sequence[int]]],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    max_new_tokens: int,
) -> None:
    """Check the prompts of every sample under every condition, before the model loads.

    Args:
        prompts: Token ids by sample and condition, with the beginning of the answer where a condition gives one.
        tokenizer: The organism's tokenizer.
        limit: The organism's context length in tokens; None without a limit.
        max_new_tokens: Maximum length of an answer in tokens.

    Raises:
        UserError: A prompt together with its answer is longer than ``limit``, or two conditions make the same prompt.
    """
    for index, of_sample in enumerate(prompts):
        refuse_equal(of_sample, tokenizer, f"sample {index}")
        longest = max(map(len, of_sample)) + max_new_tokens
        if limit is not None and longest > limit:
            raise UserError(
                f"needs {longest} tokens for prompt and answer, but the model's context has {limit}",
                where=f"sample {index}",
                remedy="shorten the text, lower --max_new_tokens, or use a model with a longer context",
            )


def refuse_equal(prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse prompts of one text under different conditions that are the same tokens: there is nothing to compare.

    Args:
        prompts: Token ids of each prompt.
        tokenizer: The tokenizer that made them.
        where: The text, for the message.

    Raises:
        UserError: Two prompts are equal.
    """
    if len({tuple(prompt) for prompt in prompts}) < len(prompts):
        raise UserError(
            f"has the same prompt under two conditions with the chat template of {named(tokenizer)}",
            where=where,
            remedy="use a model whose chat template renders the system turn and reads the settings in which conditions differ",
        )


Asked = TypeVar("Asked")
Item = tuple[Sample, str, Asked, bool]
"""A sample, its unique id, what is asked about the sample, and whether the sample serves the controls."""


def items_of(samples: Sequence[Sample], asked: Sequence[Asked], control_samples: int) -> list[Item[Asked]]:
    """Combine samples, unique ids and what is asked, and choose evenly spread samples for the controls.

    Args:
        samples: Input samples.
        asked: What is asked about each sample: its prompts, or its requests.
        control_samples: Number of samples that serve the controls.
    """
    controls = evenly(len(samples), control_samples)
    rows = zip(samples, unique_ids(samples), asked, strict=True)
    return [(sample, uid, encoded, index in controls) for index, (sample, uid, encoded) in enumerate(rows)]


def evenly(total: int, wanted: int) -> frozenset[int]:
    """Choose ``wanted`` evenly spread indices below ``total``."""
    count = min(total, wanted)
    return frozenset(i * total // count for i in range(count))


def unique_ids(samples: Sequence[Sample]) -> list[str]:
    """Name each sample by its scenario's id; a text that occurs again gets a number behind the id."""
    seen: dict[str, int] = {}
    uids = []
    for sample in samples:
        identity = scenario_id(sample.text)
        seen[identity] = seen.get(identity, 0) + 1
        uids.append(identity if seen[identity] == 1 else f"{identity}-{seen[identity]}")
    return uids
