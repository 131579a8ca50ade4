"""The reader from scratch reads order, is trained until it knows its prompts, and leaves the process as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from afintro.evaluation.text_readers import from_scratch
from afintro.evaluation.text_readers.from_scratch import read_from_scratch
from afintro.evaluation.text_readers.training import teach
from benchmarks.planted.leaks import emoji, example, no_leak, planted, word_order


def accuracy(train, items):
    taught = teach(train)
    answers = read_from_scratch(taught, items)
    assert answers.shape == (len(items), taught.kinds)
    np.testing.assert_allclose(answers.sum(1), 1)
    hits = [taught.answers[row.argmax()] == item.answer for row, item in zip(answers, items, strict=True)]
    return sum(hits) / len(hits)


def chain(count, prefix):
    """Sequences of two tokens in one order or the other, at random places among others."""
    rng = np.random.default_rng(len(prefix))
    made = []
    for i in range(count):
        ids = rng.integers(10, 30, 12)
        first, second = np.sort(rng.choice(12, 2, replace=False))
        changed = i % 2 == 0
        ids[first], ids[second] = (1, 2) if changed else (2, 1)
        made.append(replace(example(f"{prefix}{i}", f"{prefix}{i}", "", changed), prompt_ids=tuple(ids.tolist())))
    return made


@pytest.mark.slow
def test_the_order_of_two_tokens_is_learned():
    assert accuracy(chain(400, "t"), chain(200, "it")) > 0.9


@pytest.mark.slow
def test_training_prompts_are_known_by_heart():
    train = planted(no_leak, 100, 0, "t")
    assert accuracy(train, train) > 0.98


def test_one_token_is_learned_and_answers_depend_on_nothing_else_in_the_process():
    train, items = planted(emoji, 60, 0, "t"), planted(emoji, 40, 0, "i")
    taught = teach(train)
    torch.manual_seed(1)
    expected_draw = torch.rand(3)
    first = read_from_scratch(taught, items)
    assert (first.argmax(1) == [taught.answers.index(item.answer) for item in items]).mean() > 0.95
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    with torch.inference_mode():  # as within Lightning's validation
        np.testing.assert_array_equal(read_from_scratch(taught, items), first)
        assert torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected_draw)


def test_neither_items_beside_nor_the_text_nor_what_all_prompts_share_is_read():
    train, items = planted(emoji, 40, 0, "t"), planted(emoji, 20, 0, "i")
    together = read_from_scratch(teach(train), items)
    alone = replace(items[3], prompt="another text", answer="")
    framed, alone = (
        [replace(e, prompt_ids=(7, 8, *e.prompt_ids, 9)) for e in examples] for examples in (train, [alone])
    )
    np.testing.assert_allclose(read_from_scratch(teach(framed), alone)[0], together[3], atol=1e-6)


def test_prompts_without_a_difference_and_without_tokens_are_answered(caplog):
    train = [replace(example(f"t{i}", f"t{i}", "", i % 4 == 0), prompt_ids=(5, 6)) for i in range(20)]
    answers = read_from_scratch(teach(train), [replace(train[0], prompt_ids=()), *train])
    changed = [a.startswith("The most likely") for a in teach(train).answers].index(True)
    assert answers[:, changed] == pytest.approx(0.25, abs=0.1)  # the share of the training answers
    assert not [record for record in caplog.records if record.levelname == "WARNING"]  # more cannot be known


def test_training_is_bounded(monkeypatch, caplog):
    train = planted(word_order, 60, 0, "t")
    monkeypatch.setattr(from_scratch, "TOKENS", sum(len(e.prompt_ids) for e in train) // 2)
    monkeypatch.setattr(from_scratch, "LONGEST", 8)
    monkeypatch.setattr(from_scratch, "VISITS", 1)
    with caplog.at_level("INFO"):
        accuracy(train, train)
    assert (
        "from_scratch learned 60 different prompts in 8 epochs" in caplog.text
    )  # eight tokens of each are within the bound


def test_both_directions_read_the_whole_prompt_and_no_padding():
    """With the same layer in both directions and opposite weights, a prompt read backwards has the opposite answer."""
    torch.manual_seed(0)
    model = from_scratch.Reader(tokens=10, kinds=1).eval()
    model.backwards.load_state_dict(model.forwards.state_dict())
    width = model.answer.in_features // 3
    weights = torch.randn(width)
    with torch.no_grad():
        model.answer.weight.copy_(torch.cat([torch.zeros(width), weights, -weights])[None])
        model.answer.bias.zero_()
        prompts = [torch.tensor(ids) for ids in ([2, 3, 4], [4, 3, 2], [5, 6, 5], [7, 8, 9, 2, 3])]
        there, back, same, _ = model(torch.nn.utils.rnn.pad_sequence(prompts))[:, 0].tolist()
    assert there == pytest.approx(-back, abs=1e-6)
    assert abs(there) > 1e-3
    assert same == pytest.approx(0, abs=1e-6)
