"""Load models and tokenizers from a hub id, a model directory, a GGUF file or a PEFT adapter, and compute their identity."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from afintro.errors import UserError
from afintro.lm.adapter import ON, Adapter, find_adapter
from afintro.lm.gguf import gguf_config, gguf_fingerprint, gguf_model, gguf_tokenizer, is_gguf
from afintro.lm.load_errors import UNLOADABLE, refuse_missing_weights, unloadable
from afintro.lm.merge import merged
from afintro.lm.padded import use_packed_attention
from afintro.lm.template_inputs import fix_inputs
from afintro.lm.threads import use_threads
from afintro.lm.vocabulary import refuse_more_tokens, vocabulary_rows

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_tokenizer(
    name: str,
    revision: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    date: str | None = None,
    known_only: bool = False,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; an adapter directory without a tokenizer takes its base model's tokenizer.

    Args:
        name: Hub id, local model directory, GGUF file, or PEFT adapter directory.
        revision: Branch, tag or commit on the hub.
        chat_template_kwargs: See :func:`afintro.lm.template_inputs.fix_inputs`.
        date: Date that the chat template prints, ``YYYY-MM-DD``; None for today.
        known_only: See :func:`afintro.lm.template_inputs.fix_inputs`.

    Raises:
        UserError: No tokenizer can be loaded under this name, or its chat template does not read one of the settings.
    """
    tokenizer = _plain_tokenizer(name, revision)
    fix_inputs(tokenizer, chat_template_kwargs, date, known_only)
    return tokenizer


def _plain_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    adapter = find_adapter(name, revision)
    if adapter is not None and not _has_tokenizer(adapter):
        with adapter.loading_base():
            return _plain_tokenizer(adapter.base, adapter.base_revision)
    if is_gguf(name):
        return gguf_tokenizer(name)
    own = name if adapter is None else adapter.name
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(own, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unloadable(name, error) from error
    if type(loaded).__name__ == "MistralCommonBackend":  # transformers chooses it where mistral-common is installed
        what = "is read by mistral-common, which renders no chat template"
        raise UserError(
            what, where=f"tokenizer of {name}", remedy="use a folder with tokenizer.json and a chat template"
        )
    return loaded


def _has_tokenizer(adapter: Adapter) -> bool:
    file = "tokenizer_config.json"
    found = cached_file(adapter.name, file, revision=adapter.revision, _raise_exceptions_for_missing_entries=False)
    return found is not None


def load_config(name: str, revision: str | None = None) -> Any:
    """Load a model's configuration alone, which is cheap, for checks before the weights are loaded.

    Args:
        name: Hub id, local model directory, GGUF file, or PEFT adapter directory (which has its base model's configuration).
        revision: Branch, tag or commit on the hub.

    Raises:
        UserError: No configuration can be loaded under this name.
    """
    adapter = find_adapter(name, revision)
    if adapter is not None:
        with adapter.loading_base():
            return load_config(adapter.base, adapter.base_revision)
    if is_gguf(name):
        return gguf_config(name)
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise unloadable(name, error) from error


def load_model(name: str, revision: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """Load a causal LM in eval mode, with packed attention if its architecture allows packed attention.

    An adapter is loaded onto its base model and merged, so that the result is always a plain model and adapters are never
    stacked.

    Args:
        name: Hub id, local model directory, GGUF file, or PEFT adapter directory, also ``ADAPTER::BASE`` for an adapter on
            another base than the base that it names. Of a directory only safetensors weights are read.
        revision: Branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``.

    Raises:
        UserError: No model can be loaded under this name, or the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise UserError(
            f"{dtype!r} is not a known dtype", where="model dtype", remedy=f"use one of {', '.join(DTYPES)}"
        )
    adapter = find_adapter(name, revision)
    if adapter is not None:
        with adapter.loading_base():
            base = load_model(adapter.base, adapter.base_revision, dtype)
        rows = vocabulary_rows(base)
        model = merged(base, adapter)
        if _has_tokenizer(adapter) or vocabulary_rows(model) < rows:
            refuse_more_tokens(model, load_tokenizer(name, revision), adapter.place)
        return model
    if is_gguf(name):
        return _prepared(gguf_model(name, DTYPES[dtype]), name)
    try:
        loaded: Any = _model_class(name, revision).from_pretrained(
            name,
            revision=revision,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, loading = loaded
        refuse_missing_weights(loading["missing_keys"])
    except UNLOADABLE as error:
        raise unloadable(name, error) from error
    assert isinstance(model, PreTrainedModel)
    return _prepared(model, name)


def _prepared(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Give a loaded model packed attention if its architecture allows that, and put it into evaluation mode."""
    if not use_packed_attention(model):
        log.warning("%s cannot use packed attention: batches are padded, and generation reads all tokens anew", name)
    use_threads(model)
    return model.eval()


def _model_class(name: str, revision: str | None) -> Any:
    """Return the class that loads a model: some wrappers around a language model have a class for images and text alone."""
    config = load_config(name, revision)
    wrapper = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if wrapper else AutoModelForCausalLM


def eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids that end a generation: the tokenizer's end of sequence and the ids of the generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(token for token in ids if token is not None)


def context_length(config: Any) -> int | None:
    """Return the longest sequence that a model accepts, in tokens; None if its configuration does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "max_seq_len"):  # the second is MPT's
        if getattr(text, name, None):
            return int(getattr(text, name))
    return None


def fingerprint(name: str) -> str | None:
    """Return a short hash of a local model directory's weights: size, tail and 256 samples of every safetensors file.

    For a hub id the result is None, because there the revision identifies the weights. A GGUF file is hashed whole.
    """
    plain = name.partition(ON)[0]
    if is_gguf(plain):
        return gguf_fingerprint(plain)
    directory = Path(plain)
    if not directory.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            for part in range(256):
                file.seek(path.stat().st_size * part // 256)
                digest.update(file.read(1 << 14))
            file.seek(max(0, path.stat().st_size - (1 << 14)))
            digest.update(file.read())
    adapter = find_adapter(name)
    if adapter is not None:
        digest.update((fingerprint(adapter.base) or adapter.base).encode())
    return digest.hexdigest()[:16]
