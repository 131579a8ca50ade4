"""Load what anyone loads with transformers and PEFT alone: the reference that exports are checked against."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from afintro.lm.adapter import find_adapter
from afintro.lm.gguf import gguf_model, is_gguf
from afintro.lm.load import DTYPES


def plain_base(name: str, revision: str | None, dtype: str) -> Any:
    """Load a base model; an adapter is merged into its base by PEFT, as the card of an export says.

    Args:
        name: Directory, GGUF file, hub id or adapter.
        revision: Branch, tag or commit on the hub.
        dtype: Name of the dtype of the base's weights.
    """
    adapter = find_adapter(name, revision)
    if adapter is not None:
        base = plain_base(adapter.base, adapter.base_revision, dtype)
        return PeftModel.from_pretrained(base, adapter.name, revision=adapter.revision).merge_and_unload()
    if is_gguf(name):  # as anyone would load it too, but for the quantizer, which PEFT does not know
        return gguf_model(name, DTYPES[dtype])
    return AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=DTYPES[dtype], use_safetensors=True)


@torch.no_grad()
def plain_logits(base: str, revision: str | None, dtype: str, directory: Path, ids: Tensor) -> Tensor:
    """Compute the logits of an exported adapter as anyone would load it.

    Args:
        base: Directory, GGUF file, hub id or adapter that is the base.
        revision: Branch, tag or commit on the hub.
        dtype: Name of the dtype of the base's weights.
        directory: The exported adapter.
        ids: ``[T]`` int64.

    Returns:
        ``[T, vocabulary]`` float64.
    """
    model = PeftModel.from_pretrained(plain_base(base, revision, dtype), str(directory)).eval()
    logits: Tensor = model(input_ids=ids[None]).logits[0]
    return logits.double()
