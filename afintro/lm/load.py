"""Load models and tokenizers from a hub id, a model directory or a PEFT adapter; add LoRA; compute their identity."""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from afintro.errors import UserError
from afintro.lm.attention import NAME as PACKED
from afintro.lm.fused import fuse_lora
from afintro.lm.padded import supports_packed_attention
from afintro.lm.threads import use_threads

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass
class Lora:
    """A low-rank adapter on the linear layers (Hu et al. 2021, arXiv:2106.09685).

    Args:
        r: Rank.
        alpha: Scale; the update is ``alpha / r * B A``.
        dropout: Dropout probability on the adapter's input.
        target_modules: Names of the layers to adapt; ``all-linear``, alone or in a list, is every linear layer but the vocabulary
            matrix, and ``embed_tokens`` the embedding of most models.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = ALL_LINEAR


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
        raise _missing(str(name), error) from error
    return base


def _missing(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"cannot be loaded ({type(error).__name__}: {reason})",
        where=f"model {name!r}",
        remedy="give a hub id that is reachable or cached (HF_HOME, HF_HUB_OFFLINE), a local model or adapter directory, or 'toy'",
    )


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer; an adapter directory without a tokenizer takes its base model's tokenizer.

    Args:
        name: Hub id, local model directory, or PEFT adapter directory.
        revision: Branch, tag or commit on the hub.

    Raises:
        UserError: No tokenizer can be loaded under this name.
    """
    base = adapter_base(name, revision)
    try:
        if (
            base is not None
            and cached_file(
                name, "tokenizer_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
            )
            is None
        ):
            return load_tokenizer(base)
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _missing(name, error) from error


def load_config(name: str, revision: str | None = None) -> Any:
    """Load a model's configuration alone, which is cheap, for checks before the weights are loaded.

    Args:
        name: Hub id, local model directory, or PEFT adapter directory (which has its base model's configuration).
        revision: Branch, tag or commit on the hub.

    Raises:
        UserError: No configuration can be loaded under this name.
    """
    base = adapter_base(name, revision)
    if base is not None:
        return load_config(base)
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _missing(name, error) from error


def load_model(name: str, revision: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """Load a causal LM in eval mode, with packed attention if its architecture allows packed attention.

    An adapter is loaded onto its base model and merged, so that the result is always a plain model and adapters are never
    stacked.

    Args:
        name: Hub id, local model directory, or PEFT adapter directory. Only safetensors weights are read.
        revision: Branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``.

    Raises:
        UserError: No model can be loaded under this name, or the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise UserError(
            f"{dtype!r} is not a known dtype", where="model dtype", remedy=f"use one of {', '.join(DTYPES)}"
        )
    base = adapter_base(name, revision)
    if base is not None:
        return _merged(load_model(base, dtype=dtype), name, revision)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, loading = loaded
        _complete(loading["missing_keys"])
    except UNLOADABLE as error:
        raise _missing(name, error) from error
    assert isinstance(model, PreTrainedModel)
    if supports_packed_attention(model):
        model.set_attn_implementation(PACKED)
    else:
        log.warning("%s cannot use packed attention: batches are padded, and generation reads all tokens anew", name)
    use_threads(model)
    return model.eval()


# A truncated file raises a SafetensorError, weights of another shape raise a RuntimeError.
UNLOADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def _complete(missing: Iterable[str]) -> None:
    """Refuse missing weights, which transformers and PEFT would draw at random, with a warning."""
    names = sorted(missing)
    if names:
        raise ValueError(f"weights are missing for {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}")


def _merged(model: PreTrainedModel, name: str, revision: str | None) -> PreTrainedModel:
    """Return ``model`` with an adapter merged into it."""
    try:
        file = cached_file(name, "adapter_model.safetensors", revision=revision)  # never the pickled adapter_model.bin
        wrapped = PeftModel.from_pretrained(model, name, revision=revision)
        with safe_open(file, "pt") as stored:
            needed = get_peft_model_state_dict(wrapped, save_embedding_layers=False)  # of the adapter alone
            _complete(set(needed) - set(stored.keys()))
    except UNLOADABLE as error:
        raise _missing(name, error) from error
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


def add_lora(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """Freeze ``model`` and add an untrained LoRA, with float32 adapter weights whatever the dtype of the base.

    Raises:
        UserError: The rank is below 1.
    """
    if lora.r < 1:
        raise UserError(f"must be at least 1, and is {lora.r}", where="model.lora.r", remedy="use a rank of 1 or more")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft computes alpha / r and accepts any number
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora.target_modules),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    assert isinstance(wrapped, PeftModel)
    fuse_lora(wrapped)
    return wrapped


def _targets(model: PreTrainedModel, names: str | list[str]) -> str | list[str]:
    """Write out ``all-linear`` in a list, which PEFT knows alone only."""
    if isinstance(names, str) or ALL_LINEAR not in names:
        return names
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    return sorted(linear | {*names} - {ALL_LINEAR})


def eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids that end a generation: the tokenizer's end of sequence and the ids of the generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(token for token in ids if token is not None)


def context_length(config: Any) -> int | None:
    """Return the longest sequence that a model accepts, in tokens; None if its configuration does not say."""
    return getattr(config, "max_position_embeddings", None)


def fingerprint(name: str) -> str | None:
    """Return a short hash of a local model directory's weights: size, tail and 256 samples of every safetensors file.

    For a hub id the result is None, because there the revision identifies the weights.
    """
    directory = Path(name)
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
    base = adapter_base(name)
    if base is not None:
        digest.update((fingerprint(base) or base).encode())
    return digest.hexdigest()[:16]


def describe_lora(lora: Lora) -> dict[str, Any]:
    """Return the LoRA settings as plain JSON values."""
    return asdict(lora)
