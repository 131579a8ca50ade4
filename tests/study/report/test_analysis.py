"""The whole of a made-up study: what each table is to hold, and what stays missing."""

import shutil

import pytest

from afintro.data.files import write_json
from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import analyze, readable
from afintro.study.results import Plan
from afintro.study.scoring.items import CONTROLS, SELF_REPORTS
from tests.study.made_up import CONTROL, EFFECTS, LOW, PLAN, SELF, both, write_rows


def test_everything_is_there(analysis):
    assert all(seeds == [0, 1] for seeds in analysis.done.values())
    assert analysis.missing == {}
    assert set(analysis.steps.values()) == {300}
    assert [(one.variant, one.group) for one in analysis.overall] == [
        (variant, group) for variant in EFFECTS for group in (SELF_REPORTS, CONTROLS)
    ]
    assert len(analysis.by_category) == len(EFFECTS) * len((*SELF, *CONTROL))


def test_detection_finds_what_was_planted(analysis):
    found = {(one.variant, one.condition): one for one in analysis.detections}
    assert set(found) == {(variant, side) for variant in EFFECTS for side in ("held_in", "held_out")}
    seen, blind = found["original_v3", "held_out"], found["no_steer", "held_out"]
    assert seen.metrics["auroc/adapter"].value > 0.95
    assert seen.metrics["auroc_upper/adapter"].value >= seen.metrics["auroc/adapter"].value
    assert seen.metrics["shift/auroc"].value > 0.3
    assert abs(blind.metrics["auroc/adapter"].value - 0.5) < 0.2
    assert {"tpr/adapter", "fpr/base", "fpr_odd/adapter", "balanced_accuracy/adapter", "d_prime/adapter"} <= set(
        seen.metrics
    )
    assert not any("held" in name for name in seen.metrics)


def test_a_push_to_yes_is_at_chance_over_both_polarities(analysis):
    [found] = [one for one in analysis.detections if (one.variant, one.condition) == ("vague_prompt", "held_out")]
    assert found.metrics["auroc_original/adapter"].value > 0.9
    assert found.metrics["auroc_reversed/adapter"].value < 0.1
    assert abs(found.metrics["auroc/adapter"].value - 0.5) < 0.05
    assert found.metrics["auroc_controls/adapter"].value > 0.9
    warned = [warning for warning in analysis.warnings if warning.startswith("vague_prompt, detection")]
    assert any("PUSH TO ONE ANSWER" in warning for warning in warned)
    assert any("CONTROLS MOVE" in warning for warning in warned)
    assert not any("PUSH" in warning or "MOVE" in warning for warning in analysis.warnings if "original_v3" in warning)
    assert found.by_seed["auroc"].keys() == {"0", "1"}


def test_a_collapse_of_mass_is_not_interpretable(analysis):
    assert {one.variant for one in analysis.detections if not one.interpretable} == {LOW}
    assert {variant for (variant, _), cell in analysis.pairs.items() if not cell.interpretable} == {LOW}
    assert any("MASS COLLAPSE" in warning and LOW in warning for warning in analysis.warnings)


def test_other_words_than_the_trained_ones_are_at_chance(analysis):
    assert set(analysis.pairs) == {(variant, pair) for variant in EFFECTS for pair in ("yes_no", "red_blue")}
    own, other = (analysis.pairs["original_v3", pair] for pair in ("yes_no", "red_blue"))
    assert (own.native, other.native) == (True, False)
    assert own.auroc.value > 0.95
    assert abs(other.auroc.value - 0.5) < 0.2


def test_curves_rise_with_the_dose(analysis):
    curves = [curve for curve in analysis.curves if (curve.variant, curve.condition) == (LOW, "held_out")]
    assert [curve.layers for curve in curves] == [(0, 2), (2, 4)]
    for curve in curves:
        assert curve.strengths == [1.0, 2.0]
        assert curve.auroc[0].value < curve.auroc[1].value
        assert curve.tpr[0].value <= curve.tpr[1].value


def test_headlines_are_the_undivided_metrics_of_other_evaluations(analysis):
    assert list(analysis.primary_metrics) == ["self_prediction"]
    assert analysis.primary_metrics["self_prediction"]["no_steer"] == {
        "right/adapter": Estimate(0.46, 0.4, 0.52, 80),
        "right/base": Estimate(0.588, 0.5, 0.6, 80),
    }


def test_warnings_say_whose_they_are(analysis):
    assert "vague_prompt, logprobs: remark on vague_prompt" in analysis.warnings


@pytest.fixture(scope="module")
def damaged(study, tmp_path_factory):
    """Half of one variant, nothing of another, one without its control, and a planned evaluation that was never made."""
    folder = tmp_path_factory.mktemp("damaged") / "made_up"
    shutil.copytree(study, folder)
    (folder / "original_v3" / "logprobs" / "seed_1.jsonl").unlink()
    shutil.rmtree(folder / "no_steer")
    write_rows(folder, "vague_prompt", "logprobs", 1, [*both("feelings-0", 0.4, 0.5), {"system": "base"}])
    (folder / "vague_prompt" / "detection" / "summary.json").unlink()
    evaluations = {variant: PLAN.evaluations[variant] for variant in EFFECTS}
    evaluations["original_v3"] = (*evaluations["original_v3"], "chat")
    reasons = {("no_steer", "logprobs", 0): "training broke"}
    return analyze(folder, Plan("made_up", evaluations, PLAN.seeds, reasons))


def test_missing_cells_stay_missing_with_their_reason(damaged):
    assert damaged.missing["original_v3", "logprobs", 1] == "not there"
    assert damaged.missing["original_v3", "chat", 0] == "not there"
    assert damaged.missing["no_steer", "logprobs", 0] == "training broke"
    assert damaged.missing["no_steer", "detection", 1] == "not there"
    assert "line 4: lacks the field" in damaged.missing["vague_prompt", "logprobs", 1]
    assert damaged.done["vague_prompt", "logprobs"] == [0]
    assert not any(one.variant == "no_steer" for one in (*damaged.overall, *damaged.detections, *damaged.by_category))
    assert damaged.differences == []


def test_what_is_there_is_still_analysed(damaged):
    own = next(one for one in damaged.overall if one.variant == "original_v3")
    assert own.units["seed"] == 1
    assert own.worded.estimate.n == 16
    assert own.worded.estimate.value == pytest.approx(1.2, abs=0.1)
    assert any("vague_prompt, detection: rows but no readable summary.json" in warning for warning in damaged.warnings)
    assert {one.variant for one in damaged.detections} == {"original_v3", LOW}


def test_items_left_out_are_warned_of(tmp_path):
    write_rows(tmp_path, "original_v3", "logprobs", 0, [*both("feelings-0", 0.4, 0.5), both("feelings-1", 0.4, 0.5)[0]])
    write_json(tmp_path / "original_v3" / "logprobs" / "summary.json", {"metrics": {}, "warnings": [], "version": 2})
    found = analyze(tmp_path, Plan("s", {"original_v3": ("logprobs",)}, (0,)))
    assert found.warnings == ["original_v3, logprobs: 1 items left out, not answered once by both systems"]


def test_no_answers_with_yes_and_no_are_warned_of(tmp_path):
    """A model whose tokenizer splits them."""
    write_rows(tmp_path, "v", "logprobs", 0, both("feelings-0", 0.4, 0.5, pair="red_blue"))
    write_json(tmp_path / "v" / "logprobs" / "summary.json", {"metrics": {}, "warnings": [], "version": 2})
    found = analyze(tmp_path, Plan("s", {"v": ("logprobs",)}, (0,)))
    assert found.overall == []
    assert found.warnings == ["v, logprobs: nothing was answered with yes_no; left out of the tables"]


def test_an_empty_folder_is_all_missing(tmp_path):
    found = analyze(tmp_path, PLAN)
    assert len(found.missing) == len(PLAN.keys)
    assert not any((found.overall, found.detections, found.pairs, found.curves, found.primary_metrics, found.warnings))


def test_only_divided_metrics_are_taken_as_they_are(tmp_path):
    """An evaluation that has a measure a task and none over all."""
    write_rows(tmp_path, "v", "token_prediction", 0, [{"system": "adapter"}])
    value = Estimate(1.0, 0.5, 1.5, 9).as_json()
    names = ("error/length/adapter", "error/length/base", "shift/error/length", "other")
    write_json(tmp_path / "v" / "token_prediction" / "summary.json", {"metrics": dict.fromkeys(names, value)})
    found = analyze(tmp_path, Plan("s", {"v": ("token_prediction",)}, (0,))).primary_metrics["token_prediction"]["v"]
    assert list(found) == ["error/length/adapter", "error/length/base", "shift/error/length"]


def test_readable():
    assert readable(None)
    assert readable(Estimate(None, None, None, 0))
    assert readable(Estimate(0.5, 0.5, 0.5, 9))
    assert not readable(Estimate(0.49, 0.4, 0.6, 9))
