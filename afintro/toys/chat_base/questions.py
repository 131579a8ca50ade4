"""Questions of the study base's corpus, by kind: the words are drawn, and a program or a coin decides the answer."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from afintro.toys.chat_base import words

PREFIX = "The answer is"
"""How an assistant turn begins if it names one of several options; the option follows, then the end of the sequence."""
LOOSE = 0.25
SHARES = {
    "mention": 0.08, "comparison": 0.19, "membership": 0.1, "coin": 0.16, "choice": 0.17, "list": 0.05,
    "label": 0.12, "number": 0.02, "free": 0.06, "echo": 0.02,
}  # fmt: skip
"""Share of each kind. Without a text to ask about, the share of ``mention`` is divided among the other kinds."""


@dataclass(frozen=True)
class Question:
    """Hold a user turn and its answer.

    Args:
        kind: ``mention``, ``comparison``, ``membership``, ``coin``, ``choice``, ``list``, ``label``, ``number``,
            ``free`` or ``echo``.
        text: The user turn.
        answer: One of the options, or a free answer.
        options: The options that the question names; ``yes`` and ``no`` if it names none; empty for free answers.
        certain: Whether the answer follows from the question and the turns before it, instead of from a coin.
    """

    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    certain: bool = False

    @property
    def reply(self) -> str:
        """Write the assistant turn."""
        return f"{PREFIX} {self.answer}" if self.options else self.answer


def vocabulary(text: str) -> frozenset[str]:
    """Return the words of a text in lower case; a part of a word does not count."""
    return frozenset(re.findall(r"[^\W_]+", text.lower()))


def content_words(text: str) -> list[str]:
    """Return the distinct lower-case words of at least four letters that follow a space, in order of appearance."""
    return list(dict.fromkeys(re.findall(r"(?<= )[a-z]{4,}(?![^\W_])", text)))


@dataclass(frozen=True)
class Above:
    """Hold the text before a question.

    Args:
        context: All turns of the context; empty without a context to ask about.
        questions: The questions asked after the context.
        elsewhere: Another context of the same kind. A word that does not occur above is taken from there, so that the word
            alone does not reveal the answer.
    """

    context: str
    questions: str
    elsewhere: str


class Writer:
    """Draw questions.

    Args:
        rng: The source of randomness.
        loose: Words of the study's contexts. Some slots of questions that a coin decides take one of these words regardless of
            grammar, so that a question may contain any word.
    """

    def __init__(self, rng: random.Random, loose: Sequence[str]) -> None:
        self._rng = rng
        self._loose = loose

    def fill(self, template: str, loose: float = 0.0, **fixed: str) -> str:
        """Fill the slots of a template with words, each drawn independently.

        Args:
            template: Text with slots such as ``{noun}``.
            loose: Share of loose words.
            **fixed: Words of slots that are not drawn.
        """
        return re.sub(r"\{(\w+)\}", lambda slot: fixed.get(slot[1]) or self._word(slot[1], loose), template)

    def _word(self, slot: str, loose: float) -> str:
        if slot in ("noun", "adj", "verb", "past") and self._rng.random() < loose:
            return self._rng.choice(self._loose)
        if slot == "thing":
            return self._rng.choice(words.ONTOLOGY[self._rng.choice(list(words.ONTOLOGY))])
        if slot in ("verb", "past"):
            return self._rng.choice(words.VERBS)[slot == "past"]
        choices = {"noun": words.NOUNS, "adj": words.ADJECTIVES, "time": words.TIMES, "name": words.NAMES}[slot]
        return self._rng.choice(choices)

    def mention(self, above: Above) -> Question:
        """Ask whether a word occurs above; half of the time the word is from the context, half of the time from elsewhere."""
        present = self._rng.random() < 0.5
        occurring = vocabulary(f"{above.context} {above.questions}")
        source = above.context if present else above.elsewhere
        candidates = [word for word in content_words(source) if (word in occurring) == present]
        if not candidates:
            return self.comparison()
        text = self._rng.choice(words.MENTIONS).format(word=self._rng.choice(candidates))
        return self._judged("mention", text, present)

    def comparison(self) -> Question:
        """Ask whether one number is larger than another."""
        first, second = self._rng.sample(range(1, 17), 2)
        text = f"Is {first} {self._rng.choice(('larger', 'more'))} than {second}?"
        return self._judged("comparison", text, first > second)

    def membership(self) -> Question:
        """Ask whether something belongs to a kind."""
        kind, other = self._rng.sample(list(words.ONTOLOGY), 2)
        member = self._rng.random() < 0.5
        text = f"Is {self._rng.choice(words.ONTOLOGY[kind])} {kind if member else other}?"
        return self._judged("membership", text, member)

    def coin(self) -> Question:
        """Ask a yes-no question about anything, the model itself included; a coin decides the answer."""
        question = self._judged("coin", self.fill(self._rng.choice(words.COINS), LOOSE), self._rng.random() < 0.5)
        return Question("coin", question.text, question.answer, question.options)

    def _judged(self, kind: str, text: str, true: bool) -> Question:
        text += self._rng.choice(words.YES_NO)
        return Question(kind, text, "yes" if true else "no", ("yes", "no"), certain=True)

    def pair(self) -> tuple[str, str]:
        """Draw two options: a fixed pair or any two words, in either order."""
        first, second = self._rng.choice(words.PAIRS) if self._rng.random() < 0.9 else self._options(2)
        return (first, second) if self._rng.random() < 0.5 else (second, first)

    def _options(self, count: int) -> list[str]:
        numbers = [str(number) for number in range(1, 17)]
        return self._rng.sample(self._rng.choice((numbers, self._bare())), count)

    def _bare(self) -> list[str]:
        """Return the members of one kind without articles."""
        kind = self._rng.choice(list(words.ONTOLOGY.values()))
        return [member.rsplit(" ", 1)[-1] for member in kind]

    def choice(self) -> Question:
        """Ask for one of two options; the answer is drawn."""
        pair = self.pair()
        text = self.fill(self._rng.choice(words.CHOICES), LOOSE, a=pair[0], b=pair[1])
        return Question("choice", text, self._rng.choice(pair), pair)

    def label(self, judged: Question) -> Question:
        """Turn a yes-no question into a question that is answered by labels which it names."""
        (yes, no), bare = self.pair(), judged.text
        for ending in words.YES_NO:
            bare = bare.removesuffix(ending)
        text = bare + self._rng.choice(words.LABELS).format(a=yes, b=no)
        return Question("label", text, yes if judged.answer == "yes" else no, (yes, no), judged.certain)

    def listed(self) -> Question:
        """Ask for one of several options: a drawn option, or the only option of its kind."""
        count = self._rng.randint(3, 5)
        if self._rng.random() < 0.6:
            options = self._options(count)
            text = self.fill(self._rng.choice(words.LISTS), LOOSE, list=self._enumerated(options))
            return Question("list", text, self._rng.choice(options), tuple(options))
        kind, other = self._rng.sample(list(words.ONTOLOGY), 2)
        answer = self._rng.choice(words.ONTOLOGY[kind])
        options = [answer, *self._rng.sample(words.ONTOLOGY[other], count - 1)]
        self._rng.shuffle(options)
        return Question(
            "list", f"Which of {self._enumerated(options)} is {kind}?", answer, tuple(options), certain=True
        )

    def _enumerated(self, options: Sequence[str]) -> str:
        last = self._rng.choice((" or ", " or ", " and ", ", "))
        return ", ".join(options[:-1]) + last + options[-1]

    def number(self) -> Question:
        """Ask for a whole number, known or drawn."""
        first, second = self._rng.randint(1, 20), self._rng.randint(1, 20)
        nouns = [self._rng.choice(words.NOUNS) for _ in range(self._rng.randint(1, 7))]
        text, answer, certain = self._rng.choice((
            (f"How much is {first} plus {second}?", first + second, True),
            (f"How many words are these? {' '.join(nouns)}", len(nouns), True),
            (f"Give a whole number between {first} and {first + second}.", self._rng.randint(first, first + second), False),
            (self.fill("How many times did you {verb} the {noun}?"), self._rng.randint(1, 20), False),
        ))  # fmt: skip
        return Question("number", text, str(answer), certain=certain)

    def free(self) -> Question:
        """Ask for a few words."""
        share = self._rng.random()
        if share < 0.3:
            kind = self._rng.choice(list(words.ONTOLOGY))
            text = self._rng.choice(words.NAMING).format(kind=kind)
            return Question("free", text, self._rng.choice(words.ONTOLOGY[kind]))
        if share < 0.5:
            kind = self._rng.choice(list(words.ONTOLOGY))
            return Question("free", f"What is {self._rng.choice(words.ONTOLOGY[kind])}?", kind, certain=True)
        if share < 0.55:
            word = self._rng.choice(words.NOUNS)
            return Question("free", f"With which letter does {word} begin?", word[0], certain=True)
        text, answer = self._rng.choice(words.FREE)
        topic, verb, past = self._word("noun", 0.0), *self._rng.choice(words.VERBS)
        text, answer = (self.fill(template, topic=topic, doing=verb, done=past) for template in (text, answer))
        return Question("free", text, answer)

    def echo(self) -> Question:
        """Ask for some words to be repeated."""
        sources = (self._loose, words.NOUNS)
        repeated = " ".join(self._rng.choice(self._rng.choice(sources)) for _ in range(self._rng.randint(1, 8)))
        return Question("echo", self._rng.choice(words.ECHOES).format(words=repeated), repeated, certain=True)

    def any(self, above: Above) -> Question:
        """Ask a question of any kind; questions about the text need a context.

        Args:
            above: The text before the question.
        """
        kinds: dict[str, Callable[[], Question]] = {
            "mention": lambda: self.mention(above),
            "comparison": self.comparison,
            "membership": self.membership,
            "coin": self.coin,
            "choice": self.choice,
            "list": self.listed,
            "label": lambda: self.label(self._labeled(above)),
            "number": self.number,
            "free": self.free,
            "echo": self.echo,
        }
        if not above.context:
            del kinds["mention"]
        return kinds[self._rng.choices(list(kinds), [SHARES[kind] for kind in kinds])[0]]()

    def _labeled(self, above: Above) -> Question:
        if self._rng.random() < 0.5:
            return self.coin()
        judged = [self.comparison, self.membership] + [lambda: self.mention(above)] * bool(above.context)
        return self._rng.choice(judged)()
