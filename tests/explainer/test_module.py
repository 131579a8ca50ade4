"""The shared module: what must not matter to loss and gradients, and that teacher forcing says what generation says."""

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
from afintro.evaluation.outcomes import answer_limit
from afintro.explainer.answering import predict_outcomes, write_answers
from afintro.explainer.checkpoint import read_checkpoint
from afintro.explainer.loading import fit_projection, new_injector
from afintro.explainer.module import ExplainerModule
from afintro.explainer.optimizer import rate_factor
from afintro.explainer.settings import ExplainerSettings
from afintro.lm.injection import Injection, VectorSpace
from afintro.lm.load import Lora
from afintro.tasks.context_ablation.task import ContextAblation
from afintro.tasks.feature_descriptions.task import FeatureDescriptions
from tests.conftest import write_described_features, write_records


def explainer(directory: Path, space: VectorSpace | None = None, **settings: object) -> ExplainerModule:
    """A loaded explainer whose adapter is not the identity, so that its gradients are not zero."""
    torch.manual_seed(0)
    module = ExplainerModule(str(directory), lora=Lora(r=4, alpha=8), **settings)  # type: ignore[arg-type]
    module.space = space
    module.configure_model()
    if module.injector is not None and settings.get("dtype") == "float64":
        module.injector.double()  # as Lightning's 64-true makes it
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return module


@pytest.fixture(scope="module")
def examples(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Nine examples, three of each question type, of different lengths and weights."""
    path = write_records(tmp_path_factory.mktemp("records") / "train.json", 3, seed=5)
    data = ContextAblation(train_path=str(path), validation_path=str(path))
    return list(data.read_examples("train", explainer(small_model)))


def gradients(
    module: ExplainerModule, batches: list[list[Example]], denominator: int
) -> tuple[float, dict[str, torch.Tensor]]:
    module.zero_grad()
    total = 0.0
    for batch in batches:
        loss = module.loss(collate(batch, denominator))
        loss.backward()
        module.on_after_backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packing_and_accumulation_change_neither_loss_nor_gradient(
    small_model: Path, examples: list[Example], checkpointing: bool
) -> None:
    module = explainer(small_model, dtype="float64", gradient_checkpointing=checkpointing)
    whole = gradients(module, [examples], len(examples))
    assert len({example.weight for example in examples}) > 1
    for split in ([[e] for e in examples], [examples[:2], examples[2:7], examples[7:]], [examples[::-1]]):
        loss, found = gradients(module, split, len(examples))
        assert loss == pytest.approx(whole[0], abs=1e-12)
        assert found.keys() == whole[1].keys()
        for name, gradient in found.items():
            assert (gradient - whole[1][name]).abs().max() < 1e-9, name
    assert max(float(gradient.abs().max()) for gradient in whole[1].values()) > 1e-4


def test_mistake_2_prompt_length_does_not_scale_the_loss(small_model: Path, examples: list[Example]) -> None:
    """Neighbouring code divides by the padded length, so a longer neighbour in the batch changes the gradient."""
    module = explainer(small_model, dtype="float64")
    alone = float(module.loss(collate(examples[:1])).detach())
    long = replace(examples[1], prompt_ids=examples[1].prompt_ids * 5, weight=0.0)
    beside = float(module.loss(collate([examples[0], long])).detach())
    assert beside == pytest.approx(alone / 2, abs=1e-12)


def test_mistake_6b_question_weights_reach_the_loss(small_model: Path, examples: list[Example]) -> None:
    module = explainer(small_model, dtype="float64")
    nll, _ = module.answer_nll(collate(examples))
    weights = torch.tensor([example.weight for example in examples], dtype=torch.float64)
    assert float(module.loss(collate(examples)).detach()) == pytest.approx(float((nll * weights).sum().detach()) / 9)
    assert sorted(set(weights.tolist())) == [0.5, 1.0]


def test_only_the_adapter_is_trained_and_in_float32(small_model: Path) -> None:
    module = explainer(small_model, dtype="bfloat16")
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {p.dtype for n, p in module.named_parameters() if n in trained} == {torch.float32}
    assert {p.dtype for n, p in module.named_parameters() if n not in trained} == {torch.bfloat16}
    assert module.model is not None
    assert module.model.training, "from_pretrained leaves it in eval mode, and gradient checkpointing is then off"


@pytest.mark.slow
def test_teacher_forced_exact_match_is_generation(small_model: Path, examples: list[Example]) -> None:
    """Exact if and only if the greedy continuation is the answer; both cases occur."""
    module = explainer(small_model).eval()
    limit = 24
    written = write_answers(module, examples, limit, batch_size=4)
    own = [
        replace(e, uid=f"own {e.uid}", answer=text, answer_ids=tuple(encode_answer(module.tokenizer, text)))
        for e, text in zip(examples, written, strict=True)
    ]
    # A random model rarely stops by itself; where it does not, what it wrote is not what it would end on.
    stopped = [item for item in own if len(item.answer_ids) <= limit]
    # An end of sequence after the first word: the model would go on, so this is not exact.
    cut = [replace(item, uid=f"cut {item.uid}", answer_ids=(*item.answer_ids[:3], item.answer_ids[-1])) for item in own]
    mixed = [*stopped, *examples, *cut]
    outcomes = module.evaluate_batch(collate(mixed))
    again = write_answers(module, mixed, max(len(item.answer_ids) for item in mixed) + 8, batch_size=3)
    for item, outcome, text in zip(mixed, outcomes, again, strict=True):
        assert outcome.exact == (text == module.tokenizer.decode(item.answer_ids[:-1])), item.uid
    assert not all(outcome.exact for outcome in outcomes)


@pytest.mark.slow
def test_predictions_are_the_same_whatever_the_batch_size(small_model: Path, examples: list[Example]) -> None:
    module = explainer(small_model).eval()
    found = [
        predict_outcomes(module, module.evaluate_batch(collate(examples)), batch_size=size, max_new_tokens=40)
        for size in (1, 4, 9)
    ]
    assert [p.predicted for p in found[0]] == [p.predicted for p in found[1]] == [p.predicted for p in found[2]]
    assert all(p.exact_match == (p.predicted == p.expected) for p in found[0])


def test_p_changed_is_the_share_of_the_changed_branch(small_model: Path, examples: list[Example]) -> None:
    module = explainer(small_model, dtype="float64").eval()
    example = examples[0]
    assert example.branches is not None
    outcome = module.evaluate_batch(collate([example]))[0]
    log_p = []
    for stem in example.branches:
        nll, _ = module.answer_nll(collate([replace(example, answer_ids=stem)]))
        log_p.append(-float(nll.detach()) * len(stem))
    expected = torch.tensor(log_p).softmax(0)[1]
    assert outcome.p_changed == pytest.approx(float(expected), abs=1e-6)
    assert [o.p_changed for o in module.evaluate_batch(collate(examples[1:3]))] == [None, None]


def test_a_slot_token_the_tokenizer_lacks_is_refused(small_model: Path) -> None:
    assert explainer(small_model, slot_token="<|slot|>").tokenizer.convert_tokens_to_ids("<|slot|>") == 3
    with pytest.raises(UserError, match="'<vector>'"):
        _ = ExplainerModule(str(small_model), slot_token="<vector>").tokenizer


def test_the_constructor_loads_nothing() -> None:
    assert ExplainerModule("no/such-model").model is None


def test_another_base_has_the_same_settings() -> None:
    """Every setting differs from its default here, so that a setting that is not passed on would show."""
    settings = ExplainerSettings(
        "a", revision="main", lora=Lora(r=3), learning_rate=0.1, weight_decay=0.2, warmup_steps=4, schedule="cosine",
        dtype="bfloat16", gradient_checkpointing=True, compile_layers=True, fp8=True, slot_token="<x>",
        injection=Injection("residual", 2, True, 0.5),
    )  # fmt: skip
    assert not [name for name, value in vars(ExplainerSettings()).items() if value == getattr(settings, name)]
    module = ExplainerModule(**vars(settings))
    module.space = VectorSpace(5, (1, 2))
    other = module.on_base("b")
    assert other.settings == replace(settings, name="b", revision=None)
    assert other.space == module.space


def test_the_learning_rate_rises_and_falls_as_scheduled() -> None:
    """Warm-up over 2 of 10 steps; linear and cosine reach 0 at the end and half of the peak in the middle."""
    rates = {
        schedule: [rate_factor(step, ExplainerSettings(warmup_steps=2, schedule=schedule), 10) for step in range(11)]
        for schedule in ("constant", "linear", "cosine")
    }
    for factors in rates.values():
        assert factors[:3] == [0.5, 1.0, 1.0]
    assert set(rates["constant"][2:]) == {1.0}
    for falling in (rates["linear"], rates["cosine"]):
        assert falling[6] == pytest.approx(0.5)
        assert falling[10] == pytest.approx(0.0)
        assert falling[2:] == sorted(falling[2:], reverse=True)
    assert rate_factor(99, ExplainerSettings(), 10) == 0.0


def test_a_directory_is_known_without_training_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    assert Path(ExplainerModule("toy").directory).parent == tmp_path / "organisms"
    assert not list(tmp_path.iterdir())


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
        prompt = encode_prompt(module.tokenizer, chat("Say what it is.", "really " * (i * 4 % 5) + f"{SLOT} is what?"))
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
    train(module, examples)
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


@pytest.mark.long
def test_teacher_forcing_judges_all_of_the_toys_validation_set_as_generation_does() -> None:
    """Every item of the embedded default in float32; the model's own answer stands as the expected one of every second."""
    module = explainer(Path("toy")).eval()
    data = ContextAblation()
    data.prepare_data()
    data.use_embedded()
    items = list(data.read_examples("validation", module))
    limit = answer_limit(items)
    own = [
        replace(item, answer=text, answer_ids=tuple(encode_answer(module.tokenizer, text)))
        for item, text in zip(items, write_answers(module, items, limit, batch_size=64), strict=True)
    ]
    mixed = [own[i] if i % 2 and len(own[i].answer_ids) <= limit else items[i] for i in range(len(items))]
    ordered = sorted(mixed, key=len)
    outcomes = [
        o for start in range(0, len(items), 64) for o in module.evaluate_batch(collate(ordered[start : start + 64]))
    ]
    written = write_answers(module, ordered, answer_limit(ordered), batch_size=50)
    assert len(items) == 900
    assert [outcome.exact for outcome in outcomes] == [
        text == item.answer for text, item in zip(written, ordered, strict=True)
    ]
    assert 100 < sum(outcome.exact for outcome in outcomes) < 800
