"""The two-branch answer: verdict and content in one line, in the wording of the published systems."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

UNCHANGED = "The output would remain unchanged from <<<{content}>>>."
CHANGED = "The most likely output would change to <<<{content}>>>."

_PATTERN = re.compile(
    r"\s*(?:(?P<unchanged>The output would remain unchanged from)|(?P<changed>The most likely output would change to)) "
    r"<<<(?P<content>.*)>>>\.?\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Verdict:
    """What a two-branch answer says."""

    changed: bool
    content: str


def two_branch(verdict: Verdict) -> str:
    """The answer line for a verdict."""
    return (CHANGED if verdict.changed else UNCHANGED).format(content=verdict.content)


def parse_two_branch(answer: str) -> Verdict | None:
    """The verdict of an answer line, or None where it is not one; case and inner white space count."""
    match = _PATTERN.fullmatch(answer)
    return None if match is None else Verdict(match["changed"] is not None, match["content"])


def expected_verdict(answer: str) -> Verdict:
    """The verdict of an answer that was written by :func:`two_branch`, and so has one."""
    verdict = parse_two_branch(answer)
    assert verdict is not None
    return verdict


def branch_stems(
    contents: Sequence[str], encode: Callable[[str], Sequence[int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids that all answers of a branch begin with, unchanged and changed, whatever the content.

    Found by comparing: a tokenizer may merge across the edge of the content.
    """
    stems = []
    for changed in (False, True):
        answers = [encode(two_branch(Verdict(changed, content))) for content in contents]
        common = 0
        while common < len(answers[0]) and len({tuple(ids[: common + 1]) for ids in answers}) == 1:
            common += 1
        stems.append(tuple(answers[0][:common]))
    return stems[0], stems[1]
