"""Let a person ask: a text in, the answer streaming."""

import sys
from collections.abc import Callable
from typing import TextIO

from afintro.errors import UserError
from afintro.explain.explainer import Explainer
from afintro.explain.table import shown
from afintro.tasks.unlabeled import Inputs

PROMPT = "scenario> "


def converse(
    explainer: Explainer, inputs: Callable[[str], Inputs], source: TextIO | None = None, target: TextIO | None = None
) -> None:
    """Ask for texts until the input ends, and show each answer while it is written.

    A wrong text is refused with its reason, and the next one asked for.

    Args:
        explainer: The explainer.
        inputs: Makes the question of a text.
        source: Where the texts come from, one a line; standard input if None.
        target: Where the answers go; standard output if None.
    """
    source, target = source or sys.stdin, target or sys.stdout
    explainer.load()
    print("Type a text and press enter; an empty line or Ctrl-D ends.", file=target)
    while True:
        print(PROMPT, end="", file=target, flush=True)
        try:
            text = source.readline().strip()
        except KeyboardInterrupt:
            break
        if not text:
            break
        try:
            for rows in explainer.stream(inputs(text), batch_size=1, on_token=Spelling(explainer, target)):
                for row in rows:
                    print("\n" + _about(row), file=target)
        except UserError as error:
            print(f"\nerror: {error}", file=target)
    print(file=target)


class Spelling:
    """Print an answer token by token; a token may be a part of a character.

    Args:
        explainer: Whose tokens they are.
        target: Where the text goes.
    """

    def __init__(self, explainer: Explainer, target: TextIO) -> None:
        self._tokenizer, self._target = explainer.module.tokenizer, target
        self._tokens: list[int] = []
        self._text = ""

    def __call__(self, token: int) -> None:
        """Print what a token adds to the text."""
        self._tokens.append(token)
        text = str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._text):
            return
        print(shown(text[len(self._text) :]), end="", file=self._target, flush=True)
        self._text = text


def _about(row: dict[str, object]) -> str:
    facts = [f"{name.replace('_', ' ')} {shown(row[name])}" for name in ("verdict", "p_changed", "confidence", "mean_logprob")
             if row[name] is not None]  # fmt: skip
    zero = row["answer_zero_vector"]
    return f"  [{', '.join(facts)}]" + ("" if zero is None else f"\n  with a zero vector: {shown(zero)}")
