"""Four-bit weights below a LoRA: products and gradients close to the plain ones, and no weight that trains changes its name."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from afintro.errors import UserError
from afintro.explainer.module import ExplainerModule
from afintro.explainer.settings import ExplainerSettings
from afintro.lm.forward import packed_logits
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora
from afintro.lm.nf4 import Nf4Linear, quantize_base_nf4

IDS = torch.arange(7, 31)
BOUNDS = torch.tensor([0, 9, 24], dtype=torch.int32)
POSITIONS = torch.tensor([5, 6, 20, 21])
LEVELS = 16


@pytest.mark.long
@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_gradient_are_close(dtype, bias):
    torch.manual_seed(0)
    plain = nn.Linear(128, 96, bias=bias).to(dtype)
    quantized = Nf4Linear(plain)
    runs = []
    for layer in (plain, quantized):
        x = torch.linspace(-1, 1, 3 * 5 * 128).view(3, 5, 128).to(dtype).requires_grad_()
        output = layer(x)
        (output * torch.linspace(-2, 3, 96)).sum().backward()
        runs.append((output.detach().float(), x.grad.float()))
        assert output.dtype == dtype
        assert output.shape == (3, 5, 96)
    for expected, found in zip(*runs, strict=True):
        assert 0.001 < (found - expected).norm() / expected.norm() < 0.15


@pytest.mark.long
@pytest.mark.usefixtures("bitsandbytes")
def test_a_weight_takes_half_a_byte_and_one_of_16_values_a_block():
    torch.manual_seed(0)
    quantized = Nf4Linear(nn.Linear(128, 64, bias=False))
    assert quantized.packed.numel() * quantized.packed.element_size() == 128 * 64 // 2
    dense = quantized(torch.eye(128)).detach().T.reshape(-1, 64)  # a block is 64 weights
    assert max(len(block.unique()) for block in dense) <= LEVELS


@torch.no_grad()
def rounded(model: nn.Module, quantized: nn.Module) -> nn.Module:
    """Give the layers of ``model`` the values that the four bits of ``quantized`` stand for."""
    adapted = isinstance(model, PeftModel)
    layers = {name if adapted else f"{name}.base_layer": module for name, module in model.named_modules()}
    for name, module in quantized.named_modules():
        if isinstance(module, Nf4Linear):
            products = module(torch.eye(module.in_features))
            layers[name].weight.copy_((products if module.bias is None else products - module.bias).T)
    return model


@pytest.mark.long
@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_a_quantized_base_trains_the_adapter_as_its_rounded_weights_do(model_directories, architecture):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(add_lora(load_model(model_directories[architecture]), Lora(r=4)))
    model, plain = models
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    quantize_base_nf4(model, torch.device("cpu"))
    assert sum(isinstance(module, Nf4Linear) for module in model.modules()) == len(names) / 2
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]
    runs = []
    for network in (model, rounded(plain, model)):
        logits = packed_logits(network, IDS, BOUNDS, POSITIONS)
        F.cross_entropy(logits, IDS[POSITIONS + 1]).backward()
        runs.append((logits.detach(), *(p.grad for name, p in network.named_parameters() if "lora_B" in name)))
    assert len(runs[0]) == len(names) / 2 + 1
    for found, expected in zip(*runs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_quantizing_twice_is_refused():
    with pytest.raises(UserError) as error:
        ExplainerSettings(fp8=True, quantize="nf4")
    assert error.value.where == "model.quantize"
    assert "model.fp8" in str(error.value)


@pytest.mark.long
@pytest.mark.usefixtures("bitsandbytes")
def test_float64_is_refused(model_directories):
    model = add_lora(load_model(model_directories["llama"], dtype="float64"), Lora(r=4))
    with pytest.raises(UserError, match="float64") as error:
        quantize_base_nf4(model, torch.device("cpu"))
    assert error.value.where == "model.quantize"


def test_an_absent_library_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"afintro\[quantize\]") as error:
        ExplainerModule("no/such-model", quantize="nf4")
    assert error.value.where == "model.quantize"


@pytest.mark.long
@pytest.mark.usefixtures("bitsandbytes")
def test_an_adapter_trained_over_four_bits_is_exported_for_the_plain_base(small_model, tmp_path):
    torch.manual_seed(0)
    module = ExplainerModule(str(small_model), quantize="nf4", lora=Lora(r=2))
    module.configure_model()
    model = module.loaded()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(small_model)
    base = rounded(AutoModelForCausalLM.from_pretrained(small_model), model.get_base_model())
    ids = torch.arange(5, 25)[None]
    found, expected = (
        network.eval()(input_ids=ids).logits.detach() for network in (model, PeftModel.from_pretrained(base, tmp_path))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
