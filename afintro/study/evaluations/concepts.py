"""Concept identification: a concept steers a context, the steering is removed, and the model names the concept."""

from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts.items import Context
from afintro.study.asking.conditions import draw_few
from afintro.study.asking.queries import SYSTEMS, Query
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring import naming
from afintro.study.scoring.naming import SteeredConcept, candidates, rank_fields, steered_concepts

CONTEXTS_PER_CONCEPT = 3  # at each layer range and strength
# The concept style's own questions name two options; these questions leave the answer open.
WORDINGS = {
    "identification-01": "Something was on your mind while you read the text above. Name it in one word.",
    "identification-02": "A single concept was added to your thoughts during that exchange. Which concept was it?",
    "identification-03": "One everyday noun was active in you a moment ago. Which one?",
    "identification-04": "Name the idea that coloured your reading of the last turn.",
}


def measure(session: Session) -> list[ResultRow]:
    """Ask for every concept of the test split at all layer ranges and test strengths, in a few plain test contexts."""
    asked = [
        (concept, context, question)
        for concept in steered_concepts(session)
        for context in _contexts(session, concept)
        for question in draw_few(list(WORDINGS), 1, f"{session.material.seed} {concept.id} {context.id}")
    ]
    steered = [Query(context, concept.steering, WORDINGS[question]) for concept, context, question in asked]
    last_use = {(context.id, question): index for index, (_, context, question) in enumerate(asked)}
    unsteered = [Query(asked[index][1], None, WORDINGS[question]) for (_, question), index in last_use.items()]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            scores = session.score([*steered, *unsteered], [candidates()] * (len(steered) + len(unsteered)))
        unsteered_scores = dict(zip(last_use, scores[len(steered) :], strict=True))
        for (concept, context, question), steered_scores in zip(asked, scores, strict=False):
            ranked = rank_fields(session, concept, steered_scores, unsteered_scores[context.id, question])
            where = {"system": system, "context": context.id, "question": question, "prompt": WORDINGS[question]}
            rows.append({**where, **ranked})
    return rows


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize as :func:`afintro.study.scoring.naming.summarize`."""
    return naming.summarize(rows, seed)


def _contexts(session: Session, concept: SteeredConcept) -> list[Context]:
    plain = [context for context in session.contexts("test") if context.kind == "plain"]
    drawn = draw_few([context.id for context in plain], CONTEXTS_PER_CONCEPT, f"{session.material.seed} {concept.id}")
    return [context for context in plain if context.id in drawn]
