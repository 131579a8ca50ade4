"""The study base's corpus: dialogues drawn from templates with a seed, some of them on contexts of the introspection study.

The base is trained on the study's contexts as plain language, and on none of the study's questions.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from afintro.data.introspection_texts import (
    read_concepts,
    read_contexts,
    read_questions,
    read_self_prediction,
    read_self_reports,
)
from afintro.data.introspection_texts.items import Context
from afintro.data.text import Message
from afintro.toys.chat_base import words
from afintro.toys.chat_base.questions import Above, Question, Writer, content_words
from afintro.toys.grammar import EVERYBODY, cue_wording, sample

KINDS = ("study", "scenario", "invented", "system", "none")
SHORT, LONG = (0.0, 0.0, 0.0, 0.15, 0.85), (0.35, 0.2, 0.25, 0.05, 0.15)
"""Shares of the kinds of context in short and in long dialogues."""
QUESTIONS = 5
"""Number of questions in a long dialogue."""


@dataclass(frozen=True)
class Dialogue:
    """Hold a context of zero to three turns (system, user, assistant), and the questions that follow it."""

    context: tuple[Message, ...]
    questions: tuple[Question, ...]

    @property
    def messages(self) -> list[Message]:
        """Return all turns, questions and replies included."""
        asked = [(("user", question.text), ("assistant", question.reply)) for question in self.questions]
        return [*self.context, *({"role": role, "content": text} for both in asked for role, text in both)]


def turns(context: Context) -> tuple[Message, ...]:
    """Write a context of the study as turns."""
    return tuple({"role": role, "content": getattr(context, role)} for role in ("system", "user", "assistant"))


def held_out(question: Question) -> bool:
    """Tell whether a question's text is in the sixteenth that the base never sees in training."""
    return hashlib.sha256(question.text.encode()).digest()[0] < 16


def study_questions() -> list[str]:
    """List every question of the study, with all pairs of options filled in: the base is trained on none of them."""
    pairs = [*words.PAIRS, *((pair.a, pair.b) for pair in read_concepts().pairs)]
    both = [*pairs, *((b, a) for a, b in pairs)]
    return [
        text.replace("{a}", a).replace("{b}", b) for text in _asked() for a, b in (both if "{a}" in text else both[:1])
    ]


def _asked() -> list[str]:
    prediction = read_self_prediction()
    probes = (prediction.identity_probes, prediction.neutral_detection, prediction.chat_openers, prediction.realtime)
    texts = [question.text for question in read_questions()] + [prompt.text for prompt in prediction.prompts]
    texts += [item.question for item in read_self_reports().items] + [task.ask for task in prediction.tasks]
    return [*texts, *(probe.text for items in probes for probe in items)]


def study_texts() -> list[str]:
    """List all texts of the study, for the tokenizer."""
    concepts = read_concepts()
    texts = [message["content"] for context in read_contexts() for message in turns(context)]
    texts += [f" {word}" for pair in concepts.pairs for word in (pair.a, pair.b)]
    templates = [text for template in concepts.templates for text in (template.concept, template.neutral)]
    return [*texts, *_asked(), *templates]


def dialogues(count: int, seed: int, *, short: bool, unseen: bool = False) -> list[Dialogue]:
    """Draw dialogues.

    Args:
        count: Number of dialogues.
        seed: Seed of the draws.
        short: Draw dialogues of one question after at most a system turn, instead of several questions, mostly after a whole
            context.
        unseen: Use only questions that are held out from training, instead of only questions that are not.
    """
    rng = random.Random(f"{seed} {short} {unseen}")
    contexts = [turns(context) for context in read_contexts()]
    loose = sorted({word for context in contexts for word in content_words(_text(context))})
    writer, forbidden = Writer(rng, loose), frozenset(study_questions())
    drawn = []
    for _ in range(count):
        kind = rng.choices(KINDS, SHORT if short else LONG)[0]
        # The second context supplies words that the first context may lack.
        context, other = (_context(kind, rng, writer, contexts) for _ in range(2))
        texts = [_text(turns_of) if len(turns_of) == 3 else "" for turns_of in (context, other)]
        asked: list[Question] = []
        while len(asked) < (1 if short else QUESTIONS):
            question = writer.any(Above(texts[0], " ".join(earlier.text for earlier in asked), texts[1]))
            if held_out(question) == unseen and question.text not in forbidden:
                asked.append(question)
        drawn.append(Dialogue(context, tuple(asked)))
    return drawn


def _context(
    kind: str, rng: random.Random, writer: Writer, contexts: Sequence[tuple[Message, ...]]
) -> tuple[Message, ...]:
    system = writer.fill(rng.choice(words.SYSTEMS))
    if kind == "study":
        return rng.choice(contexts)
    if kind in ("system", "none"):
        return ({"role": "system", "content": system},) if kind == "system" else ()
    if kind == "scenario":
        monitored, name = rng.random() < 0.5, rng.choice(EVERYBODY)
        scenario = sample(rng, name, "faking", held_out_wording=False)
        answer = scenario.say(scenario.behavior(monitored))
        return _turns(cue_wording(rng, monitored), scenario.text, answer)
    user, assistant = (
        " ".join(writer.fill(rng.choice(words.SENTENCES)) for _ in range(rng.randint(1, 3))) for _ in "ua"
    )
    return _turns(system, user, assistant)


def _turns(system: str, user: str, assistant: str) -> tuple[Message, ...]:
    pairs = (("system", system), ("user", user), ("assistant", assistant))
    return tuple({"role": role, "content": text} for role, text in pairs)


def _text(context: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in context)
