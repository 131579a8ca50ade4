"""The command that writes descriptions of features."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from afintro.tasks.feature_descriptions.descriptions import read_descriptions

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_af_feature_descriptions.py"
SUMMARIES = {"0": "Refusal.", "1": "Being watched."}
ASSIGNMENTS = {"1": 0, "2": 0, "3": 0, "40/4": "1", "5": -1, "6": 7}
CATEGORIES = {
    "intent": [{"latent_id": 3, "reasoning": "a", "description": "b"}, {"latent_id": 4, "reasoning": ""}],
    "other": [{"latent_id": 1, "reasoning": "", "description": "c"}],
}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls main; flags that are not strings are written as JSON first. Gives exit code and both outputs."""
    spec = importlib.util.spec_from_file_location("build_af_feature_descriptions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(**flags):
        words = ["--output_dir", str(tmp_path / "out")]
        for name, content in flags.items():
            path = tmp_path / f"{name}.json"
            if not isinstance(content, str):
                path.write_text(json.dumps(content))
            words += [f"--{name}", content if isinstance(content, str) else str(path)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        code = module.main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def read(path):
    return json.loads(path.read_text())


def test_clusters(call, tmp_path):
    code, out, err = call(summaries=SUMMARIES, assignments=ASSIGNMENTS)
    assert (code, err) == (0, "")
    described = read_descriptions(tmp_path / "out" / "descriptions.json")
    assert list(described) == ["1", "2", "3", "40/4"]
    assert described["40/4"] == {"chosen_label": "Being watched.", "cluster_id": "1", "all_labels": ["Being watched."]}
    assert read(tmp_path / "out" / "unlabelled.json") == ["5", "6"]
    assert out.splitlines() == [
        "4 features described, in 2 clusters",
        "largest cluster '0': 3 features, 75.0%",
        "2 features without a label, listed in unlabelled.json",
    ]


def test_categories(call, tmp_path):
    code, out, _ = call(categories=CATEGORIES)
    assert code == 0
    described = read_descriptions(tmp_path / "out" / "descriptions.json")
    assert {feature: entry["chosen_label"] for feature, entry in described.items()} == {"3": "a", "1": "c"}
    assert read(tmp_path / "out" / "unlabelled.json") == ["4"]
    assert "1 features without a label" in out


def test_latents_with_clusters_and_exports_of_neuronpedia(call, tmp_path):
    code, out, _ = call(latents=[{"latent_id": 3, "description": "own"}], assignments=ASSIGNMENTS)
    assert (code, "1 features described" in out) == (0, True)
    described = {"chosen_label": "own", "cluster_id": "0", "all_labels": ["own"]}
    assert read_descriptions(tmp_path / "out" / "descriptions.json") == {"3": described}
    rows = [{"modelId": "m", "layer": f"20-{name}", "index": "4", "description": name} for name in ("res", "att")]
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "batch-0.json").write_text(json.dumps(rows))
    assert call(neuronpedia=str(tmp_path / "export"), source="20-att")[0] == 0
    assert read_descriptions(tmp_path / "out" / "descriptions.json")["20/4"]["chosen_label"] == "att"
    manifest = read(tmp_path / "out" / "descriptions.manifest.json")
    assert list(manifest["inputs"]) == [str(tmp_path / "export" / "batch-0.json")]


def test_manifest(call, tmp_path):
    call(categories=CATEGORIES)
    manifest = read(tmp_path / "out" / "descriptions.manifest.json")
    assert manifest["counts"] == {"described": 2, "unlabelled": 1, "clusters": 2}
    assert manifest["clusters"] == {"intent": 1, "other": 1}
    path = tmp_path / "categories.json"
    assert manifest["inputs"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert manifest["arguments"]["categories"] == str(path)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({}, "needs either --summaries and --assignments, or --categories"),
        ({"summaries": SUMMARIES}, "needs either"),
        ({"assignments": ASSIGNMENTS}, "needs either"),
        ({"summaries": SUMMARIES, "assignments": ASSIGNMENTS, "categories": CATEGORIES}, "needs either"),
        ({"categories": CATEGORIES, "summaries": SUMMARIES}, "needs either"),
        ({"categories": CATEGORIES, "assignments": ASSIGNMENTS}, "needs either"),
        ({"summaries": SUMMARIES, "assignments": ASSIGNMENTS, "source": "20-x"}, "needs either"),
        ({"latents": [], "neuronpedia": []}, "needs either"),
        ({"latents": "/absent.jsonl"}, "/absent.jsonl: "),
        ({"neuronpedia": "/absent.jsonl.gz"}, "/absent.jsonl.gz: "),
        ({"categories": "/absent.json"}, "/absent.json: "),
        ({"summaries": SUMMARIES, "assignments": {"one": 0}}, "assignments.json, feature 'one'"),
        ({"summaries": {"8": "x"}, "assignments": ASSIGNMENTS}, "no feature has a label"),
        ({"categories": {"a": CATEGORIES["intent"], "b": CATEGORIES["intent"]}}, "feature 3 is listed in a, record 0"),
    ],
)
def test_wrong_input(call, tmp_path, flags, names):
    code, out, err = call(**flags)
    assert (code, out) == (2, "")
    first, second = err.rstrip("\n").split("\n")
    assert first.startswith("error: ")
    assert names in first
    assert second.startswith("  remedy: ")
    assert not (tmp_path / "out").exists()
