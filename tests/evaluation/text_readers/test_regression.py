"""Regressions see one character among thousands, and a rule spread over many; they know what they were taught by heart."""

import random

import numpy as np
import pytest

from afintro.evaluation.text_readers import regression
from afintro.evaluation.text_readers.pieces import characters, skip_bigrams, words
from afintro.evaluation.text_readers.regression import read_pieces
from afintro.evaluation.text_readers.training import teach
from benchmarks.planted.leaks import CHANGED, WORDS, example, final_mark, no_leak, number_above, planted


def accuracy(pieces, measured, train, items):
    taught = teach(train)
    answers = read_pieces("reader", pieces, measured, taught, items)
    assert answers.shape == (len(items), taught.kinds)
    np.testing.assert_allclose(answers.sum(1), 1)
    hits = [taught.answers[row.argmax()] == item.answer for row, item in zip(answers, items, strict=True)]
    return sum(hits) / len(hits)


def drawn(rule, count, seed, size=40):
    """Prompts of ``size`` words drawn by ``rule``, which is given the source of randomness and the verdict."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        changed = i % 2 == 0
        made.append(example(f"{seed}/{i}", f"{seed}/{i}", " ".join(rule(rng, changed, size)), changed))
    return made


def test_one_mark_at_the_end_of_a_long_prompt_is_seen():
    def rule(rng, changed, size):
        return [*rng.choices(WORDS, k=size), "tail!" if changed else "tail."]

    assert accuracy(characters, True, drawn(rule, 120, 0, 100), drawn(rule, 100, 1, 100)) == 1


def test_a_rule_spread_over_all_words_is_seen():
    def rule(rng, changed, size):
        return rng.choices(WORDS, weights=[1.8 if (i % 2 == 0) == changed else 1 for i in range(len(WORDS))], k=size)

    for pieces in (words, skip_bigrams):
        assert accuracy(pieces, False, drawn(rule, 500, 0), drawn(rule, 200, 1)) > 0.85


def test_a_threshold_on_an_amount_is_seen_where_amounts_are_read():
    train, items = planted(number_above, 200, 0, "t"), planted(number_above, 100, 0, "i")
    assert accuracy(characters, True, train, items) > 0.95
    assert accuracy(words, False, train, items) < 0.7


@pytest.mark.parametrize("pieces", [words, characters, skip_bigrams])
def test_training_prompts_are_known_by_heart(pieces):
    train = planted(no_leak, 200, 0, "t")
    assert accuracy(pieces, pieces is characters, train, train) == 1


def test_known_scenarios_are_known_in_new_words():
    """The verdict is a random bit of a name, so that held-out scenarios alone could not choose how to learn names."""
    rng = random.Random(0)
    bits = {f"{word.capitalize()}co": rng.random() < 0.5 for word in rng.sample(WORDS, 60)}

    def asked(count, prefix):
        rows = [(name, index) for index in range(count) for name in bits]
        return [
            example(f"{prefix}{name}{index}", name, f"{' '.join(rng.choices(WORDS, k=6))} for {name}.", bits[name])
            for name, index in rows
        ]

    train, items = asked(4, "t"), asked(1, "i")
    assert accuracy(words, False, train, items) > 0.8
    assert accuracy(skip_bigrams, False, train, items) > 0.8


def test_too_much_text_is_drawn_from_and_answered_in_pieces(monkeypatch, caplog):
    train, items = planted(final_mark, 200, 0, "t"), planted(final_mark, 50, 0, "i")
    monkeypatch.setattr(regression, "CHARACTERS", sum(len(e.prompt) for e in train) // 2)
    monkeypatch.setattr(regression, "CHUNK", 7)
    assert accuracy(characters, True, train, items) > 0.95
    assert "reader learns from" in caplog.text


def test_no_items_and_few_scenarios_are_answered():
    train = [example(f"t{i}", "one scenario", f"plan {'xy'[i % 2]}", i % 2 == 0) for i in range(4)]
    assert accuracy(words, False, train, train) == 1
    assert read_pieces("reader", words, False, teach(train), []).shape == (0, 2)
    assert teach(train).answers[1] != teach(train).answers[0]
    assert CHANGED in teach(train).answers
