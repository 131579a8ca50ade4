"""Stated distributions: lists in many forms, those that cannot be read, and the distance between distributions."""

import math
import time

import pytest

from afintro.data.introspection_texts import read_self_prediction
from afintro.study.scoring.stated import SMOOTHING, divergence, rank_of_likeliest, stated_distribution

PLANETS = ["Mars", "Venus", "Saturn"]
DIE = ["1", "2", "3", "4", "5", "6"]
WANTED = {"Mars": 0.5, "Venus": 0.3, "Saturn": 0.2}


def read(text, options=PLANETS, **more):
    found = stated_distribution(text, options, **more)
    return None if found is None else dict(found.shares)


@pytest.mark.parametrize(
    "text",
    [
        "Mars 50\nVenus 30\nSaturn 20",
        "Mars: 50\nVenus: 30\nSaturn: 20",
        "mars - 50%\nVENUS - 30%\nSaturn - 20 %",
        "Mars – 50 times\nVenus — 30 times\nSaturn -> 20 times",
        "1. Mars: 50\n2. Venus: 30\n3. Saturn: 20",
        "1) Mars 50\n2) Venus 30\n(3) Saturn 20",
        "- **Mars**: 50\n* __Venus__: 30\n• *Saturn:* 20",
        "| Mars | 50 |\n| Venus | 30 |\n| Saturn | 20 |",
        '{"Mars": 50,\n"Venus": 30,\n"Saturn": 20}',
        "Mars (50%)\nVenus (30 %)\nSaturn (20)",
        "Mars........50\nVenus = 30\nSaturn → 20",
        "Mars,50\nVenus, 30\nSaturn,20",
        "Mars: 50/100\nVenus: 30 out of 100\nSaturn: 20 of a hundred",
        "Mars: about 50\nVenus: ~30\nSaturn: roughly 20",
        "Mars: 50.0\nVenus: 30.00\nSaturn: 20",
        "Of 100 times:\n\nSaturn: 20\nMars: 50 (my favorite)\nVenus: 30, more or less\n\nTotal: 100\nI am 4 years old.",
        "Mars 50\nVenus 30\nMars 50\nSaturn 20.",
        # Nothing that only looks like a number of Mars.
        "Mars is the 4th planet.\nMars 50\nVenus 30\nSaturn 20",
    ],
)
def test_lists_of_a_hundred(text):
    assert read(text) == pytest.approx(WANTED)
    assert stated_distribution(text, PLANETS).renormalized is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot say.",
        "Mars\nVenus\nSaturn",
        "50\n30\n20",
        "50 Mars\n30 Venus\n20 Saturn",
        "Mars (4th planet): 50\nVenus 30\nSaturn 20",
        "Mars (4): 50\nVenus 30\nSaturn 20",
        "Mars 4 50\nVenus 30\nSaturn 20",
        "Mars: 40-50\nVenus 30\nSaturn 20",
        "Mars: 50 or 60\nVenus 30\nSaturn 20",
        "Mars: 1/2\nVenus 30\nSaturn 20",
        "Mars: -50\nVenus 30\nSaturn 20",
        "Mars 50, Venus 30, Saturn 20",
        "Mars fifty\nVenus thirty\nSaturn twenty",
        "Mars50\nVenus 30\nSaturn 20",
        "Marshal 50\nVenus 30\nSaturn 20",
        "Not Mars 50\nVenus 30\nSaturn 20",
        "Mars 50\nVenus 30",
        "Mars 0\nVenus 0\nSaturn 0",
        "Mars 50\nVenus 30\nSaturn 20\nMars 40",
        "Mars 50 Venus\n30 Saturn 20",
    ],
)
def test_lists_that_cannot_be_read(text):
    assert read(text) is None


def test_what_is_left_out_of_a_whole_hundred_is_never():
    assert read("Mars 60\nVenus 40") == {"Mars": 0.6, "Venus": 0.4, "Saturn": 0.0}
    assert read("Mars 60\nVenus 30") is None


def test_other_sums_are_renormalised_and_flagged():
    found = stated_distribution("Mars 1\nVenus 1\nSaturn 2", PLANETS)
    assert found.shares == {"Mars": 0.25, "Venus": 0.25, "Saturn": 0.5}
    assert found.renormalized is True
    rounded = stated_distribution("Mars 33\nVenus 33\nSaturn 33", PLANETS)
    assert rounded.shares["Mars"] == pytest.approx(1 / 3)
    assert rounded.renormalized is False


def test_half_a_line_is_not_read():
    """The last number of an answer that was cut may be the first digit of another."""
    text = "Mars 50\nVenus 30\nSaturn 2"
    assert stated_distribution(text, PLANETS).renormalized is True
    assert stated_distribution(text, PLANETS, cut=True) is None
    assert read(f"{text}0\n", cut=True) == pytest.approx(WANTED)
    assert read("Mars 60\nVenus 40\nSat", cut=True) == {"Mars": 0.6, "Venus": 0.4, "Saturn": 0.0}


ROLLED = [10, 20, 30, 25, 10, 5]


@pytest.mark.parametrize(
    "form",
    [
        "{face}: {number}",
        "{face} {number}",
        "{face} - {number}%",
        "{face}. {number}",
        "{face}) {number}",
        "({face}) {number}",
        "- {face}: {number} times",
        "{line}. {face}: {number}",
        "{line}) {face} {number}",
        "{line}. {face}. {number}",
        "{line}. **{face}** – {number} %",
    ],
)
@pytest.mark.parametrize("order", [DIE, DIE[::-1]])
def test_options_that_are_numbers(form, order):
    lines = [form.format(line=i + 1, face=face, number=ROLLED[int(face) - 1]) for i, face in enumerate(order)]
    assert read("\n".join(lines), DIE) == {face: n / 100 for face, n in zip(DIE, ROLLED, strict=True)}


@pytest.mark.parametrize("line", ["120", "16", "1-20", "1.5", "1,20", "1/6", "10: 20", "1 2 20", "-1: 20"])
def test_lines_that_do_not_give_the_first_face_a_number(line):
    assert read(f"{line}\n2 80", DIE) is None


def test_letters_as_options():
    vowels = ["a", "e", "i", "o", "u"]
    text = "A hundred times, I think:\nA: 40\nE) 30\nI 20\no = 5\nU: 5"
    assert read(text, vowels) == {"a": 0.4, "e": 0.3, "i": 0.2, "o": 0.05, "u": 0.05}
    assert read("A 100 times I would say so", vowels) is None


def test_every_prompt_of_the_study():
    for prompt in read_self_prediction().prompts:
        if prompt.task == "stated_distribution":
            lines = [f"{option}: {place + 1}" for place, option in enumerate(prompt.options)]
            total = sum(range(len(lines) + 1))
            found = read("\n".join(lines), prompt.options)
            assert list(found.values()) == pytest.approx([(place + 1) / total for place in range(len(lines))])


def test_divergence():
    assert divergence([0.5, 0.5], [0.5, 0.5]) == pytest.approx(0.0, abs=1e-12)
    assert divergence([0.9, 0.1], [0.9, 0.1]) == pytest.approx(0.0, abs=1e-3)
    # By hand: all on an option that is never stated.
    assert divergence([1.0, 0.0], [0.0, 1.0]) == pytest.approx(math.log((1 + 2 * SMOOTHING) / SMOOTHING))
    assert divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(math.log(2))
    # It is the divergence of the fact from the statement, not the other way round.
    assert divergence([0.5, 0.5], [1.0, 0.0]) == pytest.approx(
        0.5 * math.log(0.5 * 1.01 / 1.005) + 0.5 * math.log(0.5 * 1.01 / 0.005)
    )


def test_place_of_the_likeliest():
    assert rank_of_likeliest([0.2, 0.7, 0.1], [0.3, 0.6, 0.1]) == 1
    assert rank_of_likeliest([0.2, 0.7, 0.1], [0.6, 0.1, 0.3]) == 3
    # A statement that tells nothing apart earns nothing.
    assert rank_of_likeliest([0.2, 0.7, 0.1], [1 / 3] * 3) == 3


@pytest.mark.parametrize(
    "text", ["Mars 20" + " " * 5000 + "x", "1. " * 3000, "Mars " + "* " * 3000 + "5" + ",-" * 2000 + "7"]
)
def test_degenerate_answers_take_no_time(text):
    start = time.perf_counter()
    assert stated_distribution(text, PLANETS) is None
    assert time.perf_counter() - start < 5
