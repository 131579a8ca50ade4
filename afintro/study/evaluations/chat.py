"""Qualitative chat: transcripts to be read, by themselves, after a context, and after a steered one. Nothing is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afintro.data.introspection_texts import read_self_prediction
from afintro.data.introspection_texts.items import Context, Probe
from afintro.data.splits import stable_hash
from afintro.lm.spans import SpanSteering
from afintro.study.asking.conditions import few, kind_of
from afintro.study.asking.session import SYSTEMS, Query, Row, Session
from afintro.study.scoring.estimates import of_system, summary

CONDITIONS = ("alone", "after a context", "after a steered context")


@dataclass(frozen=True)
class Opening:
    """How a chat is opened.

    Args:
        probe: The opener.
        condition: One of :data:`CONDITIONS`.
        context: Read first; None for none.
        steering: Of the context; None for none.
        place: Vector, layers and dose of the steering, as in rows.
    """

    probe: Probe
    condition: str
    context: Context | None
    steering: SpanSteering | None
    place: Row


def measure(session: Session) -> list[Row]:
    """Every opener in three conditions."""
    openings = [
        opening
        for probe in read_self_prediction().chat_openers[: session.scale.items]
        for opening in openings_of(session, probe)
    ]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            written = session.written([Query(one.context, one.steering, one.probe.text, "") for one in openings])
        for opening, answer in zip(openings, written, strict=True):
            where = {"system": system, "seed": session.seed, "question": opening.probe.id, **opening.place}
            where["context"] = None if opening.context is None else opening.context.id
            asked = {"condition": opening.condition, "steered": opening.steering is not None}
            told = {"prompt": opening.probe.text, "answer": answer.text, "cut": answer.cut}
            rows.append({**where, **asked, **told})
    return rows


def openings_of(session: Session, probe: Probe) -> list[Opening]:
    """An opener alone, after a plain test context, and after the same one steered: at the middle layers and test dose.

    Of an even number of doses or layer ranges the upper middle one is taken. Context and test vector are drawn.
    """
    material, kind = session.material, kind_of(session)
    contexts, vectors = session.contexts("test", odd=False), material.vectors("test", kind)
    names = few(vectors.names, session.scale.vectors, f"{material.seed} chat")
    context = contexts[stable_hash(f"{material.seed} {probe.id} context") % len(contexts)]
    name = names[stable_hash(f"{material.seed} {probe.id} vector") % len(names)]
    layers, doses = material.ranges[len(material.ranges) // 2], sorted(material.strengths.test)
    dose = None if kind == "swap" else doses[len(doses) // 2]  # a swap has one strength only
    steering = material.steering(vectors.of(name), layers, 1.0 if dose is None else dose, kind)
    unsteered: Row = {"vector": None, "layers": None, "dose": None}
    return [
        Opening(probe, CONDITIONS[0], None, None, unsteered),
        Opening(probe, CONDITIONS[1], context, None, unsteered),
        Opening(probe, CONDITIONS[2], context, steering, {"vector": name, "layers": list(layers), "dose": dose}),
    ]


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Counts alone; what the transcripts show is for readers to say.

    Returns:
        ``counts``: by system and condition the number of ``transcripts``, of ``empty`` ones, and of those ``cut`` off.
    """
    counts = {}
    for system in SYSTEMS:
        by_condition = {
            condition: [row for row in of_system(rows, system) if row["condition"] == condition]
            for condition in CONDITIONS
        }
        counts[system] = {
            condition: {
                "transcripts": len(own),
                "empty": sum(not row["answer"].strip() for row in own),
                "cut": sum(row["cut"] for row in own),
            }
            for condition, own in by_condition.items()
        }
    return summary(rows, {}, [], counts=counts)
