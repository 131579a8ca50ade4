"""Captured states of the residual stream are what the next module receives, and no hook stays behind."""

import pytest
import torch

from afintro.lm.capture import capture, embedding_norm, read_states
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import decoder_layers
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora

IDS = torch.arange(40, 60)
BOUNDS = torch.tensor([0, 6, 20], dtype=torch.int32)
LAST = torch.tensor([5, 19])


@pytest.fixture
def model(architecture, copied):
    return copied(architecture, dtype="float64")


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("lora", [False, True])
def test_every_layer_is_what_the_next_module_receives(model, lora):
    layers, norm = decoder_layers(model), model.get_decoder().norm
    received = []
    for module in [*(layer.input_layernorm for layer in layers), norm]:
        module.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    wrapped = add_lora(model, Lora(r=2)) if lora else model
    before = hooks_of(model)
    with torch.no_grad(), capture(wrapped, [-1, 0, 1, 2]) as found:
        assert hooks_of(model) == before + 4
        logits = packed_logits(wrapped, IDS, BOUNDS, LAST)
    assert hooks_of(model) == before
    assert list(found) == [-1, 0, 1, 2]
    assert all(torch.equal(found[stage - 1], stream) for stage, stream in enumerate(received))
    assert found[-1].shape == (1, 20, 32)
    with torch.no_grad():
        assert torch.equal(packed_logits(wrapped, IDS, BOUNDS, LAST), logits)


def test_states_are_the_same_in_packed_rows_and_one_by_one(model, model_directories, architecture, plain_model):
    rows = [IDS[:6].tolist(), IDS[6:].tolist(), IDS[3:4].tolist()]
    packed = read_states(model, rows, [-1, 1])
    alone = read_states(plain_model(model_directories[architecture], torch.float64), rows, [-1, 1])
    assert list(packed) == list(alone) == [-1, 1]
    for layer, states in packed.items():
        assert states.shape == (21, 32)
        torch.testing.assert_close(alone[layer], states, rtol=1e-5, atol=1e-5)  # eager's softmax is float32


def test_the_layers_asked_for_of_the_last_pass(model_directories):
    model = load_model(model_directories["llama"])
    with torch.no_grad(), capture(model, [1]) as found:
        packed_logits(model, IDS, BOUNDS, LAST)
        first = found[1]
        packed_logits(model, IDS + 1, BOUNDS, LAST)
    assert list(found) == [1]
    assert not torch.equal(found[1], first)


def test_hooks_are_gone_after_an_exception(model_directories):
    model = load_model(model_directories["llama"])
    before = hooks_of(model)
    with pytest.raises(RuntimeError, match="inside"), capture(model, [-1, 2]):
        raise RuntimeError("inside")
    with pytest.raises(IndexError), capture(model, [-1, 0, 7]):
        pass
    assert hooks_of(model) == before


def test_the_norm_of_embeddings_counts_gemmas_scaling(model, architecture):
    weight = model.get_input_embeddings().weight.detach()
    chosen = weight[torch.linspace(0, len(weight) - 1, 64).long()]
    scale = 32**0.5 if "gemma" in architecture else 1.0
    assert embedding_norm(model) == pytest.approx(scale * float(chosen.norm(dim=1).mean()), rel=1e-5)
    assert embedding_norm(model, 1000) == pytest.approx(scale * float(weight.norm(dim=1).mean()), rel=1e-5)
    assert hooks_of(model) == 0
