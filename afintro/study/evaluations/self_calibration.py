"""Self-calibration: how often the model says it would give each answer, compared with how likely each answer is."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from afintro.data.introspection_texts.items import Prompt
from afintro.evaluation.hierarchical import UNBOUNDED
from afintro.evaluation.intervals import Estimate
from afintro.study.asking.own_answers import prediction_queries, prompt_fields, prompts_of
from afintro.study.asking.queries import SYSTEMS, Query, WrittenAnswer
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring.detection_summary import COLLAPSED
from afintro.study.scoring.estimates import compare, mean, of_system, summary
from afintro.study.scoring.partial import compare_where
from afintro.study.scoring.stated import SMOOTHING, divergence, rank_of_likeliest, stated_distribution

TOP = 5  # with no more options than this, every option is among the first


def measure(session: Session) -> list[ResultRow]:
    """Compute the probability of each prompt's options as the answer, and ask for the distribution over the options.

    The probabilities are those of an answer that begins like all answers of the study, "The answer is": there each option
    has tokens of its own, and no answers need to be sampled.
    """
    prompts = prompts_of(session, ["stated_distribution"])
    asked, options = [Query(None, None, prompt.text) for prompt in prompts], [prompt.options for prompt in prompts]
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            scores, answers = session.score(asked, options), session.write(prediction_queries(prompts))
        for prompt, log_probabilities, answer in zip(prompts, scores, answers, strict=True):
            compared = _compare(prompt, log_probabilities, answer)
            rows.append({**prompt_fields(session, system, prompt), **compared})
    return rows


def _compare(prompt: Prompt, scores: Sequence[float], answer: WrittenAnswer) -> ResultRow:
    mass = math.fsum(map(math.exp, scores))
    actual = shares(scores)
    stated = stated_distribution(answer.text, prompt.options, answer.cut)
    kl, likeliest_rank = None, None
    if stated is not None:
        claimed = [stated.shares[option] for option in prompt.options]
        kl, likeliest_rank = divergence(actual, claimed), rank_of_likeliest(actual, claimed)
    return {
        "stated": None if stated is None else dict(stated.shares),
        "actual": dict(zip(prompt.options, actual, strict=True)),
        "mass": mass,
        "kl": kl,
        "kl_uniform": divergence(actual, [1 / len(actual)] * len(actual)),
        "top1": None if likeliest_rank is None else likeliest_rank == 1,
        "top5": None if likeliest_rank is None or len(actual) <= TOP else likeliest_rank <= TOP,
        "parsed": stated is not None,
        "renormalised": None if stated is None else stated.renormalized,
        "answer": answer.text,
        "cut": answer.cut,
    }


def shares(scores: Sequence[float]) -> list[float]:
    """Return log-probabilities as shares of their sum, even if they are too small to be represented as probabilities."""
    largest = max(scores)
    weights = [math.exp(score - largest) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize how far the stated distributions are from the actual distributions.

    Args:
        rows: Rows of both systems.
        seed: Seeds the resamples.

    Returns:
        ``metrics``, over statements that could be read: ``kl``, KL(actual || stated) in nats, smoothed by ``smoothing``;
        ``kl_uniform``, the KL of stating the same share for all options; ``kl_over_uniform``, the difference; ``top1`` and
        ``top5``, whether the likeliest option is stated as the first or among the first five (``top5`` covers prompts with
        more than five options); ``renormalised``, the share of statements whose numbers did not add up to 100. Over all
        rows: ``parsed``, the share of statements that could be read, and ``mass``, the probability of all options
        together. ``chance``: the expected ``top1`` and ``top5`` of random statements about the same rows.
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


def _chance(rows: Sequence[ResultRow]) -> dict[str, float | None]:
    expected: dict[str, float | None] = {}
    for name, places in (("top1", 1), ("top5", TOP)):
        counts = [len(row["actual"]) for row in rows if row[name] is not None]
        expected[name] = float(np.mean([places / count for count in counts])) if counts else None
    return expected


def _warnings(rows: Sequence[ResultRow]) -> list[str]:
    warnings = []
    for system in SYSTEMS:
        of_one_system = of_system(rows, system)
        count = len(of_one_system)
        unread = sum(not row["parsed"] for row in of_one_system)
        if unread:
            warnings.append(f"format failures of the {system}: {unread} of {count} statements cannot be read")
        low = sum(row["mass"] < COLLAPSED for row in of_one_system)
        if low:
            warnings.append(
                f"low mass: {low} of {count} answers of the {system} have less than {COLLAPSED} on the options"
            )
    return warnings
