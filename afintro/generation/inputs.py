"""What a generation run takes in: its samples under their ids, prompts that fit the model, and what identifies the run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.records import scenario_id
from afintro.data.samples import Sample
from afintro.data.text import chat, encode_prompt, template_hash
from afintro.errors import UserError
from afintro.generation.settings import GenerationSettings
from afintro.lm.load import fingerprint


def identity_of(
    samples: Sequence[Sample],
    splits: dict[str, int],
    settings: GenerationSettings,
    directory: str,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Everything that decides what a run writes, as it reads once written."""
    content = json.dumps([[sample.text, sample.label] for sample in samples])
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))  # tuples become lists
    return {
        **plain,
        "splits": splits,
        "samples_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "model_fingerprint": fingerprint(directory),
        "template_hash": template_hash(tokenizer),
    }


def provenance(
    settings: GenerationSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str,
) -> dict[str, Any]:
    """What every record says of how it was made."""
    return {
        "model": settings.model,
        "revision": settings.revision or getattr(model.config, "_commit_hash", None),
        "fingerprint": fingerprint(directory),
        "template_hash": template_hash(tokenizer),
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
        "dtype": settings.dtype,
        "seed": settings.seed,
    }


def fitting_prompts(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    systems: Sequence[str],
    limit: int | None,
    max_new_tokens: int,
) -> list[list[list[int]]]:
    """The prompt of every sample under every system prompt, checked against the context before the model loads.

    Raises:
        UserError: Prompt and answer are longer than ``limit``.
    """
    found = []
    for index, sample in enumerate(samples):
        prompts = [encode_prompt(tokenizer, chat(system, sample.text)) for system in systems]
        longest = max(map(len, prompts)) + max_new_tokens
        if limit is not None and longest > limit:
            raise UserError(
                f"prompt and answer need {longest} tokens, the model's context is {limit}",
                where=f"sample {index}",
                remedy="shorten the text, lower --max_new_tokens, or use a model with a longer context",
            )
        found.append(prompts)
    return found


Item = tuple[Sample, str, list[list[int]], bool]
"""A sample, its unique id, its prompts, and whether it serves the controls."""


def items_of(samples: Sequence[Sample], prompts: Sequence[list[list[int]]], control_samples: int) -> list[Item]:
    """Everything that a generator asks of each sample; evenly spread ones serve the controls."""
    controls = evenly(len(samples), control_samples)
    about = zip(samples, unique_ids(samples), prompts, strict=True)
    return [(sample, uid, own, index in controls) for index, (sample, uid, own) in enumerate(about)]


def evenly(total: int, wanted: int) -> frozenset[int]:
    """Indices of ``wanted`` of ``total`` samples, evenly spread."""
    count = min(total, wanted)
    return frozenset(i * total // count for i in range(count))


def unique_ids(samples: Sequence[Sample]) -> list[str]:
    """The scenario's id; a text that comes again gets a number behind it."""
    seen: dict[str, int] = {}
    uids = []
    for sample in samples:
        identity = scenario_id(sample.text)
        seen[identity] = seen.get(identity, 0) + 1
        uids.append(identity if seen[identity] == 1 else f"{identity}-{seen[identity]}")
    return uids
