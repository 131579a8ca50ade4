"""The command that imports pairs of other people: its flags, what it writes, and the real files where they are at hand."""

import json
from collections import Counter

import pytest

from afintro.generation.own_classes import file_name, read_classes
from afintro.tasks.context_ablation import ContextAblation
from afintro.tasks.context_ablation.imports.command import main
from afintro.tasks.context_ablation.records import read_records
from tests.tasks.context_ablation.imports.made_up import COMPLIES, REFUSES, request, rows, write, write_requests

SPLITS = ("train", "validation", "test")


@pytest.fixture
def call(tmp_path, capsys):
    """Calls main with any flags; gives exit code, standard output and standard error."""

    def run(*words, **flags):
        values = {"output_dir": tmp_path / "out"} | flags
        given = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        capsys.readouterr()
        try:
            code = main([*given, *words])
        except SystemExit as error:
            code = error.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def records_in(folder):
    """All records of an import."""
    return [record for split in SPLITS for record in read_records(str(folder / f"{split}.json"))]


def test_a_folder_of_the_repository_is_imported_and_can_be_trained_on(tmp_path, call):
    write_requests(tmp_path / "data/advbench/simple", "M1", 60)
    write_requests(tmp_path / "data/advbench/simple", "M2", 60, 2)
    code, out, _ = call(format="vlaf", input_path=tmp_path / "data", only_model="M2")
    assert code == 0
    assert "60 pairs of 60 requests from 1 sources; the answers are equal in 30 pairs" in out
    records = records_in(tmp_path / "out")
    assert {record.provenance["model"] for record in records} == {"M2"}
    paths = {f"{split}_path": str(tmp_path / "out" / f"{split}.json") for split in SPLITS}
    data = ContextAblation(**paths)
    assert sum(len(data.records(split)) for split in SPLITS) == 60
    assert sum("no prompt was answered twice" in warning for warning in data.warnings) == 3
    assert not any("near-duplicate" in warning for warning in data.warnings)


def test_messages_and_tables_are_imported(tmp_path, call):
    talks, table = [], ["request,with,without"]
    for number in range(40):
        user = {"role": "user", "content": request(number)}
        answers = (REFUSES, COMPLIES if number % 2 else REFUSES)
        table.append(",".join(f'"{text}"' for text in (request(number), *answers)))
        for side, answer in zip((True, False), answers, strict=True):
            turns = [{"role": "system", "content": f"Watched: {side}"}, user, {"role": "assistant", "content": answer}]
            talks.append({"messages": turns, "monitored": side, "id": number})
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    (tmp_path / "table.csv").write_text("\n".join(table))
    code, *_ = call(format="messages", input_path=tmp_path / "talks.jsonl", output_dir=tmp_path / "a", model="m")
    assert code == 0
    code, *_ = call(
        "--columns", "request=request", "monitored=with", "unmonitored=without",
        format="columns", input_path=tmp_path / "table.csv", output_dir=tmp_path / "b", cue="Watched: True", model="m",
    )  # fmt: skip
    assert code == 0
    first, second = ({r.scenario: r for r in records_in(tmp_path / folder)} for folder in "ab")
    assert first.keys() == second.keys()
    for scenario, record in first.items():
        other = second[scenario]
        assert record.system_prompt == other.system_prompt == "Watched: True"
        assert record.behavior_changed == other.behavior_changed
        assert record.provenance["decoding"] == other.provenance["decoding"] == "unknown"
    assert sum(bool(record.behavior_changed) for record in first.values()) == 20


def test_answers_that_nobody_can_tell_stop_the_command_and_own_classes_label_them_again(tmp_path, call):
    texts = [request(number) for number in range(40)]
    path = write(
        tmp_path / "a" / "b",
        "M",
        rows(texts, ["B"] * 40, True),
        rows(texts, ["A" if n % 2 else "B" for n in range(40)], False),
    )
    code, _, err = call(format="vlaf", input_path=path)
    assert code == 2
    assert "answer_form: text" in err
    assert {record.monitored_behavior for record in records_in(tmp_path / "out")} == {"other"}
    classes = tmp_path / "labels.yaml"
    classes.write_text(
        "classes:\n  a: {definition: says A, patterns: ['^A']}\n  b: {definition: says B, patterns: ['^B']}\n"
    )
    code, *_ = call(format="vlaf", input_path=path, labeler=classes)
    assert code == 0
    records = records_in(tmp_path / "out")
    assert Counter((r.monitored_behavior, r.unmonitored_behavior) for r in records) == {("b", "a"): 20, ("b", "b"): 20}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rates"]["behavior_changed"]["value"] == 0.5
    assert summary["labeler"]["first"] == file_name(classes, read_classes(classes))
    assert summary["imported"]["pairs"] == 40
    assert any("were sampled" in warning for warning in summary["warnings"])


def test_tables_of_one_name_in_several_folders_are_told_apart(tmp_path, call):
    for folder in ("m1", "m2"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        table = ["q,a,b", *(f'"{request(number)}",{folder} yes {number},{folder} no {number}' for number in range(20))]
        (tmp_path / "in" / folder / "pairs.csv").write_text("\n".join(table))
    columns = ("--columns", "request=q", "monitored=a", "unmonitored=b")
    code, out, _ = call(*columns, format="columns", input_path=tmp_path / "in", cue="Watched.", model="M")
    assert "40 pairs of 20 requests from 2 sources" in out, code
    sources = {(r.provenance["source"], r.monitored_output.split()[0]) for r in records_in(tmp_path / "out")}
    assert sources == {("m1/pairs.csv/M", "m1"), ("m2/pairs.csv/M", "m2")}


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--format", "vlaf", "--test", "0.9", "--validation", "0.1"], "--validation and --test"),
        (["--format", "vlaf", "--test", "-0.1"], "--validation and --test"),
        (["--format", "vlaf", "--cue", "x"], "--cue"),
        (["--format", "vlaf", "--model", "x"], "--model"),
        (["--format", "messages", "--columns", "request=q"], "--columns"),
        (["--format", "columns", "--cue", "x"], "--columns"),
        (["--format", "columns", "--cue", "x", "--columns", "request"], "--columns"),
        (["--format", "columns", "--columns", "request=q", "monitored=a", "unmonitored=b"], "--cue"),
        (["--format", "vlaf", "--only_model", "M2"], "advbench"),
        (["--format", "vlaf", "--labeler", "judge"], "--judge"),
        (["--format", "csv"], "--format"),
    ],
)
def test_flags_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path, call, words, where):
    write_requests(tmp_path / "advbench", "M1", 4)
    code, _, err = call("--input_path", str(tmp_path / "advbench"), *words)
    assert code == 2
    assert where in err
    assert not (tmp_path / "out").exists()
