"""The command that writes feature vectors: what it writes, what it refuses, and being killed."""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afintro.tasks.feature_descriptions.features import FeatureFile

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "extract_af_sae_features.py"
OUTPUTS = ["layer_40.manifest.json", "layer_40.pkl", "layer_40.safetensors"]
SELECTIVITY = np.array([0.1, -0.9, 0.0, 0.8, 0.85, -0.2])
MATRIX = np.array(  # feature 4, among the most selective, is never active
    [[0, 1, 0, 2, 0, 1], [1, 0, 0, 0, 0, 3], [0, 0, 0, 4, 0, 0], [0, 1, 0, 1, 0, 0]], np.float32
)
DECODER = torch.arange(18, dtype=torch.float32).reshape(6, 3) + 1


@pytest.fixture(scope="module")
def main():
    """The script's main function, its module imported from where it lies."""
    spec = importlib.util.spec_from_file_location("extract_af_sae_features", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def call(main, tmp_path, monkeypatch, capsys):
    """Calls main on small files with any more flags (None leaves one out); gives exit code and both outputs."""
    np.save(tmp_path / "activations.npy", MATRIX)
    np.save(tmp_path / "selectivity.npy", SELECTIVITY)

    def run(**flags):
        values = {
            "activations": tmp_path / "activations.npy", "selectivity": tmp_path / "selectivity.npy", "top_k": 3,
            "layer": 40, "output_dir": tmp_path / "out",
        } | flags  # fmt: skip
        words = [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        capsys.readouterr()
        code = main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def saelens(folder, decoder=DECODER, **config):
    """An autoencoder of six features of width 3."""
    folder.mkdir()
    save_file({"W_dec": decoder, "b_dec": torch.zeros(3)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 3, "d_sae": 6, "hook_layer": 40} | config))
    return folder


def pickled(folder):
    return pickle.loads((folder / "features" / "layer_40.pkl").read_bytes())


def outputs(folder):
    return sorted(path.name for path in (folder / "features").iterdir())


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestProfiles:
    def test_files(self, call, tmp_path):
        code, out, err = call()
        assert (code, err) == (0, "")
        assert outputs(tmp_path / "out") == OUTPUTS
        file = FeatureFile(tmp_path / "out" / "features" / "layer_40.safetensors")
        assert file.indices.tolist() == [1, 3]
        np.testing.assert_array_equal(file.rows([0, 1]), [[1, 0, 0, 1], [2, 0, 4, 1]])
        assert file.metadata == {
            "kind": "activations", "layer": "40", "width": "4", "selectivity_min": "-0.9", "selectivity_max": "0.8",
            "source": str(tmp_path / "activations.npy"), "source_sha256": sha256(tmp_path / "activations.npy"),
        }  # fmt: skip
        assert "layer 40: 2 of 6 features, width 4" in out
        assert "never active (all zero): 1 features" in out

    def test_pickle_for_other_tools(self, call, tmp_path):
        """A column a feature, the most selective for faking first; negative selectivity comes last, as do silent features."""
        code, out, _ = call(top_k=5)
        content = pickled(tmp_path / "out")
        assert code == 0
        assert list(content) == ["activations", "feature_indices"]
        assert content["feature_indices"].tolist() == [4, 3, 0, 2, 5]
        assert content["feature_indices"].dtype == np.int64
        assert type(content["activations"]) is np.ndarray
        assert content["activations"].dtype == np.float32
        np.testing.assert_array_equal(content["activations"], MATRIX[:, [4, 3, 0, 2, 5]])
        assert FeatureFile(tmp_path / "out" / "features" / "layer_40.safetensors").indices.tolist() == [0, 1, 3, 5]
        assert "layer_40.pkl (for other tools): [samples, features], by signed selectivity" in out
        assert "of its 5 features 2 are silent and 2 are not in the safetensors file, of which it lacks 1\n" in out

    def test_the_manifest_names_the_features_of_one_file_alone(self, call, tmp_path):
        call(top_k=3)
        assert pickled(tmp_path / "out")["feature_indices"].tolist() == [4, 3, 0]
        manifest = json.loads((tmp_path / "out" / "features" / "layer_40.manifest.json").read_text())
        assert manifest["pickle"]["never_fire"] == [4]
        assert manifest["pickle"]["not_in_safetensors"] == [0, 4]
        assert manifest["pickle"]["only_in_safetensors"] == [1]

    def test_manifest(self, call, tmp_path):
        call()
        manifest = json.loads((tmp_path / "out" / "features" / "layer_40.manifest.json").read_text())
        assert manifest["counts"] == {"features": 6, "chosen": 3, "written": 2, "never_fire": 1}
        assert manifest["never_fire"] == [4]
        assert manifest["arguments"]["top_k"] == 3
        assert manifest["inputs"] == {
            str(tmp_path / name): sha256(tmp_path / name) for name in ("activations.npy", "selectivity.npy")
        }

    def test_again_gives_the_same_bytes(self, call, tmp_path):
        call()
        before = {name: sha256(tmp_path / "out" / "features" / name) for name in OUTPUTS}
        call()
        assert {name: sha256(tmp_path / "out" / "features" / name) for name in OUTPUTS} == before

    def test_layers_lie_beside_each_other(self, call, tmp_path):
        call()
        assert call(layer=0)[0] == 0
        assert len(outputs(tmp_path / "out")) == 6
        assert FeatureFile(tmp_path / "out" / "features" / "layer_0.safetensors").layer == 0

    def test_default_top_k(self, call, tmp_path):
        np.save(tmp_path / "wide.npy", np.ones((2, 700), np.float32))
        np.save(tmp_path / "wide_selectivity.npy", np.linspace(0, 1, 700))
        code, *_ = call(activations=tmp_path / "wide.npy", selectivity=tmp_path / "wide_selectivity.npy", top_k=None)
        assert code == 0
        file = FeatureFile(tmp_path / "out" / "features" / "layer_40.safetensors")
        assert file.indices.tolist() == list(range(200, 700))

    def test_default_top_k_takes_all_of_fewer(self, call, tmp_path):
        code, out, _ = call(top_k=None)
        assert code == 0
        assert "of 6 features" in out
        assert len(pickled(tmp_path / "out")["feature_indices"]) == 6


class TestDecoder:
    def test_chosen_rows(self, call, tmp_path):
        code, out, _ = call(sae=saelens(tmp_path / "sae"))
        assert code == 0
        file = FeatureFile(tmp_path / "out" / "features" / "layer_40.safetensors")
        assert file.indices.tolist() == [1, 3, 4]
        np.testing.assert_array_equal(file.rows([0, 1, 2]), DECODER[[1, 3, 4]])
        assert file.metadata["kind"] == "decoder"
        assert file.metadata["selectivity_max"] == "0.85"
        assert pickled(tmp_path / "out")["feature_indices"].tolist() == [4, 3, 0]
        np.testing.assert_array_equal(pickled(tmp_path / "out")["activations"], DECODER.T[:, [4, 3, 0]])
        assert file.metadata["source_sha256"] == sha256(tmp_path / "sae" / "sae_weights.safetensors")
        assert "never active" not in out

    def test_all_rows_without_a_selectivity(self, call, tmp_path):
        """But for a dead one, which is all zero."""
        decoder = DECODER.clone()
        decoder[2] = 0
        sae = saelens(tmp_path / "sae", decoder)
        assert call(sae=sae, activations=None, selectivity=None, top_k=None)[0] == 0
        file = FeatureFile(tmp_path / "out" / "features" / "layer_40.safetensors")
        assert file.indices.tolist() == [0, 1, 3, 4, 5]
        assert not {"selectivity_min", "selectivity_max"} & set(file.metadata)
        # Other tools find a feature by its number, so that the pickle keeps the dead one.
        content = pickled(tmp_path / "out")
        assert content["feature_indices"].tolist() == list(range(6))
        np.testing.assert_array_equal(content["activations"], decoder.T)

    def test_the_layer_and_the_place_of_its_files(self, call, tmp_path):
        hooks = {"hook_layer": None, "hook_name": "blocks.40.ln2", "hook_name_out": "blocks.7.hook_mlp_out"}
        code, out, _ = call(sae=saelens(tmp_path / "sae", **hooks), layer=None)
        assert code == 0
        file = FeatureFile(tmp_path / "out" / "features" / "layer_7.safetensors")
        assert (file.layer, file.metadata["hook"], file.metadata["tensor"]) == (7, "blocks.7.hook_mlp_out", "W_dec")
        assert file.metadata["weights"] == str(tmp_path / "sae" / "sae_weights.safetensors")
        assert "layer 7: 3 of 6 features" in out
        assert "blocks.7.hook_mlp_out" in out

    def test_a_folder_of_several_layers(self, call, tmp_path):
        for layer in (3, 40):
            (tmp_path / "all").mkdir(exist_ok=True)
            saelens(tmp_path / "all" / f"layer_{layer}", DECODER * layer, hook_layer=None)
        assert call(sae=tmp_path / "all")[0] == 0
        file = FeatureFile(tmp_path / "out" / "features" / "layer_40.safetensors")
        np.testing.assert_array_equal(file.rows([0, 1, 2]), DECODER[[1, 3, 4]] * 40)

    def test_selectivity_without_activations(self, call, tmp_path):
        assert call(sae=saelens(tmp_path / "sae") / "sae_weights.safetensors", activations=None)[0] == 0


def saved(flag, values):
    """A flag whose array is this."""

    def make(folder):
        np.save(folder / "bad.npy", values)
        return {flag: folder / "bad.npy"}

    return make


def changed(position, value):
    matrix = MATRIX.copy()
    matrix[position] = value
    return matrix


WRONG = {  # what is wrong: (flags, what the message names)
    "NaN selectivity": (
        saved("selectivity", np.array([0, 0, np.nan, 0, 0, 1])),
        "bad.npy: selectivity of feature 2 is",
    ),
    "constant selectivity": (saved("selectivity", np.full(6, 0.5)), "bad.npy: selectivity is 0.5 for every feature"),
    "short selectivity": (saved("selectivity", np.arange(5.0)), "bad.npy: holds 5 values for 6 features"),
    "selectivity of two dimensions": (saved("selectivity", np.zeros((6, 1))), "bad.npy: has the shape [6, 1]"),
    "activations of one dimension": (saved("activations", np.zeros(6)), "bad.npy: has the shape [6]"),
    "pickled activations": (saved("activations", np.array([[{}]], object)), "bad.npy: holds Python objects"),
    "NaN activation": (saved("activations", changed((2, 3), np.nan)), "bad.npy: vector of feature 3 holds NaN"),
    "no feature fires": (saved("activations", MATRIX * 0), "none of the 3 features is ever active"),
    "no texts": (saved("activations", MATRIX[:0]), "bad.npy: "),
    "top_k too large": (lambda folder: {"top_k": 7}, "top_k is 7, but there are 6"),
    "top_k 0": (lambda folder: {"top_k": 0}, "top_k is 0"),
    "negative layer": (lambda folder: {"layer": -1}, "--layer: must be at least 0"),
    "missing activations": (lambda folder: {"activations": folder / "absent.npy"}, "absent.npy: does not exist"),
    "missing selectivity": (lambda folder: {"selectivity": folder / "absent.npy"}, "absent.npy: does not exist"),
    "missing autoencoder": (lambda folder: {"sae": folder / "absent"}, "absent: does not exist"),
    "no activations given": (lambda folder: {"activations": None}, "needs --activations and --selectivity, or --sae"),
    "no selectivity given": (lambda folder: {"selectivity": None}, "needs --activations and --selectivity, or --sae"),
    "top_k without selectivity": (
        lambda folder: {"sae": saelens(folder / "sae"), "selectivity": None, "activations": None},
        "--top_k: is 3, but without a selectivity",
    ),
    "autoencoder of other size": (
        lambda folder: {"sae": saelens(folder / "sae", DECODER[:5].clone(), d_sae=5)},
        "activations.npy: has 6 columns, but the autoencoder has 5 features",
    ),
    "selectivity for another autoencoder": (
        lambda folder: {"sae": saelens(folder / "sae", DECODER[:5].clone(), d_sae=5), "activations": None},
        "selectivity.npy: holds 6 values for 5 features",
    ),
    "configuration of another": (lambda folder: {"sae": saelens(folder / "sae", d_in=4)}, "d_in is 4, but the decoder"),
    "autoencoder of another layer": (
        lambda folder: {"sae": saelens(folder / "sae", hook_layer=12)},
        "sae: belongs to layer 12, but --layer is 40",
    ),
    "autoencoder without a layer": (
        lambda folder: {"sae": saelens(folder / "sae", hook_layer=None), "layer": None},
        "sae: names no layer",
    ),
    "activations without a layer": (lambda _: {"layer": None}, "--layer: is missing"),
    "decoder of zeros": (
        lambda folder: {"sae": saelens(folder / "sae", torch.zeros(6, 3))},
        "sae: the decoder rows of all",
    ),
    "no such autoencoder": (lambda folder: {"sae": folder / "absent"}, "absent: does not exist"),
    "output folder is a file": (lambda folder: {"output_dir": folder / "activations.npy"}, "cannot be written"),
}


class TestWrongInput:
    @pytest.mark.parametrize("what", WRONG)
    def test_two_lines_exit_code_2_nothing_written(self, call, tmp_path, what):
        make, names = WRONG[what]
        flags = make(tmp_path)
        before = sorted(path for path in tmp_path.rglob("*"))
        code, out, err = call(**flags)
        assert (code, out) == (2, "")
        lines = err.rstrip("\n").split("\n")
        assert len(lines) == 2, err
        assert lines[0].startswith("error: ")
        assert names in lines[0]
        assert lines[1].startswith("  remedy: ")
        assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_killed_at_any_file_and_run_again(call, tmp_path, monkeypatch):
    """Killed while each of the three files is about to get its name: what has a name is whole, and nothing is lost."""
    replace, left = os.replace, 0

    def replace_or_die(*both):
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        replace(*both)

    assert call(output_dir=tmp_path / "whole")[0] == 0
    written = ["layer_40.safetensors", "layer_40.pkl", "layer_40.manifest.json"]  # in this order
    digests = {name: sha256(tmp_path / "whole" / "features" / name) for name in written[:2]}
    monkeypatch.setattr(os, "replace", replace_or_die)
    for left in range(3):
        process = multiprocessing.get_context("fork").Process(target=call)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        found = {path.name for path in (tmp_path / "out" / "features").iterdir() if path.name.startswith("layer")}
        assert found == set(written[:left])
        assert all(sha256(tmp_path / "out" / "features" / name) == digests[name] for name in found)
    monkeypatch.setattr(os, "replace", replace)
    assert call()[0] == 0
    assert {name: sha256(tmp_path / "out" / "features" / name) for name in written[:2]} == digests
