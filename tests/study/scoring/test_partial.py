"""Measures that only some rows have: whose rows a value is of, and whose questions a shift is of."""

from afintro.study.scoring.estimates import mean
from afintro.study.scoring.partial import compare_where


def row(system, question, score, seed=0):
    return {"system": system, "seed": seed, "question": question, "score": score}


def found(rows):
    scores = {"score": mean(lambda row: row["score"])}
    return compare_where(rows, lambda row: row["score"] is not None, scores, 0)


def test_own_values_are_of_all_known_rows_and_the_shift_of_shared_questions():
    rows = [row("adapter", "a", 1.0), row("adapter", "b", 0.5), row("adapter", "c", None)]
    rows += [row("base", "a", 0.2), row("base", "b", None), row("base", "c", 0.0)]
    metrics = found(rows)
    assert (metrics["score/adapter"].value, metrics["score/adapter"].n) == (0.75, 2)
    assert (metrics["score/base"].value, metrics["score/base"].n) == (0.1, 2)
    assert (metrics["shift/score"].value, metrics["shift/score"].n) == (0.8, 1)


def test_a_question_of_another_seed_is_not_shared():
    metrics = found([row("adapter", "a", 1.0, seed=0), row("base", "a", 0.2, seed=1)])
    assert metrics["score/adapter"].value == 1.0
    assert metrics["shift/score"].value is None


def test_without_known_rows_there_are_no_values():
    metrics = found([row("adapter", "a", None), row("base", "a", None)])
    assert list(metrics) == ["score/adapter", "score/base", "shift/score"]
    assert all(one.value is None for one in metrics.values())
