"""Compile decoder layers, and recompute them in the backward pass, in a way that leaves hooks alive."""

import torch
from torch import nn
from transformers import PreTrainedModel

from afintro.errors import UserError
from afintro.lm.interventions import decoder_layers


def compile_layers(model: nn.Module) -> None:
    """Compile the forward of every decoder layer, for sequences of any length.

    The function compiles ``forward`` and not the module, so that the hooks of interventions and of gradient checkpointing
    run around it, uncompiled, and can come and go. (Compiling the module would freeze the hooks that it has at that time:
    ``torch._dynamo.config.skip_nnmodule_hook_guards``.)
    """
    for layer in decoder_layers(model):
        layer.forward = torch.compile(layer.forward, dynamic=True)


def checkpoint_layers(model: PreTrainedModel, share: float) -> None:
    """Recompute the activations of a share of the decoder layers, evenly spread, in the backward pass.

    Each such layer saves the memory of its activations and costs its forward pass once more (Chen et al. 2016,
    arXiv:1604.06174).

    Args:
        model: The model, whose layers are changed.
        share: Share of the layers, from 0 to 1.

    Raises:
        UserError: The share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise UserError(
            f"must be between 0 and 1, and is {share}",
            where="model.gradient_checkpointing",
            remedy="use a share between 0 and 1",
        )
    if share == 0:
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    for index, layer in enumerate(decoder_layers(model)):
        layer.gradient_checkpointing = int((index + 1) * share) > int(index * share)  # type: ignore[assignment]
