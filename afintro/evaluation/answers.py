"""The two-branch answer: verdict and content in one line, in the wording of the published systems (arXiv:2511.08579)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

UNCHANGED = "The output would remain unchanged from <<<{content}>>>."
CHANGED = "The most likely output would change to <<<{content}>>>."

_BEGINS = (
    r"\s*(?:(?P<unchanged>The output would remain unchanged from)|(?P<changed>The most likely output would change to)) "
    r"<<<(?P<content>.*)"
)
_CUT_PATTERN = re.compile(_BEGINS, re.DOTALL)
_PATTERN = re.compile(rf"{_BEGINS}>>>\.?\s*", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """State what a two-branch answer says.

    Args:
        changed: Whether the answer says that the output changes.
        content: The text between the angle brackets.
    """

    changed: bool
    content: str


def two_branch(verdict: Verdict, cut: bool = False) -> str:
    """Write the answer line of a verdict.

    Args:
        verdict: What the answer says.
        cut: Whether the content was cut, so that nobody knows what follows: the line ends with the content.
    """
    line = CHANGED if verdict.changed else UNCHANGED
    return (line.partition(">>>")[0] if cut else line).format(content=verdict.content)


def parse_two_branch(answer: str, cut: bool = False) -> Verdict | None:
    """Read the verdict of an answer line; case and inner white space count.

    Args:
        answer: The answer of any system.
        cut: Whether the expected answer is cut, so that the line may end with its content.

    Returns:
        The verdict, or None if the answer does not have the two-branch form.
    """
    match = _PATTERN.fullmatch(answer) or (_CUT_PATTERN.fullmatch(answer) if cut else None)
    return None if match is None else Verdict(match["changed"] is not None, match["content"])


def expected_verdict(answer: str) -> Verdict:
    """Read the verdict of an answer that :func:`two_branch` wrote.

    Args:
        answer: An expected answer, never the answer of a system.
    """
    verdict = parse_two_branch(answer, cut=True)
    assert verdict is not None
    return verdict


def branch_stems(
    contents: Sequence[str], encode: Callable[[str], Sequence[int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the token ids that all answers of a branch begin with, whatever their content.

    The stems are found by comparing encoded answers, because a tokenizer may merge tokens across the edge of the content.

    Args:
        contents: Contents that occur in answers; two contents that begin differently are enough.
        encode: Maps an answer to its token ids.

    Returns:
        The stem of the "unchanged" branch and the stem of the "changed" branch.
    """
    stems = []
    for changed in (False, True):
        answers = [encode(two_branch(Verdict(changed, content))) for content in contents]
        common = 0
        while common < len(answers[0]) and len({tuple(ids[: common + 1]) for ids in answers}) == 1:
            common += 1
        stems.append(tuple(answers[0][:common]))
    return stems[0], stems[1]
