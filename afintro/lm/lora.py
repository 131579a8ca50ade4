"""Put an untrained LoRA on a model."""

from dataclasses import asdict, dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from afintro.errors import UserError
from afintro.lm.fused import fuse_lora

ALL_LINEAR = "all-linear"


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


def describe_lora(lora: Lora) -> dict[str, Any]:
    """Return the LoRA settings as plain JSON values."""
    return asdict(lora)
