"""The shared module: what must not matter to loss and gradients, and that teacher forcing says what generation says."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from afintro.data.batch import Example, collate
from afintro.data.text import encode_answer
from afintro.errors import UserError
from afintro.evaluation.outcomes import answer_limit
from afintro.explainer.answering import predict_outcomes, write_answers
from afintro.explainer.loading import load_adapted
from afintro.explainer.module import ExplainerModule
from afintro.explainer.optimizer import rate_factor
from afintro.explainer.settings import ExplainerSettings
from afintro.lm.injection import Injection, VectorSpace
from afintro.lm.load import load_model
from afintro.lm.lora import Lora
from afintro.tasks.context_ablation.task import ContextAblation
from tests.conftest import write_records


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


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_the_base_is_float32_on_a_cpu_and_trainable_in_half_precision_elsewhere(
    small_model: Path, tmp_path: Path, stored: str
) -> None:
    directory = str(shutil.copytree(small_model, tmp_path / stored))
    load_model(directory, dtype=stored).save_pretrained(directory)
    module = explainer(Path(directory))
    checkpoint: dict[str, object] = {}
    module.on_save_checkpoint(checkpoint)
    assert module.base_dtype == checkpoint["afintro_base_dtype"] == "float32"
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    elsewhere = load_adapted(directory, module.settings, torch.device("cuda"))  # loaded on the processor all the same
    expected = torch.float32 if stored == "float32" else torch.bfloat16
    assert {p.dtype for p in elsewhere.parameters() if not p.requires_grad} == {expected}
    assert {p.dtype for p in elsewhere.parameters() if p.requires_grad} == {torch.float32}


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


def test_a_cut_answer_is_right_if_the_explainer_begins_with_it(small_model: Path, examples: list[Example]) -> None:
    """What the explainer writes is counted as cut where the limit ended it; an exact answer is not written."""
    module = explainer(small_model).eval()
    [text] = write_answers(module, examples[:1], 12, batch_size=1)
    ids = tuple(encode_answer(module.tokenizer, text, cut=True))[:3]
    begins = replace(examples[0], uid="begins", answer_ids=ids, cut=True)
    ends = replace(begins, uid="ends", answer_ids=(*ids, module.tokenizer.eos_token_id), cut=False)
    other = replace(begins, uid="other", answer_ids=(*ids[:2], ids[2] + 1))
    outcomes = module.evaluate_batch(collate([begins, ends, other]))
    assert [outcome.exact for outcome in outcomes] == [True, False, False]
    predictions = predict_outcomes(module, outcomes, 2, 12)
    assert [prediction.truncated for prediction in predictions] == [False, True, True]
    assert [prediction.cut for prediction in predictions] == [True, False, True]
    assert predictions[1].predicted == text


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


@pytest.mark.parametrize("quantized", [{"fp8": True}, {"quantize": "nf4"}])
def test_another_base_has_the_same_settings(quantized: dict[str, bool | str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting differs from its default here, so that a setting that is not passed on would show."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))  # nothing is quantized here
    settings = ExplainerSettings(
        "a", base="c", revision="main", lora=Lora(r=3), learning_rate=0.1, weight_decay=0.2, warmup_steps=4, schedule="cosine",
        dtype="bfloat16", gradient_checkpointing=True, compile_layers=True, slot_token="<x>",
        chat_template_kwargs={"a": 1}, prompt_date="2026-03-05",
        injection=Injection("residual", 2, True, 0.5), **quantized,
    )  # fmt: skip
    same = {name for name, value in vars(ExplainerSettings()).items() if value == getattr(settings, name)}
    assert same == {"fp8", "quantize"} - {*quantized}
    module = ExplainerModule(**vars(settings))
    module.space = VectorSpace(5, (1, 2))
    other = module.on_base("b")
    assert other.settings == replace(settings, name="b", base=None, revision=None)
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
    assert len(items) == 200 + 3 * 120
    assert [outcome.exact for outcome in outcomes] == [
        text == item.answer for text, item in zip(written, ordered, strict=True)
    ]
    assert 60 < sum(outcome.exact for outcome in outcomes) < 500
