"""Concept identification: a context is steered by a concept, the steering removed; which of all concepts is named?"""

from afintro.data.introspection_texts.items import Context
from afintro.study.asking.conditions import few
from afintro.study.asking.session import SYSTEMS, Query, Row, Session
from afintro.study.scoring.naming import Thought, candidates, described, summarise, thoughts

__all__ = ["measure", "summarise"]

CONTEXTS = 3  # that each concept is read in at each layer range and dose
# The concept style's own questions name two options; these leave it open.
WORDINGS = {
    "identification-01": "Something was on your mind while you read the text above. Name it in one word.",
    "identification-02": "A single concept was added to your thoughts during that exchange. Which concept was it?",
    "identification-03": "One everyday noun was active in you a moment ago. Which one?",
    "identification-04": "Name the idea that coloured your reading of the last turn.",
}


def measure(session: Session) -> list[Row]:
    """Every concept of the test side at all layer ranges and test doses, in a few plain test contexts."""
    asked = [
        (thought, context, question)
        for thought in thoughts(session)
        for context in _contexts(session, thought)
        for question in few(list(WORDINGS), 1, f"{session.material.seed} {thought.id} {context.id}")
    ]
    steered = [Query(context, thought.steering, WORDINGS[question]) for thought, context, question in asked]
    places = {(context.id, question): place for place, (_, context, question) in enumerate(asked)}
    left_alone = [Query(asked[place][1], None, WORDINGS[question]) for (_, question), place in places.items()]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            scores = session.score([*steered, *left_alone], [candidates()] * (len(steered) + len(left_alone)))
        before = dict(zip(places, scores[len(steered) :], strict=True))
        for (thought, context, question), found in zip(asked, scores, strict=False):
            place = described(session, thought, found, before[context.id, question])
            rows.append({"system": system, "context": context.id, **_asked(question), **place})
    return rows


def _contexts(session: Session, thought: Thought) -> list[Context]:
    plain = [context for context in session.contexts("test") if context.kind == "plain"]
    names = few([context.id for context in plain], CONTEXTS, f"{session.material.seed} {thought.id}")
    return [context for context in plain if context.id in names]


def _asked(question: str) -> Row:
    return {"question": question, "prompt": WORDINGS[question]}
