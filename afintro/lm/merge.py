"""Merge a PEFT adapter into the base model that it names."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from afintro.lm.load_errors import UNLOADABLE, refuse_missing_weights, unloadable


def adapter_base(name: str | Path, revision: str | None = None) -> str | None:
    """Return the base model that a PEFT adapter names, or None if ``name`` is not an adapter.

    Args:
        name: Directory or hub id.
        revision: Branch, tag or commit on the hub.

    Raises:
        UserError: The adapter does not name its base.
    """
    try:
        config = find_adapter_config_file(str(name), revision=revision)
    except (OSError, ValueError):
        return None
    if config is None:
        return None
    try:
        base = json.loads(Path(config).read_text())["base_model_name_or_path"]
        if not isinstance(base, str) or not base:
            raise ValueError(f"base_model_name_or_path is {base!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unloadable(str(name), error) from error
    return base


def merged(model: PreTrainedModel, name: str, revision: str | None) -> PreTrainedModel:
    """Return ``model`` with an adapter merged into it."""
    try:
        file = cached_file(name, "adapter_model.safetensors", revision=revision)  # never the pickled adapter_model.bin
        wrapped = PeftModel.from_pretrained(model, name, revision=revision)
        with safe_open(file, "pt") as stored:
            needed = get_peft_model_state_dict(wrapped, save_embedding_layers=False)  # of the adapter alone
            refuse_missing_weights(set(needed) - set(stored.keys()))
    except UNLOADABLE as error:
        raise unloadable(name, error) from error
    _untie(model)
    merged = wrapped.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged.eval()


def _untie(model: PreTrainedModel) -> None:
    """Give a vocabulary matrix that is the embedding weights of its own, where an adapter of one of them is to be merged."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    embedding, head = (getattr(end, "base_layer", end) for end in ends)  # an adapter lies around its base_layer
    if [embedding, head] != ends and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
