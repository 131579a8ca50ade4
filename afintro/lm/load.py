"""Models and tokenizers from a hub id, a local directory, or a PEFT adapter directory; LoRA on top; their identity."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from afintro.errors import UserError
from afintro.lm.attention import NAME as PACKED

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass
class Lora:
    """Low-rank adapter on the linear layers (Hu et al. 2021, arXiv:2106.09685).

    Args:
        r: Rank.
        alpha: Scale; the update is ``alpha / r * B A``.
        dropout: Dropout probability on the adapter's input.
        target_modules: Names of the linear layers to adapt; ``all-linear`` is every one but the vocabulary matrix.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


def adapter_base(directory: str | Path) -> str | None:
    """The base model named by a PEFT adapter directory, or None where ``directory`` is not one."""
    config = Path(directory) / "adapter_config.json"
    if not config.is_file():
        return None
    base = json.loads(config.read_text())["base_model_name_or_path"]
    assert isinstance(base, str)
    return base


def _missing(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"cannot be loaded ({type(error).__name__}: {reason})",
        where=f"model {name!r}",
        remedy="give a hub id that is reachable or cached (HF_HOME, HF_HUB_OFFLINE), a local model or adapter directory, or 'toy'",
    )


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer; an adapter directory without one takes that of its base model.

    Raises:
        UserError: Nothing loadable under this name.
    """
    base = adapter_base(name)
    if base is not None and not (Path(name) / "tokenizer_config.json").is_file():
        return load_tokenizer(base)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _missing(name, error) from error


def load_config(name: str, revision: str | None = None) -> Any:
    """Load the configuration alone (an adapter directory's is that of its base): cheap, for checks before the weights."""
    try:
        return AutoConfig.from_pretrained(adapter_base(name) or name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _missing(name, error) from error


def load_model(name: str, revision: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """Load a causal LM in eval mode, with attention that takes packed rows.

    An adapter directory is loaded onto its base model and merged, so that what comes back is always a plain model
    and adapters are never stacked.

    Args:
        name: Hub id, local model directory, or PEFT adapter directory. Only safetensors weights are read.
        revision: Branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``.

    Raises:
        UserError: Nothing loadable under this name, or an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"{dtype!r} is no dtype", where="model dtype", remedy=f"use one of {', '.join(DTYPES)}")
    base = adapter_base(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base or name,
            revision=None if base else revision,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=PACKED,
        )
        if base is not None:
            model = PeftModel.from_pretrained(model, name, revision=revision).merge_and_unload()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _missing(name, error) from error
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def add_lora(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """Freeze ``model`` and put a fresh LoRA on it: adapter weights in float32, whatever the base's dtype."""
    if lora.r < 1:
        raise UserError(f"rank {lora.r}", where="model.lora.r", remedy="use a rank of 1 or more")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft computes alpha / r and takes any number
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a generation: the tokenizer's end of sequence and those of the generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(token for token in found if token is not None)


def context_length(config: Any) -> int | None:
    """Longest sequence the model takes, in tokens, where its configuration says."""
    return getattr(config, "max_position_embeddings", None)


def fingerprint(name: str) -> str | None:
    """A short hash of a local model directory's weights (size, head and tail of every safetensors file).

    None for a hub id: there the revision says which weights are meant.
    """
    directory = Path(name)
    if not directory.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            digest.update(file.read(1 << 16))
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            digest.update(file.read())
    base = adapter_base(name)
    if base is not None:
        digest.update((fingerprint(base) or base).encode())
    return digest.hexdigest()[:16]


def describe_lora(lora: Lora) -> dict[str, Any]:
    """The LoRA settings as plain JSON values."""
    return asdict(lora)
