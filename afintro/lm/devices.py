"""Choose the device a model runs on, and move models there."""

import os

import torch
from transformers import PreTrainedModel

from afintro.lm.compiled import compile_layers


def default_device() -> str:
    """``cuda`` where there is one; each process of a machine has its own."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def on_device(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """The model where it will generate; its layers compiled on an accelerator, for a seventh more speed after ten seconds."""
    moved = model.to(device)  # type: ignore[arg-type]
    if torch.device(device).type == "cuda":
        compile_layers(moved)
    return moved
