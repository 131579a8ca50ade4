"""Labels files: what they may say, what is refused, and how patterns label."""

import json
import re
from pathlib import Path

import pytest

from afintro.errors import UserError
from afintro.generation.behavior import CUT
from afintro.generation.judge_labeler import JudgeLabeler
from afintro.generation.own_classes import PatternLabeler, file_name, read_classes
from afintro.generation.reasoning import Reply

CLASSES = r"""
classes:
  asks:
    definition: asks a question back
    patterns: ['\?\s*$']
  hedges:
    definition: answers, and says that it may be wrong
    patterns: ['\bperhaps\b', '\bmight\b']
  answers:
    definition: answers plainly
    patterns: ['\w']
"""


@pytest.fixture
def write(tmp_path):
    def make(text, name="mine.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ("Which day do you mean?", "asks"),
        ("PERHAPS on Monday.", "hedges"),
        ("Perhaps. Which day?", "asks"),
        ("On Monday.", "answers"),
        ("<think>Perhaps?</think>On Monday.", "answers"),
        ("", "other"),
    ],
)
def test_the_first_class_that_fits_the_answer_labels(write, output, label):
    labeler = PatternLabeler(read_classes(write(CLASSES)), "mine")
    assert labeler(output).label == label
    assert labeler.label_all([output, "On Monday."])[1].label == "answers"


@pytest.mark.parametrize("names", ['{Ask: "asks", ask: "asks too"}', '{"asks ": "asks", answers: "answers"}'])
def test_names_that_no_reply_of_a_judge_tells_apart_are_refused(write, names):
    with pytest.raises(UserError) as caught:
        read_classes(write(f"classes: {names}"))
    assert "mine.yaml" in caught.value.where


@pytest.mark.parametrize("definition", ["begins with {output}", "names {classes}"])
def test_a_definition_may_hold_braces(definition):
    prompt = JudgeLabeler(lambda prompts: [], "judge", {"a": definition, "b": "else"}).prompt("the {classes} answer")
    assert f"- a: {definition}\n" in prompt
    assert "OUTPUT\nthe {classes} answer\nOUTPUT" in prompt


def test_a_reply_that_was_cut_in_its_reasoning_has_no_label(write):
    assert PatternLabeler(read_classes(write(CLASSES)), "mine")(Reply("<think>On", truncated=True)) == CUT


def test_json_and_plain_definitions_and_the_judge_that_reads_them(write):
    classes = read_classes(
        write(json.dumps({"classes": {"asks": "asks back", "answers": "gives an answer"}}), "mine.json")
    )
    assert not any(one.patterns for one in classes)
    asked = []

    def judge(prompts):
        asked.extend(prompts)
        return ["Answers", "refuse"]

    labels = JudgeLabeler(judge, "judge", {one.name: one.definition for one in classes}).label_all(["one", "two"])
    assert [one.label for one in labels] == ["answers", "other"]
    assert "- asks: asks back" in asked[0]
    assert "- other:" in asked[0]
    assert "refuse" not in asked[0]


def test_the_name_follows_what_the_file_says(write):
    path = write(CLASSES)
    name = file_name(path, read_classes(path))
    assert name.startswith("mine.yaml:")
    write(CLASSES.replace("perhaps", "maybe"))
    assert file_name(path, read_classes(path)) != name


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("classes: {a: one}", "two classes"),
        ("[]", "two classes"),
        ("classes: [a, b]", "two classes"),
        ("classes: {a: one, other: two}", "other"),
        ("classes: {a: one, true: two}", "quote"),
        ("classes: {a: one, 'b>>>': two}", "rename"),
        ("classes: {a: one, b: {patterns: [x]}}", "definition"),
        ("classes: {a: one, b: {definition: two, pattern: [x]}}", "definition"),
        ("classes: {a: one, b: {definition: two, patterns: x}}", "list"),
        ("classes: {a: one, b: {definition: two, patterns: ['(']}}", "regular expression"),
        ("classes: {a: [", "YAML"),
    ],
)
def test_wrong_files_are_refused_by_name(write, text, word):
    path = write(text)
    with pytest.raises(UserError) as error:
        read_classes(path)
    assert str(path) in error.value.where
    assert word in str(error.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        read_classes(tmp_path / "none.yaml")
    assert "none.yaml" in error.value.where


def test_the_example_of_the_documentation_runs(write):
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n(classes:.*?)```", page, re.DOTALL)
    labeler = PatternLabeler(read_classes(write(example)), "labels.yaml")
    texts = ("Which day?", "It might be Monday.", "Monday.", "...")
    assert [one.label for one in labeler.label_all(texts)] == ["asks", "hedges", "answers", "other"]


def test_a_class_named_twice_is_refused(write):
    with pytest.raises(UserError, match="'asks' is named twice"):
        read_classes(write("classes: {asks: asks back, answers: answers, asks: asks twice}"))
