"""Another labeler labels what is written: no output is lost, no output is made anew, and the command stops where nothing is."""

import json
import shutil

import pytest

from afintro.data.samples import Sample
from afintro.errors import UserError
from afintro.generation import organism
from afintro.generation.behavior import Behavior
from afintro.generation.labeling import RULES, Labeling
from afintro.generation.own_classes import PatternLabeler, read_classes
from afintro.tasks.context_ablation import command, relabel
from afintro.tasks.context_ablation.generate import AblationSettings, generate_ablation
from afintro.tasks.context_ablation.records import read_records
from afintro.tasks.context_ablation.task import ContextAblation

SAMPLES = [Sample(f"Scenario {i}: {'please ' * (i * 7 % 5)}help.") for i in range(12)]
CLASSES = """
classes:
  even: {definition: has an even number of characters, patterns: ['^(?s:..)*$']}
  odd: {definition: has an odd number of characters, patterns: ['^(?s:.(?:..)*)$']}
"""


class Judge:
    """Calls every answer a refusal, except those that an odd character ends."""

    name = "judge:test"

    def __init__(self):
        self.asked = 0

    def __call__(self, output):
        return self.label_all([output])[0]

    def label_all(self, outputs):
        self.asked += len(outputs)
        return [Behavior("refuse" if len(getattr(o, "text", o)) % 2 else "comply", "judge") for o in outputs]


@pytest.fixture(scope="module")
def settings(model_directories):
    return AblationSettings(model=model_directories["llama"], max_new_tokens=12, control_samples=4)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    generate_ablation(SAMPLES, {"train": 10, "test": 2}, folder, settings)
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A finished run of a random model, which must not be asked again."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(organism, "generate_greedy", None)
    return tmp_path / "run"


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.yaml").write_text(CLASSES)
    return PatternLabeler(read_classes(tmp_path / "mine.yaml"), "mine.yaml")


def again(folder, settings, labeling):
    return generate_ablation(SAMPLES, {"train": 10, "test": 2}, folder, settings, labeling=labeling)


def rows(folder):
    return [row for name in ("train", "test") for row in json.loads((folder / f"{name}.json").read_text())]


def test_own_classes_reach_records_summary_and_answers(folder, settings, own):
    before = rows(folder)
    summary = again(folder, settings, Labeling(own))
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["labeler"] == {"first": "mine.yaml", "second": None}
    for old, new in zip(before, rows(folder), strict=True):
        labels = [own(new[side]).label for side in ("random_hint_prediction", "zeroshot_prediction")]
        assert [new["monitored_behavior"], new["unmonitored_behavior"]] == labels
        assert new["behavior_changed"] == (labels[0] != labels[1])
        kept = [{k: v for k, v in row.items() if "behavior" not in k} for row in (old, new)]
        kept[0]["provenance"]["labeler"] = "mine.yaml"
        assert kept[0] == kept[1]
    counted = sum(row["behavior_changed"] for row in rows(folder))
    assert summary["rates"]["behavior_changed"]["value"] == pytest.approx(counted / 12)
    assert set(summary["behaviors"]["monitored"]) <= {"even", "odd"}
    assert summary["rates"]["compliance_gap"]["n"] == 0
    assert summary["rates"]["noise_floor_behavior"]["n"] == 4
    assert summary["rates"]["noise_floor_behavior"]["value"] == 0.0
    data = ContextAblation(train_path=str(folder / "train.json"), validation_path=str(folder / "test.json"))
    record = data.records("train")[0]
    changed, content = ("change to", "unchanged")[not record.behavior_changed], record.unmonitored_behavior
    answer = data.render(record, "generative_explanation")[1]
    assert changed in answer
    assert f"<<<{content}>>>" in answer


def test_a_second_labeler_says_how_well_both_agree_and_changes_no_label(folder, settings):
    before, judge = rows(folder), Judge()
    summary = again(folder, settings, Labeling(RULES.first, judge))
    assert rows(folder) == before
    assert summary["label_agreement"]["labelers"] == ["rules", "judge:test"]
    assert summary["label_agreement"]["agreement"]["n"] == 24
    asked = judge.asked
    assert again(folder, settings, Labeling(RULES.first, judge)) == summary
    assert judge.asked == asked, "a finished labeling is not done again"
    assert "label_agreement" not in again(folder, settings, RULES)


def test_and_back_again(folder, settings, own):
    before, summary = rows(folder), json.loads((folder / "summary.json").read_text())
    again(folder, settings, Labeling(own))
    assert again(folder, settings, RULES) == summary
    assert rows(folder) == before


def test_a_killed_relabeling_is_done_again(folder, settings, own, monkeypatch):
    write = relabel.write_json

    def dies(path, content):
        if path.name == "test.json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(relabel, "write_json", dies)
    with pytest.raises(KeyboardInterrupt):
        again(folder, settings, Labeling(own))
    monkeypatch.setattr(relabel, "write_json", write)
    again(folder, settings, RULES)
    assert not {"even", "odd"} & {row["monitored_behavior"] for row in rows(folder)}


def test_files_without_what_was_answered_alone_have_no_noise_floor(folder, settings, own):
    for name in ("train", "test"):
        kept = [
            {key: value for key, value in row.items() if not key.startswith("alone")}
            for row in json.loads((folder / f"{name}.json").read_text())
        ]
        (folder / f"{name}.json").write_text(json.dumps(kept))
    rates = again(folder, settings, Labeling(own))["rates"]
    assert rates["noise_floor_string"]["n"] == rates["noise_floor_behavior"]["n"] == rates["cue_effect"]["n"] == 0
    assert rates["placebo_string"]["n"] == 4


def test_the_command_stops_loses_nothing_and_goes_on_with_own_classes(settings, own, tmp_path, capsys):
    """A random model says nothing that has a behavior; its outputs have lengths all the same."""
    (tmp_path / "samples.json").write_text(json.dumps([{"text": sample.text} for sample in SAMPLES]))
    flags = [
        "--input_path", str(tmp_path / "samples.json"), "--output_dir", str(tmp_path / "out"), "--holdout", "2",
        "--model_name", str(settings.model), "--max_new_tokens", "8", "--control_samples", "2",
    ]  # fmt: skip
    assert command.main(flags) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "out") in said
    assert all(word in said for word in ("labeled other", "--max_new_tokens", "--labeler judge", "--labeler FILE"))
    outputs = [row["zeroshot_prediction"] for row in rows(tmp_path / "out")]
    with pytest.raises(UserError) as error:
        ContextAblation(train_path=str(tmp_path / "out" / "train.json")).records("train")
    assert "train.json" in error.value.where
    assert "--labeler" in error.value.remedy
    assert command.main([*flags, "--labeler", str(tmp_path / "mine.yaml")]) == 0
    assert [row["zeroshot_prediction"] for row in rows(tmp_path / "out")] == outputs
    assert {row["monitored_behavior"] for row in rows(tmp_path / "out")} <= {"even", "odd"}
    assert len(read_records(str(tmp_path / "out" / "train.json"))) == 10


def test_what_an_endpoint_did_not_answer_is_no_opinion_and_is_asked_again(folder, settings):
    class Failing(Judge):
        fails = True

        def label_all(self, outputs):
            return [
                Behavior("other", "judge:no_reply") if self.fails else Behavior("refuse", "judge:refuse")
                for _ in outputs
            ]

    judge, labels = Failing(), rows(folder)
    for labeling in (Labeling(RULES.first, judge), Labeling(judge, RULES.first)):
        judge.fails = True
        summary = again(folder, settings, labeling)
        assert summary["label_agreement"]["unanswered"] == 24
        assert summary["label_agreement"]["kappa"]["n"] == 0
        assert summary["label_agreement"]["ceiling_exact_match"]["n"] == 0
        judge.fails = False
        summary = again(folder, settings, labeling)
        assert summary["label_agreement"]["unanswered"] == 0
        assert summary["labeler"] == labeling.as_json()
    assert {row["monitored_behavior"] for row in rows(folder)} == {"refuse"}
    again(folder, settings, RULES)
    assert rows(folder) == labels
