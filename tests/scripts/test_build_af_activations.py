"""The command that writes an activation matrix and the selectivity; together with the one that reads them."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from afintro.tasks.feature_descriptions.profiles import most_selective

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_af_activations.py"
SAMPLES = {
    "a": {"text": "one", "label": "alignment_faking", "fired_features": [3, 5]},
    "b": {"text": "two", "label": "aligned", "fired_features": [5]},
    "c": {"text": "three", "label": "alignment_faking", "fired_features": [3]},
    "d": {"text": "four", "label": "aligned", "fired_features": []},
}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls main on a file of these samples; gives exit code and both outputs."""
    spec = importlib.util.spec_from_file_location("build_af_activations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def alone(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output_dir", str(tmp_path / "out"), *flags])
        code = module.main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    def run(samples, *flags):
        (tmp_path / "firings.json").write_text(json.dumps({"samples": samples}))
        return alone("--firings", str(tmp_path / "firings.json"), *flags)

    run.alone = alone
    return run


def test_files(call, tmp_path):
    code, out, err = call(SAMPLES, "--width", "8")
    assert (code, err) == (0, "")
    matrix = np.load(tmp_path / "out" / "activations.npy")
    assert (matrix.dtype, matrix.shape) == (np.float32, (4, 8))
    assert sorted(zip(*map(list, np.nonzero(matrix)), strict=True)) == [(0, 3), (0, 5), (1, 5), (2, 3)]
    selectivity = np.load(tmp_path / "out" / "selectivity.npy")
    np.testing.assert_array_equal(selectivity, [0, 0, 0, 1, 0, 0, 0, 0])
    assert most_selective(selectivity, 1, "s").tolist() == [3]
    assert out.splitlines() == [
        "4 texts: 2 alignment_faking, 2 aligned",
        "2 of 8 features are ever active, 4 activations in all",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "activations.manifest.json", "activations.npy", "selectivity.npy",
    ]  # fmt: skip


def test_manifest(call, tmp_path):
    call(SAMPLES)
    manifest = json.loads((tmp_path / "out" / "activations.manifest.json").read_text())
    assert manifest["arguments"]["width"] == manifest["counts"]["width"] == 16384
    assert manifest["counts"]["labels"] == {"alignment_faking": 2, "aligned": 2}
    path = tmp_path / "firings.json"
    assert manifest["inputs"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("samples", "flags", "names"),
    [
        (SAMPLES, ["--width", "5"], "feature '5': is not below the width 5"),
        (SAMPLES, ["--width", "0"], "--width: must be at least 1"),
        ({"a": SAMPLES["a"], "c": SAMPLES["c"]}, [], "no text has the label 'aligned'"),
        (SAMPLES | {"e": SAMPLES["a"] | {"fired_features": ["40/3"]}}, [], "names a layer"),
        (SAMPLES | {"e": {"text": "five"}}, [], "firings.json, record e: fired_features is missing"),
        ({}, [], "no text that activates a feature"),
    ],
)
def test_wrong_input(call, tmp_path, samples, flags, names):
    code, out, err = call(samples, *flags)
    assert (code, out) == (2, "")
    first, second = err.rstrip("\n").split("\n")
    assert first.startswith("error: ")
    assert names in first
    assert second.startswith("  remedy: ")
    assert not (tmp_path / "out").exists()


def test_labels_beside_activations(call, tmp_path):
    np.save(tmp_path / "matrix.npy", np.array([[1, 0, 2], [0, 0, 1], [0.5, 0, 0], [0, 1, 0]], np.float32))
    (tmp_path / "labels.json").write_text(json.dumps({"name": "benchmark", "labels": ["faking", "hard_negative"] * 2}))
    flags = ["--activations", str(tmp_path / "matrix.npy"), "--labels", str(tmp_path / "labels.json")]
    code, out, err = call.alone(*flags)
    assert (code, err) == (0, "")
    assert out == "4 texts: 2 alignment_faking, 2 aligned\n"
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "selectivity.npy"), [1, -0.5, 0])
    manifest = json.loads((tmp_path / "out" / "selectivity.manifest.json").read_text())
    assert manifest["inputs"].keys() == {flags[1], flags[3]}
    assert not (tmp_path / "out" / "activations.npy").exists()


@pytest.mark.parametrize(
    "flags", [[], ["--labels", "a"], ["--activations", "a"], ["--firings", "a", "--activations", "b", "--labels", "c"]]
)
def test_flags_that_do_not_go_together(call, flags):
    code, out, err = call.alone(*flags)
    assert (code, out) == (2, "")
    assert "needs either --firings, or --activations and --labels" in err


def test_rows_of_other_formats_and_words_of_the_field(call, tmp_path):
    rows = [{**row, "label": {"alignment_faking": 1, "aligned": 0}[row["label"]]} for row in SAMPLES.values()]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for names in ([], ["--label_names", "honest", "scheming"]):
        code, out, _ = call.alone("--firings", str(tmp_path / "rows.jsonl"), "--width", "8", *names)
        assert code == 0
        assert out.startswith("4 texts: 2 alignment_faking, 2 aligned\n")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "selectivity.npy"), [0, 0, 0, 1, 0, 0, 0, 0])


def turned(samples):
    """The same texts with the labels exchanged."""
    other = {"aligned": "alignment_faking", "alignment_faking": "aligned"}
    return {name: row | {"label": other[row["label"]]} for name, row in samples.items()}


def test_several_sets_of_texts(call, tmp_path):
    for name, samples in (("one", SAMPLES), ("two", turned(SAMPLES))):
        (tmp_path / f"{name}.json").write_text(json.dumps({"samples": samples}))
    code, out, err = call.alone(
        "--firings", f"benchmark={tmp_path / 'one.json'}", str(tmp_path / "two.json"), "--width", "8"
    )
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "benchmark" / "selectivity.npy"), [0, 0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "two" / "selectivity.npy"), [0, 0, 0, -1, 0, 0, 0, 0])
    followed = json.loads((tmp_path / "out" / "selectivity_over_sets.json").read_text())
    assert followed["features"]["3"]["two"]["drop"] == 2
    assert "two: 0 % have the same sign" in out


def test_several_matrices_with_their_labels(call, tmp_path):
    """Labels are found by the name of the set, or by their order."""
    for name, labels in (("a", [1, 0]), ("b", [0, 1])):
        np.save(tmp_path / f"{name}.npy", np.eye(2, 4, dtype=np.float32))
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"labels": ["aligned" if label == 0 else "faking" for label in labels]})
        )
    matrices = ["--activations", *(f"{name}={tmp_path / name}.npy" for name in "ab")]
    for labels in (
        [f"b={tmp_path / 'b'}.json", f"a={tmp_path / 'a'}.json"],
        [f"x={tmp_path / 'a'}.json", f"y={tmp_path / 'b'}.json"],
    ):
        code, _, err = call.alone(*matrices, "--labels", *labels)
        assert (code, err) == (0, "")
        found = [np.load(tmp_path / "out" / name / "selectivity.npy").tolist() for name in "ab"]
        assert found == [[1, -1, 0, 0], [-1, 1, 0, 0]]
    code, _, err = call.alone(*matrices, "--labels", f"a={tmp_path / 'a'}.json", f"c={tmp_path / 'b'}.json")
    assert code == 2
    assert "--labels" in err
    code, _, err = call.alone(*matrices, "--labels", f"a={tmp_path / 'a'}.json")
    assert code == 2
