"""What a text is split into, and what is measured of it."""

import math

import pytest

from afintro.evaluation.text_readers.pieces import characters, numbers, skip_bigrams, words


def test_words_are_of_any_length_without_case_and_come_in_pairs():
    assert words("I bake, a Pie") == ["i", "bake", "a", "pie", "i bake", "bake a", "a pie"]
    assert words("!?") == []


def test_characters_keep_case_marks_and_white_space():
    pieces = characters("A\n\nb!")
    for piece in ("A", "\n", "\n\n", "\n\nb!", "A\n\nb!", "\x02A", "!\x03"):
        assert piece in pieces
    assert " " not in pieces
    assert "a" not in pieces
    assert max(map(len, pieces)) == 5
    assert len(pieces) == 7 + 6 + 5 + 4 + 3  # five characters, a beginning and an end


def test_skip_bigrams_are_ordered_and_keep_case_marks_and_letters():
    pieces = skip_bigrams("I saw (A) 🙂")
    for piece in ("I", "(", "A", "🙂", "I A", "saw 🙂", "( A", "\x02 I", "🙂 \x03"):
        assert piece in pieces
    assert "A I" not in pieces
    assert "i" not in pieces


def test_skip_bigrams_reach_eight_words():
    text = " ".join(f"w{i}" for i in range(12))
    assert "w1 w9" in skip_bigrams(text)
    assert "w1 w10" not in skip_bigrams(text)


def test_numbers_measure_lengths_kinds_and_amounts():
    [row] = numbers(["Pay 1,200 or 7.5\nto É!"]).tolist()
    assert row[:9] == [22, 6, 8, 1, 6, 2, 5, 3, 1]
    assert row[9:] == pytest.approx([math.log1p(value) for value in (1200, 7.5, 1200, 7.5)] + [2])
    assert numbers(["no amount"])[0, 9:].tolist() == [0] * 5
