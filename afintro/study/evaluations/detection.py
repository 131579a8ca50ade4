"""Detection: does the answer tell a steered context from one that was left alone, and does it with other words?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from afintro.data.introspection_texts.items import Question
from afintro.data.splits import stable_hash
from afintro.study.asking.conditions import Reading, Trial, ask, in_other_words, readings, swaps, trials_of
from afintro.study.asking.session import Row, Session
from afintro.study.scoring import detection_summary

ABOUT_STEERING = ("suggestive", "vague", "neutral")


def measure(session: Session) -> list[Row]:
    """Every test question of the style about every reading with the native pair, one with each other pair about a few.

    Readings: training and test vectors of the variant's kind, norm-matched activations in their place, and none.
    """
    trials: list[Trial] = []
    for reading in [*readings(session), *swaps(session)]:
        trials += _native(session, reading)
        trials += in_other_words(session, reading, questions(session), style(session))
    return ask(session, trials)


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """See :func:`afintro.study.scoring.detection_summary.summarise`."""
    found = detection_summary.summarise(rows, seed)
    if rows and not found["lens"]:
        found["warnings"].append("lens is missing: the layers of this model cannot be looked at")
    return found


def style(session: Session) -> str:
    """The variant's own if it asks about steering."""
    return session.data.style if session.data.style in ABOUT_STEERING else "suggestive"


def questions(session: Session) -> list[Question]:
    """Plain ones of the test side."""
    found = session.material.questions[style(session)].test
    return [question for question in found if question.reversed_of is None][: session.scale.items]


def _native(session: Session, reading: Reading) -> list[Trial]:
    asked = questions(session)
    looked_at = stable_hash(f"{session.material.seed} {reading.context.id} lens") % len(asked)
    trials = trials_of(session, reading, asked, style(session), session.data.pair, native=True)
    if reading.chosen:
        trials[looked_at] = replace(trials[looked_at], lens=True)
    return trials
