"""The command line of the study: what status, run and report print and write, and what they refuse."""

import pytest

from afintro.study import __main__ as command
from tests.study.quick import Quick


@pytest.fixture
def quick(tmp_path, monkeypatch):
    return Quick(tmp_path, monkeypatch)


def run_command(quick, *arguments):
    return command.main([arguments[0], "--config", str(quick.config), *arguments[1:]])


def test_status_prints_the_table_and_run_ends_with_1_where_something_failed(quick, capsys):
    assert run_command(quick, "status") == 0
    printed = capsys.readouterr().out
    assert "0 of 12 cells are done" in printed
    assert f"python -m afintro.study run --config {quick.config}" in printed
    quick.fails = {("one", "chat"): ValueError("no")}
    assert run_command(quick, "run") == 1
    assert "broken: one, seed 0, chat: ValueError: no" in capsys.readouterr().out
    quick.fails.clear()
    assert run_command(quick, "run") == 0
    assert "12 of 12 cells are done" in capsys.readouterr().out


def test_report_writes_analysis_and_status_and_leaves_the_working_directory_alone(quick, tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "write_report", lambda folder, plan: written.append((folder, plan)) or folder / "A.md")
    progress = tmp_path / "PROGRESS.md"
    progress.write_text("<!-- study quick: status begin -->\nold\n<!-- study quick: status end -->\n")
    kept = progress.read_bytes()
    assert run_command(quick, "report") == 0
    assert capsys.readouterr().out.endswith("A.md\n")
    assert written[0][0] == tmp_path / "results" / "quick"
    assert written[0][1].seeds == [0, 1]
    assert progress.read_bytes() == kept
    status = (tmp_path / "results" / "quick" / "STATUS.md").read_text()
    assert "0 of 12 cells are done" in status
    assert f"python -m afintro.study run --config {quick.config}" in status


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--variants", "three"), ("run", "--seeds", "7"), ("run", "--evaluations", "chatt"),
        ("run", "--devices", "0"), ("run", "--config", "absent.yaml"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_in_two_lines(quick, capsys, arguments):
    assert run_command(quick, *arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[0].startswith("afintro: error: ")
    assert error[1].startswith("  remedy: ")


def test_the_commands_of_the_configured_study_know_its_cells(capsys, tmp_path, monkeypatch):
    config = command.__file__.rpartition("/afintro/")[0] + "/configs/studies/introspection.yaml"
    monkeypatch.chdir(tmp_path)
    assert command.main(["status", "--config", config]) == 0
    assert "0 of 924 cells are done" in capsys.readouterr().out  # 18 variants with 2 seeds, 8 with 6; 11 stages
