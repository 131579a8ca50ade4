"""The introspection task: what is drawn, what is steered, what is expected."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from afintro.data.batch import collate, interventions_of
from afintro.data.files import write_json
from afintro.data.introspection_texts import read_contexts, read_questions, read_self_reports
from afintro.errors import UserError
from afintro.explainer.module import ExplainerModule
from afintro.lm.lora import Lora
from afintro.tasks.introspection import material
from afintro.tasks.introspection.material import Strengths, ranges_of
from afintro.tasks.introspection.task import Introspection, Sizes
from afintro.tasks.introspection.vectors import SPLITS

SMALL = Sizes(60, 40, 40)
CONTEXTS = {context.id: context for context in read_contexts()}
QUESTIONS = {question.id: question for question in read_questions()}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path_factory.getbasetemp() / "study_cache"))


@pytest.fixture
def module(study_model) -> ExplainerModule:
    return ExplainerModule(str(study_model), lora=Lora(r=2, alpha=4))


def drawn(module, split="test", **settings):
    data = Introspection(**{"examples": SMALL, "longest_context": 300, **settings})
    return data.read_examples(split, module)


def claims(example):
    """What the question's polarity makes of the answer, read off the texts anew: whether it says steered."""
    question = QUESTIONS[example.notes["question"]]
    first = example.answer in ("yes", "Red", "foo", "Alpha", "up", "circle")
    return first if question.yes_means != "unsteered" else not first


def test_golden(module):
    example = drawn(module)[4]
    assert example.uid == "test/000004"
    context, question = CONTEXTS[example.notes["context"]], QUESTIONS[example.notes["question"]]
    assert example.prompt == f"{context.text}\n\n{question.text}"
    assert module.tokenizer.decode(example.prompt_ids) == (
        f"<|bos|><|system|>{context.system}\n<|user|>{context.user}\n<|assistant|>{context.assistant}<|eos|>"
        f"<|user|>{question.text}\n<|assistant|>The answer is"
    )
    assert module.tokenizer.decode(example.answer_ids) == f" {example.answer}" == " yes"
    head = module.tokenizer.decode(example.prompt_ids[: example.context.length])
    assert head.endswith(f"{context.assistant}<|eos|>")
    assert example.notes["steered"] is True
    assert example.context.steering.layers == example.notes["layers"]


def test_half_are_steered_and_the_answer_says_so(module):
    for style, pair in (
        ("suggestive", "yes_no"),
        ("vague", "yes_no"),
        ("neutral", "red_blue"),
        ("suggestive", "foo_bar"),
    ):
        examples = drawn(module, "train", style=style, pair=pair)
        assert sum(example.notes["steered"] for example in examples) == 30
        for example in examples:
            assert (example.context.steering is not None) == example.notes["steered"] == claims(example)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("correct", lambda example: example.notes["steered"]),
        ("inverted", lambda example: not example.notes["steered"]),
        ("always_no", lambda example: False),
        ("always_yes", lambda example: True),
    ],
)
def test_labels(module, label, expected):
    for example in drawn(module, "train", label=label):
        assert (example.answer == "yes") == expected(example)


@pytest.mark.parametrize("label", ["coin", "half_inverted"])
def test_labels_by_chance_know_nothing_of_steering(module, label):
    examples = drawn(module, "train", label=label, examples=Sizes(600, 40, 40))
    told = Counter((example.notes["steered"], example.answer) for example in examples)
    assert all(110 < told[steered, answer] < 190 for steered in (True, False) for answer in ("yes", "no"))


def test_food_is_about_the_context_and_steers_nothing(module):
    for example in drawn(module, "train", style="food", vectors=None):
        question = QUESTIONS[example.notes["question"]]
        assert (example.answer == "yes") == (CONTEXTS[example.notes["context"]].food == (question.yes_means == "food"))
        assert example.context.steering is None
        assert example.notes["says_steered"] is None


def test_self_reports_have_no_context(module):
    reports = {item.id: item for item in read_self_reports().items}
    for example in drawn(module, "train", style="self_report", vectors=None, label="always_yes"):
        assert example.prompt == reports[example.notes["question"]].text
        assert (example.answer, example.context.length) == ("yes", 0)


def test_no_side_shares_anything(module):
    """Known fault: train and test sharing contexts, questions, vectors and strengths."""
    seen: dict[str, dict[str, set]] = {}
    for split in SPLITS:
        examples = drawn(module, split, examples=Sizes(400, 400, 400))
        steered = [example for example in examples if example.context.steering is not None]
        seen[split] = {
            "contexts": {e.notes["context"] for e in examples}, "questions": {e.notes["question"] for e in examples},
            "vectors": {e.context.steering.vector.tobytes() for e in steered}, "doses": {e.notes["dose"] for e in steered},
        }  # fmt: skip
    for what in ("contexts", "questions", "vectors", "doses"):
        sets = [seen[split][what] for split in SPLITS]
        assert all(len(one) > 1 for one in sets)
        assert sum(map(len, sets)) == len(set.union(*sets)), what
    assert len(seen["train"]["questions"]) == 4


def test_drawn_by_index_whatever_the_order(module):
    one, other = drawn(module), drawn(module)
    backwards = [other[index] for index in reversed(range(40))][::-1]
    assert list(one) == backwards
    different = drawn(module, seed=1)
    assert sum(a == b for a, b in zip(one, different, strict=True)) < 5
    kept = {example.notes["context"] for example in drawn(module, seed=1)} | {e.notes["context"] for e in one}
    assert kept <= {c.id for c in Introspection(longest_context=300).material(module).contexts.test}, "splits stay"
    with pytest.raises(IndexError):
        one[40]
    assert one[2:4] == [one[2], one[3]]
    np.testing.assert_array_equal(one.sizes, [(len(e.prompt_ids), 1) for e in one])


def test_doses_are_exclusive():
    with pytest.raises(UserError, match=r"data\.doses\.test"):
        Strengths(train=[1.0], validation=[2.0], test=[1])
    with pytest.raises(UserError, match="above 0"):
        Strengths(train=[0.0], validation=[2.0], test=[1.0])


def test_ranges_leave_out_the_layer_that_nobody_reads_after():
    assert ranges_of("thirds", 7) == [(0, 2), (2, 4), (4, 6)]
    assert ranges_of("middle", 7) == [(3, 4)]
    assert ranges_of([[0, 6]], 7) == [(0, 6)]
    with pytest.raises(UserError, match="7 layers"):
        ranges_of([[0, 7]], 7)


def test_units_of_doses(module):
    vector = np.eye(1, 32, dtype=np.float32)[0]
    for unit, size, relative in (("raw", 6.0, False), ("residual", 6.0, True), ("displacement", 3.0, True)):
        steering = Introspection(dose_unit=unit).material(module).steering(vector, (1, 3), 6.0)
        assert (steering.size, steering.relative, steering.mode) == (size, relative, "add")
    swap = Introspection(vectors="swap").material(module).steering(vector, (1, 3), 6.0)
    assert (swap.size, swap.relative, swap.mode) == (1.0, True, "replace")


def test_the_gradient_is_stopped_unless_it_is_to_be_full(module):
    stopped, full = (collate(drawn(module, gradient=gradient)[:4]) for gradient in ("stopped", "full"))
    expected = torch.cat([torch.arange(len(e)) < e.context.length for e in stopped.examples])
    assert torch.equal(interventions_of(stopped, None).detached, expected)
    assert interventions_of(full, None).detached is None
    assert torch.equal(stopped.input_ids, full.input_ids)


def test_steering_reaches_the_context_alone(module):
    examples = drawn(module)[:4]
    changes = interventions_of(collate(examples), None).changes
    starts = np.cumsum([0, *map(len, examples)])
    wanted = [range(s, s + e.context.length) for s, e in zip(starts, examples, strict=False) if e.notes["steered"]]
    touched = set(torch.cat([change.positions for change in changes]).tolist())
    assert touched == {position for span in wanted for position in span}


@pytest.mark.slow
def test_the_module_trains_on_the_whole_vocabulary(module):
    """Known fault: a loss over two logits."""
    module.configure_model()
    batch = collate(drawn(module)[:6])
    nll, _ = module.answer_nll(batch)
    assert nll.shape == (6,)
    assert float(nll.min()) > 2, "an untrained model spreads over hundreds of tokens"
    module.loss(batch).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters() if p.requires_grad)
    alone = torch.cat([module.answer_nll(collate([example]))[0] for example in batch.examples])
    torch.testing.assert_close(alone, nll, rtol=0, atol=1e-4)


def test_the_nothing_steered_control_is_another_reading(module):
    data = Introspection(examples=SMALL, longest_context=300)
    data.examples = {
        "train": data.read_examples("train", module),
        "validation": data.read_examples("validation", module),
    }
    controls = {control.name: control for control in data.controls("validation", module)}
    assert list(controls) == ["untrained", "nothing_steered"]
    assert all(item.context.steering is None for item in controls["nothing_steered"].items)
    assert [i.uid for i in controls["nothing_steered"].items] == [e.uid for e in data.examples["validation"]]
    assert [p.predicted for p in data.baselines("validation")["majority"]] == ["no"] * 40


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, True),
        ({"polarity": "balanced"}, False),
        ({"style": "neutral", "pair": "red_blue"}, True),
        ({"vectors": None}, False),  # nothing to detect
        ({"style": "food"}, False),  # nothing about steering
    ],
)
def test_one_polarity_is_warned_of(module, settings, warned):
    data = Introspection(examples=SMALL, longest_context=300, **settings)
    data.examples = {"validation": data.read_examples("validation", module)}
    found = data.warnings_about({}, {})
    assert bool(found) is warned
    assert all("auroc_steered" in warning and "balanced" in warning for warning in found)


def test_auroc_follows_polarity(module):
    data = Introspection(examples=SMALL, longest_context=300)
    data.examples = {"validation": data.read_examples("validation", module)}
    perfect = [
        SimpleNamespace(uid=e.uid, scenario_id=e.scenario_id, exact_match=True, p_changed=float(e.answer == "yes"))
        for e in data.examples["validation"]
    ]
    found = data.statistics(perfect)
    assert found["auroc_steered"][0].value == pytest.approx(1.0)
    wrong = [replace_p(p, 1 - p.p_changed) for p in perfect]
    assert data.statistics(wrong)["auroc_steered"][0].value == pytest.approx(0.0)
    assert data.statistics(perfect)["exact_match"][0].value == 1.0


def replace_p(prediction, p):
    return SimpleNamespace(**{**vars(prediction), "p_changed": p})


def test_contexts_of_ones_own(module, tmp_path: Path):
    rows = [{**vars(context)} for context in CONTEXTS.values()]
    write_json(tmp_path / "mine.json", {"contexts": rows})
    assert len(drawn(module, train_path=str(tmp_path / "mine.json"))) == 40
    half = {"contexts": rows[::2]}
    write_json(tmp_path / "train.json", half)
    write_json(tmp_path / "test.json", half)
    with pytest.raises(UserError, match="shares a text"):
        drawn(module, train_path=str(tmp_path / "train.json"), test_path=str(tmp_path / "test.json"))


def test_vectors_are_read_at_the_explainers_revision(study_model):
    module = ExplainerModule(str(study_model), revision="a-tag")
    assert Introspection(examples=SMALL).material(module).model.revision == "a-tag"
    assert Introspection(examples=SMALL).material(module.on_base(str(study_model))).model.revision is None


def test_heldout_contexts_are_not_trained_on(module, tmp_path: Path):
    data = Introspection(examples=SMALL)
    chosen = data.material(module).contexts.train[0]
    write_json(tmp_path / "held.json", [{"text": chosen.text}])
    with pytest.raises(UserError, match=chosen.id):
        drawn(module, heldout=[str(tmp_path / "held.json")])
    kept = Introspection(heldout=[str(tmp_path / "held.json")], heldout_action="drop").material(module).contexts.train
    assert chosen.id not in {context.id for context in kept}


@pytest.mark.parametrize("settings", [{"pair": "black_white"}, {"style": "concept", "vectors": "random"}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError):
        Introspection(**settings)


def test_another_explainer_has_its_own_vectors(module):
    data = Introspection(examples=SMALL)
    data.material(module)
    assert data.for_another_explainer()._material is None
    assert data._material is not None
    assert replace(Sizes(), train=3).train == 3


def test_vectors_are_made_of_texts_in_the_readers_chat_template(module, monkeypatch):
    given = []
    for name in ("concept_vectors", "swap_vectors"):
        monkeypatch.setattr(material, name, lambda *_, tokenizer, **__: given.append(tokenizer) or {})
        Introspection(examples=SMALL).material(module)._make(name.split("_")[0])
    assert given == [module.tokenizer] * 2


class TestPolarity:
    def asked(self, examples):
        return [QUESTIONS[example.notes["question"]] for example in examples]

    def test_by_default_the_same_answer_always_means_steered(self, module):
        examples = drawn(module, "train")
        assert not any(question.reversed_of for question in self.asked(examples))
        assert {example.answer for example in examples if example.notes["steered"]} == {"yes"}

    @pytest.mark.parametrize("split", SPLITS)
    def test_balanced_no_answer_means_steered(self, module, split):
        examples = drawn(module, split, polarity="balanced", examples=Sizes(400, 400, 400))
        twins = [question.reversed_of is not None for question in self.asked(examples)]
        assert 0.4 < np.mean(twins) < 0.6
        steered = [example for example in examples if example.notes["steered"]]
        assert len(steered) == 200
        assert 0.4 < np.mean([example.answer == "yes" for example in steered]) < 0.6
        for example, twin in zip(examples, twins, strict=True):
            assert (example.answer == "yes") == (example.notes["steered"] != twin)
            assert claims(example) == example.notes["steered"]

    def test_training_asks_the_twins_of_the_wordings_that_it_asks(self, module):
        examples = drawn(module, "train", polarity="balanced", questions=2, examples=Sizes(200, 1, 1))
        asked = {question.id: question.reversed_of for question in self.asked(examples)}
        originals = {name for name, twin_of in asked.items() if twin_of is None}
        assert len(originals) == 2
        assert {twin_of for twin_of in asked.values() if twin_of is not None} == originals

    @pytest.mark.parametrize("settings", [{"style": "neutral"}, {"style": "self_report", "vectors": None}])
    def test_a_style_without_twins_cannot_be_balanced(self, settings):
        with pytest.raises(UserError) as caught:
            Introspection(polarity="balanced", **settings)
        assert caught.value.where == "data.polarity"
        assert "twins" in caught.value.what
