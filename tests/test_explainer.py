"""The shared module: what must not matter to loss and gradients, and that teacher forcing says what generation says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afintro.data.batch import Example, collate
from afintro.data.text import encode_answer
from afintro.errors import UserError
from afintro.explainer import ExplainerModule
from afintro.lm.load import Lora
from afintro.tasks.context_ablation import ContextAblation
from tests.conftest import save_small_model, write_records


def explainer(directory: Path, **settings: object) -> ExplainerModule:
    """A loaded explainer whose adapter is not the identity, so that its gradients are not zero."""
    torch.manual_seed(0)
    module = ExplainerModule(str(directory), lora=Lora(r=4, alpha=8), **settings)  # type: ignore[arg-type]
    module.configure_model()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return module


@pytest.fixture(scope="module")
def examples(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Nine examples, three of each question type, of different lengths and weights."""
    path = write_records(tmp_path_factory.mktemp("records") / "train.json", 3, seed=5)
    data = ContextAblation(str(path), str(path))
    return data.read_examples("train", explainer(small_model).tokenizer)


def gradients(
    module: ExplainerModule, batches: list[list[Example]], denominator: int
) -> tuple[float, dict[str, torch.Tensor]]:
    module.zero_grad()
    total = 0.0
    for batch in batches:
        loss = module.loss(collate(batch, denominator))
        loss.backward()
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


def test_teacher_forced_exact_match_is_generation(small_model: Path, examples: list[Example]) -> None:
    """Exact if and only if the greedy continuation is the answer; both cases occur."""
    module = explainer(small_model).eval()
    limit = max(len(example.answer_ids) for example in examples) + 8
    written = module.write([example.prompt_ids for example in examples], limit, batch_size=4)
    own = [
        replace(e, answer=text, answer_ids=tuple(encode_answer(module.tokenizer, text)))
        for e, text in zip(examples, written, strict=True)
    ]
    # A random model rarely stops by itself; where it does not, what it wrote is not what it would end on.
    stopped = [item for item in own if len(item.answer_ids) <= limit]
    mixed = [*stopped, *examples]
    outcomes = module.judge(collate(mixed))
    again = module.write([item.prompt_ids for item in mixed], limit + 200, batch_size=3)
    for item, outcome, text in zip(mixed, outcomes, again, strict=True):
        assert outcome.exact == (text == item.answer), item.uid
    assert not all(outcome.exact for outcome in outcomes)


def test_predictions_are_the_same_whatever_the_batch_size(small_model: Path, examples: list[Example]) -> None:
    module = explainer(small_model).eval()
    found = [
        module.predictions(module.judge(collate(examples)), batch_size=size, max_new_tokens=40) for size in (1, 4, 9)
    ]
    assert [p.predicted for p in found[0]] == [p.predicted for p in found[1]] == [p.predicted for p in found[2]]
    assert all(p.exact_match == (p.predicted == p.expected) for p in found[0])


def test_p_changed_is_the_share_of_the_changed_branch(small_model: Path, examples: list[Example]) -> None:
    module = explainer(small_model, dtype="float64").eval()
    example = examples[0]
    assert example.branches is not None
    outcome = module.judge(collate([example]))[0]
    log_p = []
    for stem in example.branches:
        nll, _ = module.answer_nll(collate([replace(example, answer_ids=stem)]))
        log_p.append(-float(nll.detach()) * len(stem))
    expected = torch.tensor(log_p).softmax(0)[1]
    assert outcome.p_changed == pytest.approx(float(expected), abs=1e-6)
    assert [o.p_changed for o in module.judge(collate(examples[1:3]))] == [None, None]


def test_a_slot_token_the_tokenizer_lacks_is_refused(small_model: Path) -> None:
    assert explainer(small_model, slot_token="<|slot|>").tokenizer.convert_tokens_to_ids("<|slot|>") == 3
    with pytest.raises(UserError, match="no token '<vector>'"):
        _ = ExplainerModule(str(small_model), slot_token="<vector>").tokenizer


def test_the_constructor_loads_nothing() -> None:
    assert ExplainerModule("no/such-model").model is None


def test_another_base_has_the_same_settings(tmp_path: Path) -> None:
    module = ExplainerModule("a", lora=Lora(r=3), learning_rate=0.1, weight_decay=0.2, warmup_steps=4, schedule="cosine",
                             dtype="bfloat16", gradient_checkpointing=True, slot_token="<x>")  # fmt: skip
    other = module.on_base(str(save_small_model(tmp_path / "other", seed=1)))
    names = (
        "lora",
        "learning_rate",
        "weight_decay",
        "warmup_steps",
        "schedule",
        "base_dtype",
        "gradient_checkpointing",
        "slot_token",
    )
    assert [getattr(module, name) for name in names] == [getattr(other, name) for name in names]
