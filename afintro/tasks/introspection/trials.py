"""A trial of the introspection study as token ids: a context that may be steered, a question, and the two answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from afintro.data.chat_template import as_is, holds, system_in_user
from afintro.data.control_strings import encode_marked, render_marked, unmark
from afintro.data.introspection_texts.items import Context, Question
from afintro.data.text import Message, encode_text
from afintro.errors import UserError

PREFIX = "The answer is"
"""The beginning of the model's answer. The answer token follows, together with the space that belongs to it."""


@dataclass(frozen=True)
class AnswerPair:
    """Two answers. ``a`` stands for yes, and for "steered" where a question has no polarity."""

    name: str
    a: str
    b: str


YES_NO = AnswerPair("yes_no", "yes", "no")
PAIRS = {
    pair.name: pair
    for pair in (
        YES_NO,
        AnswerPair("red_blue", "Red", "Blue"),
        AnswerPair("foo_bar", "foo", "bar"),
        AnswerPair("alpha_beta", "Alpha", "Beta"),
        AnswerPair("up_down", "up", "down"),
        AnswerPair("circle_square", "circle", "square"),
    )
}


def worded(text: str, pair: AnswerPair, swapped: bool) -> str:
    """Word a question so that it names the two answers, unless the answers are yes and no.

    Args:
        text: The question; a question that offers options holds ``{a}`` and ``{b}``.
        pair: The answers.
        swapped: Whether ``b`` is named first, for counterbalancing.
    """
    if "{a}" in text:
        first, second = (pair.b, pair.a) if swapped else (pair.a, pair.b)
        return text.replace("{a}", first).replace("{b}", second)
    if pair == YES_NO:
        return text
    named = (f"{pair.b} for no and {pair.a}", "yes") if swapped else (f"{pair.a} for yes and {pair.b}", "no")
    return f"{text} Answer {named[0]} for {named[1]}."


def says_steered(question: Question, pair: AnswerPair) -> str | None:
    """Return the answer that claims steering, which is the first answer for a question without polarity.

    Questions about food or concepts say nothing about steering: None.
    """
    if question.style in ("food", "concept"):
        return None
    return pair.b if question.yes_means == "unsteered" else pair.a


def turns(context: Context) -> list[Message]:
    """Return the three turns of a context as messages."""
    roles = ("system", "user", "assistant")
    return [{"role": role, "content": getattr(context, role)} for role in roles]


@dataclass(frozen=True)
class Asked:
    """Token ids of a context, and of everything that follows the context up to the answer."""

    context: tuple[int, ...]
    question: tuple[int, ...]


class Dialogues:
    """Dialogues as token ids, for one tokenizer. Each text is tokenized once, however often it is requested.

    Args:
        tokenizer: Tokenizer of the model that reads the dialogues.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._contexts: dict[str, tuple[list[Message], str, tuple[int, ...]]] = {}
        self._asked: dict[tuple[str | None, str, str], Asked] = {}
        self._answers: dict[str, int] = {}
        self._words: dict[str, tuple[int, ...]] = {}

    def asked(self, context: Context | None, question: str, prefix: str = PREFIX) -> Asked:
        """Return token ids of a context, a question, and the beginning of the answer.

        Context and question are tokenized separately, so the boundary between steered and unsteered positions is known.

        Args:
            context: The context, or None for a question alone.
            question: Text of the question.
            prefix: The beginning of the answer.

        Raises:
            UserError: The chat template renders the context differently when a question follows.
        """
        key = (None if context is None else context.id, question, prefix)
        if key not in self._asked:
            self._asked[key] = self._tokenized(context, question, prefix)
        return self._asked[key]

    def _tokenized(self, context: Context | None, question: str, prefix: str) -> Asked:
        asked: Message = {"role": "user", "content": question}
        if context is None:
            return Asked((), tuple(encode_marked(self.tokenizer, render_marked(self.tokenizer, [asked]) + prefix)))
        before, head, ids = self._context(context)
        text = render_marked(self.tokenizer, [*before, asked])
        if not text.startswith(head):
            raise UserError(
                "renders the first turns of a dialogue differently when a question follows",
                where="chat template of the tokenizer",
                remedy="use a model whose template only appends turns",
            )
        return Asked(ids, tuple(encode_marked(self.tokenizer, text[len(head) :] + prefix)))

    def _context(self, context: Context) -> tuple[list[Message], str, tuple[int, ...]]:
        """Return the turns of a context as the template is given them, what it makes of them, and the token ids."""
        if context.id not in self._contexts:
            # Some templates put the system text into the last user turn, behind the context: there it is put into the first.
            for form in (as_is, system_in_user):
                before = form(turns(context))
                head = self._head(before)
                if holds(unmark(head), before):
                    self._contexts[context.id] = before, head, tuple(encode_marked(self.tokenizer, head))
                    break
            else:
                raise UserError(
                    "leaves out a turn, or renders it differently when a question follows",
                    where=f"chat template, context {context.id}",
                    remedy="use a model whose template keeps all turns",
                )
        return self._contexts[context.id]

    def _head(self, before: Sequence[Message]) -> str:
        """Return what the template begins with, whether a question follows or not: some close a last turn differently."""
        alone = render_marked(self.tokenizer, before, answering=False)
        followed = render_marked(self.tokenizer, [*before, {"role": "user", "content": "?"}])
        same = takewhile(lambda pair: pair[0] == pair[1], zip(alone, followed, strict=False))
        return "".join(character for character, _ in same)

    def answer(self, word: str) -> int:
        """Return the single token of a word after :data:`PREFIX`.

        Raises:
            UserError: The word takes several tokens.
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

    def answers(self, pair: AnswerPair) -> tuple[int, int]:
        """Return the tokens of both answers.

        Raises:
            UserError: Both answers are the same token, or an answer takes several tokens.
        """
        tokens = self.answer(pair.a), self.answer(pair.b)
        if tokens[0] == tokens[1]:
            raise UserError("has the same token for both answers", where=f"pair {pair.name}", remedy="use another pair")
        return tokens

    def word(self, word: str) -> tuple[int, ...]:
        """Return all tokens of a word after :data:`PREFIX`."""
        if word not in self._words:
            before, whole = (encode_text(self.tokenizer, text) for text in (PREFIX, f"{PREFIX} {word}"))
            self._words[word] = tuple(whole[len(before) :])
        return self._words[word]


def single_tokens(dialogues: Dialogues, pairs: Sequence[AnswerPair]) -> list[AnswerPair]:
    """Return the pairs whose answers are single tokens of this tokenizer."""
    possible = []
    for pair in pairs:
        try:
            dialogues.answers(pair)
        except UserError:
            continue
        possible.append(pair)
    return possible
