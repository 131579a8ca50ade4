"""Tiny bases that adapters are put on."""

import pytest
from transformers import GPT2Config, LlamaConfig

from tests.lm.made_adapters import SIZE, save_base


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Directories of a Llama with separate ends, a Llama with tied ends, and a GPT-2, whose matrices are transposed."""
    folder = tmp_path_factory.mktemp("bases")
    llama = {**SIZE, "num_key_value_heads": 2, "initializer_range": 0.2}
    return {
        "llama": save_base(folder / "llama", LlamaConfig(**llama, tie_word_embeddings=False)),
        "tied": save_base(folder / "tied", LlamaConfig(**llama, tie_word_embeddings=True)),
        "gpt2": save_base(folder / "gpt2", GPT2Config(vocab_size=263, n_embd=32, n_layer=2, n_head=4)),
    }
