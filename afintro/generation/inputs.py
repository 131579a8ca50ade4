"""The inputs of a generation run: samples with unique ids, prompts that fit the model, and the identity of the run."""

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
    """Collect everything that decides what a run writes, as JSON values.

    Args:
        samples: Input samples.
        splits: Name and size of each split.
        settings: Settings of the run.
        directory: Directory or hub id of the organism.
        tokenizer: The organism's tokenizer.
    """
    # Without ids the content is as it was before samples had ids, so that older folders are still found.
    ids = [[sample.scenario_id] if sample.scenario_id else [] for sample in samples]
    content = json.dumps([[sample.text, sample.label, *own] for sample, own in zip(samples, ids, strict=True)])
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
    """Encode every sample under every system prompt, and check the lengths before the model loads.

    Args:
        samples: Input samples.
        tokenizer: The organism's tokenizer.
        systems: System prompts.
        limit: The organism's context length in tokens; None without a limit.
        max_new_tokens: Maximum length of an answer in tokens.

    Returns:
        Token ids by sample and system prompt.

    Raises:
        UserError: A prompt together with its answer is longer than ``limit``.
    """
    prompts_of_samples = []
    for index, sample in enumerate(samples):
        prompts = [encode_prompt(tokenizer, chat(system, sample.text)) for system in systems]
        longest = max(map(len, prompts)) + max_new_tokens
        if limit is not None and longest > limit:
            raise UserError(
                f"needs {longest} tokens for prompt and answer, but the model's context has {limit}",
                where=f"sample {index}",
                remedy="shorten the text, lower --max_new_tokens, or use a model with a longer context",
            )
        prompts_of_samples.append(prompts)
    return prompts_of_samples


Item = tuple[Sample, str, list[list[int]], bool]
"""A sample, its unique id, its prompts, and whether it serves the controls."""


def items_of(samples: Sequence[Sample], prompts: Sequence[list[list[int]]], control_samples: int) -> list[Item]:
    """Combine samples, unique ids and prompts, and choose evenly spread samples for the controls.

    Args:
        samples: Input samples.
        prompts: Token ids by sample and system prompt.
        control_samples: Number of samples that serve the controls.
    """
    controls = evenly(len(samples), control_samples)
    rows = zip(samples, unique_ids(samples), prompts, strict=True)
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
