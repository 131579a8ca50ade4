"""An adapter that was trained with another number of tokens than its base has gives the logits of ``AutoPeftModelForCausalLM``."""

import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from afintro.errors import UserError
from afintro.lm.load import load_model, load_tokenizer
from tests.lm.made_adapters import loaded, logits, lora


@pytest.fixture
def grown(bases, tokenizer, tmp_path):
    """Return a function that saves an adapter with its own tokenizer, trained on a base with another number of rows."""

    def save(base, config, rows=271, own=None, **saving):
        directory = shutil.copytree(bases[base], tmp_path / "base")
        tokenizer.save_pretrained(directory)
        model = loaded(directory)
        model.resize_token_embeddings(rows, mean_resizing=False)
        wrapped = get_peft_model(model, config)
        torch.manual_seed(2)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapped.save_pretrained(tmp_path / "adapter", **saving)
        larger = load_tokenizer(str(directory))
        larger.add_tokens([f"<new_{i}>" for i in range((own or rows) - len(larger))])
        larger.save_pretrained(tmp_path / "adapter")
        return wrapped.eval(), str(tmp_path / "adapter")

    return save


@pytest.mark.parametrize("base", ["llama", "tied"])
@pytest.mark.parametrize(
    "config",
    [lora(), lora(modules_to_save=["embed_tokens", "lm_head"]), lora(trainable_token_indices=[3, 264, 270])],
    ids=["lora", "whole ends", "tokens"],
)
def test_a_grown_vocabulary(grown, base, config):
    ids = torch.tensor([[5, 262, 263, 270, 40, 266]])
    wrapped, adapter = grown(base, config, save_embedding_layers=True)
    merged = load_model(adapter)
    torch.testing.assert_close(logits(merged, ids), logits(wrapped, ids), rtol=0, atol=1e-4)
    reference = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    torch.testing.assert_close(logits(merged, ids), logits(reference, ids), rtol=0, atol=1e-4)
    assert merged.config.vocab_size == 271
    assert len(load_tokenizer(adapter)) == 271


def test_a_vocabulary_cut_to_fewer_rows(grown, tmp_path):
    """Many bases have more rows than tokens; some training code drops the rest."""
    wrapped, adapter = grown("llama", lora(), rows=200, own=263, save_embedding_layers=True)
    for words in ("tokenizer of 263", "tokenizer of 263"):  # the adapter's own, then its base's
        with pytest.raises(UserError, match=words):
            load_model(adapter)
        (tmp_path / "adapter" / "tokenizer_config.json").unlink(missing_ok=True)
    words = {f"w{i}": i for i in range(200)}
    few = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w1")
    few.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(load_model(adapter)), logits(wrapped), rtol=0, atol=1e-4)


@pytest.mark.parametrize("lost", ["embed_tokens", "lm_head"])
def test_new_rows_that_the_file_lacks_are_refused(grown, lost, tmp_path):
    _, adapter = grown("llama", lora(), save_embedding_layers=True)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(path).items() if lost not in name}, path)
    with pytest.raises(UserError, match="no weights for 8") as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(grown):
    _, adapter = grown("llama", lora(), rows=263, own=265)
    with pytest.raises(UserError, match="tokenizer of 265") as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"


@pytest.mark.parametrize("role", ["pad_token", "eos_token", "chat_template"])
def test_a_token_beyond_the_rows_is_allowed_where_it_only_pads(grown, role):
    """Training code often adds a token for padding and leaves the embedding alone."""
    wrapped, adapter = grown("llama", lora(), rows=263)
    tokenizer = load_tokenizer(adapter)
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    setattr(tokenizer, role, "<PAD>" if role != "chat_template" else "<PAD>" + tokenizer.chat_template)
    tokenizer.save_pretrained(adapter)
    if role == "pad_token":
        torch.testing.assert_close(logits(load_model(adapter)), logits(wrapped), rtol=0, atol=1e-4)
        return
    with pytest.raises(UserError, match="tokenizer of 264"):
        load_model(adapter)


def test_weights_of_different_vocabularies_are_refused(grown, tmp_path):
    _, adapter = grown("llama", lora(), save_embedding_layers=True)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lm_head" in name)
    save_file({**weights, name: weights[name][:-3].clone()}, path)
    with pytest.raises(UserError, match="268, 271") as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"
