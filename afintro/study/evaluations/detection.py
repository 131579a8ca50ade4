"""Detection: does the answer tell a steered context from an unsteered one, and does it do so with other words?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from afintro.data.introspection_texts.items import Question
from afintro.data.splits import stable_hash
from afintro.study.asking.conditions import Reading, Trial, ask, readings, swaps, trials_of, trials_with_other_pairs
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring import detection_summary

STYLES_ABOUT_STEERING = ("suggestive", "vague", "neutral")


def measure(session: Session) -> list[ResultRow]:
    """Ask every test question about every reading with the native pair, and one question with each other pair about a few.

    The readings are steered by training and by test vectors of the variant's kind, by real activations of the same norm,
    and unsteered.
    """
    trials: list[Trial] = []
    for reading in [*readings(session), *swaps(session)]:
        trials += _trials_with_native_pair(session, reading)
        trials += trials_with_other_pairs(session, reading, questions(session), style(session))
    return ask(session, trials)


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize as :func:`afintro.study.scoring.detection_summary.summarize`, and warn if there is no lens."""
    content = detection_summary.summarize(rows, seed)
    if rows and not content["lens"]:
        content["warnings"].append("lens is missing: the layers of this model cannot be looked at")
    return content


def style(session: Session) -> str:
    """Return the variant's style if it asks about steering, and the suggestive style otherwise."""
    return session.data.style if session.data.style in STYLES_ABOUT_STEERING else "suggestive"


def questions(session: Session) -> list[Question]:
    """Return the questions of the test split, without reversed twins."""
    test_questions = session.material.questions[style(session)].test
    return [question for question in test_questions if question.reversed_of is None][: session.scale.items]


def _trials_with_native_pair(session: Session, reading: Reading) -> list[Trial]:
    asked = questions(session)
    looked_at = stable_hash(f"{session.material.seed} {reading.context.id} lens") % len(asked)
    trials = trials_of(session, reading, asked, style(session), session.data.pair, native=True)
    if reading.chosen:
        trials[looked_at] = replace(trials[looked_at], lens=True)
    return trials
