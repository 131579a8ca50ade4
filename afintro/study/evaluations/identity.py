"""Identity probes: what the model says that it is, and how far training moved its answers from those of the base."""

from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts import read_self_prediction
from afintro.evaluation.metrics import chrf
from afintro.study.asking.own_answers import lone_query
from afintro.study.asking.queries import SYSTEMS
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring.estimates import compare, mean, summary


def measure(session: Session) -> list[ResultRow]:
    """Ask every probe without context, and compare each answer with the base's answer."""
    probes = read_self_prediction().identity_probes[: session.scale.items]
    answers = {}
    for system in SYSTEMS:
        with session.system(system):
            answers[system] = session.write([lone_query(probe.text) for probe in probes])
    rows = []
    for system in SYSTEMS:
        for probe, answer, base_answer in zip(probes, answers[system], answers["base"], strict=True):
            where = {"system": system, "seed": session.seed, "context": None, "vector": None, "question": probe.id}
            written = {"prompt": probe.text, "answer": answer.text, "cut": answer.cut}
            similarity = chrf(answer.text, base_answer.text)
            compared = {"similarity": similarity, "unchanged": answer.text == base_answer.text}
            rows.append({**where, **written, **compared})
    return rows


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize how similar the answers are to the base's answers.

    Args:
        rows: Rows of both systems.
        seed: Seeds the resamples.

    Returns:
        ``metrics``: ``similarity``, the mean chrF to the base's answer (0 to 1); ``unchanged``, the share of answers that
        equal the base's answer; ``empty``, the share of answers without a word. The first two are 1 for the base by
        definition.
    """
    measures = {
        "similarity": mean(lambda row: row["similarity"]),
        "unchanged": mean(lambda row: row["unchanged"]),
        "empty": mean(lambda row: not row["answer"].strip()),
    }
    return summary(rows, compare(rows, measures, seed), [])
