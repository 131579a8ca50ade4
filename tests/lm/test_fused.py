"""Fused LoRA computes what PEFT computes, and eight bits compute nearly the same."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from afintro.errors import UserError
from afintro.lm.attention import NAME as PACKED
from afintro.lm.forward import packed_logits
from afintro.lm.fused import Fp8Linear, FusedLora, fuse_lora, quantize, quantize_base
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora

IDS = torch.arange(7, 31)
BOUNDS = torch.tensor([0, 9, 24], dtype=torch.int32)
POSITIONS = torch.tensor([5, 6, 20, 21])


def stock(model, dropout=0.0):
    """Add the LoRA of PEFT with updates that are not zero."""
    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(1)
    wrapped = get_peft_model(model, settings)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return wrapped


def step(model, seed=None):
    """Return the logits and the gradients of all adapters."""
    if seed is not None:
        torch.manual_seed(seed)
    logits = packed_logits(model, IDS, BOUNDS, POSITIONS)
    F.cross_entropy(logits.double(), IDS[POSITIONS + 1]).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    return logits.detach(), gradients


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equals_peft(model_directories, architecture, dropout):
    runs = []
    for fused in (False, True):
        model = stock(load_model(model_directories[architecture], dtype="float64"), dropout).train()
        if fused:
            fuse_lora(model)
            assert sum(type(module) is FusedLora for module in model.modules()) == 21
        runs.append(step(model, seed=3))
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=0, atol=1e-12)
    for name, gradient in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], gradient, rtol=0, atol=1e-12)


def test_names_switch_and_merging_stay(model_directories):
    model = stock(load_model(model_directories["llama"], dtype="float64"))
    names, bare = sorted(get_peft_model_state_dict(model)), load_model(model_directories["llama"], dtype="float64")
    fuse_lora(model)
    assert sorted(get_peft_model_state_dict(model)) == names
    with torch.no_grad():
        trained = packed_logits(model, IDS, BOUNDS, POSITIONS)
        with model.disable_adapter():
            off = packed_logits(model, IDS, BOUNDS, POSITIONS)
        assert torch.equal(off, packed_logits(bare, IDS, BOUNDS, POSITIONS))
        assert (trained - off).abs().max() > 1e-3
        merged = packed_logits(model.merge_and_unload(), IDS, BOUNDS, POSITIONS)
    torch.testing.assert_close(merged, trained, rtol=0, atol=1e-12)


def test_the_input_of_a_layer_is_left_alone():
    """The update is added in place to the layer's product, never to its input."""
    linear = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    wrapped = get_peft_model(nn.Sequential(linear), LoraConfig(r=2, target_modules=["0"]))
    fuse_lora(wrapped)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    before = x.clone()
    assert wrapped(x).shape == (2, 3, 4)
    assert torch.equal(x, before)


def test_adapters_of_float32_compute_in_the_dtype_of_a_bfloat16_base(model_directories):
    model = add_lora(load_model(model_directories["llama"], dtype="bfloat16"), Lora(r=4))
    seen = []
    plain = F.linear

    def linear(x, weight, bias=None):
        seen.append((x.dtype, weight.dtype))
        return plain(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("afintro.lm.fused.F.linear", linear)
        logits = packed_logits(model, IDS, BOUNDS, POSITIONS)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


class TestEightBits:
    def test_quantize(self):
        rows = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e4, 3.0, -1e4]])
        found, scale = quantize(rows)
        assert found.dtype == torch.float8_e4m3fn
        assert scale.shape == (3, 1)
        torch.testing.assert_close(scale[:, 0], torch.tensor([2.0, 1e-12, 1e4]) / 448)
        assert found.float().abs().max() == 448
        torch.testing.assert_close(found.float() * scale, rows, rtol=0.07, atol=25)
        assert torch.equal(found[1].float(), torch.zeros(3))

    def test_product_and_gradient(self):
        torch.manual_seed(0)
        linear = nn.Linear(64, 48, dtype=torch.bfloat16).requires_grad_(False)
        x = torch.randn(2, 16, 64).bfloat16().requires_grad_()
        upstream = torch.randn(2, 16, 48).bfloat16()
        runs = []
        for layer in (linear, Fp8Linear(linear)):
            output = layer(x)
            (gradient,) = torch.autograd.grad(output, x, upstream)
            runs.append((output.float(), gradient.float()))
        for plain, eight in zip(*runs, strict=True):
            assert plain.shape == eight.shape
            assert 0.001 < (plain - eight).norm() / plain.norm() < 0.06

    def test_a_model_trains_nearly_the_same(self):
        config = LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, vocab_size=64
        )
        runs = []
        for eight in (False, True):
            torch.manual_seed(0)
            base = LlamaForCausalLM(config).to(torch.bfloat16)
            base.set_attn_implementation(PACKED)
            model = add_lora(base, Lora(r=4))
            names = [name for name, _ in model.named_parameters() if "lora" in name]
            if eight:
                quantize_base(model, torch.device("cpu"))
                assert sum(isinstance(module, Fp8Linear) for module in model.modules()) == 21
                assert names == [name for name, _ in model.named_parameters() if "lora" in name]
            logits = packed_logits(model, IDS, BOUNDS, POSITIONS)
            F.cross_entropy(logits.float(), IDS[POSITIONS + 1]).backward()
            runs.append((logits.detach().float(), [p.grad for n, p in model.named_parameters() if "lora_B" in n]))
        difference = (runs[0][0] - runs[1][0]).norm() / runs[0][0].norm()
        assert 0.001 < difference < 0.06
        for plain, eight in zip(runs[0][1], runs[1][1], strict=True):
            assert F.cosine_similarity(plain.flatten(), eight.flatten(), 0) > 0.97

    def test_refused_over_other_weights(self, model_directories):
        model = add_lora(load_model(model_directories["llama"]), Lora(r=4))
        with pytest.raises(UserError, match="float32") as error:
            quantize_base(model, torch.device("cpu"))
        assert error.value.where == "model.fp8"

    def test_refused_by_an_old_accelerator(self, model_directories, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        model = add_lora(load_model(model_directories["llama"], dtype="bfloat16"), Lora(r=4))
        with pytest.raises(UserError, match="accelerator") as error:
            quantize_base(model, torch.device("cuda"))
        assert error.value.where == "model.fp8"
