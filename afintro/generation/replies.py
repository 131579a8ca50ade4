"""Make replies of the tokens that a model wrote."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from afintro.generation.marks import kept_marks
from afintro.generation.reasoning import Reply, opening_of
from afintro.lm.generate import reached_limit

PROMPT_END = 16  # tokens at the end of a prompt, which may open the reasoning


class ReplyDecoder:
    """Make replies of token ids: texts without special tokens, in which the marks of reasoning stay.

    Where such marks are special tokens (GPT-OSS, Magistral, Command), reasoning and answer would run together without them.

    Args:
        tokenizer: Tokenizer of the model that writes.
        max_new_tokens: Largest number of new tokens of a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> None:
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        special = {token: str(added) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        marks = kept_marks(list(special.values()))
        self.marks = {token: mark for token, mark in special.items() if mark in marks}

    def __call__(self, ids: Sequence[int], prompt: Sequence[int], prefill: str = "") -> Reply:
        """Make the reply of one continuation.

        Args:
            ids: The new tokens.
            prompt: Token ids of the prompt, up to where the answer begins.
            prefill: The beginning of the answer, which was part of what the model read.
        """
        text, start = "", 0
        places: dict[str, set[int]] = {mark: set() for mark in self.marks.values()}
        for index, token in enumerate(ids):
            if token in self.marks:
                text += self._text(ids[start:index])
                places[self.marks[token]].add(len(text))
                text, start = text + self.marks[token], index + 1
        text += self._text(ids[start:])
        opening = opening_of(str(self.tokenizer.decode(list(prompt[-PROMPT_END:]))))
        tokens = {mark: frozenset(starts) for mark, starts in places.items()}
        return Reply(text, reached_limit(ids, self.max_new_tokens), opening, tokens, prefill)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
