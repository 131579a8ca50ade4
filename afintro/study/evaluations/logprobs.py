"""Log-probabilities of yes and no to self-reports and their controls, without any context: what the training shifted."""

import math
from collections.abc import Sequence
from typing import Any

from afintro.data.introspection_texts.items import SelfReport
from afintro.data.splits import stable_hash
from afintro.evaluation.intervals import Estimate
from afintro.study.asking.session import SYSTEMS, Query, Row, Session
from afintro.study.scoring.detection_summary import collapses
from afintro.study.scoring.estimates import compare, mean, of_system, summary
from afintro.study.scoring.items import CEILING, FLOOR, LOW_MASS
from afintro.tasks.introspection.trials import YES_NO, Pair, single_tokens, worded

STYLE = "self_report"


def measure(session: Session) -> list[Row]:
    """All self-reports and controls, of all sides, answered with yes and no and with the variant's own pair."""
    asked = [(item, pair) for pair in pairs(session) for item in _items(session)]
    queries = [Query(None, None, wording(session, item, pair)) for item, pair in asked]
    answers = [session.dialogues.answers(pair) for _, pair in asked]
    trained = {item.id for item in session.material.reports.train} if session.data.style == STYLE else set()
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            scores = session.ask(queries, answers)
        for (item, pair), (a, b) in zip(asked, scores, strict=True):
            told = {"trained": item.id in trained, **_probabilities(a, b)}
            rows.append({"system": system, "seed": session.seed, **_described(item, pair), **told})
    return rows


def pairs(session: Session) -> list[Pair]:
    """Yes and no if they are single tokens, and the variant's."""
    return single_tokens(session.dialogues, list(dict.fromkeys([YES_NO, session.data.pair])))


def wording(session: Session, item: SelfReport, pair: Pair) -> str:
    """The question, the answers named in an order that is drawn unless they are yes and no."""
    swapped = bool(stable_hash(f"{session.material.seed} {item.id} {pair.name} order") % 2)
    return worded(item.question, pair, swapped)


def _items(session: Session) -> list[SelfReport]:
    reports = session.material.reports
    return sorted([*reports.train, *reports.validation, *reports.test], key=lambda item: item.id)[: session.scale.items]


def _described(item: SelfReport, pair: Pair) -> Row:
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


def _probabilities(a: float, b: float) -> Row:
    """Of two log-probabilities; the share of "yes" is taken from their difference, which has no underflow."""
    mass = math.exp(a) + math.exp(b)
    return {"p_a": math.exp(a), "p_b": math.exp(b), "mass": mass, "p_yes": _share(a - b), "low_mass": mass < LOW_MASS}


def _share(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """P(yes) and its shift, by pair: self-reports, controls, and each category.

    Items that a variant was trained on are left out, and given apart (``trained``). An item and its twin of reversed
    polarity are one question of the bootstrap.

    Returns:
        ``metrics``: ``<measure>/<pair>/<group>/<system>`` and ``shift/<measure>/<pair>/<group>``, where a group is
        ``self_reports``, ``controls``, ``trained`` or a category. ``p_yes`` is of items as they were first worded,
        ``p_yes_reversed`` of their twins, ``affirmed`` of both with yes and no exchanged in twins: a model that only says
        yes more often has no shift of it. ``mass`` and ``low_mass`` (share); ``at_edge``, the share whose P(yes) is so
        near 0 or 1 that a shift in that direction could not be seen; of controls ``expected``, P of the right answer.
    """
    metrics: dict[str, Estimate] = {}
    warnings: list[str] = []
    for pair in dict.fromkeys(row["pair"] for row in rows):
        own = [{**row, "question": row["reversed_of"] or row["question"]} for row in rows if row["pair"] == pair]
        for name, group in _groups(own).items():
            metrics |= _of_group(group, f"{pair}/{name}", seed)
        warnings += [*collapses(own), *_low_mass(own, pair)]
    return summary(rows, metrics, warnings)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    asked = [row for row in rows if not row["trained"]]
    found = {
        "self_reports": [row for row in asked if not row["control"]],
        "controls": [row for row in asked if row["control"]],
    }
    if len(asked) < len(rows):
        found["trained"] = [row for row in rows if row["trained"]]
    for row in asked:
        found.setdefault(row["category"], []).append(row)
    return found


def _of_group(group: Sequence[Row], name: str, seed: int) -> dict[str, Estimate]:
    worded_first = [row for row in group if row["reversed_of"] is None]
    known = [row for row in group if row["expected"] is not None]
    found = compare(worded_first, {f"p_yes/{name}": mean(_p_yes), f"at_edge/{name}": mean(_at_edge)}, seed)
    found |= compare(
        [row for row in group if row["reversed_of"] is not None], {f"p_yes_reversed/{name}": mean(_p_yes)}, seed
    )
    of_all = {"affirmed": affirmed, "mass": lambda row: row["mass"], "low_mass": lambda row: row["low_mass"]}
    found |= compare(group, {f"{measured}/{name}": mean(of) for measured, of in of_all.items()}, seed)
    return found | (compare(known, {f"expected/{name}": mean(_p_expected)}, seed) if known else {})


def affirmed(row: Row) -> float:
    """Probability of the answer that affirms what the item's original asks."""
    return _p_yes(row) if row["reversed_of"] is None else 1 - _p_yes(row)


def _p_yes(row: Row) -> float:
    return float(row["p_yes"])


def _p_expected(row: Row) -> float:
    return _p_yes(row) if row["expected"] == "yes" else 1 - _p_yes(row)


def _at_edge(row: Row) -> float:
    return float(not FLOOR <= row["p_yes"] <= CEILING)


def _low_mass(rows: Sequence[Row], pair: str) -> list[str]:
    warnings = []
    for system in SYSTEMS:
        own = of_system(rows, system)
        low = sum(row["low_mass"] for row in own)
        if low:
            warnings.append(
                f"low mass: {low} of {len(own)} answers of the {system} have less than {LOW_MASS} on {pair}"
            )
    return warnings
