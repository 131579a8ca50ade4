"""Steer contexts in every way of a study, leave them alone, and put questions to them.

The draws depend on the study's seed and on names alone: all variants, and all trained seeds of a variant, see the same items.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from afintro.data.introspection_texts.items import Context, Question
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
CHOSEN_SHARE = 4  # one of this many readings is asked the slower questions


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
    """Return readings of the test contexts, plain and odd: unsteered, and steered by training and by test vectors.

    Every combination of vectors, layer range and test strength reads every context, each with a vector drawn for it.
    """
    kind = kind_of(session)
    all_readings = unsteered(session)
    for condition, split in VECTOR_SPLITS.items():
        all_readings += list(_steered(session, condition, session.material.vectors(split, kind), kind))
    return all_readings


def swaps(session: Session) -> list[Reading]:
    """Return readings of the test contexts with a real activation in place of their own, scaled to the same norm.

    The activations are from validation contexts: an activation of the context itself would hardly be a swap.
    """
    return list(_steered(session, "swap", session.material.vectors("validation", "swap"), "swap"))


def unsteered(session: Session) -> list[Reading]:
    """Return readings of the test contexts as they are."""
    return [Reading(context, "none") for context in session.contexts("test")]


def _steered(session: Session, condition: str, vectors: VectorSet, kind: Kind) -> Iterator[Reading]:
    material = session.material
    names = draw_few(vectors.names, session.scale.vectors, f"{material.seed} {condition}")
    strengths: Sequence[float | None] = [None] if kind == "swap" else material.strengths.test
    for layers, (place, strength) in product(material.ranges, enumerate(strengths)):
        for index, context in enumerate(session.contexts("test")):
            drawn = stable_hash(f"{material.seed} {condition} {layers} {strength} {context.id}")
            name = names[drawn % len(names)]
            steering = material.steering(vectors.of(name), layers, 1.0 if strength is None else strength, kind)
            # Of four strengths, all contexts are chosen once a layer range, and not always at the same strength.
            chosen = (layers[0] + place + index) % CHOSEN_SHARE == 0
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
        question: The question. Its options, if it has any, are not filled in yet.
        style: The style that the trial is recorded under.
        pair: The two answers.
        native: Whether the variant was trained on this pair.
        swapped: Whether the second answer is named first, if the question names the answers.
        lens: Whether every layer is looked at.
    """

    reading: Reading
    question: Question
    style: str
    pair: AnswerPair
    native: bool
    swapped: bool = False
    lens: bool = False

    @property
    def claim(self) -> tuple[str, str]:
        """Return the answer that says "steered", and the other answer."""
        steered_answer = says_steered(self.question, self.pair)
        assert steered_answer is not None, "the question is not about steering"
        return steered_answer, self.pair.a if steered_answer == self.pair.b else self.pair.b

    @property
    def query(self) -> Query:
        """Return the query with the options filled in."""
        text = worded(self.question.text, self.pair, self.swapped)
        return Query(self.reading.context, self.reading.steering, text)


def trials_of(
    session: Session, reading: Reading, questions: Sequence[Question], style: str, pair: AnswerPair, native: bool
) -> list[Trial]:
    """Put questions to a reading.

    The order of the answers is drawn for the first question and alternates from then on. It is the same in all readings of
    a context, so that these differ by the steering alone.

    Args:
        session: The session.
        reading: The reading.
        questions: The questions.
        style: The style that the trials are recorded under.
        pair: The two answers.
        native: Whether the variant was trained on this pair.
    """
    first = stable_hash(f"{session.material.seed} {reading.context.id} {style} {pair.name} order")
    return [
        Trial(reading, question, style, pair, native, swapped=(first + place) % 2 == 1)
        for place, question in enumerate(questions)
    ]


def other_pairs(session: Session) -> list[AnswerPair]:
    """Return the pairs that the variant was not trained on and whose words are single tokens of its model."""
    return [pair for pair in single_tokens(session.dialogues, list(PAIRS.values())) if pair != session.data.pair]


def trials_with_other_pairs(
    session: Session, reading: Reading, questions: Sequence[Question], style: str
) -> list[Trial]:
    """Put one question with every other pair to the unsteered readings and to a few readings on held-out vectors.

    A context has the same question in all of its readings, so that these differ by the steering alone.

    Args:
        session: The session.
        reading: The reading.
        questions: The questions to draw from.
        style: The style that the trials are recorded under.
    """
    if reading.condition not in ("held_out", "none") or not reading.chosen:
        return []
    drawn = stable_hash(f"{session.material.seed} {reading.context.id} {style}")
    question = questions[drawn % len(questions)]
    return [
        trial for pair in other_pairs(session) for trial in trials_of(session, reading, [question], style, pair, False)
    ]


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
            result = {"odds": claimed - other, "mass": probability, "lens": lens}
            rows.append({"system": system, "seed": session.seed, **_trial_fields(trial), **result})
    return rows


def _trial_fields(trial: Trial) -> ResultRow:
    reading = trial.reading
    return {
        "context": reading.context.id,
        "vector": reading.vector,
        "question": trial.question.id,
        "side": reading.condition,
        "steered": reading.steering is not None,
        "layers": None if reading.layers is None else list(reading.layers),
        "dose": reading.strength,
        "pair": trial.pair.name,
        "native": trial.native,
        "style": trial.style,
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
