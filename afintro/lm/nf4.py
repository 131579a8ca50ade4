"""Keep the frozen matrices below a LoRA in four bits, so that a base four times as large fits the memory of an accelerator."""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from afintro.errors import UserError

SETTING = "model.quantize"


class Nf4Linear(nn.Module):
    """A frozen linear layer in the 4-bit normal float of QLoRA (Dettmers et al. 2023, arXiv:2305.14314), with a scale a block.

    The layer's matrix is dequantized for each product, in the forward and in the backward pass, and only the input gets a
    gradient.

    Args:
        linear: The layer in bfloat16, float16 or float32; its weight is ``[out, in]``.
    """

    packed: Tensor
    scales: Tensor
    code: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        packed, state = library().functional.quantize_4bit(
            linear.weight.detach().contiguous(), quant_type="nf4", compress_statistics=False
        )
        self.shape, self.dtype, self.block = state.shape, state.dtype, state.blocksize
        self.register_buffer("packed", packed, persistent=False)  # two weights a byte
        self.register_buffer("scales", state.absmax, persistent=False)
        self.register_buffer("code", state.code, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., out]`` of ``x [..., in]``."""
        bitsandbytes = library()
        state = bitsandbytes.functional.QuantState(
            self.scales, shape=self.shape, code=self.code, blocksize=self.block, quant_type="nf4", dtype=self.dtype
        )
        output: Tensor = bitsandbytes.matmul_4bit(x, self.packed.T, quant_state=state)
        return output if self.bias is None else output + self.bias


def library() -> Any:
    """Return the library that quantizes.

    Raises:
        UserError: The library is not installed.
    """
    try:
        import bitsandbytes  # an extra, which takes a second to import
    except ImportError as error:
        raise UserError(
            "needs bitsandbytes, which is not installed", where=SETTING, remedy="pip install 'afintro[quantize]'"
        ) from error
    return bitsandbytes


def quantize_base_nf4(model: PeftModel, device: torch.device) -> None:
    """Quantize the frozen matrices below the LoRA layers of ``model`` to four bits.

    Norms, embeddings, the vocabulary matrix and the adapters stay unchanged.

    Args:
        model: A model with LoRA layers.
        device: Device on which the model will run; the matrices are moved there one by one.

    Raises:
        UserError: The library is not installed, or the weights are in float64, which four bits cannot stand for.
    """
    library()
    if model.dtype == torch.float64:
        raise UserError("cannot stand for float64 weights", where=SETTING, remedy="set model.dtype: auto")
    for module in model.modules():
        if isinstance(module, LoraLinear) and isinstance(module.base_layer, nn.Linear):
            module.base_layer = Nf4Linear(module.base_layer.to(device))
