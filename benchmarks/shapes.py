"""Model shapes, randomly initialized from their configurations, and the lengths that go with them."""

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

from afintro.lm.lora import Lora


@dataclass(frozen=True)
class Lengths:
    """Distribution of lengths in tokens.

    Args:
        prompt: Median of the log-normal lengths of prompts.
        shortest: Smallest length of a prompt.
        longest: Largest length of a prompt.
        answer: Bounds of the uniform lengths of answers, both included.
    """

    prompt: int
    shortest: int
    longest: int
    answer: tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """The model and lengths of a benchmark.

    Args:
        config: Makes the configuration.
        dtype: Dtype of the base weights.
        lengths: Lengths of prompts and answers.
        lora: The adapter that every training system gets.
        budget: Number of real tokens in a packed row of this project.
    """

    config: Callable[[], PretrainedConfig]
    dtype: torch.dtype
    lengths: Lengths
    lora: Lora
    budget: int


FULL = Lengths(620, 150, 1800, (8, 256))
WIDE = Lora(r=128, alpha=256)


def tiny() -> PretrainedConfig:
    """Make a configuration of a million parameters, for a CPU."""
    return LlamaConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=1280,
    )  # fmt: skip


def mistral7b() -> PretrainedConfig:
    """Make the configuration of Mistral-7B v0.3."""
    return MistralConfig(vocab_size=32768, sliding_window=None, head_dim=128, num_key_value_heads=8)


def llama8b() -> PretrainedConfig:
    """Make the configuration of Llama-3.1-8B."""
    return LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=131072,
    )  # fmt: skip


def qwen32b() -> PretrainedConfig:
    """Make the configuration of Qwen2.5-32B, whose queries, keys and values have biases."""
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
    """Return the device that everything runs on: the accelerator if the machine has one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def random_model(shape: Shape, attention: str, seed: int = 0) -> PreTrainedModel:
    """Make a model with the same random weights on every call.

    Weights are drawn on the device, because 7 billion numbers take minutes on a CPU. The generator is left seeded, so that
    an adapter that is added next is the same for every system too.

    Args:
        shape: Shape of the model.
        attention: Name of the attention implementation.
        seed: Seed of the weights.
    """
    torch.manual_seed(seed)
    make: Any = AutoModelForCausalLM.from_config
    with torch.device(device_name()):
        model = make(shape.config(), dtype=shape.dtype, attn_implementation=attention)
    assert isinstance(model, PreTrainedModel)
    torch.manual_seed(seed + 1)
    model.generation_config.eos_token_id = None  # a random model never stops on purpose
    return model.eval()


def parameter_count(model: torch.nn.Module) -> int:
    """Count the weights of the base without the adapter."""
    return sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Count the bytes of keys and values of one token in all layers."""
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers * heads * width) * dtype.itemsize


def training_flops(parameters: int, tokens: int) -> int:
    """Count 4N operations a token: forward, and backward to the activations. Frozen weights and attention are left out."""
    return 4 * parameters * tokens
