"""Contexts that are steered in every way of a study and left alone, and the questions that are put to them.

What is drawn depends on the study's seed and on names alone: all variants, and all trained seeds of one, see the same items.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from afintro.data.introspection_texts.items import Context, Question
from afintro.data.splits import stable_hash
from afintro.lm.spans import SpanSteering
from afintro.study.asking.session import SYSTEMS, Query, Row, Session
from afintro.tasks.introspection.material import Kind
from afintro.tasks.introspection.trials import PAIRS, Pair, says_steered, single_tokens, worded
from afintro.tasks.introspection.vectors import SplitName, VectorSet

SIDES: dict[str, SplitName] = {"held_in": "train", "held_out": "test"}
EVERY = 4  # one of so many readings is asked what takes longer


@dataclass(frozen=True)
class Reading:
    """One context, read once.

    Args:
        context: What is read.
        side: ``held_in`` or ``held_out``, of the vector; ``swap`` for a real activation; ``none`` without steering.
        steering: None without.
        vector: Its name; None without steering.
        layers: First and one past last; None without steering.
        dose: Strength; None without steering, and for a swap, which has one strength only.
        chosen: Whether it is one of the few that more is asked about.
    """

    context: Context
    side: str
    steering: SpanSteering | None = None
    vector: str | None = None
    layers: tuple[int, int] | None = None
    dose: float | None = None
    chosen: bool = True


def kind_of(session: Session) -> Kind:
    """Of the vectors that a variant is tested with: its own; one that steers nothing is tested with random ones."""
    return session.material.kind or "random"


def readings(session: Session) -> list[Reading]:
    """Test contexts, plain and odd: unsteered, and by training and by test vectors at all layer ranges and test doses.

    Every condition reads every context, each with a vector that is drawn for it.
    """
    found = unsteered(session)
    for side in SIDES:
        found += list(
            _steered(session, side, session.material.vectors(SIDES[side], kind_of(session)), kind_of(session))
        )
    return found


def swaps(session: Session) -> list[Reading]:
    """Test contexts with a real activation of their norm in place of their own, at all layer ranges.

    Activations of validation contexts: one of the context's own would be hardly a swap.
    """
    return list(_steered(session, "swap", session.material.vectors("validation", "swap"), "swap"))


def unsteered(session: Session) -> list[Reading]:
    """Test contexts as they are."""
    return [Reading(context, "none") for context in session.contexts("test")]


def _steered(session: Session, side: str, vectors: VectorSet, kind: Kind) -> Iterator[Reading]:
    material = session.material
    names = few(vectors.names, session.scale.vectors, f"{material.seed} {side}")
    doses: Sequence[float | None] = [None] if kind == "swap" else material.strengths.test
    for layers, (place, dose) in product(material.ranges, enumerate(doses)):
        for index, context in enumerate(session.contexts("test")):
            name = names[stable_hash(f"{material.seed} {side} {layers} {dose} {context.id}") % len(names)]
            steering = material.steering(vectors.of(name), layers, 1.0 if dose is None else dose, kind)
            # Of four doses, all contexts are chosen once a layer range, and not always at the same dose.
            chosen = (layers[0] + place + index) % EVERY == 0
            yield Reading(context, side, steering, name, layers, dose, chosen)


def few(options: Sequence[str], count: int, seed: str) -> list[str]:
    """At most ``count`` of them, drawn."""
    return sorted(options, key=lambda option: stable_hash(f"{seed} {option}"))[:count]


@dataclass(frozen=True)
class Trial:
    """One question about one reading.

    Args:
        reading: What was read before.
        question: Asked; its options, if it has any, still to be filled in.
        style: Under which it is recorded.
        pair: The two answers.
        native: Whether they are those that the variant was trained on.
        swapped: Whether the second answer is named first, if they are named.
        lens: Whether every layer is looked at.
    """

    reading: Reading
    question: Question
    style: str
    pair: Pair
    native: bool
    swapped: bool = False
    lens: bool = False

    @property
    def claim(self) -> tuple[str, str]:
        """The answer that says "steered", and the other one."""
        says = says_steered(self.question, self.pair)
        assert says is not None, "a question about something else"
        return says, self.pair.a if says == self.pair.b else self.pair.b

    @property
    def query(self) -> Query:
        """With its options filled in."""
        text = worded(self.question.text, self.pair, self.swapped)
        return Query(self.reading.context, self.reading.steering, text)


def trials_of(
    session: Session, reading: Reading, questions: Sequence[Question], style: str, pair: Pair, native: bool
) -> list[Trial]:
    """Questions about a reading.

    The order of the answers is drawn for the first question and alternates from then on, alike in all readings of a
    context, so that these differ by the steering alone.
    """
    first = stable_hash(f"{session.material.seed} {reading.context.id} {style} {pair.name} order")
    return [
        Trial(reading, question, style, pair, native, swapped=(first + place) % 2 == 1)
        for place, question in enumerate(questions)
    ]


def other_pairs(session: Session) -> list[Pair]:
    """Pairs that the variant was not trained on and whose words are single tokens of its model."""
    return [pair for pair in single_tokens(session.dialogues, list(PAIRS.values())) if pair != session.data.pair]


def in_other_words(session: Session, reading: Reading, questions: Sequence[Question], style: str) -> list[Trial]:
    """One question with every other pair, of the unsteered readings and of a few on held-out vectors.

    A context has the same question in all of its readings, so that these differ by the steering alone.
    """
    if reading.side not in ("held_out", "none") or not reading.chosen:
        return []
    place = stable_hash(f"{session.material.seed} {reading.context.id} {style}")
    question = questions[place % len(questions)]
    return [
        trial for pair in other_pairs(session) for trial in trials_of(session, reading, [question], style, pair, False)
    ]


def ask(session: Session, trials: Sequence[Trial]) -> list[Row]:
    """Rows of the adapter, then of the base; fields as for detection. All questions on one reading share it."""
    queries = [trial.query for trial in trials]
    answers = [[session.dialogues.answer(word) for word in trial.claim] for trial in trials]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            scores = session.ask(queries, answers)
            layers = _lens(session, trials, queries)
        for trial, (claimed, other), lens in zip(trials, scores, layers, strict=True):
            probability = math.exp(claimed) + math.exp(other)
            result = {"odds": claimed - other, "mass": probability, "lens": lens}
            rows.append({"system": system, "seed": session.seed, **_described(trial), **result})
    return rows


def _described(trial: Trial) -> Row:
    reading = trial.reading
    return {
        "context": reading.context.id,
        "vector": reading.vector,
        "question": trial.question.id,
        "side": reading.side,
        "steered": reading.steering is not None,
        "layers": None if reading.layers is None else list(reading.layers),
        "dose": reading.dose,
        "pair": trial.pair.name,
        "native": trial.native,
        "style": trial.style,
        "kind": reading.context.kind,
    }


def _lens(session: Session, trials: Sequence[Trial], queries: Sequence[Query]) -> list[list[float] | None]:
    """Log-odds by layer of the trials that want them, in favour of "steered"."""
    found: list[list[float] | None] = [None] * len(trials)
    wanted = [place for place, trial in enumerate(trials) if trial.lens]
    if wanted:
        a, b = session.dialogues.answers(trials[wanted[0]].pair)
        odds = session.lens([queries[place] for place in wanted], (a, b))
        for place, layers in zip(wanted, odds or [], strict=odds is not None):
            sign = 1 if trials[place].claim[0] == trials[place].pair.a else -1
            found[place] = [sign * value for value in layers]
    return found
