"""A fresh LoRA changes nothing on any base, and the ids that end a generation are complete."""

import json

import pytest
import torch
from peft import PeftModel

from afintro.errors import UserError
from afintro.explainer.adapters import export_adapter, import_adapter
from afintro.lm.interventions import decoder_layers
from afintro.lm.load import eos_ids, load_model
from afintro.lm.lora import Lora, add_lora, describe_lora
from benchmarks.architectures.checks import Case, close, tiny, together
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


def names_of(model, lora):
    """Return the names of the adapted layers or parameters."""
    wrapped = add_lora(model, lora)
    return {name.split(".lora_")[0] for name, p in wrapped.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["gemma3", "mistral3", "qwen3_vl", "phi4_multimodal", "gemma4"])
def test_adapters_are_on_the_language_model_of_a_wrapper_alone(name):
    for targets in ("all-linear", ["all-linear", "embed_tokens"], ["o_proj", "down_proj"]):
        model = tiny(name)
        layers = {f"base_model.model.{key}" for key, _ in model.named_modules()}
        inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
        inside.add(id(model.get_input_embeddings()))
        allowed = {f"base_model.model.{key}" for key, module in model.named_modules() if id(module) in inside}
        found = names_of(model, Lora(r=2, target_modules=targets))
        assert found
        assert found <= allowed < layers


@pytest.mark.parametrize("name", ["qwen2_moe", "llama4_text", "jetmoe", "hunyuan_v1_moe", "longcat_flash", "afmoe"])
def test_routers_are_not_adapted_and_experts_are_named_in_the_log(name, caplog):
    found = names_of(tiny(name), Lora(r=2))
    assert found
    assert not [layer for layer in found if {"router", "gate", "shared_expert_gate"} & set(layer.split("."))]
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("afintro")]
    assert "target_parameters" in line


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe", "mixtral"])
def test_experts_are_adapted_where_asked(name, tmp_path, caplog):
    """The export is loaded by plain PEFT with the logits of the trained model, and by import and merging."""
    lora = Lora(r=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    case = Case(name)
    before = together(case.model)
    model = add_lora(case.model, lora)
    assert not [record for record in caplog.records if record.name.startswith("afintro")]
    experts = [key for key, p in model.named_parameters() if p.requires_grad and ".experts." in key]
    assert len(experts) == 2 * 2 * 3
    drawn = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=drawn)
    said = together(model.eval())
    assert (said - before).abs().max() > 0.1 * before.std()
    export_adapter(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_parameters"]
    stock = PeftModel.from_pretrained(Case(name).plain, tmp_path / "adapter").eval()
    assert close(case.alone(stock), said)
    again = add_lora(Case(name).model, lora).eval()
    import_adapter(again, tmp_path / "adapter")
    assert close(together(again), said)
    assert describe_lora(lora)["target_parameters"] == lora.target_parameters


@pytest.mark.parametrize(
    ("lora", "where", "word"),
    [
        (Lora(target_modules=["query"]), "model.lora.target_modules", "query"),
        (Lora(target_parameters=["experts.up"]), "model.lora.target_parameters", "experts.up"),
        (Lora(target_parameters=["experts.down_proj"], dropout=0.1), "model.lora.target_parameters", "dropout"),
    ],
)
def test_targets_that_cannot_be_adapted(lora, where, word):
    with pytest.raises(UserError, match=word) as error:
        add_lora(tiny("mixtral"), lora)
    assert error.value.where == where


@pytest.mark.parametrize("name", ["mamba", "bamba", "falcon_h1"])
def test_weights_that_kernels_of_state_spaces_take_are_not_adapted(name):
    found = names_of(tiny(name), Lora(r=2))
    assert [layer for layer in found if layer.endswith("in_proj")]
    assert not [layer for layer in found if layer.endswith(("out_proj", "dt_proj"))]


# End of sequence.


@pytest.mark.parametrize(("configured", "expected"), [(None, [2]), (2, [2]), (9, [2, 9]), ([9, 7, 2], [2, 7, 9])])
def test_eos_ids_join_tokenizer_and_generation_config(model_directories, tokenizer, configured, expected):
    model = load_model(model_directories["llama"])
    model.generation_config.eos_token_id = configured
    assert eos_ids(model, tokenizer) == expected


def test_eos_ids_without_any(model_directories, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "_special_tokens_map", {**tokenizer._special_tokens_map, "eos_token": None})
    assert eos_ids(torch.nn.Linear(1, 1), tokenizer) == []
