"""The packed forward pass equals running every sequence on its own, in logits and gradients."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from afintro.data.batch import Example, collate
from afintro.lm.forward import packed_logits, packed_positions
from afintro.lm.interventions import Intervention
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora

# (prompt, answer) lengths: shorter and longer than the sliding window of 8, and an answer of one token.
LENGTHS = [(5, 3), (20, 6), (1, 1), (12, 1)]


def examples(seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = [[torch.randint(7, 263, (n,), generator=generator).tolist() for n in pair] for pair in LENGTHS]
    return [Example(str(i), "", "", "", "", tuple(prompt), tuple(answer)) for i, (prompt, answer) in enumerate(draw)]


def answer_logits(model, example):
    """Return the answer logits of one sequence that runs on its own."""
    return model(torch.tensor([example.prompt_ids + example.answer_ids])).logits[0, len(example.prompt_ids) - 1 : -1]


def pack(sequences):
    bounds = torch.tensor([0, *[len(s) for s in sequences]]).cumsum(0).int()
    return torch.tensor([token for s in sequences for token in s]), bounds


def with_lora(model):
    """Add a LoRA whose update is not zero; it is the same for the same model."""
    wrapped = add_lora(model, Lora(r=4, alpha=8))
    generator = torch.Generator().manual_seed(9)
    for name, parameter in sorted(wrapped.named_parameters()):
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
            assert "lora" in name
    return wrapped


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def packed_loss(model, batch, interventions=()):
    logits = packed_logits(model, batch.input_ids, batch.cu_seqlens, batch.answer_positions, interventions)
    nll = F.cross_entropy(logits, batch.answer_ids, reduction="none")
    return sum(nll[batch.answer_rows == row].mean() for row in range(len(batch))) / len(batch)


def test_packed_positions():
    found = packed_positions(torch.tensor([0, 3, 4, 9], dtype=torch.int32))
    assert found.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert found.dtype == torch.int64


def test_logits_equal_one_by_one(model_directories, architecture, plain_model):
    batch = collate(examples())
    reference = plain_model(model_directories[architecture], torch.float64)
    with torch.no_grad():
        found = packed_logits(
            load_model(model_directories[architecture], dtype="float64"), batch.input_ids, batch.cu_seqlens,
            batch.answer_positions,
        )  # fmt: skip
        expected = torch.cat([answer_logits(reference, example) for example in examples()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_gradients_equal_one_by_one(model_directories, architecture, plain_model, checkpointing):
    base = load_model(model_directories[architecture], dtype="float64")
    model = with_lora(base)
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    model.train()
    runs = []
    base.get_decoder().layers[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    loss = packed_loss(model, collate(examples()))
    loss.backward()
    assert len(runs) == (2 if checkpointing else 1)  # else checkpointing was silently off

    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    reference = get_peft_model(plain_model(model_directories[architecture], torch.float64), settings)
    reference.load_state_dict(model.state_dict())
    losses = [F.cross_entropy(answer_logits(reference, one), torch.tensor(one.answer_ids)) for one in examples()]
    expected_loss = torch.stack(losses).mean()
    expected_loss.backward()

    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-9)
    expected = gradients(reference)
    assert len(expected) == 2 * 7 * 3  # A and B of seven linear layers in three decoder layers
    for name, gradient in gradients(model).items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-9)


def test_gradients_with_interventions_survive_gradient_checkpointing(model_directories, architecture):
    """The recomputation of a layer must see the interventions of the forward pass, although their block has ended."""
    batch = collate(examples())
    found = []
    for checkpointing in (False, True):
        base = load_model(model_directories[architecture], dtype="float64")
        model = with_lora(base).train()
        if checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.enable_input_require_grads()
        vectors = torch.linspace(-2, 2, 64, dtype=torch.float64).view(2, 32).requires_grad_()
        change = [
            Intervention(-1, "replace", torch.tensor([2, 9]), vectors),
            Intervention(1, "add", torch.tensor([3, 20]), vectors * 2),
        ]
        packed_loss(model, batch, change).backward()
        found.append({"vectors": vectors.grad, **gradients(model)})
    assert found[0]["vectors"].abs().min() > 0
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-12)


def test_replacing_embeddings_equals_inputs_embeds_gradient_included(model_directories, architecture, plain_model):
    reference = plain_model(model_directories[architecture], torch.float64)
    ids = torch.arange(7, 27)
    vectors = torch.linspace(-1, 1, 64, dtype=torch.float64).view(2, 32).requires_grad_()
    embeddings = reference.get_input_embeddings()(ids).detach().index_copy(0, torch.tensor([4, 11]), vectors)
    expected = reference(inputs_embeds=embeddings[None]).logits[0]
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), vectors)

    change = Intervention(-1, "replace", torch.tensor([4 + 3, 11 + 3]), vectors)  # three tokens before
    model = load_model(model_directories[architecture], dtype="float64")
    row, bounds = torch.cat([torch.tensor([30, 31, 32]), ids]), torch.tensor([0, 3, 23], dtype=torch.int32)
    found = packed_logits(model, row, bounds, torch.arange(3, 23), [change])
    (gradient,) = torch.autograd.grad(found.square().sum(), vectors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-9 * gradient.abs().max().item())


def test_no_token_sees_another_sequence(model_directories, architecture):
    model = load_model(model_directories[architecture], dtype="float64")
    sequences = [list(example.prompt_ids + example.answer_ids) for example in examples()]
    row, bounds = pack(sequences)
    for changed in range(len(sequences)):
        others = torch.tensor([p for p in range(len(row)) if not bounds[changed] <= p < bounds[changed + 1]])
        here, different = slice(bounds[changed], bounds[changed + 1]), row.clone()
        different[here] = (row[here] + 43) % 256 + 7
        with torch.no_grad():
            before = packed_logits(model, row, bounds, others)
            after = packed_logits(model, different, bounds, others)
        assert torch.equal(before, after)


def test_neighbors_of_another_length_change_nothing(model_directories, architecture):
    model = load_model(model_directories[architecture], dtype="float64")
    sequence = list(range(50, 70))
    with torch.no_grad():
        alone = packed_logits(model, *pack([sequence]), torch.arange(20))
        row, bounds = pack([[9] * 13, sequence, [8]])
        between = packed_logits(model, row, bounds, torch.arange(13, 33))
    torch.testing.assert_close(between, alone, rtol=0, atol=1e-12)


def test_logits_come_for_the_positions_asked_in_the_order_asked(model_directories):
    model = load_model(model_directories["llama"], dtype="float64")
    row, bounds = pack([[10, 11, 12], [13, 14]])
    with torch.no_grad():
        everywhere = packed_logits(model, row, bounds, torch.arange(5))
        some = packed_logits(model, row, bounds, torch.tensor([4, 0, 4]))
    assert some.shape == (3, 263)
    torch.testing.assert_close(some, everywhere[[4, 0, 4]], rtol=0, atol=1e-12)


def test_bfloat16_logits_stay_near_float64(model_directories, architecture):
    row, bounds = pack([list(example.prompt_ids) for example in examples()])
    with torch.no_grad():
        exact, half = (
            packed_logits(load_model(model_directories[architecture], dtype=dtype), row, bounds, torch.arange(len(row)))
            for dtype in ("float64", "bfloat16")
        )
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).abs().mean() < 0.05 * exact.abs().mean()
