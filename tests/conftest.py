"""Tiny random models of five architectures, made from configuration alone, and a byte-level tokenizer. No network."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from afintro.organisms.toy import ToySettings, make_tokenizer

WINDOW = 8  # sliding window in tokens, shorter than most test sequences
SIZE = {
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen3": {"head_dim": 16},
    # query_pre_attn_scalar differs from head_dim, so the default scaling would be wrong; the low softcap bites.
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0, **ALTERNATING},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 24, **ALTERNATING},
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """263 tokens: seven special ones (pad 0, bos 1, eos 2, slot 3, system 4, user 5, assistant 6) and the 256 bytes."""
    return make_tokenizer(ToySettings(vocabulary=263, context=512), [])


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """A saved model of every architecture, with the tokenizer. Weights are large, so that arg-max margins are wide."""
    directories = {}
    for name, settings in ARCHITECTURES.items():
        directory = tmp_path_factory.mktemp("models") / name
        ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")}
        config = AutoConfig.for_model(
            name,
            **SIZE,
            **settings,
            **ids,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():  # norm weights too, which start as constants
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        directories[name] = str(directory)
    return directories


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def plain_model() -> Callable[[str | Path, torch.dtype], PreTrainedModel]:
    """Loads a directory as anyone would, with transformers' own attention: the reference for ours."""

    def load(directory: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        # sdpa is exact in float64 (eager's softmax is float32), but does not do Gemma 2's softcap.
        attention = "eager" if "gemma2" in str(directory) else "sdpa"
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention).eval()

    return load
