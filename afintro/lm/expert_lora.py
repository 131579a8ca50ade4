"""Merge LoRA on single experts, as transformers 4 laid them out, into the stacked experts of transformers 5.

Until transformers 4 each expert of a mixture was a few linear layers (``mlp.experts.3.gate_proj``); transformers 5 stacks the
experts of a layer into one weight, and converts checkpoints. PEFT converts some of these adapters, but scales rsLoRA wrongly
and leaves out shared experts, so the updates ``scale * B A`` (Hu et al. 2021, arXiv:2106.09685) are added here.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from afintro.errors import UserError
from afintro.lm.load_errors import refuse_missing_weights, refuse_unused_weights
from afintro.lm.vocabulary import separate

PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
# Settings under which the update of a weight is not simply ``scale * B A``.
MORE_THAN_LORA = ("use_dora", "lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices")


def has_single_experts(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Return whether an adapter has weights for experts that its base holds stacked.

    Args:
        model: The base.
        names: Names of the adapter's weights.
    """
    modules = {name for name, _ in model.named_modules()}
    return any(re.search(r"\.experts\.\d+\.", name) and _module(name) not in modules for name in names)


@torch.no_grad()
def merge_expert_lora(model: PreTrainedModel, config: Any, path: str, place: str) -> None:
    """Add every update of a LoRA to the weights of its base.

    Args:
        model: The base, which is changed; half-precision weights are rounded once.
        config: The adapter's :class:`peft.LoraConfig`.
        path: The adapter's safetensors file.
        place: What error messages call the adapter.

    Raises:
        UserError: The adapter is more than a plain LoRA, or has weights that its configuration does not name.
        ValueError: Weights are missing.
    """
    others = [name for name in MORE_THAN_LORA if getattr(config, name, None)]
    if config.peft_type != PeftType.LORA or config.bias != "none" or others:
        kind = ", ".join(others) or config.peft_type.value
        what = f"is more than a plain LoRA ({kind}) on single experts, which this base holds stacked"
        raise UserError(
            what, where=place, remedy="merge it with transformers 4 into a whole model, and give that model"
        )
    with safe_open(path, "pt") as stored:
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    homes = _homes(model)
    needed = {module for module in homes if check_target_module_exists(config, module)}
    names = {f"{PREFIX}{module}{kind}" for module in needed for kind in (DOWN, UP)}
    refuse_unused_weights(set(weights) - names, place)
    refuse_missing_weights(names - set(weights))
    if model.get_output_embeddings() in {model.get_submodule(_owner(homes[module])) for module in needed}:
        separate(model)
    for parameter in sorted({homes[module] for module in needed}):
        modules = [module for module in needed if homes[module] == parameter]
        _add(model, parameter, {module: _update(config, module, weights) for module in modules})


def _module(name: str) -> str:
    return name.removeprefix(PREFIX).partition(".lora_")[0]


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _homes(model: PreTrainedModel) -> dict[str, str]:
    """Return the name of the parameter that holds each matrix, by the module that held the matrix in transformers 4."""
    homes = {}
    embedding = model.get_input_embeddings()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.dim() > 1 and model.get_submodule(_owner(name)) is not embedding:
            for former in revert_weight_conversion(model, {name: torch.empty(parameter.shape, device="meta")}):
                homes[_owner(former)] = name
    return homes


def _update(config: Any, module: str, weights: dict[str, Tensor]) -> Tensor:
    """Return a matrix's update in float32, ``[out, in]``."""
    down, up = (weights[f"{PREFIX}{module}{kind}"].float() for kind in (DOWN, UP))
    rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), module), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), module), config.lora_alpha)
    if down.shape[0] != rank:
        raise ValueError(f"the rank of {module} is {down.shape[0]} in the file and {rank} in adapter_config.json")
    return alpha / (math.sqrt(rank) if config.use_rslora else rank) * (up @ down)


def _add(model: PreTrainedModel, name: str, updates: dict[str, Tensor]) -> None:
    """Add updates to the parts of a parameter that the modules of transformers 4 became."""
    parameter = model.get_parameter(name)
    # The conversion moves numbers and changes none, so that numbered entries tell where each module's entries are.
    places = torch.arange(parameter.numel()).view(parameter.shape)
    formers = revert_weight_conversion(model, {name: places})
    total = parameter.to(torch.promote_types(parameter.dtype, torch.float32)).flatten()
    for module, update in updates.items():
        place = formers[f"{module}.weight"]
        if place.shape != update.shape:
            raise ValueError(f"{module} has the shape {[*place.shape]}, and its update {[*update.shape]}")
        total[place.flatten()] += update.to(total).flatten()
    parameter.copy_(total.view(parameter.shape))
