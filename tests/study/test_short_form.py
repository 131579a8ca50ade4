"""A short form of the study without stand-ins: a small base trained from scratch, four variants, all evaluations, the report."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from afintro.study.__main__ import main
from afintro.study.settings import EVALUATIONS
from afintro.toys.chat_base.base import StudyBaseSettings, build

ROOT = Path(__file__).parents[2]
PROGRESS = "# Of the user\n<!-- study short: status begin -->\nold\n<!-- study short: status end -->\n"
VARIANTS = ("original_v3", "no_steer", "food_control", "deny_steering")
# A sixth of the embedded base's training: it has learned which answers a question can have, and hardly more.
BASE = StudyBaseSettings(
    hidden_size=64, feedforward=192, layers=5, initializer_range=0.125, short=8000, dialogues=400, learning_rate=5e-3
)
BRIEF = {
    "trainer.accelerator": "cpu", "trainer.max_epochs": 1, "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False, "data.batch_size": 8, "data.vector_count": 24, "data.longest_context": 300,
    "data.examples": {"train": 1200, "validation": 20, "test": 20},
}  # fmt: skip

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINTRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return build(BASE)


@pytest.fixture(scope="module")
def results(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the study's folder after ``run`` and ``report``."""
    folder = tmp_path_factory.mktemp("short")
    configs = ROOT / "configs"
    study = {
        "name": "short", "base": [str(configs / "introspection.yaml")], "seeds": [0],
        "variants": [str(configs / "introspection" / f"{name}.yaml") for name in VARIANTS],
        "overrides": {"model.name": str(base), **BRIEF},
        "scale": {"contexts": 6, "vectors": 6, "items": 4, "new_tokens": 6},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    (folder / "PROGRESS.md").write_text(PROGRESS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AFINTRO_CACHE", str(folder / "cache"))
        assert main(["run", "--config", "study.yaml"]) == 0
        assert main(["report", "--config", "study.yaml"]) == 0
        yield folder / "results" / "short"


@pytest.fixture(scope="module")
def detection(results: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of detection by variant."""
    summaries = {name: json.loads((results / name / "detection" / "summary.json").read_text()) for name in VARIANTS}
    return {name: {key: row["value"] for key, row in found["metrics"].items()} for name, found in summaries.items()}


def test_the_base_answers_yes_or_no_and_leans_to_neither(base):
    found = json.loads((base / "study_base.json").read_text())["acceptance"]
    assert found["self_report/alone/mass"] > 0.8
    assert 0.2 < found["self_report/alone/p_yes"] < 0.8
    assert 0.2 < found["self_report/after_context/p_yes"] < 0.8


def test_every_evaluation_of_every_variant_leaves_rows_and_a_summary(results):
    for variant in VARIANTS:
        for name in EVALUATIONS:
            summary = json.loads((results / variant / name / "summary.json").read_text())
            rows = (results / variant / name / "seed_0.jsonl").read_text().splitlines()
            assert summary["n"] == len(rows) - 1 > 0  # behind a header
            assert summary["metrics"] or name == "chat"  # transcripts are read, not scored


def test_the_variant_that_was_shown_steering_in_one_polarity_says_yes_under_steering_and_detects_nothing(detection):
    found = detection["original_v3"]
    assert found["auroc_original/held_out/adapter"] > 0.7
    assert found["auroc_reversed/held_out/adapter"] < 0.4
    assert found["auroc_controls/held_out/adapter"] > 0.6
    for name in ("original_v3", "no_steer", "food_control"):
        assert 0.35 < detection[name]["auroc/held_out/adapter"] < 0.65
    assert 0.2 < found["auroc_upper/held_out/base"] < 0.65


def test_the_variant_that_was_taught_to_deny_always_says_no(detection):
    """Which denies steering in one polarity, and claims it in the other."""
    found = detection["deny_steering"]
    assert {found[f"tpr/{side}/adapter"] for side in ("held_in", "held_out", "swap")} == {0.5}
    assert found["fpr/adapter"] == found["fpr_odd/adapter"] == 0.5
    assert found["mass/adapter"] > 0.9


def test_the_report_says_it_with_tables_and_figures(results):
    text = (results / "ANALYSIS.md").read_text()
    assert all(f"| {name} |" in text for name in VARIANTS)
    assert "no evidence of consciousness" in text
    assert list((results / "figures").glob("*.png"))
    assert "44 of 44" in (results / "STATUS.md").read_text()
    assert (results.parents[1] / "PROGRESS.md").read_text() == PROGRESS
