"""Grades in the replies of judges, and what is none."""

import time

import pytest

from afintro.evaluation.grades import parse_grade


@pytest.mark.parametrize(
    "reply",
    [
        "4", " 4\n", "4.", "4/5", "4 / 5", "**4**", "Score: 4", "score: 4", "Score: 4.", "Score: 4/5", "Score: 4 out of 5",
        "**Score:** 4/5", "**Score: 4**", "Score: **4**", "# Score: 4", "Score: 4\r\n", "The first is 2.5 m.\n\nScore: 4",
        "Near enough, but 1 point is missing.\n4", "Score: 4\nFor it says nearly the same.", "Score: 4\nScore: 4/5",
        "Score: N it says\nScore: 4",
    ],
)  # fmt: skip
def test_a_grade_is_read(reply):
    assert parse_grade(reply) == 4


@pytest.mark.parametrize(
    "reply",
    [
        "", " ", "good", "0", "6", "45", "3.5", "-4", "4/10", "٤", "4 5", "4, or 5", "Score: 7", "Score: 0", "Score: 45",
        "Score: 3.5", "Score: -4", "Score: 4/10", "Score: 4-5", "Score: N", "Score:", "Score: 4\nScore: 5",
        "Score: 2\n...\n**Score:** 3/5", "Score: 7\nScore: 4", "Score: 2\n5", "1\n2 of these\n", "I would say 4 points",
    ],
)  # fmt: skip
def test_no_grade_is_read(reply):
    assert parse_grade(reply) is None


def test_every_grade():
    assert [parse_grade(f"Score: {grade}") for grade in range(7)] == [None, 1, 2, 3, 4, 5, None]


def test_a_long_reply_is_parsed_in_no_time():
    start = time.perf_counter()
    for filler in ("*", " ", "Score: ", "Score: 4 ", "\n", "4/"):
        parse_grade(filler * (60_000 // len(filler)) + "x")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "reply",
    [
        "4.0", "4.00", "4.0/5", "4.0 / 5.0", "Score: 4.0", "**Score:** 4.0/5", "Final score: 4", "Overall score: **4**",
        "```\n4\n```", "```json\n4\n```", "```\nScore: 4\n```", "Close.\n```text\nScore: 4/5\n```",
        '{"score": 4}', '{"score": 4.0}', '{"Score": "4/5"}', '{"grade": 4, "why": "one detail"}', '{"rating": "4"}',
        '```json\n{"score": 4}\n```', '```json\n{\n  "reason": "near {enough}",\n  "score": 4\n}\n```',
        'Here it is: {"score": 4}. Thanks!', '{"result": {"score": 4}}', '{"score": 4}\nScore: 4', '{"score": 4, "grade": null}',
        "<think>2 or 3? Score: 2</think>4", "<think>\nScore: 1\n</think>\n\nScore: 4", "\n<THINK>x</THINK>Score: 4",
        "<thinking>Score: 2</thinking>\nScore: 4", "[THINK]Score: 2[/THINK]Score: 4", "<seed:think>1</seed:think>4",
        "It begins in the prompt. Score: 2\n</think>\nScore: 4", "<think>`</think>` ends it. Score: 1</think>Score: 4",
        '<think>maybe {"score": 1}</think>{"score": 4}', "The feature is `<think>`.\nScore: 4", "It is `</think>`.\nScore: 4",
        "Score: 4\nFor it names '</think>'.", "<think>x</think>\nScore: 2\n<think>No.</think>\nScore: 4",
    ],
)  # fmt: skip
def test_a_grade_in_other_forms_is_read(reply):
    assert parse_grade(reply) == 4


@pytest.mark.parametrize(
    "reply",
    [
        "between 3 and 4", "Score: between 3 and 4", "3 to 4", "3-4", "4.5", "4.01", "Score: 4.5/5", "6.0", "0.0", "40/50",
        "4/10.0",
        '{"score": 7}', '{"score": 0}', '{"score": 3.5}', '{"score": "between 3 and 4"}', '{"score": true}', '{"score": [4]}',
        '{"score": {"value": 4}}', '{"score": null}', '{"score": 4}\n{"score": 5}', '{"score": 4, "grade": 5}',
        '{"score": 2}\nScore: 4',
        '{"other": 4}', '{"score": 4', "[4]", '"4 of 5"', "```json\n```", "```", "<think>", "<think>Score: 4",
        "<think>\nScore: 4", "\n<think>\n4", "<think>4\n",
        "<think>Score: 4\n<thinking>x", "[THINK]Score: 4", "<think>I know.</think>", "<think>Score: 4</think>\nI cannot say.",
        "<think>The text has '</think>' in it. Score: 4",
    ],
)  # fmt: skip
def test_what_is_no_grade_in_other_forms(reply):
    assert parse_grade(reply) is None


@pytest.mark.parametrize(
    "filler",
    ["<think>", "</think>", "<think>x</think>", "{", '{"score":', '{"score": 4}', "```\n", "[THINK]", "4.0", "{}"],
)
def test_long_replies_of_marks_are_parsed_in_no_time(filler):
    start = time.perf_counter()
    parse_grade(filler * (60_000 // len(filler)) + "x")
    assert time.perf_counter() - start < 2
