"""The table of variants is made from their files, and the page about the study holds it as it is."""

from pathlib import Path

from afintro.study.report.variants import variants_table
from afintro.study.settings import Study, StudySettings, read_study

ROOT = Path(__file__).parents[3]


def test_golden(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("# Steers nothing,\n# and says so.\ndata:\n  init_args:\n    vectors: null\n")
    (tmp_path / "two.yaml").write_text("model:\n  lora: {r: 1, alpha: 2}\ntrainer: {max_epochs: 5}\n")
    settings = StudySettings("s", [], [], [0])
    study = Study(settings, [], {"one": tmp_path / "one.yaml", "two": tmp_path / "two.yaml"})
    assert variants_table(study) == (
        "| variant | what it is | what it changes |\n"
        "| --- | --- | --- |\n"
        "| `one` | Steers nothing, and says so. | `data.vectors: null` |\n"
        "| `two` |  | `model.lora.r: 1`, `model.lora.alpha: 2`, `trainer.max_epochs: 5` |\n"
    )


def test_the_page_holds_the_table_of_the_study() -> None:
    made = variants_table(read_study(ROOT / "configs" / "studies" / "introspection.yaml"))
    assert made.count("\n") == 2 + 26
    assert made in (ROOT / "docs" / "study.md").read_text()
