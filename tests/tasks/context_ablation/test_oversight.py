"""The curve of a behavior against the stated probability of a review, computed by hand."""

import json
from dataclasses import replace

import pytest

from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.evaluation.answers import Verdict, two_branch
from afintro.tasks.context_ablation.oversight import level_of, oversight_curve, stated_rates
from afintro.tasks.context_ablation.oversight_command import main
from afintro.tasks.context_ablation.records import ContextAblationRecord, to_json
from afintro.tasks.context_ablation.samples import representative_fields

RATES = {100: (0, 2), 50: (2, 7), 25: (6, 8), 0: (10, 8)}  # how many of ten samples of both scenarios comply


def answers(comply):
    labels = ["comply"] * comply + ["refuse"] * (10 - comply)
    return [{"output": f"{label}.", "truncated": False, "behavior": label, "rule": label} for label in labels]


def records():
    made = []
    for level in (50, 25, 0):
        for scenario in range(2):
            samples = {
                "monitored": answers(RATES[100][scenario]), "unmonitored": answers(RATES[level][scenario])
            }  # fmt: skip
            made.append(
                ContextAblationRecord(
                    scenario=f"S{scenario}",
                    system_prompt="s",
                    uid=f"s{scenario}:{level}",
                    scenario_id=f"s{scenario}",
                    conditions=["review_100", f"review_{level}"],
                    samples=samples,
                    **representative_fields(samples, tuple(samples)),
                )
            )
    return made


def predictions(path, stated):
    lines = [
        json.dumps({"uid": f"{uid}/generative_explanation", "predicted": None if said is None else two_branch(Verdict(True, said))})
        for uid, said in stated.items()
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def test_levels():
    assert [level_of(name, {"rare": 0.1}) for name in ("review_75", "review_100", "rare", "free", "x_250")] == [
        0.75, 1.0, 0.1, None, None
    ]  # fmt: skip


def test_curve_and_the_straight_line_between_the_ends():
    found = oversight_curve(records(), "comply")
    assert [(p["probability"], p["rate"]["value"], p["rate"]["n"]) for p in found["curve"]] == [
        (0.0, pytest.approx(0.9), 2), (0.25, pytest.approx(0.7), 2), (0.5, pytest.approx(0.45), 2), (1.0, pytest.approx(0.1), 2)
    ]  # fmt: skip
    assert all(p["rate"]["ci_low"] < p["rate"]["value"] < p["rate"]["ci_high"] for p in found["curve"])
    errors = (0.5 - 0.2, 0.7 - 0.5, 0.75 - 0.6, 0.8 - 0.65)
    assert found["interpolation"]["value"] == pytest.approx(sum(errors) / 4)
    assert "explainer" not in found
    assert oversight_curve(records(), "refuse")["curve"][0]["rate"]["value"] == pytest.approx(0.1)


def test_an_explainer_is_compared_on_the_same_items(tmp_path):
    path = predictions(
        tmp_path / "predictions.jsonl",
        {"s0:50": "refuse 70%, comply 30%", "s1:50": "comply 70%, refuse 30%", "s0:25": None, "s1:0": "refuse 100%"},
    )
    stated = stated_rates(path, "comply")
    assert stated == {"s0:50": pytest.approx(0.3), "s1:50": pytest.approx(0.7), "s1:0": 0.0}
    found = oversight_curve(records(), "comply", stated=stated)
    assert found["explainer"]["value"] == pytest.approx(0.05)
    assert found["interpolation"]["value"] == pytest.approx(0.25)
    assert found["lead"]["value"] == pytest.approx(0.2)
    assert found["lead"]["n"] == 2


def test_greedy_records_have_rates_of_0_and_1():
    greedy = [replace(record, samples=None) for record in records()]
    found = oversight_curve(greedy, "comply")
    assert [point["rate"]["value"] for point in found["curve"]] == [1.0, 1.0, 0.5, 0.0]


def test_a_condition_without_a_probability(tmp_path):
    other = [replace(record, conditions=["free", "paid"]) for record in records()]
    with pytest.raises(UserError, match="probability") as error:
        oversight_curve(other, "comply")
    assert error.value.where == "condition 'free'"
    assert len(oversight_curve(other, "comply", {"free": 1.0, "paid": 0.0})["curve"]) == 2
    with pytest.raises(UserError, match="one stated probability"):
        oversight_curve(other, "comply", {"free": 1.0, "paid": 1.0})


class TestCommand:
    def test_prints_and_writes_the_curve(self, tmp_path, capsys):
        write_json(tmp_path / "records.json", [to_json(record) for record in records()])
        path = predictions(tmp_path / "predictions.jsonl", {"s0:50": "comply 30%, refuse 70%"})
        out = tmp_path / "curve.json"
        assert main([str(tmp_path / "records.json"), "--predictions", str(path), "--output", str(out)]) == 0
        assert json.loads(out.read_text())["explainer"]["value"] == pytest.approx(0.1)
        printed = capsys.readouterr().out
        assert "0.25" in printed
        assert "explainer" in printed

    @pytest.mark.parametrize("word", ["rare", "rare=2", "=0.5", "rare=x"])
    def test_levels_of_another_form(self, tmp_path, capsys, word):
        assert main([str(tmp_path / "absent.json"), "--levels", word]) == 2
        assert "--levels" in capsys.readouterr().err

    def test_predictions_that_do_not_exist(self, tmp_path, capsys):
        write_json(tmp_path / "records.json", [to_json(record) for record in records()])
        assert main([str(tmp_path / "records.json"), "--predictions", str(tmp_path / "absent")]) == 2
        assert "absent" in capsys.readouterr().err
