"""Drops from the first set: paired where both sets ask the same, from both intervals otherwise."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from rich.console import Console

from afintro.data.batch import Example, Slot
from afintro.evaluation import test_sets
from afintro.evaluation.answers import Verdict, two_branch
from afintro.evaluation.intervals import Clusters
from afintro.evaluation.metrics import score, statistics, text_prediction
from afintro.evaluation.test_sets import TestSet, compared_sets, print_sets

PRIMARY = "generative_explanation"
METRICS = ["exact_match", "has_changed_f1"]


def made(right: Sequence[bool], prompts: Sequence[str], prefix: str, baseline: Sequence[bool] | None = None) -> TestSet:
    items = [
        Example(f"{prefix}{n}", f"s{prompt}", PRIMARY, prompt, two_branch(Verdict(n % 2 == 0, "a")), (1,), (2,))
        for n, prompt in enumerate(prompts)
    ]
    scores = {
        name: statistics(
            [text_prediction(item, item.answer if hit else "x") for item, hit in zip(items, hits, strict=True)], PRIMARY
        )
        for name, hits in (("explainer", right), ("majority", baseline or [False] * len(items)))
    }
    table = {name: score(own) for name, own in scores.items()}
    return TestSet(scores, table, dict.fromkeys(METRICS, "majority"), items, {"path": f"{prefix}.json"})


def texts(first: int, last: int) -> list[str]:
    return [f"text {number}" for number in range(first, last)]


def test_the_same_texts_are_paired_whatever_their_uids() -> None:
    one = made([True] * 90 + [False] * 10, texts(0, 100), "a")
    two = made([True] * 70 + [False] * 30, texts(0, 100), "b")
    found = compared_sets({"benchmark": one, "organisms": two}, METRICS)
    exact = found["sets"]["organisms"]["drop"]["exact_match"]
    assert (exact["pairing"], exact["shared"]) == ("paired", 100)
    paired = Clusters(range(100)).difference([1.0] * 90 + [0.0] * 10, [1.0] * 70 + [0.0] * 30)
    assert [exact[key] for key in ("value", "ci_low", "ci_high")] == pytest.approx(
        [paired.value, paired.ci_low, paired.ci_high]
    )
    assert exact["value"] == pytest.approx(0.2)


def test_other_texts_are_not_paired_and_the_interval_is_wider() -> None:
    hits = [True] * 90 + [False] * 10, [True] * 70 + [False] * 30
    one = made(hits[0], texts(0, 100), "a")
    found = compared_sets(
        {"a": one, "same": made(hits[1], texts(0, 100), "b"), "other": made(hits[1], texts(200, 300), "c")}, METRICS
    )
    same, other = (found["sets"][name]["drop"]["exact_match"] for name in ("same", "other"))
    assert (other["pairing"], other["shared"]) == ("unpaired", 0)
    assert other["value"] == pytest.approx(same["value"])
    assert other["ci_high"] - other["ci_low"] > 1.2 * (same["ci_high"] - same["ci_low"])
    assert other["ci_low"] > 0.05


def test_partly_shared_texts_count_whole_and_on_their_own() -> None:
    one = made([True] * 80 + [False] * 20, texts(0, 100), "a")
    two = made([False] * 40 + [True] * 60, texts(50, 150), "b")
    exact = compared_sets({"a": one, "b": two}, METRICS)["sets"]["b"]["drop"]["exact_match"]
    assert (exact["pairing"], exact["shared"]) == ("partly paired", 50)
    assert exact["value"] == pytest.approx(0.2)
    assert exact["on_shared"]["value"] == pytest.approx(30 / 50 - 10 / 50)


def test_the_correlation_of_shared_scenarios_narrows_the_interval() -> None:
    drawn = np.random.default_rng(0).random(100) < 0.6
    hits = drawn.tolist()
    one, two = made(hits, texts(0, 100), "a"), made([*hits, True], [*texts(0, 100), "one more"], "b")
    exact = compared_sets({"a": one, "b": two}, METRICS)["sets"]["b"]["drop"]["exact_match"]
    alone = compared_sets({"a": one, "b": made([*hits, True], texts(300, 401), "b")}, METRICS)
    apart = alone["sets"]["b"]["drop"]["exact_match"]
    assert exact["ci_high"] - exact["ci_low"] < 0.4 * (apart["ci_high"] - apart["ci_low"])


@pytest.mark.long
def test_unpaired_drops_cover() -> None:
    inside = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        one = made((rng.random(60) < 0.9).tolist(), texts(0, 60), "a")
        two = made((rng.random(40) < 0.7).tolist(), texts(100, 140), "b")
        exact = compared_sets({"a": one, "b": two}, METRICS)["sets"]["b"]["drop"]["exact_match"]
        inside += exact["ci_low"] <= 0.2 <= exact["ci_high"]
    assert 0.92 <= inside / 300 <= 0.99


def test_baselines_drop_too() -> None:
    one = made([True] * 40, texts(0, 40), "a", [True] * 20 + [False] * 20)
    two = made([True] * 40, texts(40, 80), "b", [True] * 10 + [False] * 30)
    found = compared_sets({"a": one, "b": two}, METRICS)["sets"]
    assert found["b"]["baselines_drop"]["majority"]["exact_match"]["value"] == pytest.approx(0.25)
    assert found["b"]["best_baseline"]["exact_match"]["value"] == pytest.approx(0.25)
    assert "drop" not in found["a"]


def test_equal_prompts_with_other_vectors_are_other_items() -> None:
    def with_vector(value: float) -> str:
        slot = Slot(0, 1, np.full(2, value, np.float32))
        item = Example("u", "s", PRIMARY, "the same prompt", "a", (1,), (2,), slot=slot)
        return TestSet({}, {}, {}, [item], {}).keys["u"]

    assert with_vector(1.0) == with_vector(1.0) != with_vector(2.0)


def test_a_text_that_occurs_twice_is_paired_once_each() -> None:
    keys = made([True, True], ["a", "a"], "u").keys
    assert len(set(keys.values())) == 2
    assert sorted(keys.values()) == sorted(made([True, True], ["a", "a"], "v").keys.values())


def test_the_table_fits_into_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(test_sets, "Console", lambda **_: Console(width=80, file=out))
    hits = [n % 3 > 0 for n in range(100)]
    sets = {name: made(hits, texts(start, start + 100), name) for start, name in ((0, "benchmark"), (50, "sycophancy"))}
    print_sets(compared_sets(sets, METRICS))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "[0.56, 0.75]" in text
    assert "sycophancy: partly paired with benchmark, 50 items in both" in text


def test_a_set_that_holds_the_first_and_more_is_partly_paired() -> None:
    one, two = made([True] * 20, texts(0, 20), "a"), made([True] * 20 + [False] * 20, texts(0, 40), "b")
    exact = compared_sets({"a": one, "b": two}, METRICS)["sets"]["b"]["drop"]["exact_match"]
    assert (exact["pairing"], exact["value"], exact["on_shared"]["value"]) == ("partly paired", 0.5, 0.0)
