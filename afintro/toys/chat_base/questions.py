"""Questions of the study base's corpus, by kind: drawn words, and an answer that a program knows or a coin decides."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from afintro.toys.chat_base import words

PREFIX = "The answer is"
"""How an assistant turn begins that names one of several options; one of them follows, then the end of the sequence."""
LOOSE = 0.25
SHARES = {
    "mention": 0.08, "comparison": 0.19, "membership": 0.1, "coin": 0.16, "choice": 0.17, "list": 0.05,
    "label": 0.12, "number": 0.02, "free": 0.06, "echo": 0.02,
}  # fmt: skip
"""Share of each kind; where there is no text to ask about, the others share what is that of ``mention``."""


@dataclass(frozen=True)
class Question:
    """A user turn and how it is answered.

    Args:
        kind: ``mention``, ``comparison``, ``membership``, ``coin``, ``choice``, ``list``, ``label``, ``number``,
            ``free`` or ``echo``.
        text: The user turn.
        answer: One of the options, or a free answer.
        options: Those that the question names, ``yes`` and ``no`` where it names none; empty for free answers.
        certain: Whether the answer follows from the question and what went before, and no coin was tossed.
    """

    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    certain: bool = False

    @property
    def reply(self) -> str:
        """The assistant turn."""
        return f"{PREFIX} {self.answer}" if self.options else self.answer


def vocabulary(text: str) -> frozenset[str]:
    """The words of a text in lower case; a part of a word is none."""
    return frozenset(re.findall(r"[^\W_]+", text.lower()))


def content_words(text: str) -> list[str]:
    """Lower-case words of four letters or more, as they stand after a space, each once."""
    return list(dict.fromkeys(re.findall(r"(?<= )[a-z]{4,}(?![^\W_])", text)))


@dataclass(frozen=True)
class Above:
    """What went before a question, as text.

    Args:
        context: All turns of the context; empty where there is none to ask about.
        questions: The questions asked since.
        elsewhere: Another context of the same kind: a word that is not above is taken from there, so that the word alone does
            not give the answer away.
    """

    context: str
    questions: str
    elsewhere: str


class Writer:
    """Draws questions.

    Args:
        rng: Decides everything.
        loose: Words of the study's contexts. Some slots of questions that a coin decides take one of these, whatever the
            grammar says, so that a question may hold any word.
    """

    def __init__(self, rng: random.Random, loose: Sequence[str]) -> None:
        self._rng = rng
        self._loose = loose

    def fill(self, template: str, loose: float = 0.0, **fixed: str) -> str:
        """The template with words drawn for its slots, anew at each; ``loose`` is the share of loose words."""
        return re.sub(r"\{(\w+)\}", lambda slot: fixed.get(slot[1]) or self._word(slot[1], loose), template)

    def _word(self, slot: str, loose: float) -> str:
        if slot in ("noun", "adj", "verb", "past") and self._rng.random() < loose:
            return self._rng.choice(self._loose)
        if slot == "thing":
            return self._rng.choice(words.ONTOLOGY[self._rng.choice(list(words.ONTOLOGY))])
        if slot in ("verb", "past"):
            return self._rng.choice(words.VERBS)[slot == "past"]
        drawn = {"noun": words.NOUNS, "adj": words.ADJECTIVES, "time": words.TIMES, "name": words.NAMES}[slot]
        return self._rng.choice(drawn)

    def mention(self, above: Above) -> Question:
        """Whether a word occurs above: half of the time one of the context, half of the time one from elsewhere."""
        present = self._rng.random() < 0.5
        said = vocabulary(f"{above.context} {above.questions}")
        found = [
            word for word in content_words(above.context if present else above.elsewhere) if (word in said) == present
        ]
        if not found:
            return self.comparison()
        text = self._rng.choice(words.MENTIONS).format(word=self._rng.choice(found))
        return self._judged("mention", text, present)

    def comparison(self) -> Question:
        """Whether one number is larger than another."""
        first, second = self._rng.sample(range(1, 17), 2)
        text = f"Is {first} {self._rng.choice(('larger', 'more'))} than {second}?"
        return self._judged("comparison", text, first > second)

    def membership(self) -> Question:
        """Whether something belongs to a kind."""
        kind, other = self._rng.sample(list(words.ONTOLOGY), 2)
        member = self._rng.random() < 0.5
        text = f"Is {self._rng.choice(words.ONTOLOGY[kind])} {kind if member else other}?"
        return self._judged("membership", text, member)

    def coin(self) -> Question:
        """Yes or no about anything, the reader included; the answer is drawn."""
        question = self._judged("coin", self.fill(self._rng.choice(words.COINS), LOOSE), self._rng.random() < 0.5)
        return Question("coin", question.text, question.answer, question.options)

    def _judged(self, kind: str, text: str, true: bool) -> Question:
        text += self._rng.choice(words.YES_NO)
        return Question(kind, text, "yes" if true else "no", ("yes", "no"), certain=True)

    def pair(self) -> tuple[str, str]:
        """Two options, one of the fixed pairs or any two words, in either order."""
        first, second = self._rng.choice(words.PAIRS) if self._rng.random() < 0.9 else self._options(2)
        return (first, second) if self._rng.random() < 0.5 else (second, first)

    def _options(self, count: int) -> list[str]:
        numbers = [str(number) for number in range(1, 17)]
        return self._rng.sample(self._rng.choice((numbers, self._bare())), count)

    def _bare(self) -> list[str]:
        """Members of one kind without article."""
        kind = self._rng.choice(list(words.ONTOLOGY.values()))
        return [member.rsplit(" ", 1)[-1] for member in kind]

    def choice(self) -> Question:
        """One of two, drawn."""
        pair = self.pair()
        text = self.fill(self._rng.choice(words.CHOICES), LOOSE, a=pair[0], b=pair[1])
        return Question("choice", text, self._rng.choice(pair), pair)

    def label(self, judged: Question) -> Question:
        """A yes-no question answered by labels that it names."""
        (yes, no), bare = self.pair(), judged.text
        for ending in words.YES_NO:
            bare = bare.removesuffix(ending)
        text = bare + self._rng.choice(words.LABELS).format(a=yes, b=no)
        return Question("label", text, yes if judged.answer == "yes" else no, (yes, no), judged.certain)

    def listed(self) -> Question:
        """One of several: drawn, or the only one of its kind."""
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
        """A whole number, known or drawn."""
        first, second = self._rng.randint(1, 20), self._rng.randint(1, 20)
        some = [self._rng.choice(words.NOUNS) for _ in range(self._rng.randint(1, 7))]
        text, answer, certain = self._rng.choice((
            (f"How much is {first} plus {second}?", first + second, True),
            (f"How many words are these? {' '.join(some)}", len(some), True),
            (f"Give a whole number between {first} and {first + second}.", self._rng.randint(first, first + second), False),
            (self.fill("How many times did you {verb} the {noun}?"), self._rng.randint(1, 20), False),
        ))  # fmt: skip
        return Question("number", text, str(answer), certain=certain)

    def free(self) -> Question:
        """A few words."""
        draw = self._rng.random()
        if draw < 0.3:
            kind = self._rng.choice(list(words.ONTOLOGY))
            text = self._rng.choice(words.NAMING).format(kind=kind)
            return Question("free", text, self._rng.choice(words.ONTOLOGY[kind]))
        if draw < 0.5:
            kind = self._rng.choice(list(words.ONTOLOGY))
            return Question("free", f"What is {self._rng.choice(words.ONTOLOGY[kind])}?", kind, certain=True)
        if draw < 0.55:
            word = self._rng.choice(words.NOUNS)
            return Question("free", f"With which letter does {word} begin?", word[0], certain=True)
        text, answer = self._rng.choice(words.FREE)
        topic, verb, past = self._word("noun", 0.0), *self._rng.choice(words.VERBS)
        text, answer = (self.fill(one, topic=topic, doing=verb, done=past) for one in (text, answer))
        return Question("free", text, answer)

    def echo(self) -> Question:
        """Some words, to be said again."""
        sources = (self._loose, words.NOUNS)
        said = " ".join(self._rng.choice(self._rng.choice(sources)) for _ in range(self._rng.randint(1, 8)))
        return Question("echo", self._rng.choice(words.ECHOES).format(words=said), said, certain=True)

    def any(self, above: Above) -> Question:
        """A question of any kind; those about the text only where there is one."""
        kinds: dict[str, Callable[[], Question]] = {
            "mention": lambda: self.mention(above),
            "comparison": self.comparison,
            "membership": self.membership,
            "coin": self.coin,
            "choice": self.choice,
            "list": self.listed,
            "label": lambda: self.label(self._labelled(above)),
            "number": self.number,
            "free": self.free,
            "echo": self.echo,
        }
        if not above.context:
            del kinds["mention"]
        return kinds[self._rng.choices(list(kinds), [SHARES[kind] for kind in kinds])[0]]()

    def _labelled(self, above: Above) -> Question:
        if self._rng.random() < 0.5:
            return self.coin()
        judged = [self.comparison, self.membership] + [lambda: self.mention(above)] * bool(above.context)
        return self._rng.choice(judged)()
