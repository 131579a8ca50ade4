"""Log-probabilities of yes and no to self-reports and their controls, without any context: what did the training shift?"""

import math
from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts.items import SelfReport
from afintro.data.splits import stable_hash
from afintro.evaluation.intervals import Estimate
from afintro.study.asking.queries import SYSTEMS, Query
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring.detection_summary import collapses
from afintro.study.scoring.estimates import compare, mean, of_system, summary
from afintro.study.scoring.items import CEILING, FLOOR, LOW_MASS
from afintro.tasks.introspection.trials import YES_NO, AnswerPair, single_tokens, worded

STYLE = "self_report"


def measure(session: Session) -> list[ResultRow]:
    """Ask all self-reports and controls of all splits, to be answered with yes and no and with the variant's own pair."""
    asked = [(item, pair) for pair in pairs(session) for item in _items(session)]
    queries = [Query(None, None, wording(session, item, pair)) for item, pair in asked]
    answers = [session.dialogues.answers(pair) for _, pair in asked]
    trained = {item.id for item in session.material.reports.train} if session.data.style == STYLE else set()
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            scores = session.ask(queries, answers)
        for (item, pair), (a, b) in zip(asked, scores, strict=True):
            answered = {"trained": item.id in trained, **_probabilities(a, b)}
            rows.append({"system": system, "seed": session.seed, **_item_fields(item, pair), **answered})
    return rows


def pairs(session: Session) -> list[AnswerPair]:
    """Return yes and no, and the variant's own pair, as far as their words are single tokens."""
    return single_tokens(session.dialogues, list(dict.fromkeys([YES_NO, session.data.pair])))


def wording(session: Session, item: SelfReport, pair: AnswerPair) -> str:
    """Return the question. It names the answers in a drawn order, unless they are yes and no.

    Args:
        session: The session, whose study seed decides the order.
        item: The self-report or control.
        pair: The two answers.
    """
    swapped = bool(stable_hash(f"{session.material.seed} {item.id} {pair.name} order") % 2)
    return worded(item.question, pair, swapped)


def _items(session: Session) -> list[SelfReport]:
    reports = session.material.reports
    return sorted([*reports.train, *reports.validation, *reports.test], key=lambda item: item.id)[: session.scale.items]


def _item_fields(item: SelfReport, pair: AnswerPair) -> ResultRow:
    return {
        "context": None,
        "vector": None,
        "question": item.id,
        "category": item.category,
        "control": item.control,
        "reversed_of": item.reversed_of,
        "expected": item.expected,
        "pair": pair.name,
    }


def _probabilities(a: float, b: float) -> ResultRow:
    """Return the fields of two log-probabilities. The share of "yes" comes from their difference, which does not underflow."""
    mass = math.exp(a) + math.exp(b)
    return {"p_a": math.exp(a), "p_b": math.exp(b), "mass": mass, "p_yes": _share(a - b), "low_mass": mass < LOW_MASS}


def _share(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize P(yes) and its shift by pair for self-reports, controls, and each category.

    Items that a variant was trained on form a group of their own (``trained``). An item and its twin of reversed polarity
    are one question of the bootstrap.

    Args:
        rows: Rows of both systems.
        seed: Seeds the resamples.

    Returns:
        ``metrics``: ``<measure>/<pair>/<group>/<system>`` and ``shift/<measure>/<pair>/<group>``, where a group is
        ``self_reports``, ``controls``, ``trained`` or a category. ``p_yes`` covers items as they were first worded,
        ``p_yes_reversed`` their twins, ``affirmed`` both with yes and no exchanged in twins: a model that merely says yes
        more often does not shift it. ``mass``, and ``low_mass`` as a share; ``at_edge``, the share of items whose P(yes) is
        so near 0 or 1 that a shift in that direction could not be seen; ``expected``, the probability of the right answer,
        for items that have one.
    """
    metrics: dict[str, Estimate] = {}
    warnings: list[str] = []
    for pair in dict.fromkeys(row["pair"] for row in rows):
        of_pair = [{**row, "question": row["reversed_of"] or row["question"]} for row in rows if row["pair"] == pair]
        for name, group in _groups(of_pair).items():
            metrics |= _of_group(group, f"{pair}/{name}", seed)
        warnings += [*collapses(of_pair), *_low_mass(of_pair, pair)]
    return summary(rows, metrics, warnings)


def _groups(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    asked = [row for row in rows if not row["trained"]]
    groups = {
        "self_reports": [row for row in asked if not row["control"]],
        "controls": [row for row in asked if row["control"]],
    }
    if len(asked) < len(rows):
        groups["trained"] = [row for row in rows if row["trained"]]
    for row in asked:
        groups.setdefault(row["category"], []).append(row)
    return groups


def _of_group(group: Sequence[ResultRow], name: str, seed: int) -> dict[str, Estimate]:
    originals = [row for row in group if row["reversed_of"] is None]
    twins = [row for row in group if row["reversed_of"] is not None]
    with_answer = [row for row in group if row["expected"] is not None]
    metrics = compare(originals, {f"p_yes/{name}": mean(_p_yes), f"at_edge/{name}": mean(_at_edge)}, seed)
    metrics |= compare(twins, {f"p_yes_reversed/{name}": mean(_p_yes)}, seed)
    of_all = {"affirmed": affirmed, "mass": lambda row: row["mass"], "low_mass": lambda row: row["low_mass"]}
    metrics |= compare(group, {f"{measured}/{name}": mean(of) for measured, of in of_all.items()}, seed)
    return metrics | (compare(with_answer, {f"expected/{name}": mean(_p_expected)}, seed) if with_answer else {})


def affirmed(row: ResultRow) -> float:
    """Return the probability of the answer that affirms what the item's original asks."""
    return _p_yes(row) if row["reversed_of"] is None else 1 - _p_yes(row)


def _p_yes(row: ResultRow) -> float:
    return float(row["p_yes"])


def _p_expected(row: ResultRow) -> float:
    return _p_yes(row) if row["expected"] == "yes" else 1 - _p_yes(row)


def _at_edge(row: ResultRow) -> float:
    return float(not FLOOR <= row["p_yes"] <= CEILING)


def _low_mass(rows: Sequence[ResultRow], pair: str) -> list[str]:
    warnings = []
    for system in SYSTEMS:
        of_one_system = of_system(rows, system)
        low = sum(row["low_mass"] for row in of_one_system)
        if low:
            warnings.append(
                f"low mass: {low} of {len(of_one_system)} answers of the {system} have less than {LOW_MASS} on {pair}"
            )
    return warnings
