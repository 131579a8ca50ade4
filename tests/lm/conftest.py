"""Tiny bases that adapters are put on, and a model of each architecture."""

from copy import deepcopy

import pytest
from transformers import GPT2Config, LlamaConfig

from afintro.lm.load import load_model
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


@pytest.fixture(scope="session")
def copied(model_directories):
    """Return a function that copies a model which was loaded once: a copy takes a quarter of the time of loading."""
    loaded = {}

    def copied(architecture, **settings):
        key = (architecture, *settings.items())
        if key not in loaded:
            loaded[key] = load_model(model_directories[architecture], **settings)
        return deepcopy(loaded[key])

    return copied


@pytest.fixture
def model(architecture, copied):
    return copied(architecture)
