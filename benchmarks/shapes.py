"""Model shapes and the lengths that go with them, randomly initialised from their configurations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from afintro.lm.load import Lora


@dataclass(frozen=True)
class Lengths:
    """Prompts log-normal around ``prompt`` tokens within ``shortest`` and ``longest``, answers uniform in ``answer``."""

    prompt: int
    shortest: int
    longest: int
    answer: tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """What a benchmark runs on.

    Args:
        config: Makes the configuration.
        dtype: Of the base weights.
        lengths: Of prompts and answers.
        lora: The adapter that every training system gets.
        budget: Real tokens of a packed row of this project.
    """

    config: Callable[[], PretrainedConfig]
    dtype: torch.dtype
    lengths: Lengths
    lora: Lora
    budget: int


FULL = Lengths(620, 150, 1800, (8, 256))
WIDE = Lora(r=128, alpha=256)


def tiny() -> PretrainedConfig:
    """A million parameters, for a CPU."""
    return LlamaConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=1280,
    )  # fmt: skip


def mistral7b() -> PretrainedConfig:
    """Mistral-7B v0.3."""
    return MistralConfig(vocab_size=32768, sliding_window=None, head_dim=128, num_key_value_heads=8)


def llama8b() -> PretrainedConfig:
    """Llama-3.1-8B."""
    return LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=131072,
    )  # fmt: skip


def qwen32b() -> PretrainedConfig:
    """Qwen2.5-32B; the architecture has biases on queries, keys and values."""
    return Qwen2Config(
        hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
        num_key_value_heads=8, vocab_size=152064, max_position_embeddings=131072,
    )  # fmt: skip


SHAPES = {
    "tiny": Shape(tiny, torch.float32, Lengths(62, 15, 180, (2, 26)), Lora(r=16, alpha=32), 1280),
    "mistral7b": Shape(mistral7b, torch.bfloat16, FULL, WIDE, 16384),
    "llama8b": Shape(llama8b, torch.bfloat16, FULL, WIDE, 16384),
    "qwen32b": Shape(qwen32b, torch.bfloat16, FULL, WIDE, 8192),
}


def device_name() -> str:
    """Where everything runs: the accelerator where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def random_model(shape: Shape, attention: str, seed: int = 0) -> PreTrainedModel:
    """The same random weights on every call, drawn where they stay: 7 billion numbers take minutes on a CPU.

    Leaves the generator seeded, so that an adapter put on next is the same for every system too.
    """
    torch.manual_seed(seed)
    make: Any = AutoModelForCausalLM.from_config
    with torch.device(device_name()):
        model = make(shape.config(), dtype=shape.dtype, attn_implementation=attention)
    assert isinstance(model, PreTrainedModel)
    torch.manual_seed(seed + 1)
    model.generation_config.eos_token_id = None  # a random model never means to stop
    return model.eval()


def parameter_count(model: torch.nn.Module) -> int:
    """Weights of the base, the adapter not counted."""
    return sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers * heads * width) * dtype.itemsize


def training_flops(parameters: int, tokens: int) -> int:
    """4N a token: forward, and backward to the activations. Frozen weights need no gradient; attention is not counted."""
    return 4 * parameters * tokens
