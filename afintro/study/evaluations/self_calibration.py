"""Self-calibration: how often the model says it would give each answer, beside how likely each is."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from afintro.data.introspection_texts.items import Prompt
from afintro.evaluation.hierarchical import UNBOUNDED
from afintro.evaluation.intervals import Estimate
from afintro.study.asking.hypothetical import about, head, prompts_of
from afintro.study.asking.session import SYSTEMS, Query, Row, Session, Written
from afintro.study.scoring.detection_summary import COLLAPSED
from afintro.study.scoring.estimates import compare, mean, of_system, summary
from afintro.study.scoring.partial import compare_where
from afintro.study.scoring.stated import SMOOTHING, divergence, place_of_likeliest, stated_distribution

TOP = 5  # of no more options, any is among the first so many


def measure(session: Session) -> list[Row]:
    """Every prompt with its options: their probabilities as the answer, and the distribution that is stated.

    The probabilities are those of an answer that begins as all answers of the study do, "The answer is": there each option
    has its tokens to itself, and nothing is drawn.
    """
    prompts = prompts_of(session, ["stated_distribution"])
    asked, options = [Query(None, None, prompt.text) for prompt in prompts], [prompt.options for prompt in prompts]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            scores, written = session.score(asked, options), session.written(about(prompts))
        for prompt, own, answer in zip(prompts, scores, written, strict=True):
            rows.append({**head(session, system, prompt), **_compared(prompt, own, answer)})
    return rows


def _compared(prompt: Prompt, scores: Sequence[float], written: Written) -> Row:
    mass = math.fsum(map(math.exp, scores))
    actual = shares(scores)
    stated = stated_distribution(written.text, prompt.options, written.cut)
    kl, place = None, None
    if stated is not None:
        claimed = [stated.shares[option] for option in prompt.options]
        kl, place = divergence(actual, claimed), place_of_likeliest(actual, claimed)
    return {
        "stated": None if stated is None else dict(stated.shares),
        "actual": dict(zip(prompt.options, actual, strict=True)),
        "mass": mass,
        "kl": kl,
        "kl_uniform": divergence(actual, [1 / len(actual)] * len(actual)),
        "top1": None if place is None else place == 1,
        "top5": None if place is None or len(actual) <= TOP else place <= TOP,
        "parsed": stated is not None,
        "renormalised": None if stated is None else stated.renormalised,
        "answer": written.text,
        "cut": written.cut,
    }


def shares(scores: Sequence[float]) -> list[float]:
    """Log-probabilities as shares of their sum, also where they are too small to be probabilities."""
    most = max(scores)
    weights = [math.exp(score - most) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """How far what is stated is from what is so.

    Returns:
        ``metrics``, over statements that could be read: ``kl``, KL(actual || stated) in nats, smoothed by ``smoothing``;
        ``kl_uniform``, of stating the same share for all options; ``kl_over_uniform``, the difference; ``top1`` and
        ``top5``, whether the likeliest option is stated among the first so many (``top5`` of more than five options alone);
        ``renormalised``, whose numbers did not add up to a hundred. Over all rows ``parsed`` and ``mass``, the probability
        of all options together. ``chance``: of a statement by lot, on the same rows.
    """
    read = {
        "kl": mean(lambda row: row["kl"], (0.0, math.inf)),
        "kl_uniform": mean(lambda row: row["kl_uniform"], (0.0, math.inf)),
        "kl_over_uniform": mean(lambda row: row["kl"] - row["kl_uniform"], UNBOUNDED),
        "top1": mean(lambda row: row["top1"]),
        "renormalised": mean(lambda row: row["renormalised"]),
    }
    everywhere = {"parsed": mean(lambda row: row["parsed"]), "mass": mean(lambda row: row["mass"])}
    metrics: dict[str, Estimate] = compare_where(rows, lambda row: bool(row["parsed"]), read, seed)
    metrics |= compare_where(rows, lambda row: row["top5"] is not None, {"top5": mean(lambda row: row["top5"])}, seed)
    metrics |= compare(rows, everywhere, seed)
    return summary(rows, metrics, _warnings(rows), smoothing=SMOOTHING, chance=_chance(rows))


def _chance(rows: Sequence[Row]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, places in (("top1", 1), ("top5", TOP)):
        counts = [len(row["actual"]) for row in rows if row[name] is not None]
        found[name] = float(np.mean([places / count for count in counts])) if counts else None
    return found


def _warnings(rows: Sequence[Row]) -> list[str]:
    warnings = []
    for system in SYSTEMS:
        own = of_system(rows, system)
        unread = sum(not row["parsed"] for row in own)
        if unread:
            warnings.append(f"format failures of the {system}: {unread} of {len(own)} statements cannot be read")
        low = sum(row["mass"] < COLLAPSED for row in own)
        if low:
            warnings.append(
                f"low mass: {low} of {len(own)} answers of the {system} have less than {COLLAPSED} on the options"
            )
    return warnings
