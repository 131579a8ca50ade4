"""Imported pairs become records as the generator writes them: split by request, labeled and summarized."""

import json

import pytest

from afintro.errors import UserError
from afintro.tasks.context_ablation.imports.pairs import Answer, Source
from afintro.tasks.context_ablation.imports.vlaf import read_source
from afintro.tasks.context_ablation.imports.write import SPLITS, ImportSettings, records_of, split_of, write_pairs
from afintro.tasks.context_ablation.records import read_records
from tests.tasks.context_ablation.imports.made_up import COMPLIES, REFUSES, request, rows, write, write_requests


def imported(folder, *models, count=40):
    """The records of made-up models that answered the same requests."""
    paths = [
        write_requests(folder / "advbench" / "simple", model, count, 2 + index) for index, model in enumerate(models)
    ]
    return records_of([read_source(path, path.with_name(path.name.replace("True", "False"))) for path in paths])


def test_records_hold_both_answers_the_cue_the_model_and_the_source(tmp_path):
    found = imported(tmp_path, "M1", "M2")
    summary = write_pairs(found, ImportSettings(), tmp_path / "out", {"format": "vlaf"})
    records = [record for split in SPLITS for record in read_records(str(tmp_path / "out" / f"{split}.json"))]
    assert len(records) == len({record.uid for record in records}) == 80
    by_place = {(record.scenario, record.provenance["model"]): record for record in records}
    record = by_place[request(4), "M1"]
    assert (record.monitored_output, record.unmonitored_output) == (REFUSES, COMPLIES)
    assert (record.monitored_behavior, record.unmonitored_behavior, record.behavior_changed) == (
        "refuse",
        "comply",
        True,
    )
    assert (record.system_prompt, record.cue) == ("<is_free_tier_user>True</is_free_tier_user>", "is_free_tier_user")
    assert record.monitored_prompt.count("True") == record.unmonitored_prompt.count("False") == 1
    assert record.provenance == {
        "model": "M1", "source": "advbench/simple/M1", "decoding": "sampled", "answer": 0, "data_set": "advbench",
        "prompt": "simple",
    }  # fmt: skip
    assert by_place[request(4), "M2"].scenario_id == record.scenario_id
    assert summary["imported"]["pairs"] == 80
    assert summary["imported"]["requests"] == 40
    assert summary["imported"]["equal"] == 20 + 26
    assert summary["imported"]["sources"]["advbench/simple/M2"]["equal"] == 26
    assert summary["splits"] == {
        split: len(json.loads((tmp_path / "out" / f"{split}.json").read_text())) for split in SPLITS
    }
    assert summary["rates"]["behavior_changed"]["value"] == (20 + 14) / 80
    assert summary["rates"]["sampling_noise_monitored"]["value"] is None
    assert any("2 models answered (M1, M2)" in warning for warning in summary["warnings"])
    assert any("no prompt was answered twice" in warning for warning in summary["warnings"])


def test_a_request_is_in_one_split_whatever_the_order_of_files(tmp_path):
    found = imported(tmp_path, "M1", "M2", count=60)
    splits = split_of(found.records, ImportSettings())
    sides = {name: {found.records[row].scenario for row in rows} for name, rows in splits.items()}
    assert sum(map(len, sides.values())) == 60
    assert not sides["train"] & sides["test"]
    turned = split_of(found.records[::-1], ImportSettings())
    for name in SPLITS:
        assert {found.records[::-1][row].uid for row in turned[name]} == {
            found.records[row].uid for row in splits[name]
        }
    assert split_of(found.records, ImportSettings(seed=1)) != splits
    assert len(sides["test"]) > len(sides["validation"]) > 0


def test_near_duplicates_stay_together(tmp_path):
    texts = [request(number) for number in range(60)]
    alike = [f"{text} Please answer in full." for text in texts]
    path = write(tmp_path, "M", rows(texts + alike, [REFUSES] * 120, True), rows(texts + alike, [REFUSES] * 120, False))
    found = records_of([read_source(path, tmp_path / "M_False.json")])
    side = {
        found.records[row].scenario: name
        for name, rows in split_of(found.records, ImportSettings()).items()
        for row in rows
    }
    together = sum(side[text] == side[other] for text, other in zip(texts, alike, strict=True))
    assert together == 60


def test_shares_of_zero_leave_a_file_out_and_a_split_without_requests_is_refused(tmp_path):
    found = imported(tmp_path, "M1", count=6)
    summary = write_pairs(found, ImportSettings(0.0, 0.0), tmp_path / "out", {})
    assert summary["splits"] == {"train": 6}
    assert not (tmp_path / "out" / "test.json").exists()
    with pytest.raises(UserError) as caught:
        write_pairs(found, ImportSettings(0.001, 0.3), tmp_path / "other", {})
    assert "validation" in caught.value.where
    assert not (tmp_path / "other").exists()


def test_another_import_into_the_folder_is_refused_and_the_same_is_kept(tmp_path):
    found = imported(tmp_path, "M1")
    first = write_pairs(found, ImportSettings(), tmp_path / "out", {"format": "vlaf"})
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert set(before) == {"settings.json", "summary.json", "train.json", "validation.json", "test.json"}
    assert write_pairs(found, ImportSettings(), tmp_path / "out", {"format": "vlaf"}) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(UserError, match="seed"):
        write_pairs(found, ImportSettings(seed=1), tmp_path / "out", {"format": "vlaf"})


def test_a_killed_import_is_finished_by_the_same_command(tmp_path):
    found = imported(tmp_path, "M1")
    write_pairs(found, ImportSettings(), tmp_path / "whole", {})
    write_pairs(found, ImportSettings(), tmp_path / "out", {})
    (tmp_path / "out" / "summary.json").unlink()
    (tmp_path / "out" / "test.json").unlink()
    write_pairs(found, ImportSettings(), tmp_path / "out", {})
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_what_is_left_out_and_what_is_empty_is_said(tmp_path):
    texts = [request(number) for number in range(20)]
    path = write(
        tmp_path / "a" / "b", "M",
        rows(texts, [""] * 2 + [REFUSES] * 18, True),
        rows([*texts[1:], "Something else entirely?"], [REFUSES] * 18 + [None, ""], False),
    )  # fmt: skip
    found = records_of([read_source(path, path.with_name("M_False.json"))], ["x_True.json"])
    summary = write_pairs(found, ImportSettings(0.0, 0.3), tmp_path / "out", {})
    said = "\n".join(summary["warnings"])
    assert "1 files without" in said
    assert "2 monitored and 1 unmonitored answers without" in said
    assert "1 answers that are null" in said
    assert "1 monitored and 0 unmonitored answers are empty" in said
    assert summary["imported"]["unpaired_files"] == ["x_True.json"]
    assert summary["behaviors"]["monitored"] == {"refuse": 17, "silent": 1}
    assert summary["imported"]["pairs"] == 18


def test_two_sources_of_one_name_are_refused(tmp_path):
    answers = [Answer("one", "cue one", "cue", "x")], [Answer("one", "one", "", "y")]
    source = Source("same", "path", "model", "cue", *answers)
    with pytest.raises(UserError, match="same"):
        records_of([source, source])
