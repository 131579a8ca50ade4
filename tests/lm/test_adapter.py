"""The base of an adapter: the base that the adapter names, beside the adapter, or given in its stead."""

import shutil
from pathlib import Path

import pytest
import torch

from afintro.errors import UserError
from afintro.lm.adapter import find_adapter, on_base
from afintro.lm.load import fingerprint, load_config, load_model, load_tokenizer
from tests.lm.made_adapters import edit_config, loaded, logits, lora, save_adapter

LOADERS = pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config])


@pytest.fixture
def moved(bases, tokenizer, tmp_path):
    """Return an adapter whose base is gone from where it was, and the place of the base now."""
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    tokenizer.save_pretrained(base)
    adapter = save_adapter(loaded(base), lora(), tmp_path / "adapter")
    return adapter, str(base.rename(tmp_path / "moved"))


def test_what_is_found(moved):
    adapter, base = moved
    assert find_adapter(base) is None
    assert find_adapter("no/such") is None
    assert on_base(adapter, None) == adapter
    found = find_adapter(on_base(adapter, base))
    assert (found.name, found.base, found.base_revision) == (adapter, base, None)


@LOADERS
def test_a_missing_base_is_named_with_its_adapter_and_the_remedy(moved, tmp_path, load):
    adapter, _ = moved
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load(adapter)
    assert caught.value.where == f"base '{tmp_path / 'base'}' of adapter {adapter!r}"
    assert "--base" in caught.value.remedy
    assert "model.base" in caught.value.remedy


def test_a_base_that_is_given_replaces_the_base_that_is_named(moved, tokenizer):
    adapter, base = moved
    given = on_base(adapter, base)
    found = logits(load_model(given))
    assert load_config(given).model_type == "llama"
    assert load_tokenizer(given).get_vocab() == tokenizer.get_vocab()
    print_given = fingerprint(given)
    edit_config(adapter, base_model_name_or_path=base)
    torch.testing.assert_close(found, logits(load_model(adapter)), rtol=0, atol=0)
    assert fingerprint(adapter) == print_given


def test_a_base_that_is_given_may_lack_in_the_adapter(moved):
    adapter, base = moved
    edit_config(adapter, base_model_name_or_path=None)
    load_model(on_base(adapter, base))
    with pytest.raises(UserError, match="base_model_name_or_path"):
        load_model(adapter)


def test_a_base_of_the_base(moved, tmp_path):
    """An adapter on an adapter, whose base moved."""
    first, base = moved
    merged = load_model(on_base(first, base))
    second = save_adapter(merged, lora(target_modules=["o_proj"]), tmp_path / "second")
    with pytest.raises(UserError) as caught:
        load_model(on_base(second, first))
    assert caught.value.where == f"base '{tmp_path / 'base'}' of adapter {first!r}", "the adapter whose base is missing"
    found = load_model(on_base(second, on_base(first, base)))
    wanted = save_adapter(load_model(on_base(first, base)), lora(target_modules=["o_proj"]), tmp_path / "again")
    edit_config(wanted, base_model_name_or_path=on_base(first, base))
    torch.testing.assert_close(logits(found), logits(load_model(wanted)), rtol=0, atol=0)


def test_a_base_beside_the_adapter(moved, tmp_path, monkeypatch):
    """A path that begins with a dot means the working directory, as for PEFT, or else the adapter's own."""
    adapter, base = moved
    edit_config(adapter, base_model_name_or_path="../moved")
    expected = logits(load_model(on_base(adapter, base)))
    torch.testing.assert_close(logits(load_model(adapter)), expected, rtol=0, atol=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    edit_config(adapter, base_model_name_or_path="./base.gguf")  # a file
    (Path(adapter) / "base.gguf").touch()
    assert find_adapter(adapter).base == str(Path(adapter) / "base.gguf")
    edit_config(adapter, base_model_name_or_path="../moved")
    shutil.move(tmp_path / "moved", tmp_path / "other")
    with pytest.raises(UserError, match=r"\.\./moved"):
        load_model(adapter)


@LOADERS
def test_a_base_for_what_is_no_adapter_is_refused(moved, load):
    _, base = moved
    with pytest.raises(UserError, match="not an adapter") as caught:
        load(on_base(base, "some/base"))
    assert caught.value.where == f"model {base!r}"


@LOADERS
def test_an_adapter_that_is_its_own_base_is_refused(moved, load):
    adapter, _ = moved
    with pytest.raises(UserError, match="itself") as caught:
        load(on_base(adapter, f"{adapter}/."))
    assert caught.value.where == f"adapter {adapter!r}"
