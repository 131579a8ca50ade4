"""Steer, then remove: one packed pass with detached keys and values equals a cache that was made without gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from afintro.lm.forward import packed_logits
from afintro.lm.interventions import Intervention, intervene
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora

CONTEXT = list(range(7, 20))
QUESTION = [40, 41, 42, 43]
ANSWER = 99
OTHER = [50, 51, 52, 53, 54, 55]
IDS = torch.tensor([*OTHER, *CONTEXT, *QUESTION])
BOUNDS = torch.tensor([0, 6, 23], dtype=torch.int32)
HERE = torch.arange(6, 19)  # the context within the row
DETACHED = torch.zeros(23, dtype=torch.bool).index_fill(0, HERE, True)
VECTOR = torch.linspace(-2, 2, 32, dtype=torch.float64)


def trained(directory):
    torch.manual_seed(1)
    model = add_lora(load_model(directory, dtype="float64"), Lora(r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.double().train()


def steering(positions):
    return [Intervention(layer, "add", positions, VECTOR.expand(len(positions), -1)) for layer in (0, 1)]


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    return found


def in_one_pass(model, detached):
    logits = packed_logits(model, IDS, BOUNDS, torch.tensor([22]), steering(HERE), detached=detached)
    F.cross_entropy(logits, torch.tensor([ANSWER])).backward()
    return logits.detach(), gradients(model)


def with_a_cache(model, gradient, attention):
    """Return logits and gradients of the original method: read the context steered, keep its keys and values, then the question."""
    ids = torch.tensor([[*CONTEXT, *QUESTION]])
    model.get_base_model().set_attn_implementation(attention)
    with intervene(model, steering(torch.arange(len(CONTEXT)))), torch.set_grad_enabled(gradient):
        cache = model(input_ids=ids[:, : len(CONTEXT)], use_cache=True).past_key_values
    logits = model(input_ids=ids[:, len(CONTEXT) :], past_key_values=cache, use_cache=True).logits[:, -1]
    F.cross_entropy(logits, torch.tensor([ANSWER])).backward()
    return logits.detach(), gradients(model)


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "full gradient"])
def test_equals_a_cache(model_directories, architecture, stopped):
    # transformers' sdpa does no soft-capping, and its eager attention takes the softmax in float32.
    attention, tolerance = ("eager", 1e-4) if architecture == "gemma2" else ("sdpa", 1e-9)
    expected_logits, expected = with_a_cache(trained(model_directories[architecture]), not stopped, attention)
    logits, found = in_one_pass(trained(model_directories[architecture]), DETACHED if stopped else None)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=tolerance)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance)


def test_what_is_detached_changes_the_gradient_alone(model_directories, architecture):
    model = trained(model_directories[architecture])
    stopped, full = in_one_pass(model, DETACHED), in_one_pass(model, None)
    assert torch.equal(stopped[0], full[0])
    different = [name for name in full[1] if (stopped[1][name] - full[1][name]).abs().max() > 1e-6]
    assert len(different) > len(full[1]) / 2


def test_no_gradient_reaches_what_only_the_context_read(model_directories):
    """The vectors that steer the context get no gradient."""
    model = trained(model_directories["llama"])
    vectors = VECTOR.expand(len(HERE), -1).clone().requires_grad_()
    for detached, reached in ((DETACHED, False), (None, True)):
        changes = [Intervention(1, "add", HERE, vectors)]
        logits = packed_logits(model, IDS, BOUNDS, torch.tensor([22]), changes, detached=detached)
        (gradient,) = torch.autograd.grad(logits.sum(), vectors, allow_unused=True)
        assert (gradient is not None and bool(gradient.abs().max() > 0)) == reached


def test_refused_where_keys_cannot_be_reached(model_directories, plain_model):
    with pytest.raises(ValueError, match="gradients"):
        packed_logits(
            plain_model(model_directories["llama"]), IDS, BOUNDS, torch.tensor([22]), detached=DETACHED
        )  # fmt: skip
