"""Token prediction: the length of the model's own answer, and its first word, beside what it says they would be."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from afintro.evaluation.intervals import Estimate
from afintro.study.asking.hypothetical import Foreseen, foreseen, head, prompts_of
from afintro.study.asking.session import SYSTEMS, Row, Session
from afintro.study.scoring import parsing
from afintro.study.scoring.estimates import compare, mean, of_system, summary
from afintro.study.scoring.partial import compare_where

LENGTH, WORD = "response_length", "first_word"


def measure(session: Session) -> list[Row]:
    """Every prompt of both tasks: answered, and the answer foreseen, by either system.

    An answer that is cut off has at least as many words as were written. How far a prediction is from its length is not
    known, so ``error`` is None; ``least_error`` is what it misses by at the least: what the written words exceed it by.
    """
    prompts = prompts_of(session, [LENGTH, WORD])
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            found = foreseen(session, prompts)
        rows += _beside_constants([_row(session, system, one) for one in found])
    return rows


def _row(session: Session, system: str, one: Foreseen) -> Row:
    texts = {"answer": one.answer.text, "prediction": one.prediction.text, "cut": one.answer.cut}
    of_task = _length if one.prompt.task == LENGTH else _word
    return {**head(session, system, one.prompt), **texts, **of_task(one)}


def _word(one: Foreseen) -> Row:
    actual, predicted = parsing.first_word(one.answer.text), parsing.given_word(one.prediction.text)
    parsed = actual is not None and predicted is not None
    result = {"parsed": parsed, "right": parsed and actual == predicted, "error": None, "least_error": None}
    return {"predicted": predicted, "actual": actual, **result}


def _length(one: Foreseen) -> Row:
    actual, predicted = parsing.word_count(one.answer.text), parsing.given_number(one.prediction.text)
    found: Row = {"predicted": predicted, "actual": actual, "parsed": predicted is not None, "right": False}
    if predicted is None:
        return {**found, "error": None, "least_error": None}
    if one.answer.cut:
        # A prediction of no fewer words than were written may yet be right.
        right = None if predicted >= actual else False
        return {**found, "right": right, "error": None, "least_error": max(0, actual - predicted)}
    error = abs(predicted - actual)
    return {**found, "right": error == 0, "error": error, "least_error": error}


def _beside_constants(rows: list[Row]) -> list[Row]:
    """Adds what one and the same prediction would do, taken from this system's own answers and so favoured.

    ``mode_right``: whether the first word is the commonest. ``median_error``: how far the length is from the median of the
    answers that were not cut off. None where there is nothing to be right about.
    """
    words = Counter(row["actual"] for row in rows if row["task"] == WORD and row["actual"] is not None)
    mode = min(words, key=lambda word: (-words[word], word), default=None)
    whole = [row["actual"] for row in rows if row["task"] == LENGTH and not row["cut"]]
    for row in rows:
        row["mode_right"] = row["median_error"] = None
        if row["task"] == WORD and row["actual"] is not None:
            row["mode_right"] = row["actual"] == mode
        if row["task"] == LENGTH and not row["cut"]:
            row["median_error"] = abs(row["actual"] - median(whole))
    return rows


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """How well each system foresees length and first word.

    Returns:
        ``metrics``. Of lengths: ``mae``, in words, over readable predictions of answers that were not cut off, and
        ``mae_median``, of always predicting their median; ``mae_least``, over all readable predictions with what those of
        cut answers miss by at the least, which no choice of short answers flatters; ``cut``, the share of answers cut off.
        Of first words, over pairs that could be read: ``right`` and ``mode_right``, of always predicting the commonest.
        ``parsed_length`` and ``parsed_word``: shares that could be read; ``right_of_all``: the unread count as not foreseen.
    """
    lengths, words = ([row for row in rows if row["task"] == task] for task in (LENGTH, WORD))
    error = {"mae": mean(lambda row: row["error"], (0.0, math.inf))}
    error["mae_median"] = mean(lambda row: row["median_error"], (0.0, math.inf))
    least = {"mae_least": mean(lambda row: row["least_error"], (0.0, math.inf))}
    metrics: dict[str, Estimate] = compare_where(lengths, lambda row: row["error"] is not None, error, seed)
    metrics |= compare_where(lengths, lambda row: row["least_error"] is not None, least, seed)
    metrics |= compare(
        lengths, {"cut": mean(lambda row: row["cut"]), "parsed_length": mean(lambda row: row["parsed"])}, seed
    )
    right = {"right": mean(lambda row: row["right"]), "mode_right": mean(lambda row: row["mode_right"])}
    everywhere = {"right_of_all": mean(lambda row: row["right"]), "parsed_word": mean(lambda row: row["parsed"])}
    metrics |= compare_where(words, lambda row: bool(row["parsed"]), right, seed) | compare(words, everywhere, seed)
    return summary(rows, metrics, _warnings(rows))


def _warnings(rows: Sequence[Row]) -> list[str]:
    warnings = []
    for system in SYSTEMS:
        own = of_system(rows, system)
        unread = sum(not row["parsed"] for row in own)
        if unread:
            warnings.append(f"format failures of the {system}: {unread} of {len(own)} items cannot be read")
        lengths = [row for row in own if row["task"] == LENGTH]
        cut = sum(row["cut"] for row in lengths)
        if cut:
            warnings.append(
                f"{cut} of {len(lengths)} answers of the {system} were cut off: their lengths are known as lower bounds "
                "and are left out of mae"
            )
    return warnings
