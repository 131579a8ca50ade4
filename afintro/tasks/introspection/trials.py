"""A trial of the introspection study as token ids: a context that may be steered, a question, the two answers that count."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from afintro.data.introspection_texts.items import Context
from afintro.data.text import Message, encode_text, render
from afintro.errors import UserError

PREFIX = "The answer is"
"""What the model's answer begins with; the answer token follows, with the space that belongs to it."""


@dataclass(frozen=True)
class Pair:
    """Two answers. ``a`` stands for yes, and for "steered" where a question has no polarity."""

    name: str
    a: str
    b: str


YES_NO = Pair("yes_no", "yes", "no")
PAIRS = {
    pair.name: pair
    for pair in (
        YES_NO,
        Pair("red_blue", "Red", "Blue"),
        Pair("foo_bar", "foo", "bar"),
        Pair("alpha_beta", "Alpha", "Beta"),
        Pair("up_down", "up", "down"),
        Pair("circle_square", "circle", "square"),
    )
}


def worded(text: str, pair: Pair, swapped: bool) -> str:
    """A question that names the two answers, unless they are yes and no.

    Args:
        text: The question; where it offers options it holds ``{a}`` and ``{b}``.
        pair: The answers.
        swapped: Names ``b`` first, for counterbalancing.
    """
    if "{a}" in text:
        first, second = (pair.b, pair.a) if swapped else (pair.a, pair.b)
        return text.replace("{a}", first).replace("{b}", second)
    if pair == YES_NO:
        return text
    named = (f"{pair.b} for no and {pair.a}", "yes") if swapped else (f"{pair.a} for yes and {pair.b}", "no")
    return f"{text} Answer {named[0]} for {named[1]}."


def turns(context: Context) -> list[Message]:
    """The three turns of a context."""
    roles = ("system", "user", "assistant")
    return [{"role": role, "content": getattr(context, role)} for role in roles]


@dataclass(frozen=True)
class Asked:
    """Token ids of a context and of what follows it, up to the answer."""

    context: tuple[int, ...]
    question: tuple[int, ...]


class Dialogues:
    """Dialogues as token ids, for one tokenizer. Each text is tokenised once, however often it is asked for.

    Args:
        tokenizer: Of the model that reads them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._contexts: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._asked: dict[tuple[str | None, str, str], Asked] = {}
        self._answers: dict[str, int] = {}
        self._words: dict[str, tuple[int, ...]] = {}

    def asked(self, context: Context | None, question: str, prefix: str = PREFIX) -> Asked:
        """A context, or none, then a question, then how the answer begins.

        Context and question are tokenised apart, so the boundary between what is steered and what is not is known.

        Raises:
            UserError: A chat template that renders the context in another way when a question follows.
        """
        key = (None if context is None else context.id, question, prefix)
        if key not in self._asked:
            self._asked[key] = self._tokenised(context, question, prefix)
        return self._asked[key]

    def _tokenised(self, context: Context | None, question: str, prefix: str) -> Asked:
        before = [] if context is None else turns(context)
        text = render(self.tokenizer, [*before, {"role": "user", "content": question}])
        if context is None:
            return Asked((), tuple(encode_text(self.tokenizer, text + prefix)))
        head, ids = self._context(context)
        if not text.startswith(head):
            raise UserError(
                "renders a dialogue's first turns otherwise when a question follows",
                where="chat template of the tokenizer",
                remedy="use a model whose template only appends turns",
            )
        return Asked(ids, tuple(encode_text(self.tokenizer, text[len(head) :] + prefix)))

    def _context(self, context: Context) -> tuple[str, tuple[int, ...]]:
        if context.id not in self._contexts:
            before = turns(context)
            head = render(self.tokenizer, before, answering=False)
            # Some templates close a last turn otherwise than one that is followed by another.
            followed = render(self.tokenizer, [*before, {"role": "user", "content": "?"}])
            same = takewhile(lambda pair: pair[0] == pair[1], zip(head, followed, strict=False))
            head = "".join(character for character, _ in same)
            if context.assistant not in head:
                raise UserError(
                    "leaves out the assistant's turn",
                    where=f"chat template, context {context.id}",
                    remedy="use a model whose template keeps all turns",
                )
            self._contexts[context.id] = head, tuple(encode_text(self.tokenizer, head))
        return self._contexts[context.id]

    def answer(self, word: str) -> int:
        """The one token that a word is after :data:`PREFIX`.

        Raises:
            UserError: It takes several.
        """
        if word not in self._answers:
            before, whole = (encode_text(self.tokenizer, text) for text in (PREFIX, f"{PREFIX} {word}"))
            if whole[: len(before)] != before or len(whole) != len(before) + 1:
                raise UserError(
                    f"takes several tokens after {PREFIX!r}",
                    where=f"answer {word!r}",
                    remedy="use a pair whose words are single tokens of this model",
                )
            self._answers[word] = whole[-1]
        return self._answers[word]

    def answers(self, pair: Pair) -> tuple[int, int]:
        """Both answer tokens.

        Raises:
            UserError: They are one and the same, or one takes several tokens.
        """
        found = self.answer(pair.a), self.answer(pair.b)
        if found[0] == found[1]:
            raise UserError("is one token for both answers", where=f"pair {pair.name}", remedy="use another pair")
        return found

    def word(self, word: str) -> tuple[int, ...]:
        """Tokens of a word after :data:`PREFIX`, however many."""
        if word not in self._words:
            before, whole = (encode_text(self.tokenizer, text) for text in (PREFIX, f"{PREFIX} {word}"))
            self._words[word] = tuple(whole[len(before) :])
        return self._words[word]


def single_tokens(dialogues: Dialogues, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that this tokenizer can answer with."""
    found = []
    for pair in pairs:
        try:
            dialogues.answers(pair)
        except UserError:
            continue
        found.append(pair)
    return found
