"""A short form of the simulation of coverage: the package's intervals cover, and methods that do not are found out."""

import json
import sys

import numpy as np
import pytest

from afintro.data.files import write_json
from afintro.evaluation.intervals import Clusters, Estimate
from benchmarks import coverage
from benchmarks.coverage import bar, cells, markdown, measure
from benchmarks.coverage_draws import KINDS, Cell, clusters_of, hits, macro_f1_of, normals, uniforms

DRAWS = 400
SLACK = 2.5 * np.sqrt(0.05 * 0.95 / DRAWS)  # of so few draws; a wrong method misses by far more

CELLS = [
    Cell("share", 0.98, 30),
    Cell("share", 0.9, 30, "5", 0.8),
    Cell("share", 0.98, 100, "1-5", 0.5),
    Cell("score", 0.9, 30, "3", 0.5),
    Cell("f1", 0.9, 30, "3", 0.5, "0.5"),
    Cell("auroc", 0.98, 30, "3", 0.8),
    Cell("lead_share", 0.5, 30, "3", 0.8, "0.5"),
    Cell("lead_f1", 0.9, 30, "1", 0.0, "0.5"),
    Cell("lead_auroc", 0.9, 30, "3", 0.5, "0.5"),
    Cell("calibration", 0.5, 100, "3", 0.5, "calibrated"),
    Cell("calibration", 0.5, 300, "1", 0.0, "overconfident"),
]


def percentile(clusters: Clusters, sample: np.ndarray) -> Estimate:
    """The plain percentile bootstrap over clusters."""
    drawn = np.random.default_rng(0).multinomial(clusters.count, np.full(clusters.count, 1 / clusters.count), 300)
    values = drawn @ clusters.sums(sample) / (drawn @ clusters.sizes)
    return Estimate(sample.mean(), *np.percentile(values, [2.5, 97.5]), clusters.n)


def as_single_items(clusters: Clusters, sample: np.ndarray) -> Estimate:
    return Clusters([str(index) for index in range(clusters.n)]).share(sample)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", CELLS, ids=lambda cell: f"{cell.kind}-{cell.p}-{cell.clusters}-{cell.sizes}-{cell.icc}"
)
def test_intervals_cover(cell):
    row = measure(cell, DRAWS)
    assert row["bar"][0] - SLACK <= row["coverage"] <= row["bar"][1] + SLACK / 2.5
    assert row["width"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 5])
def test_intervals_over_seeds_and_questions_cover(seeds):
    assert measure(Cell("seeds", 0.9, 10, "1", 0.5, "seeds differ", seeds), 60)["coverage"] > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "method"), [(Cell("share", 0.98, 30), percentile), (Cell("share", 0.5, 30, "5", 0.8), as_single_items)]
)
def test_a_wrong_method_is_found_out(cell, method):
    row = measure(cell, DRAWS, method)
    assert row["coverage"] < 0.93 - SLACK
    assert not row["inside"]


@pytest.mark.parametrize("draw", [hits, normals])
def test_items_of_a_scenario_have_just_the_correlation_and_the_mean(draw):
    cell, rng = Cell("share", 0.3, 4000, "3", 0.5), np.random.default_rng(0)
    items = draw(cell, rng).reshape(-1, 3)
    correlations = np.corrcoef(items.T)[np.triu_indices(3, 1)]
    assert correlations == pytest.approx([0.5] * 3, abs=0.05)
    assert items.mean() == pytest.approx(0.3 if draw is hits else 0.0, abs=0.03)


def test_sizes_of_scenarios():
    assert np.bincount(Cell("share", 0.5, 7, "1-5").members).tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert clusters_of(Cell("share", 0.5, 7, "1-5")).sizes.tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert np.unique(uniforms(Cell("share", 0.5, 9, "3", 1.0), np.random.default_rng(0))).size == 9


def test_true_macro_f1_is_that_of_very_many_answers():
    rng = np.random.default_rng(1)
    truth = rng.random(400_000) < 0.2
    given = truth ^ (rng.random(400_000) > 0.7)
    scores = [2 * (truth == v)[given == v].sum() / ((truth == v).sum() + (given == v).sum()) for v in (False, True)]
    assert macro_f1_of(0.7, 0.2) == pytest.approx(np.mean(scores), abs=3e-3)


def test_every_size_is_among_the_cells():
    for kind in KINDS:
        found = cells(kind)
        assert len(set(found)) == len(found)
        assert {cell.p for cell in found} == {0.02, 0.1, 0.5, 0.9, 0.98}
        assert {cell.clusters for cell in found} == {10, 30, 100, 300}
        assert {cell.icc for cell in found} >= {0.0, 0.8}
    assert {cell.seeds for cell in cells("seeds")} == {2, 3, 5}
    assert {bar(cell) for cell in cells("seeds")} == {(0.92, 1.0)}
    assert {bar(cell) for cell in cells("share")} == {(0.93, 0.99)}


def test_command_writes_every_cell_and_names_those_outside(tmp_path, monkeypatch, capsys):
    few = [Cell("share", 0.1, 10), Cell("share", 0.5, 10, "3", 0.5)]
    monkeypatch.setattr(coverage, "cells", lambda kind: few)
    monkeypatch.setattr(sys, "argv", ["coverage", "--draws", "40", "--only", "share", "--results", str(tmp_path)])
    coverage.main()
    written = json.loads((tmp_path / "coverage.json").read_text())
    assert written["draws"] == 40
    assert [(row["p"], row["sizes"]) for row in written["rows"]] == [(0.1, "1"), (0.5, "3")]
    assert (tmp_path / "coverage.md").read_text().strip() in capsys.readouterr().out


def test_table_says_why_a_cell_is_outside():
    row = measure(Cell("share", 0.02, 10), 40)
    low = {**row, "coverage": 0.9298, "inside": False, "below": 0.0702, "above": 0.0}
    high = {**row, "coverage": 1.0, "inside": False, "extreme": 0.9}
    table = markdown([low, high, {**low, "kind": "f1"}])
    assert "| share | 2 | 0 | 0.9298 | 1.0000 |" in table
    assert "Wilson's own coverage" in table
    assert "90% of the samples are at an extreme" in table
    assert "too low in 7.0%" in table


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path, monkeypatch):
    few = [Cell("share", p, 10, "1", 0.0) for p in (0.1, 0.5, 0.9)]
    monkeypatch.setattr(coverage, "cells", lambda kind: few)
    measured = []

    def counted(cell, draws):
        measured.append(cell)
        return measure(cell, draws)

    monkeypatch.setattr(coverage, "measure", counted)

    def run(draws):
        arguments = ["coverage", "--draws", str(draws), "--only", "share", "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", arguments)
        coverage.main()
        return json.loads((tmp_path / "coverage.json").read_text())["rows"]

    whole = run(40)
    write_json(tmp_path / "coverage.json", {"draws": 40, "rows": whole[1:]})
    measured.clear()
    again = run(40)
    assert [cell.p for cell in measured] == [0.1]
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in whole]
    measured.clear()
    assert run(50)[0]["draws"] == 50
    assert len(measured) == 3, "rows of another number of draws are not taken over"
