"""Qualitative chat: transcripts to be read, without context, after a context, and after a steered one. Nothing is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afintro.data.introspection_texts import read_self_prediction
from afintro.data.introspection_texts.items import Context, Probe
from afintro.data.splits import stable_hash
from afintro.lm.spans import SpanSteering
from afintro.study.asking.conditions import draw_few, kind_of
from afintro.study.asking.queries import SYSTEMS, Query
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring.estimates import of_system, summary

CONDITIONS = ("alone", "after a context", "after a steered context")


@dataclass(frozen=True)
class Opening:
    """How a chat is opened.

    Args:
        probe: The opener.
        condition: One of :data:`CONDITIONS`.
        context: The context that is read first. None if there is none.
        steering: Steering of the context. None if nothing is steered.
        steering_fields: Vector, layers and strength of the steering, as in rows.
    """

    probe: Probe
    condition: str
    context: Context | None
    steering: SpanSteering | None
    steering_fields: ResultRow


def measure(session: Session) -> list[ResultRow]:
    """Put every opener in three conditions."""
    openings = [
        opening
        for probe in read_self_prediction().chat_openers[: session.scale.items]
        for opening in openings_of(session, probe)
    ]
    queries = [Query(opening.context, opening.steering, opening.probe.text, "") for opening in openings]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            answers = session.write(queries)
        for opening, answer in zip(openings, answers, strict=True):
            where = {"system": system, "seed": session.seed, "question": opening.probe.id, **opening.steering_fields}
            where["context"] = None if opening.context is None else opening.context.id
            asked = {"condition": opening.condition, "steered": opening.steering is not None}
            written = {"prompt": opening.probe.text, "answer": answer.text, "cut": answer.cut}
            rows.append({**where, **asked, **written})
    return rows


def openings_of(session: Session, probe: Probe) -> list[Opening]:
    """Return an opener alone, after a plain test context, and after the same context steered.

    The steering has the middle layer range and the middle test strength; of an even number, the upper one of the two in the
    middle. The context and the test vector are drawn.
    """
    material, kind = session.material, kind_of(session)
    contexts, vectors = session.contexts("test", odd=False), material.vectors("test", kind)
    names = draw_few(vectors.names, session.scale.vectors, f"{material.seed} chat")
    context = contexts[stable_hash(f"{material.seed} {probe.id} context") % len(contexts)]
    name = names[stable_hash(f"{material.seed} {probe.id} vector") % len(names)]
    layers, strengths = material.ranges[len(material.ranges) // 2], sorted(material.strengths.test)
    strength = None if kind == "swap" else strengths[len(strengths) // 2]  # a swap has a single strength
    steering = material.steering(vectors.of(name), layers, 1.0 if strength is None else strength, kind)
    unsteered: ResultRow = {"vector": None, "layers": None, "dose": None}
    return [
        Opening(probe, CONDITIONS[0], None, None, unsteered),
        Opening(probe, CONDITIONS[1], context, None, unsteered),
        Opening(probe, CONDITIONS[2], context, steering, {"vector": name, "layers": list(layers), "dose": strength}),
    ]


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Count the transcripts; what they show is for readers to say.

    Args:
        rows: Rows of both systems.
        seed: Not used: nothing is resampled.

    Returns:
        ``counts``: by system and condition the number of ``transcripts``, of ``empty`` transcripts, and of transcripts
        that were ``cut`` off.
    """
    counts = {}
    for system in SYSTEMS:
        by_condition = {
            condition: [row for row in of_system(rows, system) if row["condition"] == condition]
            for condition in CONDITIONS
        }
        counts[system] = {
            condition: {
                "transcripts": len(transcripts),
                "empty": sum(not row["answer"].strip() for row in transcripts),
                "cut": sum(row["cut"] for row in transcripts),
            }
            for condition, transcripts in by_condition.items()
        }
    return summary(rows, {}, [], counts=counts)
