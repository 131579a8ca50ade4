"""Metrics by group: a planted effect is found, and the worst of many random groups is not called one."""

import io

import numpy as np
import pytest
from rich.console import Console

from afintro.evaluation import group_table
from afintro.evaluation.answers import Verdict, two_branch
from afintro.evaluation.group_table import print_groups, sentence_of
from afintro.evaluation.groups import adjusted_p_values, apart, by_group
from afintro.evaluation.intervals import Clusters, Estimate
from afintro.evaluation.metrics import Prediction, statistics
from afintro.evaluation.score_intervals import wilson

PRIMARY = "generative_explanation"


def items(right: list[bool], facets: list[dict[str, str]], scenarios: list[str] | None = None) -> list[Prediction]:
    made = []
    for number, (hit, own) in enumerate(zip(right, facets, strict=True)):
        true = Verdict(number % 2 == 0, "refuse")
        said = two_branch(true) if hit else "x"
        scenario = scenarios[number] if scenarios else f"s{number}"
        made.append(
            Prediction(f"u{number:05d}", scenario, PRIMARY, two_branch(true), said, hit, p_changed=0.5, facets=own)
        )
    return made


def grouped(predictions: list[Prediction], others: dict[str, list[Prediction]] | None = None) -> dict:
    systems = {"explainer": predictions, **(others or {})}
    scores = {name: statistics(answers, PRIMARY) for name, answers in systems.items()}
    rivals = {"exact_match": next(iter(others))} if others else {}
    return by_group(scores, "explainer", predictions, ["exact_match", "has_changed_f1"], rivals)


def planted(rates: dict[str, float], count: int, seed: int, facet: str = "category") -> list[Prediction]:
    """Items of groups with their own rates of right answers."""
    drawn = np.random.default_rng(seed)
    names = [name for name in rates for _ in range(count)]
    return items([bool(drawn.random() < rates[name]) for name in names], [{facet: name} for name in names])


def test_a_planted_group_effect_is_found_and_stands_first() -> None:
    found = grouped(planted({f"g{i}": 0.9 for i in range(9)} | {"planted": 0.5}, 40, seed=1))
    groups = found["by"]["category"]["groups"]
    assert groups[0]["group"] == "planted"
    assert [group["group"] for group in groups if group["p_adjusted"] < 0.05] == ["planted"]
    assert groups[0]["difference_to_rest"]["ci_high"] < -0.2
    assert "category planted" in sentence_of(found)
    assert [group["metrics"]["exact_match"]["value"] for group in groups] == sorted(
        group["metrics"]["exact_match"]["value"] for group in groups
    )


@pytest.mark.long
def test_the_worst_of_twenty_random_groups_is_not_called_an_effect() -> None:
    """Of 100 runs without any effect, 5 % say that some group differs; each run's worst group looks bad by itself."""
    said, alone = 0, 0
    for seed in range(100):
        predictions = planted({f"g{i}": 0.8 for i in range(20)}, 25, seed)
        values = np.array([float(p.exact_match) for p in predictions])
        column = [p.facets["category"] for p in predictions]
        tested = [("category", f"g{i}") for i in range(20)]
        found = adjusted_p_values(values, [p.scenario_id for p in predictions], {"category": column}, tested)
        said += min(found.values()) < 0.05
        worst = min(Clusters(range(25)).share(values[start : start + 25]).ci_high for start in range(0, 500, 25))
        alone += worst < 0.8
    assert said <= 11  # P(more than 11 of 100 at 5 %) is below 0.01
    assert alone > 20, "intervals of single groups would have called an effect"


def test_the_sentence_of_a_null_effect_names_how_many_groups_were_looked_at() -> None:
    found = grouped(planted({f"g{i}": 0.8 for i in range(20)}, 25, seed=3))
    assert found["looked_at"] == 20
    assert found["smallest_p_adjusted"] > 0.05
    assert sentence_of(found).startswith("20 groups were looked at; none differs")


def test_every_metric_has_the_interval_of_the_whole() -> None:
    found = grouped(planted({"a": 0.9, "b": 0.6}, 50, seed=2))
    worst = found["by"]["category"]["groups"][0]
    assert worst["metrics"].keys() >= {"exact_match", "has_changed_f1", "content_match", "parse_rate", "auroc_changed"}
    exact = worst["metrics"]["exact_match"]
    assert (exact["ci_low"], exact["ci_high"]) == pytest.approx(wilson(exact["value"], 50))
    assert (worst["n"], worst["scenarios"]) == (50, 50)


def test_items_of_one_scenario_are_one_cluster_in_a_group_too() -> None:
    right = [i // 4 % 3 != 0 for i in range(240)]  # four items a scenario agree
    facets = [{"source": "ab"[i // 4 % 2]} for i in range(240)]
    scenarios = [f"s{i // 4}" for i in range(240)]
    clustered, alone = (grouped(items(right, facets, own))["by"]["source"]["groups"][0] for own in (scenarios, None))
    assert clustered["scenarios"] == 30
    widths = [
        g["metrics"]["exact_match"]["ci_high"] - g["metrics"]["exact_match"]["ci_low"] for g in (clustered, alone)
    ]
    assert widths[0] > 1.6 * widths[1]


def test_clusters_that_agree_are_no_group_effect() -> None:
    """Forty items of two scenarios say as much as two items: only a test over scenarios knows."""
    drawn = np.random.default_rng(0)
    scenarios = [f"s{i // 20}" for i in range(400)]
    values = np.repeat(drawn.random(20) < 0.5, 20).astype(float)
    column = [["a", "b"][int(name[1:]) % 2] for name in scenarios]
    tested = [("label", "a"), ("label", "b")]
    over_scenarios = adjusted_p_values(values, scenarios, {"label": column}, tested)
    over_items = adjusted_p_values(values, [str(i) for i in range(400)], {"label": column}, tested)
    assert over_items["label", "a"] < 0.05 < over_scenarios["label", "a"]


def test_within_scenarios_of_several_groups_the_items_are_exchanged() -> None:
    values = np.tile([1.0, 0.0], 20)
    scenarios = [f"s{i // 2}" for i in range(40)]
    column = ["a", "b"] * 20
    found = adjusted_p_values(values, scenarios, {"category": column}, [("category", "a")])
    assert found["category", "a"] == pytest.approx(1 / 2000, abs=1e-3)


def test_nothing_to_permute_is_no_p_value() -> None:
    found = adjusted_p_values(np.ones(20), [str(i) for i in range(20)], {"label": ["a", "b"] * 10}, [("label", "a")])
    assert found == {("label", "a"): None}


def test_small_groups_and_items_without_a_group_are_said() -> None:
    facets = [{"category": "a"}] * 20 + [{"category": "b"}] * 20 + [{"category": "tiny"}] * 4 + [{}] * 3
    found = grouped(items([True, False, True, True] * 11 + [True] * 3, facets))
    category = found["by"]["category"]
    assert [group["group"] for group in category["groups"]] == ["a", "b"]
    assert category["too_small"] == {"groups": 1, "items": 4, "named": {"tiny": 4}}
    assert category["without"] == 3
    assert found["looked_at"] == 2


def test_one_group_alone_or_none_is_no_part_of_the_summary() -> None:
    assert grouped(items([True] * 20, [{"label": "aligned"}] * 20)) == {}
    assert grouped(items([True] * 20, [{}] * 20)) == {}


def test_macro_f1_of_one_verdict_is_null() -> None:
    facets = [{"label": "ab"[i % 2]} for i in range(40)]  # every a is changed, every b unchanged
    found = grouped(items([i % 3 > 0 for i in range(40)], facets))
    for group in found["by"]["label"]["groups"]:
        assert group["metrics"]["has_changed_f1"]["value"] is None
        assert group["metrics"]["exact_match"]["value"] is not None


def test_the_explainer_is_compared_with_the_best_rival_within_each_group() -> None:
    facets = [{"source": "ab"[i % 2]} for i in range(60)]
    rival = {"copy": items([i % 2 == 0 for i in range(60)], facets)}
    found = grouped(items([True] * 60, facets), rival)
    leads = {g["group"]: g["lead"]["value"] for g in found["by"]["source"]["groups"]}
    assert leads == {"a": 0.0, "b": 1.0}


def test_a_difference_of_independent_values() -> None:
    first, second = Estimate(0.6, 0.5, 0.7, 100), Estimate(0.8, 0.7, 0.85, 50)
    found = apart(first, second)
    assert found.value == pytest.approx(-0.2)
    assert found.ci_low == pytest.approx(-0.2 - np.hypot(0.1, 0.05))
    assert found.ci_high == pytest.approx(-0.2 + np.hypot(0.1, 0.1))
    assert apart(first, Estimate(None, None, None, 0)).value is None


def test_the_table_fits_into_eighty_columns_and_shows_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(group_table, "Console", lambda **_: Console(width=80, file=out))
    rates = {f"a long name of a category {i}": 0.5 + i / 30 for i in range(14)}
    print_groups(grouped(planted(rates, 30, seed=0)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "4 better groups more" in out.getvalue()
    assert "14 groups were looked at" in out.getvalue()
    print_groups({})
