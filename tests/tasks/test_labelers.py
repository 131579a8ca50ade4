"""The flags that name labelers."""

import argparse

import pytest

from afintro.errors import UserError
from afintro.tasks.labelers import add_labeler_flags, labeling_of

PATTERNS = (
    "classes: {low: {definition: is low, patterns: ['^[a-m]']}, high: {definition: is high, patterns: ['^[n-z]']}}"
)


def labeling(*flags):
    parser = argparse.ArgumentParser()
    add_labeler_flags(parser)
    return labeling_of(parser.parse_args(flags))


@pytest.fixture
def model(model_directories):
    return str(model_directories["llama"])


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.yaml").write_text(PATTERNS)
    return str(tmp_path / "mine.yaml")


def test_rules_are_the_default():
    assert labeling().as_json() == {"first": "rules", "second": None}


def test_a_judge_is_compared_with_rules(model):
    assert labeling("--judge", model).as_json() == {"first": "rules", "second": f"judge:local:{model}"}
    assert labeling("--labeler", "judge", "--judge", model).as_json() == {
        "first": f"judge:local:{model}", "second": "rules",
    }  # fmt: skip


def test_own_classes_by_pattern_and_by_judge(model, file, tmp_path):
    alone, both = labeling("--labeler", file), labeling("--labeler", file, "--judge", model)
    assert [one.label for one in alone.first.label_all(["apple", "zebra", "?"])] == ["low", "high", "other"]
    assert alone.first.name == both.first.name != "rules"
    assert both.second is not None
    assert both.second.name.startswith("judge:local:")
    (tmp_path / "told.yaml").write_text("classes: {low: is low, high: is high}")
    assert labeling("--labeler", str(tmp_path / "told.yaml"), "--judge", model).first.name.startswith("judge:local:")


def test_an_endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    flags = ("--labeler", "judge", "--judge", "model", "--judge_url", "http://user:secret@localhost:1/v1")
    assert labeling(*flags).first.name == "judge:endpoint:model"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError) as error:
        labeling(*flags)
    assert "OPENAI_API_KEY" in error.value.where


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        (("--labeler", "judge"), "--judge"),
        (("--judge_url", "http://localhost:1/v1"), "--judge_url"),
        (("--labeler", "no_such_file.yaml"), "no_such_file.yaml"),
        (("--labeler", "judge", "--judge", "./no_such_model"), "no_such_model"),
    ],
)
def test_what_is_missing_is_told_before_any_work(flags, where):
    with pytest.raises(UserError) as error:
        labeling(*flags)
    assert where in error.value.where


def test_patterns_of_some_classes_alone_are_refused(tmp_path):
    (tmp_path / "half.yaml").write_text("classes: {low: {definition: is low, patterns: [a]}, high: is high}")
    with pytest.raises(UserError, match="high") as error:
        labeling("--labeler", str(tmp_path / "half.yaml"))
    assert "half.yaml" in error.value.where
