"""Realtime introspection: a concept steers all that is read and written; does the answer name the concept?"""

import re
from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts import read_self_prediction
from afintro.data.introspection_texts.items import Probe
from afintro.study.asking.conditions import draw_few
from afintro.study.asking.queries import SYSTEMS, Query
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring import naming
from afintro.study.scoring.estimates import mean
from afintro.study.scoring.naming import SteeredConcept, candidates, rank_fields, steered_concepts

PROBES_PER_CONCEPT = 2  # at each layer range and strength


def measure(session: Session) -> list[ResultRow]:
    """Ask under every concept of the test split at all layer ranges and test strengths, without context, always steered."""
    probes = {probe.id: probe for probe in read_self_prediction().realtime[: session.scale.items]}
    asked = [
        (concept, probes[probe_id])
        for concept in steered_concepts(session)
        for probe_id in draw_few(list(probes), PROBES_PER_CONCEPT, f"{session.material.seed} {concept.id}")
    ]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            steered = _answers(session, asked)
            unsteered = dict(zip(probes, _answers(session, [(None, probe) for probe in probes.values()]), strict=True))
        for (concept, probe), (answer, scores) in zip(asked, steered, strict=True):
            answer_before, scores_before = unsteered[probe.id]
            named = {
                "answer": answer,
                "named": names_concept(answer, concept.concept),
                "named_unsteered": names_concept(answer_before, concept.concept),
            }
            where = {"system": system, "context": None, "question": probe.id, "prompt": probe.text}
            rows.append({**where, **named, **rank_fields(session, concept, scores, scores_before)})
    return rows


def _answers(session: Session, asked: Sequence[tuple[SteeredConcept | None, Probe]]) -> list[tuple[str, list[float]]]:
    """Return a written answer, and the scores of all concepts as the answer. Steering stays on for both."""
    steerings = [None if concept is None else concept.steering for concept, _ in asked]
    whole_turns = [Query(None, steering, probe.text, "") for steering, (_, probe) in zip(steerings, asked, strict=True)]
    begun_turns = [Query(None, steering, probe.text) for steering, (_, probe) in zip(steerings, asked, strict=True)]
    scores = session.score(begun_turns, [candidates()] * len(begun_turns), keep_steering=True)
    texts = [answer.text for answer in session.write(whole_turns, keep_steering=True)]
    return list(zip(texts, scores, strict=True))


def names_concept(answer: str, concept: str) -> bool:
    """Return whether an answer contains the concept's word or its plural, in any case."""
    forms = {concept, f"{concept}s", f"{concept}es", re.sub("fe?$", "ves", concept)}
    return not forms.isdisjoint(re.findall(r"[^\W\d_]+", answer.lower()))


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize as :func:`afintro.study.scoring.naming.summarize`, with ``named``, the share of answers with the concept."""
    named = {"named": mean(lambda row: row["named"]), "named_unsteered": mean(lambda row: row["named_unsteered"])}
    return naming.summarize(rows, seed, **named)
