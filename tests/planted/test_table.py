"""The command writes what the documentation shows."""

import json
import sys

import pytest

from benchmarks.planted import __main__ as table
from benchmarks.planted.features import combinations, evaluate, reads_parts
from benchmarks.planted.leaks import LEAKS
from benchmarks.planted.steering import nothing_tells, planted_steering


@pytest.mark.slow
def test_the_command_writes_every_row_as_json_and_as_a_table(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(table, "LEAKS", {"emoji": LEAKS["emoji"]})
    monkeypatch.setattr(table, "EFFECTS", {0.3: 100})
    world = combinations(0)
    monkeypatch.setattr(
        table.features, "planted", lambda seed: {"features: reads parts": evaluate(world, reads_parts(world))}
    )
    made = planted_steering(nothing_tells, 40, 30, 0, unseen=False)
    monkeypatch.setattr(table.steering, "planted", lambda seed: {"steering: nothing tells": made.finding})
    arguments = ["--taught", "40", "--asked", "30", "--evaluations", "20", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["planted", *arguments])
    table.main()
    written = json.loads((tmp_path / "planted.json").read_text())
    assert [row["planted"] for row in written["findings"]][:3] == ["emoji", "no leak", "reads lengths"]
    assert len(written["findings"]) == 8
    last = [row["planted"] for row in written["findings"]][-2:]
    assert last == ["features: reads parts", "steering: nothing tells"]
    assert [(row["effect"], row["rivals"]) for row in written["power"]] == [(0.3, 1)] + 3 * [(0, 1)] + 3 * [(0, 5)]
    text = (tmp_path / "planted.md").read_text()
    assert text in capsys.readouterr().out
    for row in written["findings"]:
        assert f"| {row['planted']} | {row['explainer']['value']:.3f} | {row['rival']} {row['reached']:.3f} |" in text
    [power] = [row for row in written["power"] if row["effect"]]
    assert f"| 0.3 | 100 | 1 | 20 | {power['value']:+.3f} | {power['covered']:.1%} | {power['above']:.1%} |" in text
