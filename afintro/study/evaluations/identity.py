"""Identity probes: what the model says that it is, and how far training moved it from what the base says."""

from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts import read_self_prediction
from afintro.evaluation.metrics import chrf
from afintro.study.asking.hypothetical import free
from afintro.study.asking.session import SYSTEMS, Row, Session
from afintro.study.scoring.estimates import compare, mean, summary


def measure(session: Session) -> list[Row]:
    """Every probe without context; each answer beside the base's, with which the base's own agrees by definition."""
    probes = read_self_prediction().identity_probes[: session.scale.items]
    answers = {}
    for system in SYSTEMS:
        with session.system(system):
            answers[system] = session.written([free(probe.text) for probe in probes])
    rows = []
    for system in SYSTEMS:
        for probe, own, base in zip(probes, answers[system], answers["base"], strict=True):
            where = {"system": system, "seed": session.seed, "context": None, "vector": None, "question": probe.id}
            told = {"prompt": probe.text, "answer": own.text, "cut": own.cut}
            beside = {"similarity": chrf(own.text, base.text), "unchanged": own.text == base.text}
            rows.append({**where, **told, **beside})
    return rows


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """How like the base's the answers are.

    Returns:
        ``metrics``: ``similarity``, mean chrF to the base's answer (0 to 1); ``unchanged``, the share of answers that are
        the base's to the letter; ``empty``, of those without a word. Of the base the first two are 1 by definition.
    """
    measures = {
        "similarity": mean(lambda row: row["similarity"]),
        "unchanged": mean(lambda row: row["unchanged"]),
        "empty": mean(lambda row: not row["answer"].strip()),
    }
    return summary(rows, compare(rows, measures, seed), [])
