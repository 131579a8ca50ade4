"""Compute LoRA layers without extra copies, and keep frozen weights in eight bits.

Both change how the layers of PEFT compute and not what they hold: names, checkpoints and ``disable_adapter`` stay the same.
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
    """The LoRA layer of PEFT with another forward pass; it is never constructed, only set as the class of PEFT's layers."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``[..., out]`` of ``x [..., in]``."""
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
            # The compiler fuses this sum into the next operation; ``addmm_`` would first copy ``result``.
            return result + F.linear(low, scaled)
        return result.addmm_(low.to(result.dtype), scaled.T.to(result.dtype))


def fuse_lora(model: PeftModel) -> None:
    """Let every LoRA layer of ``model`` add its update in place, within the matrix product that computes the update.

    PEFT casts the input to the adapter's dtype, scales the update and adds it: three passes over the activations. Here the
    adapter's weights (float32), which are smaller, are scaled and cast to the dtype of the activations.
    """
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = FusedLora  # compiled layers of one class share their code


class Fp8Linear(nn.Module):
    """A frozen linear layer in ``float8_e4m3fn``, with one scale an output channel, and one scale a token of its input.

    The backward pass needs the weights by input channel. Both layouts are kept, which takes as much memory as bfloat16.

    Args:
        linear: The layer in bfloat16; its weight is ``[out, in]``, both multiples of 16.
    """

    weight: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        weight, scale = quantize(linear.weight.detach())
        transposed, transposed_scale = quantize(linear.weight.detach().T.contiguous())
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("transposed", transposed, persistent=False)
        self.register_buffer("transposed_scale", transposed_scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., out]`` in bfloat16 of ``x [..., in]``."""
        product = _Fp8Product.apply(
            x.flatten(0, -2).to(torch.bfloat16), self.weight, self.scale, self.transposed, self.transposed_scale
        )
        output = product.view(*x.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows to eight bits with one scale a row; their product is close to ``rows``.

    Args:
        rows: ``[n, m]`` float.

    Returns:
        ``[n, m]`` in ``float8_e4m3fn``, and the scales ``[n, 1]`` float32.
    """
    # 448 is the largest number of the format. It is written out because torch.compile treats a global as a variable.
    scale = rows.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 448.0
    return (rows.float() / scale).clamp(-448.0, 448.0).to(FP8), scale


class _Fp8Product(torch.autograd.Function):
    """Multiply ``x [T, in]`` by the transpose of a frozen weight; only ``x`` gets a gradient."""

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
    rows, row_scale = quantize(x)
    return torch._scaled_mm(rows, weight.T, row_scale, scale.T, out_dtype=torch.bfloat16, use_fast_accum=True)


def quantize_base(model: PeftModel, device: torch.device) -> None:
    """Quantize the frozen matrices below the LoRA layers of ``model`` to eight bits.

    Norms, embeddings, the vocabulary matrix and the adapters stay unchanged. Sources: per-token and per-channel scales as in
    Xiao et al. 2023 (SmoothQuant, arXiv:2211.10438), the format of Micikevicius et al. 2022 (arXiv:2209.05433).

    Args:
        model: A model with LoRA layers over bfloat16 weights.
        device: Device on which the model will run; the matrices are moved there one by one.

    Raises:
        UserError: The device cannot multiply in eight bits, or the weights have another dtype.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(
            "needs an accelerator that multiplies in 8 bits", where="model.fp8", remedy="leave model.fp8 out"
        )
    if model.dtype != torch.bfloat16:
        raise UserError(
            f"needs bfloat16 weights, and they are {model.dtype}", where="model.fp8", remedy="set model.dtype: bfloat16"
        )
    for module in model.modules():
        if isinstance(module, LoraLinear) and isinstance(module.base_layer, nn.Linear):
            module.base_layer = Fp8Linear(module.base_layer.to(device))
