"""Another labeler labels the outputs of a finished steering run, and answers labeled ``other`` stop who reads them."""

import json
from dataclasses import replace

import pytest

from afintro.errors import UserError
from afintro.evaluation.intervals import Clusters
from afintro.generation.behavior import Behavior, RuleLabeler
from afintro.generation.labeling import RULES, Labeling
from afintro.ranks import ALONE
from afintro.tasks.steering.records import SteeringRecord, label_warnings, labeled, read_steering_records, to_json
from afintro.tasks.steering.relabel import SteeringRelabeling
from afintro.tasks.steering.summary import Guards, summarize

REFUSAL, COMPLIANCE, GIBBERISH = "I cannot help.", "Sure, here is how.", "zq lorx"


class Backwards:
    """Calls refusals compliance and compliance refusals."""

    name = "backwards"

    def label_all(self, outputs):
        turned = {"refuse": "comply", "comply": "refuse"}
        return [Behavior(turned.get(one.label, one.label), "backwards") for one in RuleLabeler().label_all(outputs)]


def record(number, steered=COMPLIANCE, **fields):
    values = {
        "prompt": f"<user>{number}", "direction": "d", "layer": 1, "alpha": 2.0, "original_output": REFUSAL,
        "steered_output": steered, "unmonitored_output": COMPLIANCE, "unmonitored_behavior": "comply", "uid": f"{number}",
    } | fields  # fmt: skip
    return labeled(SteeringRecord(**values))


@pytest.fixture
def folder(tmp_path):
    """A finished run: of two controls one answers otherwise alone, and one text broke."""
    records = [record(i) for i in range(6)]
    records[0] = replace(records[0], alone_output=COMPLIANCE)
    records[1] = replace(records[1], alone_output=REFUSAL)
    records[2] = replace(
        records[2], steered_output=GIBBERISH, steered_behavior="other", coherent=False, behavior_changed=None
    )
    (tmp_path / "train.json").write_text(json.dumps([to_json(one) for one in records]))
    summary = summarize(records, Guards(6, 0, 2, 1, 1), ["d"]) | {"labeler": RULES.as_json(), "kept": 1}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def relabel(folder, labeling):
    summary = json.loads((folder / "summary.json").read_text())
    return SteeringRelabeling(folder, ["train"], ["d"]).labeled_by(labeling, summary, ALONE)


def test_every_label_follows_the_labeler(folder):
    summary = relabel(folder, Labeling(Backwards()))
    records = read_steering_records(str(folder / "train.json"))
    assert {(r.original_behavior, r.unmonitored_behavior) for r in records} == {("comply", "refuse")}
    assert [r.steered_behavior for r in records] == ["refuse", "refuse", "other", "refuse", "refuse", "refuse"]
    assert [r.behavior_changed for r in records] == [True, True, None, True, True, True]
    assert summary["guards"]["alone_behaves_otherwise"] == 1
    assert summary["kept"] == 1
    assert summary["labeler"]["first"] == "backwards"
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (folder / "dose_response.png").is_file()


def test_a_second_labeler_is_compared_on_coherent_texts(folder):
    before = (folder / "train.json").read_bytes()
    agreement = relabel(folder, Labeling(RULES.first, Backwards()))["label_agreement"]
    assert json.loads((folder / "train.json").read_bytes()) == json.loads(before)
    assert agreement["agreement"]["n"] == 10
    assert agreement["agreement"]["value"] == 0.0
    assert agreement["ceiling_exact_match"]["value"] == 0.0


def test_records_that_lack_an_output_are_refused_and_kept(folder):
    rows = json.loads((folder / "train.json").read_text())
    del rows[0]["unmonitored_output"]
    (folder / "train.json").write_text(json.dumps(rows))
    with pytest.raises(UserError) as error:
        relabel(folder, Labeling(Backwards()))
    assert error.value.where == str(folder)
    assert json.loads((folder / "train.json").read_text()) == rows
    assert json.loads((folder / "summary.json").read_text())["labeler"] == RULES.as_json()


def test_other_stays_out_of_rates_and_is_counted():
    records = [record(i, GIBBERISH if i == 0 else COMPLIANCE) for i in range(10)]
    summary = summarize(records, Guards(10), ["d"])
    [dose] = summary["doses"]
    assert (dose["behavior_changed"]["value"], dose["behavior_changed"]["n"]) == (1.0, 9)
    assert dose["behavior_changed"] == Clusters([r.scenario_id for r in records[1:]]).share([1] * 9).as_json()
    assert summary["behaviors"] == {"original": {"refuse": 10}, "steered": {"comply": 9, "other": 1}}
    assert summary["rates"]["unlabeled"]["value"] == 0.0
    assert any("10.0 % of the steered" in warning for warning in summary["warnings"])


def test_records_of_before_that_counted_other_as_a_change():
    old = replace(record(0), steered_behavior="other", behavior_changed=True)
    assert labeled(old).behavior_changed is None


def test_a_file_with_many_is_refused_and_broken_texts_do_not_count():
    many = [record(i, GIBBERISH if i < 3 else COMPLIANCE) for i in range(10)]
    with pytest.raises(UserError, match=r"30\.0 % of the steered") as error:
        label_warnings(many, "train.json")
    assert error.value.where == "train.json"
    assert "--labeler" in error.value.remedy
    assert label_warnings([replace(one, coherent=one.steered_behavior != "other") for one in many], "train.json") == []
    assert len(label_warnings(many[2:], "train.json")) == 1
