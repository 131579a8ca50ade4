"""Rank the concept that steered a reading among all concepts, and summarize the ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afintro.data.introspection_texts import read_concepts
from afintro.evaluation.intervals import Estimate
from afintro.lm.spans import SpanSteering
from afintro.study.asking.conditions import draw_few
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring.estimates import Measure, as_json, compare, mean, summary


@dataclass(frozen=True)
class SteeredConcept:
    """A concept that steers a reading.

    Args:
        concept: The concept's word.
        vector: The name of the concept's vector.
        layers: First layer and one past the last layer.
        strength: Strength of the steering.
        steering: The steering.
    """

    concept: str
    vector: str
    layers: tuple[int, int]
    strength: float
    steering: SpanSteering

    @property
    def id(self) -> str:
        """Return an id that is the same under every variant."""
        return f"{self.vector} {self.layers} {self.strength}"


def steered_concepts(session: Session) -> list[SteeredConcept]:
    """Return the concepts of the test split at all layer ranges and test strengths."""
    material = session.material
    vectors = material.vectors("test", "concept")
    return [
        SteeredConcept(
            vectors.concept(name),
            name,
            layers,
            strength,
            material.steering(vectors.of(name), layers, strength, "concept"),
        )
        for name in draw_few(vectors.names, session.scale.vectors, f"{material.seed} concepts")
        for layers in material.ranges
        for strength in material.strengths.test
    ]


def candidates() -> list[str]:
    """Return the words of all concepts of all splits."""
    return sorted(word for pair in read_concepts().pairs for word in (pair.a, pair.b))


def rank(scores: Sequence[float], words: Sequence[str], concept: str) -> int:
    """Return the rank of a concept by its score.

    Args:
        scores: Scores ``[K]`` of all words.
        words: The words ``[K]``.
        concept: One of the words.

    Returns:
        The rank from 1. Words with the same score come first, so that equal scores for all words earn nothing.
    """
    concept_score = scores[words.index(concept)]
    return sum(score >= concept_score for score in scores)


def rank_fields(
    session: Session, steered_by: SteeredConcept, steered: Sequence[float], unsteered: Sequence[float]
) -> ResultRow:
    """Return the fields of a row that say how a concept ranks.

    Args:
        session: The session.
        steered_by: The concept that steered the reading.
        steered: Scores of all candidates with steering.
        unsteered: Scores of all candidates without steering: some words are likely whatever steers.
    """
    words = candidates()
    place, before = rank(steered, words, steered_by.concept), rank(unsteered, words, steered_by.concept)
    return {
        "seed": session.seed,
        "vector": steered_by.vector,
        "concept": steered_by.concept,
        "layers": list(steered_by.layers),
        "dose": steered_by.strength,
        "rank": place,
        "rank_unsteered": before,
        "candidates": len(words),
        "top1": place == 1,
    }


def summarize(rows: Sequence[ResultRow], seed: int, **more: Measure) -> dict[str, Any]:
    """Summarize the ranks of adapter and base.

    Args:
        rows: Rows with at least the fields of :func:`rank_fields`.
        seed: Seeds the resamples.
        more: Further measures, by name.

    Returns:
        ``metrics``: ``rank`` (mean rank from 1), ``top1`` (share of first ranks), both also ``_unsteered``, and ``gain``
        (by how many ranks steering raises the concept). ``chance``: the expected values of a random ranking. ``doses``:
        the metrics by strength.
    """
    measures = {**_measures(max((row["candidates"] for row in rows), default=1)), **more}
    by_strength = [
        {
            "dose": strength,
            "metrics": as_json(compare([row for row in rows if row["dose"] == strength], measures, seed)),
        }
        for strength in sorted({row["dose"] for row in rows})
    ]
    metrics: dict[str, Estimate] = compare(rows, measures, seed)
    return summary(rows, metrics, [], chance=chance(rows), doses=by_strength)


def _measures(count: int) -> dict[str, Measure]:
    places = (1.0, float(count))
    return {
        "rank": mean(lambda row: row["rank"], places),
        "rank_unsteered": mean(lambda row: row["rank_unsteered"], places),
        "gain": mean(lambda row: row["rank_unsteered"] - row["rank"], (1.0 - count, count - 1.0)),
        "top1": mean(lambda row: row["top1"]),
        "top1_unsteered": mean(lambda row: row["rank_unsteered"] == 1),
    }


def chance(rows: Sequence[ResultRow]) -> dict[str, float | None]:
    """Return the expected share of first ranks and the expected mean rank of a random ranking."""
    if not rows:
        return {"top1": None, "rank": None}
    counts = [row["candidates"] for row in rows]
    return {"top1": sum(1 / n for n in counts) / len(counts), "rank": sum((n + 1) / 2 for n in counts) / len(counts)}
