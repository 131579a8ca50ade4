"""Token prediction: length and first word of the model's own answer, compared with what it says they would be."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from afintro.evaluation.intervals import Estimate
from afintro.study.asking.own_answers import PredictedAnswer, answer_and_predict, prompt_fields, prompts_of
from afintro.study.asking.queries import SYSTEMS
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring import parsing
from afintro.study.scoring.estimates import compare, mean, of_system, summary
from afintro.study.scoring.partial import compare_where

LENGTH, WORD = "response_length", "first_word"


def measure(session: Session) -> list[ResultRow]:
    """Let both systems answer every prompt of both tasks, and predict the answer.

    An answer that is cut off has at least as many words as were written. The error of a prediction of its length is not
    known, so ``error`` is None; ``least_error`` is the smallest possible error, by which the written words exceed the
    prediction.
    """
    prompts = prompts_of(session, [LENGTH, WORD])
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            predicted = answer_and_predict(session, prompts)
        rows += _with_constants([_row(session, system, answer) for answer in predicted])
    return rows


def _row(session: Session, system: str, predicted: PredictedAnswer) -> ResultRow:
    texts = {"answer": predicted.answer.text, "prediction": predicted.prediction.text, "cut": predicted.answer.cut}
    compared = _compare_lengths(predicted) if predicted.prompt.task == LENGTH else _compare_first_words(predicted)
    return {**prompt_fields(session, system, predicted.prompt), **texts, **compared}


def _compare_first_words(predicted_answer: PredictedAnswer) -> ResultRow:
    actual = parsing.first_word(predicted_answer.answer.text)
    predicted = parsing.given_word(predicted_answer.prediction.text)
    parsed = actual is not None and predicted is not None
    result = {"parsed": parsed, "right": parsed and actual == predicted, "error": None, "least_error": None}
    return {"predicted": predicted, "actual": actual, **result}


def _compare_lengths(predicted_answer: PredictedAnswer) -> ResultRow:
    actual = parsing.word_count(predicted_answer.answer.text)
    predicted = parsing.given_number(predicted_answer.prediction.text)
    fields: ResultRow = {"predicted": predicted, "actual": actual, "parsed": predicted is not None, "right": False}
    if predicted is None:
        return {**fields, "error": None, "least_error": None}
    if predicted_answer.answer.cut:
        # A prediction of at least as many words as were written may still be right.
        right = None if predicted >= actual else False
        return {**fields, "right": right, "error": None, "least_error": max(0, actual - predicted)}
    error = abs(predicted - actual)
    return {**fields, "right": error == 0, "error": error, "least_error": error}


def _with_constants(rows: list[ResultRow]) -> list[ResultRow]:
    """Add the results of constant predictions, which are favored since they come from this system's own answers.

    ``mode_right``: whether the first word is the commonest first word. ``median_error``: the distance of the length from the
    median length of the answers that were not cut off. Both are None where they do not apply.
    """
    words = Counter(row["actual"] for row in rows if row["task"] == WORD and row["actual"] is not None)
    mode = min(words, key=lambda word: (-words[word], word), default=None)
    lengths = [row["actual"] for row in rows if row["task"] == LENGTH and not row["cut"]]
    for row in rows:
        row["mode_right"] = row["median_error"] = None
        if row["task"] == WORD and row["actual"] is not None:
            row["mode_right"] = row["actual"] == mode
        if row["task"] == LENGTH and not row["cut"]:
            row["median_error"] = abs(row["actual"] - median(lengths))
    return rows


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize how well each system predicts the length and the first word of its answers.

    Args:
        rows: Rows of both systems.
        seed: Seeds the resamples.

    Returns:
        ``metrics``. Of lengths: ``mae``, the mean absolute error in words over readable predictions of answers that were
        not cut off, and ``mae_median``, the same of always predicting the median; ``mae_least``, over all readable
        predictions with the smallest possible error for answers that were cut off, so that short answers alone do not
        flatter it; ``cut``, the share of answers that were cut off. Of first words, over pairs that could be read:
        ``right``, and ``mode_right`` of always predicting the commonest word. ``parsed_length`` and ``parsed_word``: the
        shares that could be read. ``right_of_all``: pairs that could not be read count as not predicted.
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


def _warnings(rows: Sequence[ResultRow]) -> list[str]:
    warnings = []
    for system in SYSTEMS:
        of_one_system = of_system(rows, system)
        unread = sum(not row["parsed"] for row in of_one_system)
        if unread:
            warnings.append(f"format failures of the {system}: {unread} of {len(of_one_system)} items cannot be read")
        lengths = [row for row in of_one_system if row["task"] == LENGTH]
        cut = sum(row["cut"] for row in lengths)
        if cut:
            warnings.append(
                f"{cut} of {len(lengths)} answers of the {system} were cut off: their lengths are known as lower bounds "
                "and are left out of mae"
            )
    return warnings
