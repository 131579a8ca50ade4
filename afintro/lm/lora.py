"""Put an untrained LoRA on the decoder layers of a language model."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from afintro.errors import UserError
from afintro.lm.fused import fuse_lora
from afintro.lm.interventions import decoder_layers

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
# Parts of the names of layers that choose among experts or streams, in the architectures of transformers.
ROUTERS = {"router", "gate", "shared_expert_gate", "altup"}


@dataclass
class Lora:
    """A low-rank adapter on the linear layers (Hu et al. 2021, arXiv:2106.09685).

    Args:
        r: Rank.
        alpha: Scale; the update is ``alpha / r * B A``.
        dropout: Dropout probability on the adapter's input.
        target_modules: Names of the layers to adapt; ``all-linear``, alone or in a list, is every linear layer of the decoder
            layers but the routers of experts, and ``embed_tokens`` the embedding of most models. A list never reaches into
            other parts of a wrapper, such as a vision tower; a text other than ``all-linear`` is PEFT's regular expression.
        target_parameters: Names of parameters to adapt that are no layer of their own: experts in one tensor, e.g.
            ``[experts.gate_up_proj, experts.down_proj]``.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = ALL_LINEAR
    target_parameters: list[str] = field(default_factory=list)


def add_lora(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """Freeze ``model`` and add an untrained LoRA, with float32 adapter weights whatever the dtype of the base.

    Raises:
        UserError: The rank is below 1, the model lacks a target, or dropout is asked for where experts are adapted.
    """
    if lora.r < 1:
        raise UserError(f"must be at least 1, and is {lora.r}", where="model.lora.r", remedy="use a rank of 1 or more")
    _check_parameters(model, lora)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft computes alpha / r and accepts any number
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora.target_modules),
        target_parameters=lora.target_parameters or None,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    assert isinstance(wrapped, PeftModel)
    fuse_lora(wrapped)
    return wrapped


def describe_lora(lora: Lora) -> dict[str, Any]:
    """Return the LoRA settings as plain JSON values; an empty ``target_parameters`` is left out, as before it existed."""
    settings = asdict(lora)
    return {name: value for name, value in settings.items() if name != "target_parameters" or value}


def _targets(model: PreTrainedModel, names: str | list[str]) -> str | list[str]:
    """Return the names to give to PEFT, which would adapt equally named layers of a vision tower too.

    Short names, which fit a model in another wrapper as well, are given where they reach no other module.
    """
    if isinstance(names, str) and names != ALL_LINEAR:
        return names
    asked = [names] if isinstance(names, str) else names
    chosen: set[str] = set()
    short: set[str] = set()
    if ALL_LINEAR in asked:
        chosen |= set(_linear(model))
        short |= {name.rpartition(".")[2] for name in chosen}
    inside = set(_inside(model))
    for ending in asked:
        if ending == ALL_LINEAR:
            continue
        found = set(_ending(inside, [ending]))
        if not found:
            raise UserError(
                f"names {ending!r}, which no decoder layer has",
                where="model.lora.target_modules",
                remedy="use all-linear, or names of the model's layers",
            )
        chosen |= found
        short.add(ending)
    others = set(_ending((name for name, _ in model.named_modules()), short)) - chosen
    return sorted(chosen if others else short)


def _inside(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of the modules of the decoder layers, and of the embedding and the vocabulary matrix."""
    layers = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    layers |= {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    yield from (name for name, module in model.named_modules() if id(module) in layers)


def _linear(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of the linear layers of the decoder layers, without routers."""
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    modules = dict(model.named_modules())
    for name in _inside(model):
        parent, _, last = name.rpartition(".")
        # State-space layers take these weights without calling the layer, and would leave an adapter out.
        kept = {key for key, _ in modules[parent].named_parameters(recurse=False)}
        fused = last in ("out_proj", "dt_proj") and {"A_log", "D"} <= kept
        linear = isinstance(modules[name], nn.Linear | Conv1D) and id(modules[name]) not in ends
        if linear and not fused and not ROUTERS & set(name.split(".")):
            yield name


def _ending(names: Iterable[str], endings: Iterable[str]) -> Iterator[str]:
    """Yield the names that PEFT would take for one of the endings."""
    dotted = tuple(f".{ending}" for ending in endings)
    yield from (name for name in names if f".{name}".endswith(dotted))


def _check_parameters(model: PreTrainedModel, lora: Lora) -> None:
    """Refuse parameters that the model lacks, and say in one line which experts stay unadapted."""
    where = "model.lora.target_parameters"
    names = [name for name, _ in model.named_parameters()]
    for ending in lora.target_parameters:
        if not any(_ending(names, [ending])):
            raise UserError(
                f"names {ending!r}, which the model does not have", where=where, remedy="use names of parameters"
            )
    if lora.target_parameters and lora.dropout:
        raise UserError(
            "cannot be adapted with dropout", where=where, remedy="set model.lora.dropout: 0, or leave the experts out"
        )
    left = _experts(model, lora.target_parameters)
    if left and not lora.target_parameters:
        log.warning("experts are not adapted (%s): model.lora.target_parameters can name them", ", ".join(sorted(left)))


def _experts(model: PreTrainedModel, adapted: Sequence[str]) -> set[str]:
    """Return the short names of parameters that hold all experts of a layer in one tensor."""
    layers = [name for layer in decoder_layers(model) for name, p in layer.named_parameters() if p.ndim == 3]
    experts = [name for name in layers if "experts" in name.split(".")]
    return {".".join(name.split(".")[-2:]) for name in experts} - set(adapted)
