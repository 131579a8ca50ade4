"""Steer contexts in every way of a study, leave them alone, and put questions to them.

The draws depend on the study's seed and on names alone: all variants, and all trained seeds of a variant, see the same items.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from afintro.data.introspection_texts.items import Context, Question, SelfReport
from afintro.data.splits import stable_hash
from afintro.lm.spans import SpanSteering
from afintro.study.asking.queries import SYSTEMS, Query
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.tasks.introspection.material import Kind
from afintro.tasks.introspection.trials import PAIRS, AnswerPair, says_steered, single_tokens, worded
from afintro.tasks.introspection.vectors import SplitName, VectorSet

VECTOR_SPLITS: dict[str, SplitName] = {"held_in": "train", "held_out": "test"}
"""The split of the vectors in each steered condition."""
STEERING, CONTROL, NORMS = "steering", "control", "norms"
"""What a row is about: steering, something else under the same steering, or the norms of the context's activations."""


@dataclass(frozen=True)
class Reading:
    """One context, read once.

    Args:
        context: The context.
        condition: ``held_in`` or ``held_out`` for steering by training or test vectors, ``swap`` for a real activation in
            place of the context's own, ``none`` without steering.
        steering: The steering. None without steering.
        vector: The vector's name. None without steering.
        layers: First layer and one past the last layer. None without steering.
        strength: Strength of the steering. None without steering, and for a swap, which has a single strength.
        chosen: Whether the reading is one of the few that are asked more.
    """

    context: Context
    condition: str
    steering: SpanSteering | None = None
    vector: str | None = None
    layers: tuple[int, int] | None = None
    strength: float | None = None
    chosen: bool = True


def kind_of(session: Session) -> Kind:
    """Return the kind of vectors that a variant is tested with: its own kind, or random if its training steers nothing."""
    return session.material.kind or "random"


def readings(session: Session) -> list[Reading]:
    """Return readings of contexts that were not trained on, plain and odd: unsteered, and steered by training and test vectors.

    Every context is read with every test strength, each time with a vector drawn for it, and with one range of layers for
    each strength: over the contexts, every range meets every strength equally often.
    """
    kind, contexts = kind_of(session), session.untrained_contexts()
    all_readings = unsteered(session)
    for condition, split in VECTOR_SPLITS.items():
        all_readings += list(_steered(session, condition, session.material.vectors(split, kind), kind, contexts))
    return all_readings


def swaps(session: Session) -> list[Reading]:
    """Return readings of the test contexts with a real activation in place of their own, scaled to the same norm.

    The activations are from validation contexts: an activation of the context itself would hardly be a swap.
    """
    vectors = session.material.vectors("validation", "swap")
    return list(_steered(session, "swap", vectors, "swap", session.contexts("test")))


def training_readings(session: Session, kind: Kind) -> list[Reading]:
    """Return readings of the training contexts: unsteered, and steered by training vectors in training strengths.

    Args:
        session: The session.
        kind: The kind of the vectors.
    """
    contexts, vectors = session.contexts("train"), session.material.vectors("train", kind)
    unsteered_readings = [Reading(context, "none") for context in contexts]
    return [*unsteered_readings, *_steered(session, "training", vectors, kind, contexts)]


def unsteered(session: Session) -> list[Reading]:
    """Return readings of the contexts as they are."""
    return [Reading(context, "none") for context in session.untrained_contexts()]


def _steered(
    session: Session, condition: str, vectors: VectorSet, kind: Kind, contexts: Sequence[Context]
) -> Iterator[Reading]:
    material = session.material
    names = draw_few(vectors.names, session.scale.vectors, f"{material.seed} {condition}")
    strengths: Sequence[float | None] = material.strengths.of("train" if condition == "training" else "test")
    strengths = [None] if kind == "swap" else strengths
    ranges = material.ranges
    for (which, layers), (place, strength) in product(enumerate(ranges), enumerate(strengths)):
        for index, context in enumerate(contexts):
            if (which + place + index) % len(ranges) and kind != "swap":
                continue
            drawn = stable_hash(f"{material.seed} {condition} {layers} {strength} {context.id}")
            name = names[drawn % len(names)]
            steering = material.steering(vectors.of(name), layers, 1.0 if strength is None else strength, kind)
            # A context is chosen at one strength. The next context is chosen at the next strength.
            chosen = place == index % len(strengths) and (kind != "swap" or which == index % len(ranges))
            yield Reading(context, condition, steering, name, layers, strength, chosen)


def draw_few(options: Sequence[str], count: int, seed: str) -> list[str]:
    """Draw at most ``count`` of the options without replacement.

    Args:
        options: What to draw from.
        count: Largest number of options.
        seed: Decides the draw.
    """
    return sorted(options, key=lambda option: stable_hash(f"{seed} {option}"))[:count]


@dataclass(frozen=True)
class Trial:
    """One question about one reading.

    Args:
        reading: What was read before.
        question: The question about steering, whose options, if it has any, are not filled in yet; or a control question,
            which is about neither steering nor the model.
        style: The style that the trial is recorded under.
        pair: The two answers.
        native: Whether the variant was trained on this pair.
        swapped: Whether the second answer is named first, if the question names the answers.
        lens: Whether every layer is looked at.
    """

    reading: Reading
    question: Question | SelfReport
    style: str
    pair: AnswerPair
    native: bool
    swapped: bool = False
    lens: bool = False

    @property
    def claim(self) -> tuple[str, str]:
        """Return the answer that says "steered", and the other answer. For a control question, return yes and no."""
        if isinstance(self.question, SelfReport):
            return self.pair.a, self.pair.b
        steered_answer = says_steered(self.question, self.pair)
        assert steered_answer is not None, "the question is not about steering"
        return steered_answer, self.pair.a if steered_answer == self.pair.b else self.pair.b

    @property
    def query(self) -> Query:
        """Return the query with the options filled in."""
        text = worded(self.question.text, self.pair, self.swapped)
        return Query(self.reading.context, self.reading.steering, text)


def trials_of(
    session: Session,
    reading: Reading,
    questions: Sequence[Question] | Sequence[SelfReport],
    style: str,
    pair: AnswerPair,
    native: bool,
) -> list[Trial]:
    """Put questions to a reading.

    The order of the answers is drawn for the first question and alternates from then on; a reversed twin has the order of its
    original. The order is the same in all readings of a context, so that these differ by the steering alone.

    Args:
        session: The session.
        reading: The reading.
        questions: The questions, with or without their reversed twins.
        style: The style that the trials are recorded under.
        pair: The two answers.
        native: Whether the variant was trained on this pair.
    """
    first = stable_hash(f"{session.material.seed} {reading.context.id} {style} {pair.name} order")
    places = {family: place for place, family in enumerate(dict.fromkeys(question.family for question in questions))}
    return [
        Trial(reading, question, style, pair, native, swapped=(first + places[question.family]) % 2 == 1)
        for question in questions
    ]


def with_twins(questions: Sequence[Question], families: Sequence[str]) -> list[Question]:
    """Return the questions of some families, each original followed by its reversed twin if it has one.

    Args:
        questions: The questions to choose from.
        families: Ids of originals, in the order of the result.
    """
    chosen = [question for family in families for question in questions if question.family == family]
    return sorted(chosen, key=lambda question: (families.index(question.family), question.reversed_of is not None))


def other_pairs(session: Session) -> list[AnswerPair]:
    """Return the pairs that the variant was not trained on and whose words are single tokens of its model."""
    return [pair for pair in single_tokens(session.dialogues, list(PAIRS.values())) if pair != session.data.pair]


def trials_with_other_pairs(
    session: Session, reading: Reading, questions: Sequence[Question], style: str
) -> list[Trial]:
    """Put one question and its twin with every other pair to the unsteered and to a few readings on held-out vectors.

    A context has the same question in all of its readings, so that these differ by the steering alone.

    Args:
        session: The session.
        reading: The reading.
        questions: The questions to draw from, with their reversed twins.
        style: The style that the trials are recorded under.
    """
    if reading.condition not in ("held_out", "none") or not reading.chosen:
        return []
    drawn = stable_hash(f"{session.material.seed} {reading.context.id} {style}")
    families = list(dict.fromkeys(question.family for question in questions))
    asked = with_twins(questions, [families[drawn % len(families)]])
    return [trial for pair in other_pairs(session) for trial in trials_of(session, reading, asked, style, pair, False)]


def ask(session: Session, trials: Sequence[Trial]) -> list[ResultRow]:
    """Ask the adapter, then the base; return their rows. All questions on one reading share it."""
    queries = [trial.query for trial in trials]
    answers = [[session.dialogues.answer(word) for word in trial.claim] for trial in trials]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            scores = session.ask(queries, answers)
            odds_by_layer = _lens(session, trials, queries)
        for trial, (claimed, other), lens in zip(trials, scores, odds_by_layer, strict=True):
            probability = math.exp(claimed) + math.exp(other)
            result: ResultRow = {"odds": claimed - other, "mass": probability, "lens": lens}
            rows.append({"system": system, "seed": session.seed, **_trial_fields(trial), **result})
    return rows


def _trial_fields(trial: Trial) -> ResultRow:
    control = isinstance(trial.question, SelfReport)
    return {
        **reading_fields(trial.reading),
        "about": CONTROL if control else STEERING,
        "question": trial.question.id,
        "reversed_of": trial.question.reversed_of,
        "expected": trial.question.expected if isinstance(trial.question, SelfReport) else None,
        "pair": trial.pair.name,
        "native": trial.native,
        "style": trial.style,
    }


def reading_fields(reading: Reading) -> ResultRow:
    """Return the fields that every row about a reading has."""
    return {
        "context": reading.context.id,
        "vector": reading.vector,
        "side": reading.condition,
        "steered": reading.steering is not None,
        "layers": None if reading.layers is None else list(reading.layers),
        "dose": reading.strength,
        "kind": reading.context.kind,
    }


def _lens(session: Session, trials: Sequence[Trial], queries: Sequence[Query]) -> list[list[float] | None]:
    """Return log-odds in favor of "steered" by layer, for the trials that ask for them."""
    odds_of_trials: list[list[float] | None] = [None] * len(trials)
    looked_at = [index for index, trial in enumerate(trials) if trial.lens]
    if looked_at:
        a, b = session.dialogues.answers(trials[looked_at[0]].pair)
        odds = session.lens([queries[index] for index in looked_at], (a, b))
        for index, by_layer in zip(looked_at, odds or [], strict=odds is not None):
            sign = 1 if trials[index].claim[0] == trials[index].pair.a else -1
            odds_of_trials[index] = [sign * value for value in by_layer]
    return odds_of_trials
