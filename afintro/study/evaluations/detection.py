"""Detection: is a steered context told from an unsteered one, whichever way it is asked, and is it more than a push to yes?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from afintro.data.introspection_texts.items import Question, SelfReport
from afintro.data.splits import stable_hash
from afintro.study.asking.conditions import (
    NORMS,
    Reading,
    Trial,
    ask,
    draw_few,
    kind_of,
    reading_fields,
    readings,
    swaps,
    training_readings,
    trials_of,
    trials_with_other_pairs,
    with_twins,
)
from afintro.study.asking.norms import fit_norm_probe
from afintro.study.asking.queries import SYSTEMS, Query
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring import detection_summary

STYLES_ABOUT_STEERING = ("suggestive", "vague", "neutral")
QUESTIONS_PER_CONTEXT = CONTROLS_PER_CONTEXT = 2  # each with its reversed twin


def measure(session: Session) -> list[ResultRow]:
    """Ask about steering in both polarities, ask control questions under the same steering, and measure norms beside.

    The readings are steered by training and by test vectors of the variant's kind, by real activations of the same norm,
    and unsteered. Every reading gets test questions and their reversed twins with the native pair, and control questions, which
    are about neither steering nor the model; a few get one question with each other pair. All readings of a context are asked
    the same, so that they differ by the steering alone.
    """
    all_readings = [*readings(session), *swaps(session)]
    asked = questions(session)
    trials: list[Trial] = []
    for reading in all_readings:
        trials += _trials_with_native_pair(session, reading, _drawn(session, reading, asked))
        trials += trials_of(session, reading, _controls(session, reading), "control", session.data.pair, native=True)
        trials += trials_with_other_pairs(session, reading, asked, style(session))
    return [*ask(session, trials), *_norms(session, all_readings)]


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
    """Return the questions of the test split, each followed by its reversed twin; the neutral style has no twins."""
    test_questions = session.material.questions[style(session)].test
    families = list(dict.fromkeys(question.family for question in test_questions))
    return with_twins(test_questions, families[: session.scale.items])


def _drawn(session: Session, reading: Reading, asked: Sequence[Question]) -> list[Question]:
    """Return the questions of a context, with their reversed twins."""
    families = list(dict.fromkeys(question.family for question in asked))
    seed = f"{session.material.seed} {reading.context.id} questions"
    return with_twins(asked, draw_few(families, QUESTIONS_PER_CONTEXT, seed))


def _controls(session: Session, reading: Reading) -> list[SelfReport]:
    """Return the control questions of a context, with their reversed twins."""
    controls = [item for item in session.material.reports.test if item.control]
    families = list(dict.fromkeys(item.family for item in controls))
    count = min(CONTROLS_PER_CONTEXT, session.scale.items)
    drawn = draw_few(families, count, f"{session.material.seed} {reading.context.id} controls")
    return [item for item in controls if item.family in drawn]


def _trials_with_native_pair(session: Session, reading: Reading, asked: Sequence[Question]) -> list[Trial]:
    families = list(dict.fromkeys(question.family for question in asked))
    looked_at = families[stable_hash(f"{session.material.seed} {reading.context.id} lens") % len(families)]
    trials = trials_of(session, reading, asked, style(session), session.data.pair, native=True)
    return [replace(trial, lens=reading.chosen and trial.question.family == looked_at) for trial in trials]


def _norms(session: Session, all_readings: Sequence[Reading]) -> list[ResultRow]:
    """Return the log-odds that a probe on the norms of a context's activations gives, for each system and reading.

    The probe is fitted to readings of training contexts with training vectors and strengths, as the variant is trained.
    """
    learned = training_readings(session, kind_of(session))
    rows: list[ResultRow] = []
    for system in SYSTEMS:
        with session.system(system):
            seen, tested = (
                session.norms([Query(reading.context, reading.steering, "?") for reading in some])
                for some in (learned, all_readings)
            )
        probe = fit_norm_probe(seen, [reading.steering is not None for reading in learned])
        for reading, odds in zip(all_readings, probe.decision_function(tested), strict=True):
            where = {"system": system, "seed": session.seed, **reading_fields(reading)}
            rows.append({**where, "about": NORMS, "question": None, "native": True, "odds": float(odds)})
    return rows
