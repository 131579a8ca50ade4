"""LoRA layers without extra copies, and frozen weights in eight bits.

Both change how PEFT's layers compute, not what they hold: names, checkpoints and ``disable_adapter`` stay as they are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from afintro.errors import UserError

FP8 = torch.float8_e4m3fn


class FusedLora(LoraLinear):
    """PEFT's LoRA layer with another forward pass; never made, only put on layers that PEFT made."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        flat = x.flatten(0, -2)
        result: Tensor = self.base_layer(flat)
        for name in () if self.disable_adapters or self.merged else self.active_adapters:
            result = self._plus_update(result, flat, name)
        return result.view(*x.shape[:-1], result.shape[-1])

    def _plus_update(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        low = F.linear(self.lora_dropout[name](x), down.to(x.dtype))  # type: ignore[arg-type]
        scaled = (up * self.scaling[name]).to(low.dtype)
        if torch.compiler.is_compiling():
            # The compiler adds where the sum is read next; a product that adds would first copy ``result``.
            return result + F.linear(low, scaled)
        return result.addmm_(low.to(result.dtype), scaled.T.to(result.dtype))


def fuse_lora(model: PeftModel) -> None:
    """Let every LoRA layer of ``model`` add its update in place, within the product that makes it.

    PEFT casts the input to the adapter's dtype, scales the update and adds it: a pass over the activations each. Here the
    adapter's weights (float32) are cast to the dtype of the activations and scaled, as they are smaller.
    """
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = FusedLora  # compiled layers share code by class; a function of its own each would not


class Fp8Linear(nn.Module):
    """A frozen linear layer in ``float8_e4m3fn``, one scale an output channel, and one a token for what it is given.

    The backward pass needs the weights by input channel: they are kept both ways, which is as much memory as bfloat16.

    Args:
        linear: The layer in bfloat16; its weight ``[out, in]``, both multiples of 16.
    """

    weight: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        weight, scale = quantise(linear.weight.detach())
        transposed, transposed_scale = quantise(linear.weight.detach().T.contiguous())
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("transposed", transposed, persistent=False)
        self.register_buffer("transposed_scale", transposed_scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` in bfloat16."""
        product = _Fp8Product.apply(
            x.flatten(0, -2).to(torch.bfloat16), self.weight, self.scale, self.transposed, self.transposed_scale
        )
        output = product.view(*x.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[n, m]`` to eight bits and a float32 scale each ``[n, 1]``, so that ``rows`` is about their product."""
    # 448 is the largest number of the format; written out, as torch.compile takes a global for a variable.
    scale = rows.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 448.0
    return (rows.float() / scale).clamp(-448.0, 448.0).to(FP8), scale


class _Fp8Product(torch.autograd.Function):
    """``x [T, in]`` times the transpose of a frozen weight; the gradient goes to ``x`` alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, transposed: Tensor, transposed_scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(transposed, transposed_scale)
        return _scaled_product(x, weight, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        transposed, transposed_scale = ctx.saved_tensors
        return _scaled_product(gradient, transposed, transposed_scale), None, None, None, None


def _scaled_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    rows, row_scale = quantise(x)
    return torch._scaled_mm(rows, weight.T, row_scale, scale.T, out_dtype=torch.bfloat16, use_fast_accum=True)


def quantise_base(model: PeftModel, device: torch.device) -> None:
    """Put the frozen matrices below the LoRA layers of ``model`` into eight bits.

    Norms, embeddings, the vocabulary matrix and the adapters stay as they are. Source: per-token and per-channel scales
    as in Xiao et al. 2023 (SmoothQuant, arXiv:2211.10438), the format of Micikevicius et al. 2022 (arXiv:2209.05433).

    Args:
        model: With LoRA layers over bfloat16 weights.
        device: Where it will run; the matrices are put there one by one.

    Raises:
        UserError: A device that has no products of eight bits, or weights of another dtype.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError("the accelerator has no 8-bit products", where="model.fp8", remedy="leave it out")
    if model.dtype != torch.bfloat16:
        raise UserError(f"the base is {model.dtype}", where="model.fp8", remedy="set model.dtype: bfloat16")
    for module in model.modules():
        if isinstance(module, LoraLinear) and isinstance(module.base_layer, nn.Linear):
            module.base_layer = Fp8Linear(module.base_layer.to(device))
