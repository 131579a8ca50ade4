"""A study's YAML file: what it means, and what is refused."""

from pathlib import Path

import pytest
import yaml

from afintro.errors import UserError
from afintro.study.report.shifts import CONTROL_VARIANTS
from afintro.study.settings import EVALUATIONS, read_study

ROOT = Path(__file__).parents[2]
GOOD = {"name": "small", "base": ["base.yaml"], "variants": ["variants"], "seeds": [0, 1]}


@pytest.fixture
def write(tmp_path):
    """Writes a study's file beside a base and two variants."""
    (tmp_path / "variants").mkdir()
    for name in ("base", "variants/one", "variants/two"):
        (tmp_path / f"{name}.yaml").write_text("trainer: {max_steps: 1}\n")

    def make(**settings):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**GOOD, **settings}))
        return path

    return make


def test_files_are_found_beside_the_study_and_variants_are_called_as_their_files(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    study = read_study(write(overrides={"model.name": "toy"}, scale={"contexts": 3}, evaluations=["chat"]))
    assert study.variants == {name: tmp_path / "variants" / f"{name}.yaml" for name in ("one", "two")}
    assert study.base == [tmp_path / "base.yaml"]
    assert study.folder == Path("results/small")
    assert (study.settings.scale.contexts, study.settings.scale.vectors) == (3, 12)
    assert study.settings.overrides == {"model.name": "toy"}
    assert study.settings.evaluations == ["chat"]


def test_variants_may_be_named_one_by_one_and_keep_their_order(write):
    study = read_study(write(variants=["variants/two.yaml", "variants/one.yaml"]))
    assert list(study.variants) == ["two", "one"]
    assert study.settings.evaluations == list(EVALUATIONS)


def test_the_study_of_the_repository_has_all_variants_and_evaluations():
    study = read_study(ROOT / "configs" / "studies" / "introspection.yaml")
    assert len(study.variants) == 26
    assert len(study.settings.evaluations) == 10
    assert len(study.settings.seeds) == 2
    six = {name for name in study.variants if len(study.seeds_of(name)) == 6}
    assert {"original_v3", "balanced_v3", *CONTROL_VARIANTS, "food_control"} == six
    assert study.seeds_of("vague_prompt") == [0, 1]


def test_the_older_name_of_the_batch_size_is_accepted(write):
    assert (
        read_study(write(scale={"slots": 8})).settings.scale
        == read_study(write(scale={"batch_size": 8})).settings.scale
    )
    with pytest.raises(UserError) as caught:
        read_study(write(scale={"slots": 8, "batch_size": 8}))
    assert caught.value.where.endswith("study.yaml, scale")


@pytest.mark.parametrize(
    ("settings", "where", "word", "remedy"),
    [
        ({"evalutions": ["chat"]}, "", "evalutions", "evaluations?"),
        ({"scale": {"contxts": 3}}, ", scale", "contxts", "contexts?"),
        ({"scale": 4}, ", scale", "4", "contexts"),
        ({"scale": {"contexts": "many"}}, "", "many", "int"),
        ({"evaluations": ["chatt"]}, ", evaluations", "chatt", "chat?"),
        ({"evaluations": ["chat", "chat"]}, ", evaluations", "twice", "once"),
        ({"seeds": [0, 0]}, ", seeds", "twice", "once"),
        ({"seeds": []}, ", seeds", "whole numbers", "0"),
        ({"seeds": [-1]}, ", seeds", "whole numbers", "0"),
        ({"seeds": [0.5]}, "", "0.5", ""),
        ({"seeds_of": {"three": [0]}}, ", seeds_of", "three", "one, two"),
        ({"seeds_of": {"one": [0, 0]}}, ", seeds_of.one", "twice", "once"),
        ({"seeds_of": {"one": []}}, ", seeds_of.one", "whole numbers", "0"),
        ({"name": "../elsewhere"}, ", name", "../elsewhere", "letters"),
        ({"base": ["absent.yaml"]}, "absent.yaml", "exist", "relative"),
        ({"variants": ["variants", "variants/one.yaml"]}, ", variants", "one twice", "once"),
        ({"overrides": {"data.seed": 3}}, ", overrides", "data.seed", "data.seed"),
    ],
)
def test_what_is_refused_and_how(write, settings, where, word, remedy):
    with pytest.raises(UserError) as caught:
        read_study(write(**settings))
    assert "study.yaml" in caught.value.where
    assert caught.value.where.endswith(where)
    assert word in caught.value.what
    assert remedy in caught.value.remedy
    assert len(str(caught.value).splitlines()) == 2


def test_a_variant_whose_file_name_cannot_name_a_folder_is_refused(write, tmp_path):
    (tmp_path / "variants" / "a b.yaml").write_text("a: 1\n")
    with pytest.raises(UserError) as caught:
        read_study(write())
    assert caught.value.where.endswith(", variants")
    assert "a b" in caught.value.what


@pytest.mark.parametrize("name", ["base", "variants/two"])
def test_a_base_or_a_variant_that_cannot_be_read_is_named(write, tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text("a: [\n")
    with pytest.raises(UserError) as caught:
        read_study(write())
    assert caught.value.where.endswith(f"{name}.yaml")


@pytest.mark.parametrize("content", [None, "- 1\n", "a: [\n", b"\xff\xfe"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path, content):
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_study(path)
    assert caught.value.where == str(path)


def test_a_setting_that_is_absent_is_named(tmp_path):
    (tmp_path / "study.yaml").write_text("name: a\n")
    with pytest.raises(UserError, match="required"):
        read_study(tmp_path / "study.yaml")
