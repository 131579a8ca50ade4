"""The shared module on prompts with vectors: training, checkpoints, batches, the untrained model and the ridge start."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from afintro.data.batch import Example, Slot, collate
from afintro.data.text import chat, encode_answer, encode_prompt
from afintro.errors import UserError
from afintro.explainer.answering import write_answers
from afintro.explainer.checkpoint import read_checkpoint
from afintro.explainer.loading import fit_projection, new_injector
from afintro.explainer.module import ExplainerModule
from afintro.lm.injection import Injection, VectorSpace
from afintro.lm.lora import Lora
from afintro.tasks.feature_descriptions.task import FeatureDescriptions
from tests.conftest import write_described_features
from tests.explainer.test_module import explainer, gradients

# Vectors. The small model is 32 wide.

KINDS: dict[str, tuple[int, Injection]] = {
    "equal width": (32, Injection()),
    "projection asked for": (32, Injection(projection=True)),
    "other width": (24, Injection()),
    "residual": (24, Injection("residual", 0)),
}
KIND = pytest.mark.parametrize("kind", KINDS)
SLOT = "<|slot|>"


def reader_of_vectors(directory: Path, kind: str, **settings: object) -> ExplainerModule:
    width, injection = KINDS[kind]
    space = VectorSpace(width, (7, 3))
    return explainer(directory, space, slot_token=SLOT, injection=injection, **settings)


def described(module: ExplainerModule, count: int = 6) -> list[Example]:
    """Prompts of different length, each with a vector of one of three directions that alone decides the answer."""
    assert module.space is not None
    rng = np.random.default_rng(2)
    directions = rng.standard_normal((3, module.space.width))
    found = []
    for i in range(count):
        asked = chat("Say what it is.", "really " * (i * 4 % 5) + f"{SLOT} is what?")
        prompt = encode_prompt(module.tokenizer, asked, SLOT)
        vector = directions[i % 3] + 0.1 * rng.standard_normal(module.space.width)
        slot = Slot(prompt.index(3), (3, 7)[i % 2], vector.astype(np.float32), 1.0 + i % 2)
        answer = ("refuse", "comply with it", "silent")[i % 3]
        ids = tuple(encode_answer(module.tokenizer, answer))
        found.append(Example(f"{i}", f"{i}", "q", "", answer, tuple(prompt), ids, weight=1.0 + i % 3, slot=slot))
    return found


def hooks_of(module: ExplainerModule) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def train(module: ExplainerModule, examples: list[Example], steps: int = 12) -> list[float]:
    """Losses of some steps of AdamW."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        loss = module.loss(collate(examples))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        module.on_after_backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def state_of(module: ExplainerModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@KIND
def test_training_changes_adapter_and_injector_and_nothing_else(small_model: Path, kind: str) -> None:
    module = reader_of_vectors(small_model, kind)
    examples, before = described(module), state_of(module)
    losses = train(module, examples)
    assert losses[-1] < 0.8 * losses[0]
    after = state_of(module)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    injected = {name for name in changed if name.startswith("injector.")}
    width, injection = KINDS[kind]
    weights = {"injector.log_scale", "injector.projection.weight"}
    assert injected == (weights if injection.projection or width != 32 else {"injector.log_scale"})
    assert all("lora_" in name for name in changed - injected)
    assert (after["injector.log_scale"] != before["injector.log_scale"]).all()
    assert hooks_of(module) == 0
    # What was learnt is in the vectors: exchanged, they cost.
    slots = [example.slot.vector for example in examples if example.slot is not None]
    pairs = zip(examples, slots[1:] + slots[:1], strict=True)
    exchanged = [replace(e, slot=replace(e.slot, vector=vector)) for e, vector in pairs if e.slot is not None]
    with torch.no_grad():
        assert module.loss(collate(exchanged)) != module.loss(collate(examples))


@KIND
def test_packing_and_accumulation_change_nothing_with_vectors(small_model: Path, kind: str) -> None:
    module = reader_of_vectors(small_model, kind, dtype="float64")
    examples = described(module)
    without = replace(examples[0], slot=None)
    mixed = [examples[0], without, *examples[1:]]
    whole = gradients(module, [mixed], len(mixed))
    for split in ([[e] for e in mixed], [mixed[:2], mixed[2:]], [mixed[::-1]]):
        loss, found = gradients(module, split, len(mixed))
        assert loss == pytest.approx(whole[0], abs=1e-12)
        assert found.keys() == whole[1].keys()
        for name, gradient in found.items():
            assert (gradient - whole[1][name]).abs().max() < 1e-9, name
    assert all(float(whole[1][n].abs().max()) > 1e-6 for n, p in module.named_parameters() if p.requires_grad)


@KIND
def test_gradient_checkpointing_changes_neither_loss_nor_gradient_of_vectors(small_model: Path, kind: str) -> None:
    plain = reader_of_vectors(small_model, kind, dtype="float64")
    saving = reader_of_vectors(small_model, kind, dtype="float64", gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    examples, runs = described(plain), []
    expected = gradients(plain, [examples], len(examples))
    saving.loaded().get_base_model().get_decoder().layers[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    hooks = hooks_of(saving)
    loss = saving.loss(collate(examples))
    assert hooks_of(saving) == hooks + 1, "the backward pass may run the layer again, hooks included"
    loss.backward()
    assert len(runs) == 2, "else checkpointing was silently off"
    saving.on_after_backward()
    assert hooks_of(saving) == hooks
    assert float(loss.detach()) == pytest.approx(expected[0], abs=1e-12)
    for name, parameter in saving.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert (parameter.grad - expected[1][name]).abs().max() < 1e-9, name
    # Hooks of a batch whose backward pass never came do not act on the next one.
    saving.loss(collate(examples[:2]))
    again = saving.loss(collate(examples))
    assert float(again.detach()) == pytest.approx(expected[0], abs=1e-12)
    saving.on_after_backward()
    with torch.no_grad():
        saving.loss(collate(examples))
    assert hooks_of(saving) == hooks


@KIND
def test_a_checkpoint_holds_the_injector_and_gives_the_same_descriptions(
    small_model: Path, tmp_path: Path, kind: str
) -> None:
    """Known mistake 1: a projection that is trained beside a LoRA is never saved."""
    module = reader_of_vectors(small_model, kind)
    examples = described(module)
    train(module, examples, steps=60)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert any(name.startswith("injector.") for name in checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with torch.no_grad():
        expected = float(module.loss(collate(examples)))
    written = write_answers(module.eval(), examples, 12, 4)

    fresh = reader_of_vectors(small_model, kind)
    with torch.no_grad():
        assert float(fresh.loss(collate(examples))) != expected
    stored = read_checkpoint(tmp_path / "a.ckpt")
    fresh.on_load_checkpoint(stored)
    fresh.load_state_dict(stored["state_dict"], strict=fresh.strict_loading)
    with torch.no_grad():
        assert float(fresh.loss(collate(examples))) == expected
    assert write_answers(fresh.eval(), examples, 12, 4) == written
    assert len(set(written)) > 1


def test_a_checkpoint_of_another_width_or_site_is_refused_naming_both(small_model: Path) -> None:
    module = reader_of_vectors(small_model, "other width")
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(copy.deepcopy(checkpoint))
    with pytest.raises(UserError, match=r"'width': 24.* in the checkpoint, .*'width': 32.* configured"):
        reader_of_vectors(small_model, "equal width").on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"'site': 'embedding'.* in the checkpoint, .*'site': 'residual'.* configured"):
        reader_of_vectors(small_model, "residual").on_load_checkpoint(checkpoint)
    zero_vectors = explainer(small_model, slot_token=SLOT)
    with pytest.raises(UserError, match=r"vectors: \{.* in the checkpoint, None configured"):
        zero_vectors.on_load_checkpoint(checkpoint)
    layers = explainer(small_model, VectorSpace(24, (3,)), slot_token=SLOT)
    with pytest.raises(UserError, match=r"'layers': \(7, 3\).*'layers': \(3,\)"):
        layers.on_load_checkpoint(checkpoint)
    del checkpoint["state_dict"]["injector.projection.weight"]
    with pytest.raises(UserError, match=r"injector.projection.weight: absent, expected \(32, 24\)"):
        module.on_load_checkpoint(checkpoint)


@pytest.mark.slow
@KIND
def test_descriptions_do_not_depend_on_the_batch_but_on_the_vector(small_model: Path, kind: str) -> None:
    module = reader_of_vectors(small_model, kind)
    examples = described(module)
    train(module, examples, 40)
    module.eval()
    found = [write_answers(module, examples, 16, size) for size in (1, 2, 6)]
    assert found[0] == found[1] == found[2]
    assert write_answers(module, examples[::-1], 16, 4) == found[0][::-1]
    zero = [replace(e, slot=replace(e.slot, vector=np.zeros_like(e.slot.vector))) for e in examples]  # type: ignore
    assert write_answers(module, zero, 16, 6) != found[0]
    assert hooks_of(module) == 0


@pytest.mark.slow
@KIND
def test_untrained_is_the_model_before_training_and_gives_the_trained_one_back(small_model: Path, kind: str) -> None:
    module = reader_of_vectors(small_model, kind)
    width, injection = KINDS[kind]
    never = ExplainerModule(str(small_model), lora=Lora(r=4, alpha=8), slot_token=SLOT, injection=injection)
    never.space = VectorSpace(width, (7, 3))
    never.configure_model()
    examples = described(module)
    train(module, examples)
    trained = module.injector

    def loss(of: ExplainerModule) -> float:
        with torch.no_grad(), of.evaluating():
            return float(of.loss(collate(examples)))

    before, expected = loss(module), loss(never)
    assert before != expected
    with module.untrained():
        assert loss(module) == expected
        assert write_answers(module, examples, 8, 6) == write_answers(never, examples, 8, 6)
    assert module.injector is trained
    assert loss(module) == before
    with pytest.raises(RuntimeError, match="inside"), module.untrained():
        raise RuntimeError("inside")
    assert module.injector is trained
    assert loss(module) == before


def ridge_data(folder: Path, width: int) -> FeatureDescriptions:
    write_described_features(folder, count=30, width=width)
    return FeatureDescriptions(
        train_path=str(folder / "descriptions.json"), features=[str(folder / "L3.safetensors")], validation_fraction=0.2
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [24, 32])
def test_the_ridge_start_is_fitted_to_the_training_examples_alone(
    small_model: Path, tmp_path: Path, width: int
) -> None:
    """From each vector to the mean embedding of its answer without the end of sequence; a rate of 0 keeps the start."""
    data = ridge_data(tmp_path, width)
    module = ExplainerModule(str(small_model), lora=Lora(r=2), learning_rate=0.0, slot_token=SLOT,
                             injection=Injection(projection=True, ridge=0.5))  # fmt: skip
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    assert module.injector is not None
    assert module.injector.projection is not None
    assert module.space == VectorSpace(width, (3,))

    embeddings = module.loaded().get_input_embeddings().weight.detach().double().numpy()  # type: ignore
    examples = list(data.examples["train"])
    assert 0 < len(examples) < 30
    x = np.stack([example.slot.vector for example in examples]).astype(np.float64)  # type: ignore[union-attr]
    y = np.stack([embeddings[list(example.answer_ids[:-1])].mean(0) for example in examples])
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    expected = y.T @ x @ np.linalg.inv(x.T @ x + 0.5 * np.eye(width))
    np.testing.assert_allclose(module.injector.projection.weight.detach().numpy(), expected, rtol=0, atol=1e-5)


def test_the_ridge_start_takes_examples_from_all_over_the_training_split(small_model: Path) -> None:
    module = reader_of_vectors(small_model, "other width")
    module.injector = new_injector(module.loaded(), VectorSpace(24, (3, 7)), Injection(ridge=0.5))
    fitted: list[np.ndarray] = []
    module.injector.fit_projection = lambda vectors, targets: fitted.append(vectors)  # type: ignore[method-assign]
    examples = described(module, 15)
    fit_projection(module.injector, module.loaded(), examples, limit=5)
    [vectors] = fitted
    assert np.array_equal(vectors, np.stack([example.slot.vector for example in examples[::3]]))  # type: ignore[union-attr]


def test_injections_that_do_not_fit_are_refused(small_model: Path) -> None:
    with pytest.raises(UserError, match=r"model.injection.layer: layer 2 .* 2 layers \(0 to 1\)"):
        explainer(small_model, VectorSpace(24, (3,)), injection=Injection("residual", 2))
    with pytest.raises(UserError, match=r"model.injection.ridge: has no projection"):
        explainer(small_model, VectorSpace(32, (3,)), injection=Injection(ridge=1.0))


@KIND
def test_a_slots_scale_makes_its_token_so_many_times_as_long(small_model: Path, kind: str) -> None:
    """As if the injector had learnt to."""
    module = reader_of_vectors(small_model, kind, dtype="float64")
    plain = [replace(e, slot=replace(e.slot, scale=1.0)) for e in described(module) if e.slot is not None]
    scaled = [replace(e, slot=replace(e.slot, scale=4.0)) for e in plain if e.slot is not None]
    found = float(module.loss(collate(scaled)).detach())
    assert found != pytest.approx(float(module.loss(collate(plain)).detach()), abs=1e-6)
    assert module.injector is not None
    with torch.no_grad():
        module.injector.log_scale += float(np.log(4))
    assert float(module.loss(collate(plain)).detach()) == pytest.approx(found, abs=1e-9)


def test_a_prompt_with_a_vector_needs_an_injector(small_model: Path) -> None:
    examples = described(reader_of_vectors(small_model, "other width"))
    with pytest.raises(RuntimeError, match="no vector space"):
        explainer(small_model).loss(collate(examples))


def test_the_ridge_start_takes_all_tokens_of_an_answer_that_was_cut(small_model: Path) -> None:
    module = reader_of_vectors(small_model, "other width")
    module.injector = new_injector(module.loaded(), VectorSpace(24, (3, 7)), Injection(ridge=0.5))
    fitted: list[np.ndarray] = []
    module.injector.fit_projection = lambda vectors, targets: fitted.append(targets)  # type: ignore[method-assign]
    [whole] = described(module, 1)
    cut = replace(whole, answer_ids=whole.answer_ids[:-1], cut=True)
    fit_projection(module.injector, module.loaded(), [whole, cut])
    [(first, second)] = fitted
    assert np.array_equal(first, second)
