"""The report: complete, the same bytes each time, never half written; the status beside it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from afintro.errors import UserError
from afintro.study.report.write import PURPOSE, write_analysis, write_report, write_status
from tests.study.made_up import EFFECTS, PLAN

FIGURES = {"shift.png", "cross_token.png", "psychometric_tpr.png", "psychometric_auroc.png"}


@pytest.fixture(scope="module")
def reported(study, analysis, tmp_path_factory):
    """A copy of the study with its report."""
    folder = tmp_path_factory.mktemp("reported") / "made_up"
    shutil.copytree(study, folder)
    assert write_analysis(folder, analysis) == folder / "ANALYSIS.md"
    return folder


def content(folder):
    found = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    return {**found, "ANALYSIS.md": (folder / "ANALYSIS.md").read_bytes()}


def test_has_every_section_and_links_every_figure(reported):
    text = (reported / "ANALYSIS.md").read_text()
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "What was found", "How to read it", "What is there", "What is missing", "Self-reports and controls",
        "Seeds and equivalence", "Floor and ceiling", "Beside the controls", "By category", "Detection of steering",
        "Detection, asked neutrally",
        "Cross-token matrix", "Psychometric curves", "Also measured: self_prediction", "Warnings", "Method",
    ]  # fmt: skip
    assert text.startswith("# The introspection study: made_up\n")
    for name in FIGURES:
        assert f"](figures/{name})" in text
        assert (reported / "figures" / name).read_bytes().startswith(b"\x89PNG")
    assert all(f"| {variant} |" in text for variant in EFFECTS)


def test_says_what_it_is_no_evidence_of(reported):
    assert "**This is no evidence of consciousness, feeling or inner life.**" in PURPOSE
    assert PURPOSE in (reported / "ANALYSIS.md").read_text()


@pytest.mark.slow
def test_same_results_same_bytes_in_another_process_too(reported, tmp_path):
    folder = tmp_path / "made_up"
    shutil.copytree(reported, folder)
    shutil.rmtree(folder / "figures")
    (folder / "ANALYSIS.md").unlink()
    code = f"""
import sys
from pathlib import Path
from afintro.study.report.write import write_report
from afintro.study.results import Plan
write_report(Path({str(folder)!r}), Plan("made_up", {dict(PLAN.evaluations)!r}, {PLAN.seeds!r}))
assert "torch" not in sys.modules, "a report needs no model"
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "271828"}, check=True)
    assert content(folder) == content(reported)


def test_of_an_empty_folder_all_is_missing(tmp_path):
    text = write_report(tmp_path, PLAN).read_text()
    for variant in EFFECTS:
        cells = "detection (seed 0, 1); logprobs (seed 0, 1); self_prediction (seed 0, 1): not there"
        assert f"- **{variant}**: {cells}" in text
    assert "Nothing to say yet." in text
    assert "](figures/" not in text
    assert not (tmp_path / "figures").exists()


def test_a_figure_of_earlier_results_goes(reported, analysis, tmp_path):
    folder = tmp_path / "made_up"
    shutil.copytree(reported, folder)
    text = write_analysis(folder, replace(analysis, pairs={}, curves=[])).read_text()
    assert set(content(folder)) == {"shift.png", "ANALYSIS.md"}
    assert "cross_token.png" not in text


def test_a_report_that_cannot_be_written_leaves_the_old_one(reported, analysis, tmp_path, monkeypatch):
    folder = tmp_path / "made_up"
    shutil.copytree(reported, folder)
    before = content(folder)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afintro.data.files.os.replace", fail)
    with pytest.raises(UserError) as caught:
        write_analysis(folder, replace(analysis, overall=analysis.overall[:2]))
    assert "No space left" in caught.value.what
    assert content(folder) == before


def test_the_status_holds_the_table_and_the_command_and_is_never_half_written(tmp_path, monkeypatch):
    path = write_status(
        tmp_path, "s", "variant  train\n0 of 1 cells are done", "python -m afintro.study run --config s.yaml"
    )
    assert path == tmp_path / "STATUS.md"
    text = path.read_text()
    assert "\nvariant  train\n0 of 1 cells are done\n" in text
    assert "\npython -m afintro.study run --config s.yaml\n" in text

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afintro.data.files.os.replace", fail)
    with pytest.raises(UserError):
        write_status(tmp_path, "s", "1 of 1 cells are done", "")
    assert path.read_text() == text
