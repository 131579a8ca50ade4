"""Neutral detection out of distribution: do probes that ask for one of two labels, and nothing else, give steering away?"""

from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts import read_self_prediction
from afintro.data.introspection_texts.items import Question
from afintro.study.asking.conditions import Trial, ask, few, in_other_words, readings, trials_of
from afintro.study.asking.session import Row, Session
from afintro.study.scoring import detection_summary

STYLE = "neutral_ood"
PROBES = 4  # about a context; the same in all of its readings, so that these differ by the steering alone


def measure(session: Session) -> list[Row]:
    """The readings of detection, with probes whose first option counts as the claim of steering, as in training."""
    every = probes(session)
    trials: list[Trial] = []
    for reading in readings(session):
        drawn = few([probe.id for probe in every], PROBES, f"{session.material.seed} {reading.context.id}")
        asked = [probe for probe in every if probe.id in drawn]
        trials += trials_of(session, reading, asked, STYLE, session.data.pair, native=True)
        trials += in_other_words(session, reading, asked, STYLE)
    return ask(session, trials)


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """See :func:`afintro.study.scoring.detection_summary.summarise`; there is no lens."""
    return detection_summary.summarise(rows, seed)


def probes(session: Session) -> list[Question]:
    """As questions of the neutral style, which name their two options."""
    found = read_self_prediction().neutral_detection[: session.scale.items]
    return [Question(probe.id, "neutral", probe.text, None, None) for probe in found]
