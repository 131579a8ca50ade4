"""Naming a concept: which vectors steer, how high the concept ranks among all, and what that amounts to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afintro.data.introspection_texts import read_concepts
from afintro.evaluation.intervals import Estimate
from afintro.lm.spans import SpanSteering
from afintro.study.asking.conditions import few
from afintro.study.asking.session import Row, Session
from afintro.study.scoring.estimates import Measure, as_json, compare, mean, summary


@dataclass(frozen=True)
class Thought:
    """A concept that a reading is steered by.

    Args:
        concept: Its word.
        vector: Its name.
        layers: First and one past last.
        dose: Strength.
        steering: Of the reading.
    """

    concept: str
    vector: str
    layers: tuple[int, int]
    dose: float
    steering: SpanSteering

    @property
    def id(self) -> str:
        """The same for one condition under every variant."""
        return f"{self.vector} {self.layers} {self.dose}"


def thoughts(session: Session) -> list[Thought]:
    """The test side's concepts at all layer ranges and test doses."""
    material = session.material
    vectors = material.vectors("test", "concept")
    return [
        Thought(vectors.concept(name), name, layers, dose, material.steering(vectors.of(name), layers, dose, "concept"))
        for name in few(vectors.names, session.scale.vectors, f"{material.seed} concepts")
        for layers in material.ranges
        for dose in material.strengths.test
    ]


def candidates() -> list[str]:
    """The words of all concepts, whatever their side."""
    return sorted(word for pair in read_concepts().pairs for word in (pair.a, pair.b))


def rank(scores: Sequence[float], words: Sequence[str], concept: str) -> int:
    """Place of a concept by its score, from 1; those that tie with it come first, so that no score at all earns nothing."""
    own = scores[words.index(concept)]
    return sum(score >= own for score in scores)


def described(session: Session, thought: Thought, steered: Sequence[float], left_alone: Sequence[float]) -> Row:
    """Fields of one concept's row.

    Args:
        session: The session.
        thought: What the reading was steered by.
        steered: Scores of all candidates.
        left_alone: The same without steering: some words are likely whatever steers.
    """
    words = candidates()
    place, before = rank(steered, words, thought.concept), rank(left_alone, words, thought.concept)
    return {
        "seed": session.seed,
        "vector": thought.vector,
        "concept": thought.concept,
        "layers": list(thought.layers),
        "dose": thought.dose,
        "rank": place,
        "rank_unsteered": before,
        "candidates": len(words),
        "top1": place == 1,
    }


def summarise(rows: Sequence[Row], seed: int, **more: Measure) -> dict[str, Any]:
    """Ranks of adapter and base.

    Args:
        rows: At least with the fields of :func:`described`.
        seed: Of the resamples.
        more: Further measures, by name.

    Returns:
        ``metrics``: ``rank`` (mean, from 1), ``top1`` (share), both also ``_unsteered``, ``gain`` (by how many places
        steering raises the concept). ``chance``: of a ranking that knows nothing. ``doses``: the same by dose.
    """
    measures = {**_measures(max((row["candidates"] for row in rows), default=1)), **more}
    doses = sorted({row["dose"] for row in rows})
    by_dose = [
        {"dose": dose, "metrics": as_json(compare([row for row in rows if row["dose"] == dose], measures, seed))}
        for dose in doses
    ]
    metrics: dict[str, Estimate] = compare(rows, measures, seed)
    return summary(rows, metrics, [], chance=chance(rows), doses=by_dose)


def _measures(count: int) -> dict[str, Measure]:
    places = (1.0, float(count))
    return {
        "rank": mean(lambda row: row["rank"], places),
        "rank_unsteered": mean(lambda row: row["rank_unsteered"], places),
        "gain": mean(lambda row: row["rank_unsteered"] - row["rank"], (1.0 - count, count - 1.0)),
        "top1": mean(lambda row: row["top1"]),
        "top1_unsteered": mean(lambda row: row["rank_unsteered"] == 1),
    }


def chance(rows: Sequence[Row]) -> dict[str, float | None]:
    """Expected share of first places and mean rank of a ranking by lot."""
    if not rows:
        return {"top1": None, "rank": None}
    counts = [row["candidates"] for row in rows]
    return {"top1": sum(1 / n for n in counts) / len(counts), "rank": sum((n + 1) / 2 for n in counts) / len(counts)}
