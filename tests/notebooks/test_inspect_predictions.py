"""The notebook runs on a small run's folder, shows what it promises, and is committed without outputs."""

import ast
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.evaluation.test_inspect import PRIMARY, WARNING, write_run

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "inspect_predictions.ipynb"


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(folder: Path, **environment: str) -> NotebookNode:
    """Run the notebook in ``folder`` with the checkout importable."""
    notebook = read()
    inherited = {name: value for name, value in os.environ.items() if name != "AFINTRO_RUN"}
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / ".ipython"), **environment}
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**inherited, **own})
    return notebook


def outputs(notebook: NotebookNode, kind: str) -> list[str]:
    return ["".join(o.data[kind]) for c in notebook.cells for o in c.get("outputs", []) if kind in o.get("data", {})]


def printed(notebook: NotebookNode, stream: str) -> str:
    found = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    return "".join(o.text for o in found if o.name == stream)


@pytest.mark.slow
@pytest.mark.parametrize(
    "named", [pytest.param(True, id="AFINTRO_RUN", marks=pytest.mark.long), pytest.param(False, id="newest")]
)
def test_it_shows_tables_answers_and_figures(tmp_path: Path, named: bool) -> None:
    runs = tmp_path / "lightning_logs" / "context_ablation"
    shutil.copytree(write_run(runs / "version_2"), runs / "version_10")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    notebook = execute(notebooks, **({"AFINTRO_RUN": str(runs / "version_2")} if named else {}))

    assert f"24 items of {runs / ('version_2' if named else 'version_10')}\n" in printed(notebook, "stdout")
    assert "4 wrong of 12" in printed(notebook, "stdout")
    assert printed(notebook, "stderr") == ""
    assert len(outputs(notebook, "image/png")) == 2
    tables = outputs(notebook, "text/html")
    summary = [table for table in tables if "tfidf_probe" in table and "changed F1" in table]
    assert len(summary) == 1
    assert "0.667" in summary[0]
    assert any("lead/exact_match" in table for table in tables)
    assert any(WARNING in table for table in tables)
    answers = [table for table in tables if "mathjax_ignore" in table]
    headings = [
        [f"<b>s{i}/{kind}</b>" in table for i in range(12) for kind in (PRIMARY, "orig_match")] for table in answers
    ]
    assert [sum(shown) for shown in headings] == [4, 3, 3]
    assert f"<b>s3/{PRIMARY}</b>" in answers[0]  # wrong
    assert f"<b>s1/{PRIMARY}</b>" in answers[1]  # right
    assert "&lt;SCRATCHPAD&gt;" in answers[0]


def test_it_is_committed_without_outputs_and_defines_nothing() -> None:
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    source = "\n".join(line for cell in code for line in cell.source.splitlines() if not line.startswith("%"))
    defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.AsyncFunctionDef)
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]
