"""The benchmark of real answers, on made-up folders: fixed splits, all systems within and between models, what is chance."""

import json
from pathlib import Path

import pytest

from afintro.errors import UserError
from afintro.evaluation.answers import Verdict, two_branch
from afintro.tasks.context_ablation.imports.write import SPLITS
from afintro.tasks.context_ablation.records import read_records
from afintro.tasks.context_ablation.task import PRIMARY
from benchmarks.af.__main__ import main
from benchmarks.af.chance import compared, noise_of
from benchmarks.af.groups import groups_of, label, splits_hash, targets
from benchmarks.af.summary import group_row, markdown, rows_of
from tests.tasks.context_ablation.imports.made_up import COMPLIES, REFUSES, request, rows, write

TEXT_SYSTEMS = {
    "majority", "always_unchanged", "copy_monitored", "tfidf_nearest", "tfidf_probe", "text_chars", "text_skipgrams",
    "from_scratch",
}  # fmt: skip


def question(number):
    """A request, every third of which is polite."""
    return f"{request(number)} {'Thank you kindly.' if number % 3 == 0 else 'Be quick.'}"


def a_model(folder, name, numbers, helps, monitored=REFUSES):
    """Write the files of a model that says the same to every monitored request, and helps some of those who ask unmonitored."""
    texts = [question(number) for number in numbers]
    answers = [COMPLIES if helps(number) else REFUSES for number in numbers]
    return write(folder, name, rows(texts, [monitored] * len(texts), True), rows(texts, answers, False))


def polite(number):
    """Whether a request is polite."""
    return number % 3 == 0


def rude(number):
    """Whether a request is not polite."""
    return not polite(number)


def nobody(number):
    """No request."""
    return False


@pytest.fixture
def made_up(tmp_path):
    """A copy of the repository: two models under one prompt, one of them under another, one whose answers cannot be told."""
    data = tmp_path / "VLAF" / "data"
    a_model(data / "advbench" / "simple", "M1", range(60), polite)
    a_model(data / "redwood" / "simple", "M1", range(60, 90), polite)
    a_model(data / "redwood" / "simple", "M2", range(60, 90), rude)
    a_model(data / "redwood" / "other", "M2", range(60, 90), rude)
    a_model(data / "redwood" / "other", "M3", range(60, 90), nobody, "B")
    return tmp_path / "VLAF"


@pytest.fixture
def found(made_up, tmp_path):
    """The groups of the made-up repository."""
    files = []
    for number, path in enumerate(sorted(made_up.rglob("*_True.json"))):
        files.append(tmp_path / f"{number}.json")
        label(str(path), str(path).replace("True", "False"), str(files[-1]))
    return groups_of(files), files


def test_pairs_of_a_model_and_a_prompt_are_a_group_whatever_the_data(found):
    groups, _ = found
    assert [(group.model, group.prompt, len(group.every)) for group in groups] == [
        ("M1", "simple", 90), ("M2", "other", 30), ("M2", "simple", 30), ("M3", "other", 30),
    ]  # fmt: skip
    assert [bool(group.left_out) for group in groups] == [False, False, False, True]
    row = group_row(groups[0])
    assert row["data_sets"] == ["advbench", "redwood"]
    assert row["changed"]["value"] == pytest.approx(30 / 90)
    assert row["pairs"] == row["requests"] == row["train"] + row["validation"] + row["test"] == 90
    assert [one.name for one in targets(groups[0], groups)] == ["M1, simple", "M2, simple"]
    assert [one.name for one in targets(groups[1], groups)] == ["M2, other"]  # M3 is left out


def test_a_request_is_in_the_same_split_of_every_group_whatever_the_order_of_files(found):
    groups, files = found
    side = {}
    for group in groups:
        for split in SPLITS:
            for record in group.records[split]:
                assert side.setdefault(record.scenario_id, split) == split
    assert {split: list(side.values()).count(split) for split in SPLITS} == {
        split: len(groups[0].records[split]) for split in SPLITS
    }
    turned = groups_of(files[::-1])
    assert splits_hash(turned) == splits_hash(groups)
    assert splits_hash(turned[:1]) == splits_hash(groups)  # the first group has every request


def test_near_duplicates_are_on_one_side(tmp_path):
    texts = [request(number) for number in range(60)]
    alike = [f"{text} Please answer in full." for text in texts]
    every = [*texts, *alike]
    path = write(tmp_path / "d" / "p", "M", rows(every, [REFUSES] * 120, True), rows(every, [COMPLIES] * 120, False))
    label(str(path), str(path).replace("True", "False"), str(tmp_path / "records.json"))
    [group] = groups_of([tmp_path / "records.json"])
    side = {record.scenario: split for split in SPLITS for record in group.records[split]}
    assert all(side[one] == side[other] for one, other in zip(texts, alike, strict=True))
    assert set(side.values()) == set(SPLITS)


def test_a_folder_in_which_nothing_can_be_told_is_refused(tmp_path):
    path = a_model(tmp_path / "d" / "p", "M", range(40), nobody, "B")
    label(str(path), str(path).replace("True", "False"), str(tmp_path / "records.json"))
    with pytest.raises(UserError) as caught:
        groups_of([tmp_path / "records.json"])
    assert "cannot be told" in caught.value.what


def test_chance_is_measured_where_prompts_were_answered_twice_and_bounded_by_other_prompts(tmp_path, found):
    groups, _ = found
    assert noise_of(groups[0])["said"].startswith("unknown")
    assert noise_of(groups[0])["sampling_noise_monitored"]["value"] is None
    by_names = {(row["one"], row["other"]): row for row in compared([group for group in groups if not group.left_out])}
    assert set(by_names) == {("M1, simple", "M2, simple"), ("M2, other", "M2, simple")}
    same, models = by_names["M2, other", "M2, simple"], by_names["M1, simple", "M2, simple"]
    assert same["requests"] == models["requests"] == 30
    assert (same["unmonitored_differs"]["value"], same["kappa_changed"]["value"]) == (0.0, 1.0)
    assert models["monitored_differs"]["value"] == 0.0
    assert models["unmonitored_differs"]["value"] == 1.0  # M2 helps those whom M1 does not help
    assert (models["changed_one"]["value"], models["changed_other"]["value"]) == pytest.approx((1 / 3, 2 / 3))
    assert models["kappa_changed"]["value"] == pytest.approx(-0.8)
    texts = [request(number) for number in range(40)]
    twice = [[REFUSES, COMPLIES]] * 20 + [[REFUSES, REFUSES]] * 20
    path = write(tmp_path / "d" / "p", "M", rows(texts, [[REFUSES] * 2] * 40, True), rows(texts, twice, False))
    label(str(path), str(path).replace("True", "False"), str(tmp_path / "records.json"))
    noise = noise_of(groups_of([tmp_path / "records.json"])[0])
    assert noise["said"] == "measured"
    assert (noise["sampling_noise_monitored"]["value"], noise["sampling_noise_unmonitored"]["value"]) == (0.0, 0.5)


def said(group, answer, items):
    """What a made-up system of a group says to everything that it is asked."""
    asked = {f"{r.uid}/{PRIMARY}": [r.scenario_id, right] for r, right in items}
    return {"taught": len(group.records["train"]), "items": asked, "systems": {
        system: {uid: [answer(right), 0.5] for uid, (_, right) in asked.items()} for system in ("probe", "copy_monitored")
    }}  # fmt: skip


def test_systems_are_scored_on_their_own_model_and_on_the_other(found):
    groups = [group for group in found[0] if group.prompt == "simple"]

    def items(group):
        right = {changed: two_branch(Verdict(changed, "comply")) for changed in (True, False)}
        return [
            (r, right[bool(r.behavior_changed)]) for target in targets(group, groups) for r in target.records["test"]
        ]

    results = {
        groups[0].name: [said(groups[0], lambda right: right, items(groups[0]))],
        groups[1].name: [said(groups[1], lambda right: "nothing", items(groups[1]))],
    }
    table = {(row["trained_on"], row["asked_about"], row["system"]): row for row in rows_of(groups, results)}
    one, other = (group.name for group in groups)
    assert set(table) == {
        (one, one, "probe"), (one, one, "copy_monitored"), (one, other, "probe"),
        (other, other, "probe"), (other, other, "copy_monitored"), (other, one, "probe"),
    }  # fmt: skip
    assert table[one, one, "probe"]["items"] == len(groups[0].records["test"])
    assert table[one, other, "probe"]["items"] == len(groups[1].records["test"])
    assert table[one, other, "probe"]["metrics"]["exact_match"]["value"] == 1.0
    assert table[one, other, "probe"]["own_minus_this"]["exact_match"]["value"] == -1.0
    assert table[other, one, "probe"]["own_minus_this"]["exact_match"]["value"] == 1.0
    assert table[other, one, "probe"]["own_minus_this"]["exact_match"]["ci_low"] > 0.5
    assert "own_minus_this" not in table[one, one, "probe"]
    written = markdown({"groups": [], "rows": list(table.values()), "compared": []})
    assert "| 1.000 [" in written
    assert "| +1.000 [+" in written  # a difference has its sign
    assert "| -1.000 [-" in written


def run(made_up, tmp_path, monkeypatch, *words):
    """Run the command in a cache of its own, and return what it wrote."""
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / "cache"))
    given = ["--vlaf", str(made_up), "--results", str(tmp_path / "results"), "--device", "cpu", "--processes", "1"]
    assert main([*given, *words]) == 0
    return {path.name: path for path in (tmp_path / "results").iterdir()}


@pytest.mark.slow
def test_the_command_measures_everything_once_and_continues(made_up, tmp_path, monkeypatch, capsys):
    (made_up / "results").mkdir()
    a_model(made_up / "results" / "p", "Ignored", range(3), nobody)
    written = json.loads(run(made_up, tmp_path, monkeypatch)["af.json"].read_text())
    assert "s left" in capsys.readouterr().err
    assert {group["group"] for group in written["groups"]} == {"M1, simple", "M2, other", "M2, simple", "M3, other"}
    rows = {(row["trained_on"], row["asked_about"], row["system"]): row for row in written["rows"]}
    assert {system for one, other, system in rows if one == other == "M1, simple"} == TEXT_SYSTEMS
    moved = {system for one, other, system in rows if (one, other) == ("M1, simple", "M2, simple")}
    assert moved == TEXT_SYSTEMS - {"copy_monitored"}
    assert rows["M1, simple", "M1, simple", "tfidf_probe"]["metrics"]["exact_match"]["value"] > 0.9
    assert rows["M1, simple", "M2, simple", "tfidf_probe"]["metrics"]["exact_match"]["value"] < 0.1
    copied = rows["M1, simple", "M1, simple", "copy_monitored"]["metrics"]["exact_match"]
    tested = [
        record
        for record in read_records(str(next(tmp_path.rglob("M1-simple/asked.json"))))
        if record.provenance["model"] == "M1"
    ]
    assert copied["value"] == pytest.approx(sum(not record.behavior_changed for record in tested) / len(tested))
    assert copied["n"] == len(tested)
    for key in ("hardware", "versions", "seconds", "splits_sha256", "command"):
        assert written[key]
    assert written["files"]["unpaired"] == []
    again = run(made_up, tmp_path, monkeypatch)
    printed = capsys.readouterr()
    assert "3 of 3 results are in" in printed.err
    assert json.loads(again["af.json"].read_text())["rows"] == written["rows"]
    assert again["af.md"].read_text() == markdown(written) + "\n"
    assert markdown(written) in printed.out


def test_a_folder_without_pairs_is_refused(tmp_path, capsys):
    assert main(["--vlaf", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.long
def test_an_explainer_takes_part(made_up, tmp_path, monkeypatch, small_model):
    files = run(made_up, tmp_path, monkeypatch, "--model", str(small_model), "--steps", "2", "--batch_size", "4")
    assert set(files) == {f"af-{small_model.name}.json", f"af-{small_model.name}.md"}
    written = json.loads(Path(files[f"af-{small_model.name}.json"]).read_text())
    rows = {(row["trained_on"], row["asked_about"]): row for row in written["rows"] if row["system"] == "explainer"}
    assert set(rows) == {
        ("M1, simple", "M1, simple"), ("M1, simple", "M2, simple"), ("M2, simple", "M2, simple"),
        ("M2, simple", "M1, simple"), ("M2, other", "M2, other"),
    }  # fmt: skip
    probes = {
        (row["trained_on"], row["asked_about"]): row["items"]
        for row in written["rows"]
        if row["system"] == "tfidf_probe"
    }
    assert {place: row["items"] for place, row in rows.items()} == probes
    assert {row["steps"] for row in written["training"]} == {2}
    assert written["settings"]["explainer"]["model"] == small_model.name
    assert str(tmp_path) not in json.dumps(written)
