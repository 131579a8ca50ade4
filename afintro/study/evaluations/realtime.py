"""Realtime introspection: a concept steers all that is read and written; does the answer name it?"""

import re
from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts import read_self_prediction
from afintro.data.introspection_texts.items import Probe
from afintro.study.asking.conditions import few
from afintro.study.asking.session import SYSTEMS, Query, Row, Session
from afintro.study.scoring import naming
from afintro.study.scoring.estimates import mean
from afintro.study.scoring.naming import Thought, candidates, described, thoughts

PROBES = 2  # that are put under each concept, layer range and dose


def measure(session: Session) -> list[Row]:
    """Every concept of the test side at all layer ranges and test doses, without context, steering on throughout."""
    probes = {probe.id: probe for probe in read_self_prediction().realtime[: session.scale.items]}
    asked = [
        (thought, probes[name])
        for thought in thoughts(session)
        for name in few(list(probes), PROBES, f"{session.material.seed} {thought.id}")
    ]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            written, before = _answers(session, asked), _answers(session, [(None, probe) for probe in probes.values()])
        unsteered = dict(zip(probes, before, strict=True))
        for (thought, probe), (answer, scores) in zip(asked, written, strict=True):
            answer_before, scores_before = unsteered[probe.id]
            told = {
                "answer": answer,
                "named": names(answer, thought.concept),
                "named_unsteered": names(answer_before, thought.concept),
            }
            where = {"system": system, "context": None, "question": probe.id, "prompt": probe.text}
            rows.append({**where, **told, **described(session, thought, scores, scores_before)})
    return rows


def _answers(session: Session, asked: Sequence[tuple[Thought | None, Probe]]) -> list[tuple[str, list[float]]]:
    """A written answer, and the scores of all concepts as the answer; steering stays on for both."""
    steerings = [None if thought is None else thought.steering for thought, _ in asked]
    free = [Query(None, steering, probe.text, "") for steering, (_, probe) in zip(steerings, asked, strict=True)]
    begun = [Query(None, steering, probe.text) for steering, (_, probe) in zip(steerings, asked, strict=True)]
    scores = session.score(begun, [candidates()] * len(begun), staying=True)
    return list(zip(session.write(free, staying=True), scores, strict=True))


def names(answer: str, concept: str) -> bool:
    """Whether an answer holds the word or its plural, in whatever case."""
    forms = {concept, f"{concept}s", f"{concept}es", re.sub("fe?$", "ves", concept)}
    return not forms.isdisjoint(re.findall(r"[^\W\d_]+", answer.lower()))


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """See :func:`afintro.study.scoring.naming.summarise`; and ``named``, the share of answers that name the concept."""
    named = {"named": mean(lambda row: row["named"]), "named_unsteered": mean(lambda row: row["named_unsteered"])}
    return naming.summarise(rows, seed, **named)
