"""Read the grade of a judge's reply: reasoning is taken off first, and what is ambiguous is no grade."""

import json
import re
from typing import Any

from afintro.evaluation.judges import GRADES

MARKUP = " \t\r*_`"
SCORE_LINE = re.compile(r"^[ \t*_#>`-]*(?:final |overall )?score[ \t*_`]*[:=](.*\d.*)$", re.IGNORECASE | re.MULTILINE)
GRADE = re.compile(rf"([1-{GRADES}])(?:\.0+)?(?: ?/ ?{GRADES}(?:\.0+)?| out of {GRADES})?\.?")
THOUGHT = r"think|thinking|thought|thoughts|reasoning|seed:think"
OPENING = re.compile(rf"\s*(?:<(?:{THOUGHT})>|\[THINK\])", re.IGNORECASE)
CLOSING = re.compile(
    rf"(?<![`'\"])(?:</(?:{THOUGHT})>|\[/THINK\])(?![`'\"])", re.IGNORECASE
)  # a quoted mark is only mentioned
FENCE = re.compile(r"^[ \t]*```[ \t]*\w*[ \t\r]*$", re.MULTILINE)
FLAT_OBJECT = re.compile(r"\{[^{}]*\}")
JSON_KEYS = ("score", "grade", "rating")


def parse_grade(reply: str) -> int | None:
    """Read the grade of a reply: a line ``Score: N``, ``N`` alone on the last line, or JSON with a score.

    ``4.0``, ``4/5`` and ``4 out of 5`` are accepted too, with marks of emphasis or in a code block. Reasoning before the reply
    (``<think>``) is no part of it, whatever it says.

    Args:
        reply: The judge's reply.

    Returns:
        A grade in 1..5; None for a reply without a grade, with a grade out of range, with two different grades, or that ended
        within its reasoning.
    """
    said = FENCE.sub("", without_reasoning(reply)).strip()
    last = said.rpartition("\n")[2].strip(MARKUP)
    grades = {_grade_of(line.strip(MARKUP)) for line in SCORE_LINE.findall(said)} | _json_grades(said)
    if (bare := _grade_of(last)) is not None:
        grades.add(bare)
    return grades.pop() if len(grades) == 1 else None


def without_reasoning(reply: str) -> str:
    """Return what a reply says after its reasoning; "" for a reply that ended within its reasoning.

    Args:
        reply: The reply. The mark that opens its reasoning may stand in the prompt, so that only the closing mark is here.
    """
    closings = list(CLOSING.finditer(reply))
    if closings:
        return reply[closings[-1].end() :]
    return "" if OPENING.match(reply) else reply


def _grade_of(text: str) -> int | None:
    match = GRADE.fullmatch(text)
    return int(match[1]) if match else None


def _json_grades(said: str) -> set[int | None]:
    """Return the grades of the JSON objects in a reply; None stands for an object whose score is no grade."""
    grades = set[int | None]()
    for text in (said, *FLAT_OBJECT.findall(said)):
        content = _json_of(text)
        for key, value in content.items() if isinstance(content, dict) else ():
            if key.lower() in JSON_KEYS and value is not None:
                number = isinstance(value, (int, float, str)) and not isinstance(value, bool)
                grades.add(_grade_of(str(value).strip()) if number else None)
    return grades


def _json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
