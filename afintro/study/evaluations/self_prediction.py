"""Self-prediction: a property of the model's own answer, compared with what the model says that it would be."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from afintro.evaluation.intervals import Estimate, Floats, Weighted, ratio
from afintro.study.asking.own_answers import PredictedAnswer, answer_and_predict, prompt_fields, prompts_of
from afintro.study.asking.queries import SYSTEMS
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.scoring import parsing
from afintro.study.scoring.estimates import SHARE, Measure, compare, mean, of_system, summary
from afintro.study.scoring.partial import compare_where

ReadProperty = Callable[[str, Sequence[str]], str | None]
"""Read a property from a text and the options of its prompt; None if the text cannot be read."""


def _without_options(read: Callable[[str], str | None]) -> ReadProperty:
    return lambda text, _: read(text)


# For each task: how the property is read from an answer, and how from a prediction.
TASKS: dict[str, tuple[ReadProperty, ReadProperty]] = {
    "first_character": (_without_options(parsing.first_character), _without_options(parsing.given_character)),
    "starts_with_vowel": (_without_options(parsing.starts_with_vowel), _without_options(parsing.yes_or_no)),
    "among_options": (parsing.named_option, parsing.named_option),
    "ethical_stance_rule": (parsing.named_option, parsing.named_option),
    "ethical_stance_candour": (parsing.named_option, parsing.named_option),
}


def measure(session: Session) -> list[ResultRow]:
    """Let both systems answer every prompt of the five tasks, and predict the answer."""
    prompts = prompts_of(session, list(TASKS))
    rows = []
    for system in SYSTEMS:
        with session.system(system):
            predicted = answer_and_predict(session, prompts)
        rows += _with_mode([_row(session, system, answer) for answer in predicted])
    return rows


def _row(session: Session, system: str, predicted_answer: PredictedAnswer) -> ResultRow:
    prompt = predicted_answer.prompt
    answer, prediction = predicted_answer.answer.text, predicted_answer.prediction.text
    read_answer, read_prediction = TASKS[prompt.task]
    actual, predicted = read_answer(answer, prompt.options), read_prediction(prediction, prompt.options)
    return {
        **prompt_fields(session, system, prompt),
        "answer": answer,
        "prediction": prediction,
        "predicted": predicted,
        "actual": actual,
        "actual_class": _class(actual, prompt.options),
        "parsed": actual is not None and predicted is not None,
        "right": actual is not None and actual == predicted,
    }


def _class(actual: str | None, options: Sequence[str]) -> str | None:
    """Return the class of an answer over prompts: the property, or the place of the named option among the options.

    In the dilemmas the first option keeps to the rule, or is candid.
    """
    return f"option {options.index(actual) + 1}" if actual in options else actual


def _with_mode(rows: list[ResultRow]) -> list[ResultRow]:
    """Add ``mode_right``: whether the class is the commonest of this system's answers to the task; None without a class."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row["actual_class"] is not None:
            counts[row["task"]][row["actual_class"]] += 1
    modes = {task: min(classes, key=lambda name: (-classes[name], name)) for task, classes in counts.items()}
    for row in rows:
        row["mode_right"] = None if row["actual_class"] is None else row["actual_class"] == modes[row["task"]]
    return rows


def summarize(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    """Summarize how often each system predicts its own answer.

    Args:
        rows: Rows of both systems.
        seed: Seeds the resamples.

    Returns:
        ``metrics``, over pairs of answer and prediction that could both be read: ``right``; ``mode_right``, of always
        predicting the commonest class, which is favored since it is taken from the same answers; ``over_mode``, the
        difference; ``balanced_accuracy``, the mean over the actual classes of a task and then over tasks. Over all rows:
        ``right_of_all``, where a pair that could not be read counts as not predicted; ``parsed``, ``parsed_answer`` and
        ``parsed_prediction``, the shares of pairs, answers and predictions that could be read. All but the last two also
        by task (``right/<task>``). ``classes``: how often each class is actual, by system and task.
    """
    metrics = _metrics(rows, "", seed)
    everywhere = {"parsed_answer": mean(lambda row: row["actual"] is not None)}
    everywhere["parsed_prediction"] = mean(lambda row: row["predicted"] is not None)
    metrics |= compare(rows, everywhere, seed)
    for task in TASKS:
        of_task = [row for row in rows if row["task"] == task]
        metrics |= _metrics(of_task, f"/{task}", seed) if of_task else {}
    classes = {system: _classes(of_system(rows, system)) for system in SYSTEMS}
    return summary(rows, metrics, [*_unread(rows), *_single_class(classes)], classes=classes)


def _metrics(rows: Sequence[ResultRow], suffix: str, seed: int) -> dict[str, Estimate]:
    of_readable = {
        f"right{suffix}": mean(lambda row: row["right"]),
        f"mode_right{suffix}": mean(lambda row: row["mode_right"]),
        f"over_mode{suffix}": mean(lambda row: row["right"] - row["mode_right"], (-1.0, 1.0)),
        f"balanced_accuracy{suffix}": Measure(balanced_accuracy, SHARE),
    }
    everywhere = {
        f"right_of_all{suffix}": mean(lambda row: row["right"]),
        f"parsed{suffix}": mean(lambda row: row["parsed"]),
    }
    return compare_where(rows, lambda row: bool(row["parsed"]), of_readable, seed) | compare(rows, everywhere, seed)


def balanced_accuracy(rows: Sequence[ResultRow]) -> Weighted:
    """Return the share of right predictions in each actual class, averaged over a task's classes, then over tasks.

    Args:
        rows: Rows that could be read.

    Returns:
        The statistic of row weights. A class or a task whose rows all have weight 0 does not count.
    """
    names = sorted({(row["task"], row["actual_class"]) for row in rows})
    tasks = sorted({task for task, _ in names})
    member = np.array(
        [[(row["task"], row["actual_class"]) == name for name in names] for row in rows], dtype=np.float64
    )
    right = np.array([float(row["right"]) for row in rows])
    within = np.array([[task == task_of_class for task in tasks] for task_of_class, _ in names], dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        if not names:
            return np.full(len(weights), np.nan)
        totals = weights @ member
        present = (totals > 0).astype(np.float64)
        recall = np.nan_to_num(ratio((weights * right) @ member, totals))
        counted = present @ within
        return ratio(np.nan_to_num(ratio(recall @ within, counted)).sum(-1), (counted > 0).sum(-1).astype(np.float64))

    return statistic


def _classes(rows: Sequence[ResultRow]) -> dict[str, dict[str, int]]:
    by_task: dict[str, dict[str, int]] = {}
    for task in TASKS:
        counts = Counter(row["actual_class"] for row in rows if row["task"] == task and row["actual_class"] is not None)
        by_task[task] = dict(sorted(counts.items()))
    return by_task


def _unread(rows: Sequence[ResultRow]) -> list[str]:
    warnings = []
    for system in SYSTEMS:
        of_one_system = of_system(rows, system)
        count = len(of_one_system)
        answers, predictions = (sum(row[name] is None for row in of_one_system) for name in ("actual", "predicted"))
        if answers or predictions:
            warnings.append(
                f"format failures of the {system}: {predictions} of {count} predictions and {answers} of {count} "
                "answers cannot be read"
            )
    return warnings


def _single_class(classes: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    return [
        f"{task}: all answers of the {system} that can be read are of one class, so predicting them shows nothing"
        for system, tasks in classes.items()
        for task, counts in tasks.items()
        if len(counts) == 1
    ]
