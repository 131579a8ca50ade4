"""Neutral detection out of distribution: do probes that merely ask for one of two labels give steering away?"""

from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts import read_self_prediction
from afintro.data.introspection_texts.items import Question
from afintro.study.asking.conditions import Trial, ask, draw_few, readings, trials_of, trials_with_other_pairs
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring import detection_summary

STYLE = "neutral_ood"
PROBES_PER_CONTEXT = 4  # the same probes in all readings of a context, so that these differ by the steering alone


def measure(session: Session) -> list[ResultRow]:
    """Put probes to the readings of detection. A probe's first option counts as the claim of steering, as in training."""
    all_probes = probes(session)
    trials: list[Trial] = []
    for reading in readings(session):
        seed = f"{session.material.seed} {reading.context.id}"
        drawn = draw_few([probe.id for probe in all_probes], PROBES_PER_CONTEXT, seed)
        asked = [probe for probe in all_probes if probe.id in drawn]
        trials += trials_of(session, reading, asked, STYLE, session.data.pair, native=True)
        trials += trials_with_other_pairs(session, reading, asked, STYLE)
    return ask(session, trials)


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize as :func:`afintro.study.scoring.detection_summary.summarize`; there is no lens."""
    return detection_summary.summarize(rows, seed)


def probes(session: Session) -> list[Question]:
    """Return the probes as questions of the neutral style, which name their two options."""
    items = read_self_prediction().neutral_detection[: session.scale.items]
    return [Question(probe.id, "neutral", probe.text, None, None) for probe in items]
