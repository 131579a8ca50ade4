"""Readings: coherence by hand, at its thresholds, and of outputs as the organism wrote them."""

import math
from types import SimpleNamespace

import pytest
import torch

from afintro.generation.behavior import Behavior
from afintro.generation.reasoning import Reply
from afintro.lm.load import load_model
from afintro.tasks.steering.readings import RATIO, Coherence, coherence, read_outputs


class TestCoherence:
    @pytest.mark.parametrize(
        ("nll", "mean"),
        [
            ([1.0, 3.0], 1.0),  # one at least is left out
            ([5.0, 1.0, 2.0, 3.0], 2.0),
            ([1.0] * 18 + [9.0], 1.0),  # 19 tokens: one
            ([1.0] * 18 + [4.0, 9.0], 1.0),  # 20 tokens: both of them
            ([1.0] * 17 + [4.0, 9.0], (17 + 4) / 18),  # 19 tokens: the 4 stays
            ([9.0, *[1.0] * 9], 1.0),  # wherever it is
        ],
    )
    def test_perplexity_without_the_most_surprising_tenth(self, nll, mean):
        assert coherence(range(len(nll)), nll).perplexity == pytest.approx(math.exp(mean))

    @pytest.mark.parametrize(("tokens", "nll"), [([], []), ([], [8.0]), ([5], [8.0])])
    def test_texts_of_no_token_or_one_are_coherent(self, tokens, nll):
        assert coherence(tokens, nll) == Coherence(1.0, 0.0)

    @pytest.mark.parametrize(
        ("tokens", "repetition"),
        [
            ([1, 1, 1], 0.0),  # no 4-gram
            ([1, 1, 1, 1], 0.0),  # one
            ([1, 1, 1, 1, 1], 1 / 2),  # one, twice
            ([1, 1, 1, 1, 1, 1], 2 / 3),
            ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # 1234 twice among five
            ([1, 2, 3, 1, 2, 3, 1, 2, 4], 2 / 6),  # 1231 and 2312 twice, 3123 and 3124 once
            (list(range(50)), 0.0),
        ],
    )
    def test_repetition_is_the_share_of_4_grams_seen_before(self, tokens, repetition):
        assert coherence(tokens, [1.0] * len(tokens)).repetition == pytest.approx(repetition)

    def test_a_perplexity_beyond_what_a_float_holds(self):
        assert math.isfinite(coherence([1, 2, 3], [5000.0] * 3).perplexity)

    def test_the_measured_numbers_are_left_as_they_are(self):
        nll = [3.0, 1.0, 2.0]
        coherence([1, 2, 3], nll)
        assert nll == [3.0, 1.0, 2.0]

    @pytest.mark.parametrize(
        ("own", "original", "holds"),
        [
            (Coherence(40.0, 0.0), Coherence(2.0, 0.0), True),  # 20 times, and no more
            (Coherence(40.1, 0.0), Coherence(2.0, 0.0), False),
            (Coherence(1.0, 0.5), Coherence(1.0, 0.0), True),
            (Coherence(1.0, 0.51), Coherence(1.0, 0.0), False),
            (Coherence(1.0, 0.51), Coherence(1.0, 0.5), False),
            (Coherence(1.0, 0.9), Coherence(1.0, 0.51), True),  # the unsteered text loops as well
            (Coherence(90.0, 0.9), Coherence(1.0, 0.6), False),  # which excuses no perplexity
        ],
    )
    def test_thresholds(self, own, original, holds):
        assert RATIO == 20.0
        assert own.holds(original) is holds

    def test_a_text_holds_beside_itself(self):
        looping = coherence([1] * 30, [0.1] * 30)
        assert looping.repetition > 0.5
        assert looping.holds(looping)


STOP, NEW = 2, 4
PROMPTS = ([20, 21, 22], [30])
OUTPUTS = (
    ((40, 41, 42, 43), (50, 51), (40, 41, 42, 43), (50, 51), ()),
    ((), (60, 60, 60, 60)),
)


def text_of(ids):
    return " ".join(map(str, ids))


def decode_up_to(limit):
    return lambda ids, prompt: Reply(text_of(ids), len(ids) == limit)


def label(reply):
    return Behavior("comply" if reply.text.startswith("5") else "refuse", f"rule:{reply.text}")


@pytest.fixture
def model(model_directories):
    return load_model(model_directories["llama"], dtype="float64")


def read(model, **options):
    return read_outputs(
        model, PROMPTS, OUTPUTS,
        **{"decode": decode_up_to(NEW), "label": label, "stop": STOP, **options},
    )  # fmt: skip


def test_outputs_in_their_order_with_text_and_behavior(model):
    found = read(model)
    assert [[one.reply.text for one in own] for own in found] == [[text_of(ids) for ids in own] for own in OUTPUTS]
    assert [[one.reply.truncated for one in own] for own in found] == [
        [len(ids) == NEW for ids in own] for own in OUTPUTS
    ]
    assert [one.behavior.label for one in found[0]] == ["refuse", "comply", "refuse", "comply", "refuse"]
    assert found[0][1].behavior.rule == "rule:50 51"
    assert all(own[0].coherent for own in found)


def test_perplexity_is_of_the_text_and_its_end_where_the_model_ended_it(model):
    """A text of ``max_new_tokens`` was cut: no end of sequence was written, and none is counted."""
    for prompt, own, outputs in zip(PROMPTS, read(model), OUTPUTS, strict=True):
        for one, ids in zip(own, outputs, strict=True):
            targets = [*ids, STOP] if len(ids) < NEW else list(ids)
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *targets]])).logits[0, len(prompt) - 1 : -1]
            nll = -logits.log_softmax(-1)[range(len(targets)), targets]
            kept = nll.sort().values[:-1]
            expected = math.exp(kept.mean()) if len(kept) else 1.0
            assert one.coherence.perplexity == pytest.approx(expected, rel=1e-4)


def test_repetition_is_of_the_text_without_its_end(model):
    found = read(model, decode=decode_up_to(5))  # all four tokens of the last output, and then the end
    assert found[1][1].coherence.repetition == 0.0
    assert read_outputs(model, [[30]], [[(1,), (60,) * 5]], decode=decode_up_to(6), label=label, stop=60)[0][
        1
    ].coherence.repetition == pytest.approx(1 / 2)  # with its end it would be 2/3


def test_coherent_is_beside_the_first_output_of_the_same_prompt(model, monkeypatch):
    """Perplexities by hand: 2 and 50 beside 2, 50 and 2 beside 50."""
    nll = {(7, 7, 7): math.log(2), (8, 8, 8): math.log(50)}
    monkeypatch.setattr(
        "afintro.tasks.steering.readings.continuation_nll",
        lambda model, prompts, given: [[[nll[ids]] * 3 for ids in own] for own in given],
    )
    found = read_outputs(
        SimpleNamespace(), [[1], [1]], [[[7] * 3, [8] * 3], [[8] * 3, [7] * 3]],
        decode=decode_up_to(3), label=label, stop=STOP,
    )  # fmt: skip
    assert [[one.coherent for one in own] for own in found] == [[True, False], [True, True]]


def test_equal_outputs_to_a_prompt_are_looked_at_once(model):
    seen = []
    shapes = []
    model.register_forward_pre_hook(lambda _, __, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    found = read(model, label=lambda reply: (seen.append(reply.text), label(reply))[1])
    assert sorted(seen) == sorted(text_of(ids) for own in OUTPUTS for ids in set(own))
    read_once = sum(len(prompt) - 1 for prompt in PROMPTS)
    assert shapes[0] == (1, read_once)  # both prompts without their last token, in one row
    assert [shape[0] for shape in shapes[1:]] == [5]  # three and two different outputs
    assert found[0][0] is found[0][2]
