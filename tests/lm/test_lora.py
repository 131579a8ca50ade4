"""A fresh LoRA changes nothing on any base, and the ids that end a generation are complete."""

import pytest
import torch

from afintro.errors import UserError
from afintro.lm.load import eos_ids, load_model
from afintro.lm.lora import Lora, add_lora, describe_lora
from tests.lm.test_load import logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_adapter_weights_are_float32_on_any_base(model_directories, architecture, dtype):
    wrapped = add_lora(load_model(model_directories[architecture], dtype=dtype), Lora(r=4))
    trained = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert len(trained) == 2 * 7 * 3
    assert all("lora_" in name for name in trained)
    frozen = {parameter.dtype for parameter in wrapped.parameters() if not parameter.requires_grad}
    assert frozen == {getattr(torch, dtype)}
    assert not [name for name in trained if "lm_head" in name or "embed" in name]


def test_lora_settings_reach_the_adapter(model_directories):
    lora = Lora(r=4, alpha=12, dropout=0.25, target_modules=["q_proj"])
    wrapped = add_lora(load_model(model_directories["llama"]), lora)
    settings = wrapped.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout, settings.task_type) == (4, 12, 0.25, "CAUSAL_LM")
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 3
    assert all("q_proj" in name for name in trained)
    layer = wrapped.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 3.0  # alpha / r
    assert layer.lora_dropout["default"].p == 0.25


def test_a_fresh_lora_changes_nothing(model_directories, architecture):
    model = load_model(model_directories[architecture])
    before = logits(model)
    assert torch.equal(logits(add_lora(model, Lora(r=2)).eval()), before)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one(model_directories, rank):
    with pytest.raises(UserError) as error:
        add_lora(load_model(model_directories["llama"]), Lora(r=rank))
    assert error.value.where == "model.lora.r"


def test_describe_lora():
    assert describe_lora(Lora(r=2)) == {"r": 2, "alpha": 32.0, "dropout": 0.0, "target_modules": "all-linear"}


# End of sequence.


@pytest.mark.parametrize(("configured", "expected"), [(None, [2]), (2, [2]), (9, [2, 9]), ([9, 7, 2], [2, 7, 9])])
def test_eos_ids_join_tokenizer_and_generation_config(model_directories, tokenizer, configured, expected):
    model = load_model(model_directories["llama"])
    model.generation_config.eos_token_id = configured
    assert eos_ids(model, tokenizer) == expected


def test_eos_ids_without_any(model_directories, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "_special_tokens_map", {**tokenizer._special_tokens_map, "eos_token": None})
    assert eos_ids(torch.nn.Linear(1, 1), tokenizer) == []
