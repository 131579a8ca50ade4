"""The command that converts other tools' pickles."""

import importlib.util
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from afintro.tasks.feature_descriptions.features import FeatureFile

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert_pickles.py"
WEIGHTS = {"weights": torch.arange(1, 13, dtype=torch.float32).reshape(3, 4)}
EXPLAINED = [((0, 1), {"chosen_label": "dogs", "all_labels": ["dogs"], "all_label_scores": {"dogs": None}})]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls main in a folder of its own; gives exit code and both outputs."""
    spec = importlib.util.spec_from_file_location("convert_pickles", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = module.main(["--output_dir", "out", "--input_path", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def put(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return name


def test_a_folder(call):
    for layer in (0, 12):
        put(f"in/features/layer_{layer}.pkl", WEIGHTS)
    put("in/explanations/train.pkl", EXPLAINED)
    Path("in/notes.json").write_text("{}")
    code, out, err = call("in")
    assert (code, err) == (0, "")
    assert FeatureFile("out/features/layer_12.safetensors").rows([1]).tolist() == [[2, 6, 10]]
    assert json.loads(Path("out/explanations/train.json").read_text())["0/1"]["chosen_label"] == "dogs"
    manifest = json.loads(Path("out/convert_pickles.manifest.json").read_text())
    assert sorted(manifest) == ["in/explanations/train.pkl", "in/features/layer_0.pkl", "in/features/layer_12.pkl"]
    assert manifest["in/features/layer_0.pkl"]["written"] == ["out/features/layer_0.safetensors"]
    assert "in/features/layer_0.pkl: 4 features of layer 0, width 3" in out


def test_one_file(call):
    assert call(put("mine.pkl", WEIGHTS), "--layer", "5")[0] == 0
    assert FeatureFile("out/layer_5.safetensors").layer == 5


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["bomb.pkl"], "bomb.pkl: names posix.mkdir"),
        (["absent.pkl"], "absent.pkl: does not exist"),
        (["empty"], "empty: holds no .pkl"),
        (["in", "--layer", "3"], "--layer: "),
        (["in/layer_0.pkl", "--layer", "-1"], "--layer: must be at least 0"),
        (["double"], "same name"),
    ],
)
def test_wrong_input(call, words, names):
    put("bomb.pkl", [WEIGHTS, Bomb()])
    put("in/layer_0.pkl", WEIGHTS)
    put("double/a.pkl", WEIGHTS)
    put("double/a.pt", WEIGHTS)
    Path("empty").mkdir()
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    first, second = err.rstrip("\n").split("\n")
    assert first.startswith("error: ")
    assert names in first
    assert second.startswith("  remedy: ")
    assert not Path("out").exists()
    assert not Path("ran").exists()
