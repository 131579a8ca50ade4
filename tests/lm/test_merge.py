"""A merged adapter gives the logits of its :class:`PeftModel`, whatever kind of adapter it is, or is refused by name."""

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    OSFConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, Mxfp4Config, Qwen2MoeConfig
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from afintro.errors import UserError
from afintro.lm.adapter import find_adapter
from afintro.lm.load import load_model
from afintro.lm.merge import merged
from tests.lm.made_adapters import SIZE, check, edit_config, loaded, logits, lora, save_adapter, save_base

TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS = {
    "dora": lora(use_dora=True),
    "rslora": lora(use_rslora=True),
    "patterns": lora(rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6}, alpha_pattern={"v_proj": 3}),
    "one layer": lora(layers_to_transform=[1]),
    "biases": lora(bias="all"),
    "a parameter": lora(target_modules=["q_proj"], target_parameters=["mlp.down_proj.weight"]),
    "whole modules": lora(modules_to_save=["lm_head", "input_layernorm"]),
    "adalora": AdaLoraConfig(target_modules=TARGETS, total_step=10, init_lora_weights=False, task_type="CAUSAL_LM"),
    "ia3": IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "loha": LoHaConfig(r=4, alpha=16, target_modules=TARGETS, init_weights=False, task_type="CAUSAL_LM"),
    "lokr": LoKrConfig(r=4, target_modules=TARGETS, init_weights=False, task_type="CAUSAL_LM"),
    "oft": OFTConfig(r=0, oft_block_size=8, target_modules=TARGETS, init_weights=False, task_type="CAUSAL_LM"),
    "vera": VeraConfig(r=4, target_modules=["q_proj"], init_weights=False, task_type="CAUSAL_LM"),
}
ENDS = {
    "embedding": lora(target_modules=["embed_tokens", "q_proj"]),
    "head": lora(target_modules=["lm_head", "q_proj"]),
    "both": lora(target_modules=["lm_head", "embed_tokens"]),
    "both, as dora": lora(target_modules=["lm_head", "embed_tokens"], use_dora=True),
    "whole embedding": lora(modules_to_save=["embed_tokens"]),
    "whole head": lora(modules_to_save=["lm_head"]),
    "tokens of the head": lora(trainable_token_indices={"lm_head": [3, 41]}),
}
STAY_TIED = {
    "neither": lora(),
    "tokens": lora(trainable_token_indices=[3, 41]),
    "tied on purpose": lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_logits_of_its_peft_model(bases, tmp_path, kind):
    check(bases["llama"], save_adapter(loaded(bases["llama"]), KINDS[kind], tmp_path / "adapter"))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "shared_expert_gate"]])
def test_a_matrix_with_one_output(tmp_path, targets):
    """The gate of a shared expert: its outputs have no spread within a token."""
    mixture = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
    base = save_base(tmp_path / "base", Qwen2MoeConfig(**SIZE, num_key_value_heads=2, num_experts_per_tok=2, **mixture))
    check(base, save_adapter(loaded(base), lora(target_modules=targets), tmp_path / "adapter"))


def test_transposed_matrices(bases, tmp_path):
    config = lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    check(bases["gpt2"], save_adapter(loaded(bases["gpt2"]), config, tmp_path / "adapter"))


@pytest.mark.parametrize("base", ["llama", "tied"])
@pytest.mark.parametrize("kind", ENDS)
def test_adapters_of_one_end_leave_the_other_alone(bases, tmp_path, kind, base):
    merged = check(bases[base], save_adapter(loaded(bases[base]), ENDS[kind], tmp_path / "adapter"))
    assert not merged.config.tie_word_embeddings


@pytest.mark.parametrize("kind", STAY_TIED)
def test_ends_that_stay_equal_stay_tied(bases, tmp_path, kind):
    merged = check(bases["tied"], save_adapter(loaded(bases["tied"]), STAY_TIED[kind], tmp_path / "adapter"))
    assert merged.config.tie_word_embeddings
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_half_precision_is_rounded_once(bases, tmp_path, dtype, limit):
    """The weights are those of a merge in float32, rounded at the end, and all have the dtype of the base."""
    adapter = save_adapter(
        loaded(bases["tied"]), lora(use_dora=True, modules_to_save=["lm_head"]), tmp_path / "adapter"
    )
    merged = load_model(adapter, dtype=dtype)
    wanted = getattr(torch, dtype)
    exact = PeftModel.from_pretrained(loaded(bases["tied"], wanted).float(), adapter).merge_and_unload().state_dict()
    for name, weight in merged.state_dict().items():
        assert weight.dtype == wanted
        torch.testing.assert_close(
            weight, exact[name].to(wanted), rtol=1e-2 if dtype == "bfloat16" else 1e-3, atol=1e-6
        )
    expected = logits(PeftModel.from_pretrained(loaded(bases["tied"], wanted), adapter).eval()).float()
    assert (logits(merged).float() - expected).norm() < limit * expected.norm()


# What cannot be right is refused.


REFUSED = {
    "PROMPT_TUNING": PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "alora_invocation_tokens": lora(alora_invocation_tokens=[45, 46]),
    "no bias": lora(lora_bias=True),
    # PEFT merges these to other logits.
    "other logits": lora(layer_replication=[[0, 2], [1, 2]]),
    "off by": OSFConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_merged_is_refused(bases, tmp_path, word):
    adapter = save_adapter(loaded(bases["llama"]), REFUSED[word], tmp_path / "adapter")
    with pytest.raises(UserError, match=word) as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"
    assert len(str(caught.value).splitlines()) == 2


def test_a_weak_adapter_that_is_lost_is_refused_in_half_precision_too(bases, tmp_path):
    """The logits of the base without the adapter are as near as rounding may bring them; its layers are not."""
    adapter = save_adapter(loaded(bases["llama"]), REFUSED["off by"], tmp_path / "adapter")
    with pytest.raises(UserError, match="a layer is off by"):
        load_model(adapter, dtype="bfloat16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bases, tmp_path, value):
    adapter = save_adapter(loaded(bases["llama"]), lora(), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    weights[next(iter(weights))][:] = value
    save_file(weights, path)
    with pytest.raises(UserError, match="no numbers") as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"


def test_a_base_whose_padding_is_zero(bases, tmp_path):
    """The logits of such a token have no spread that a difference could be measured in."""
    model = loaded(bases["llama"])
    model.get_input_embeddings().weight.data[0] = 0.0
    model.save_pretrained(tmp_path / "base")
    check(tmp_path / "base", save_adapter(loaded(tmp_path / "base"), lora(), tmp_path / "adapter"))


@pytest.mark.parametrize("dequantized", [True, False])
def test_a_base_whose_quantizer_cannot_go_back_is_refused_unless_it_did_while_loading(bases, tmp_path, dequantized):
    quantizer = Mxfp4HfQuantizer(Mxfp4Config(dequantize=dequantized))
    model = load_model(bases["llama"])
    model.hf_quantizer = quantizer
    adapter = find_adapter(save_adapter(loaded(bases["llama"]), lora(), tmp_path / "adapter"))
    if dequantized:
        expected = logits(PeftModel.from_pretrained(loaded(bases["llama"]), adapter.name).eval())
        torch.testing.assert_close(logits(merged(model, adapter)), expected, rtol=0, atol=1e-4)
        return
    with pytest.raises(UserError, match="mxfp4") as caught:
        merged(model, adapter)
    assert caught.value.where == f"base {bases['llama']!r} of {adapter.place}"


@pytest.mark.long
@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_dequantized(tmp_path, bits):
    """Merged into a quantized matrix, the sum would be rounded to as few bits again."""
    base = save_base(tmp_path / "base", LlamaConfig(**SIZE | {"hidden_size": 64}))
    adapter = save_adapter(loaded(base), lora(), tmp_path / "adapter")
    quantization = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantized = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, dtype=torch.float32)
    quantized.save_pretrained(tmp_path / "quantized")
    edit_config(adapter, base_model_name_or_path=str(tmp_path / "quantized"))
    expected = logits(PeftModel.from_pretrained(loaded(tmp_path / "quantized"), adapter).eval())
    model = load_model(adapter)
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
    # The library multiplies in other precisions than float32; the adapter does much more.
    assert (logits(model) - expected).norm() < 0.06 * expected.norm()
    assert (expected - logits(loaded(tmp_path / "quantized"))).norm() > 0.5 * expected.norm()


def test_an_adapter_of_another_task_is_refused(bases, tmp_path):
    adapter = save_adapter(loaded(bases["llama"]), lora(), tmp_path / "adapter")
    edit_config(tmp_path / "adapter", task_type="SEQ_CLS")
    with pytest.raises(UserError, match="SEQ_CLS") as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"


def test_weights_that_the_config_does_not_name_are_refused_by_name(bases, tmp_path):
    adapter = save_adapter(loaded(bases["llama"]), lora(), tmp_path / "adapter")
    edit_config(tmp_path / "adapter", target_modules=["q_proj"])
    first = r"base_model\.model\.model\.layers\.0\.mlp\.down_proj\.lora_A\.weight"
    with pytest.raises(UserError, match=f"8 weights.*{first}") as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"


@pytest.mark.parametrize("lost", ["layers.1.mlp.down_proj.lora_B", "lm_head"])
def test_weights_that_the_file_lacks_are_refused_by_name(bases, tmp_path, lost):
    adapter = save_adapter(loaded(bases["llama"]), lora(modules_to_save=["lm_head"]), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(path).items() if lost not in name}, path)
    with pytest.raises(UserError, match=lost) as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"


def test_pickled_weights_are_never_read(bases, tmp_path):
    adapter = save_adapter(loaded(bases["llama"]), lora(), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="pickle") as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"
