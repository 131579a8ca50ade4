"""The command that computes steering directions: what it writes, what it refuses, and that it writes the same again."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.records import scenario_id
from afintro.data.text import chat, template_hash
from afintro.evaluation.intervals import Estimate
from afintro.lm import template_inputs
from afintro.lm.load import fingerprint, load_model, load_tokenizer
from afintro.tasks.steering import direction_command
from afintro.tasks.steering.direction_files import read_direction
from afintro.tasks.steering.fit_directions import (
    best_layer,
    difference_of_means,
    last_token_activations,
    tied_layers,
)
from tests import forked
from tests.lm.made_adapters import named_after_its_base

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "compute_af_direction.py"
METHODS = ["mean_difference", "logistic_probe", "principal_component"]
LABELS = ["aligned", "alignment_faking", "alignment_faking", "potential_faking"]
TEXTS = [
    f"Sample {i}: {'please ' * (i % 5)}help me{'.' if LABELS[i % 4] == 'aligned' else ', in secret!'}"
    for i in range(24)
]


@pytest.fixture
def call(model_directories, tmp_path, capsys):
    """Calls main on a byte-level Llama of three layers with any more flags; gives exit code and both outputs."""
    rows = [{"text": text, "label": LABELS[i % 4]} for i, text in enumerate(TEXTS)]
    (tmp_path / "samples.json").write_text(json.dumps(rows))

    def run(*switches, **flags):
        values = {
            "input_path": tmp_path / "samples.json", "output_dir": tmp_path / "out",
            "model_name": model_directories["llama"], "methods": "mean_difference", "device": "cpu",
        } | flags  # fmt: skip
        words = [
            word for name, value in values.items() if value is not None for word in (f"--{name}", *str(value).split())
        ]
        capsys.readouterr()
        code = direction_command.main([*words, *switches])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def sidecar(folder, method="mean_difference"):
    return json.loads((folder / f"{method}.json").read_text())


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class TestMonitoring:
    def test_an_adapter_on_the_base_that_is_given(self, call, model_directories, tmp_path):
        expected = named_after_its_base(call, model_directories["llama"], tmp_path)
        assert sidecar(tmp_path / "out")["model"] == expected

    def test_points_from_monitored_to_unmonitored(self, call, tmp_path, model_directories):
        code, out, _ = call()
        assert code == 0
        assert sorted(contents(tmp_path / "out")) == ["mean_difference.json", "mean_difference.safetensors"]
        found = read_direction(str(tmp_path / "out" / "mean_difference.safetensors"))
        assert found.name == "unmonitored"
        assert list(found.vectors) == [0, 1, 2]
        found.check(32, 3, "out")
        about = sidecar(tmp_path / "out")
        model, tokenizer = load_model(model_directories["llama"]), load_tokenizer(model_directories["llama"])
        read = [
            last_token_activations(model, tokenizer, [chat(cue, text) for text in TEXTS], [0, 1, 2], 8)
            for cue in (MONITORED_SYSTEM, UNMONITORED_SYSTEM)
        ]
        train = [i for i, text in enumerate(TEXTS) if draw(text, seed=0) >= 0.3]
        assert about["n"]["monitored"] == {"train": len(train), "heldout": 24 - len(train)}
        for layer in range(3):
            vector = difference_of_means(read[0][layer][train], read[1][layer][train])
            np.testing.assert_allclose(found.at(layer), vector, rtol=1e-4, atol=1e-5)
            row = about["per_layer"][str(layer)]
            assert row["norm"] == pytest.approx(np.linalg.norm(vector), rel=1e-4)
            assert row["residual_norm"] > row["norm"]
            assert row["auroc"]["n"] == 2 * (24 - len(train))
        best = about["best_layer"]
        values = [about["per_layer"][str(layer)]["auroc"]["value"] for layer in range(3)]
        lowest = about["per_layer"][str(values.index(max(values)))]["auroc"]["ci_low"]
        assert about["tied_layers"] == [layer for layer in range(3) if values[layer] >= lowest]
        assert best == min(about["tied_layers"], key=lambda layer: abs(layer - 1.5))
        count = 2 * (24 - len(train))
        assert f"best: mean_difference at layer {best}, AUROC {values[best]:.3f} [" in out
        assert f"n = {count}" in out
        assert f"{count} held-out conversations" in " ".join(out.split())

    def test_sidecar(self, call, tmp_path, model_directories):
        call(layers="0.5 2", site="mean", holdout=0.4, seed=3, limit=20, batch_size=3)
        about = sidecar(tmp_path / "out")
        about.pop("n"), about.pop("per_layer"), about.pop("best_layer"), about.pop("tied_layers")
        assert about == {
            "name": "unmonitored", "contrast": "monitoring", "classes": ["monitored", "unmonitored"], "layers": [2],
            "site": "mean", "method": "mean_difference", "model": model_directories["llama"], "model_type": "llama",
            "revision": None, "fingerprint": fingerprint(model_directories["llama"]), "split": None, "limit": 20,
            "template_hash": template_hash(load_tokenizer(model_directories["llama"])), "dtype": "float32",
            "device": "cpu", "batch_size": 3, "source": str(tmp_path / "samples.json"), "holdout": 0.4, "seed": 3,
            "source_sha256": hashlib.sha256((tmp_path / "samples.json").read_bytes()).hexdigest(), "left_out": {},
        }  # fmt: skip
        assert list(read_direction(str(tmp_path / "out" / "mean_difference.safetensors")).vectors) == [2]

    def test_every_method_by_default(self, call, tmp_path):
        code, out, _ = call(methods=None, layers=1)
        assert code == 0
        assert sorted(contents(tmp_path / "out")) == sorted(
            f"{m}.{e}" for m in METHODS for e in ("json", "safetensors")
        )
        norms = [sidecar(tmp_path / "out", method)["per_layer"]["1"]["norm"] for method in METHODS]
        assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
        assert all(method in out for method in METHODS)


def aurocs(*values, half=0.05):
    return {layer: Estimate(value, value - half, min(value + half, 1.0), 9) for layer, value in enumerate(values)}


class TestBestLayer:
    def test_a_layer_that_is_better_than_all_others_is_best(self):
        found = aurocs(0.5, 0.9, 0.6, 0.7, 0.8, 0.84)
        assert (tied_layers(found), best_layer(found, 6)) == ([1], 1)

    @pytest.mark.parametrize(("depth", "best"), [(6, 3), (5, 2), (4, 2), (30, 5)])
    def test_of_layers_that_cannot_be_told_apart_the_middle_one_is_best_and_not_the_first(self, depth, best):
        found = aurocs(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
        assert tied_layers(found) == [0, 1, 2, 3, 4, 5]
        assert best_layer(found, depth) == best

    def test_a_tie_is_an_auroc_within_the_interval_of_the_highest(self):
        found = aurocs(0.949, 0.951, 0.8, 1.0)
        assert tied_layers(found) == [1, 3]
        assert best_layer(found, 4) == 1, "both are one layer from the middle, and the earlier one is taken"

    def test_without_intervals_equal_values_are_ties(self):
        found = {layer: Estimate(value, None, None, 9) for layer, value in ((0, 0.8), (1, 0.9), (4, 0.9), (5, None))}
        assert (tied_layers(found), best_layer(found, 8)) == ([1, 4], 4)

    def test_ties_are_said(self):
        assert len(direction_command.best_lines(aurocs(0.5, 0.9), "m", 2)) == 1
        best, tie = direction_command.best_lines(aurocs(1.0, 1.0, 1.0), "m", 3)
        assert "layer 1" in best
        assert "layers 0 to 2 cannot be told apart" in tie
        _, tie = direction_command.best_lines(aurocs(1.0, 0.5, 1.0, 1.0, 0.2, 1.0), "m", 6)
        assert "layers 0, 2 to 3, 5 cannot be told apart" in tie


def draw(text, seed):
    """Where a scenario falls, from 0 to 1, as the splits say."""
    return int.from_bytes(hashlib.sha256(f"{seed} {scenario_id(text)}".encode()).digest()[:8]) / 2**64


class TestLabel:
    def test_other_labels_are_left_out(self, call, tmp_path, model_directories):
        code, out, _ = call(contrast="label", layers=1, holdout=0.5)
        assert code == 0
        assert "left out: 6 samples labeled potential_faking" in out
        about = sidecar(tmp_path / "out")
        assert about["left_out"] == {"potential_faking": 6}
        assert {name: sum(counts.values()) for name, counts in about["n"].items()} == {
            "aligned": 6,
            "alignment_faking": 12,
        }
        found = read_direction(str(tmp_path / "out" / "mean_difference.safetensors"))
        assert found.name == "alignment_faking"
        model, tokenizer = load_model(model_directories["llama"]), load_tokenizer(model_directories["llama"])
        x = last_token_activations(model, tokenizer, [chat(MONITORED_SYSTEM, text) for text in TEXTS], [1], 8)[1]
        train = [i for i, text in enumerate(TEXTS) if draw(text, seed=0) >= 0.5]
        sides = [[i for i in train if LABELS[i % 4] == label] for label in ("aligned", "alignment_faking")]
        expected = difference_of_means(x[sides[0]], x[sides[1]])
        np.testing.assert_allclose(found.at(1), expected, rtol=1e-4, atol=1e-5)

    def test_a_class_without_samples(self, call, tmp_path):
        (tmp_path / "samples.json").write_text(json.dumps([{"text": text, "label": "aligned"} for text in TEXTS]))
        code, _, err = call(contrast="label")
        assert code == 2
        assert "class 'alignment_faking' has 0 conversations to fit and 0 held out, of 0" in err
        assert "--label_names" in err
        assert "--holdout" not in err


WRONG = {  # what is wrong: (flags, what the message names)
    "layer beyond the model": ({"layers": "0 3"}, "--layers: layer 3 of a model with 3 layers (0 to 2)"),
    "negative layer": ({"layers": "-1"}, "--layers: '-1' is neither a layer"),
    "no relative depth": ({"layers": "1.5"}, "'1.5' is neither a layer (a whole number, 0 to 2)"),
    "does not exist": ({"input_path": "absent.json"}, "absent.json: does not exist"),
    "no such model": ({"model_name": "absent/model"}, "model 'absent/model': cannot be loaded"),
    "too few samples": ({"limit": 2}, "class 'monitored' has "),
    "holdout": ({"holdout": 1.0}, "--holdout: must be "),
    "batch size": ({"batch_size": 0}, "--batch_size: must be "),
    "limit": ({"limit": 0}, "--limit: must be "),
    "device": ({"device": "cuda:99"}, "--device: 'cuda:99' is not available"),
    "nonsense device": ({"device": "abacus"}, "--device: 'abacus' is not available"),
}


class TestWrongInput:
    @pytest.mark.parametrize("what", WRONG)
    def test_two_lines_exit_code_2_nothing_written(self, call, tmp_path, what):
        flags, names = WRONG[what]
        code, out, err = call(**flags)
        lines = err.rstrip("\n").split("\n")
        assert (code, out, len(lines)) == (2, "", 2), err
        assert lines[0].startswith("error: ")
        assert names in lines[0]
        assert lines[1].startswith("  remedy: ")
        assert not (tmp_path / "out").exists()

    def test_prompt_beyond_the_context_before_the_model_loads(self, call, tmp_path, monkeypatch):
        rows = [{"text": text} for text in [*TEXTS, "x" * 600]]
        (tmp_path / "samples.json").write_text(json.dumps(rows))
        monkeypatch.setattr(direction_command, "load_model", None)
        code, _, err = call()
        assert code == 2
        assert "class 'monitored', conversation 24: the prompt has " in err
        assert "the model's context is 512" in err

    def test_output_folder_is_a_file(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr(direction_command, "load_model", None)
        code, _, err = call(output_dir=tmp_path / "samples.json" / "out")
        assert code == 2
        assert "cannot be created" in err

    def test_gguf_that_cannot_be_written_before_anything_else(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr(direction_command, "load_model", None)
        monkeypatch.setitem(sys.modules, "gguf", None)
        code, _, err = call("--gguf")
        assert code == 2
        assert "pip install gguf" in err
        monkeypatch.setattr(direction_command, "gguf_writer", lambda where: None)
        code, _, err = call("--gguf", layers="0")
        assert code == 2
        assert "--layers: is layer 0 alone" in err
        assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="an optional library")
def test_gguf(call, tmp_path):
    from gguf import GGUFReader

    code, out, _ = call("--gguf")
    assert code == 0
    assert "mean_difference.gguf: without layer 0" in " ".join(out.split())
    reader = GGUFReader(tmp_path / "out" / "mean_difference.gguf")
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
    found = read_direction(str(tmp_path / "out" / "mean_difference.safetensors"))
    np.testing.assert_array_equal(reader.tensors[0].data, found.at(1))


class TestAgain:
    def test_other_settings_are_refused(self, call, tmp_path):
        call(layers=1)
        before = contents(tmp_path / "out")
        for flags in (
            {"layers": 2},
            {"layers": 1, "site": "mean"},
            {"layers": 1, "seed": 1},
            {"layers": 1, "limit": 20},
        ):
            code, _, err = call(**flags)
            assert code == 2
            assert f"{tmp_path / 'out' / 'mean_difference.json'}: is of other settings (" in err
        assert "limit: was None, is 20" in err
        assert contents(tmp_path / "out") == before
        assert call(layers=1)[0] == 0
        assert contents(tmp_path / "out") == before

    def test_another_method_lies_beside(self, call, tmp_path):
        call(layers=1)
        assert call(layers=1, methods="principal_component principal_component")[0] == 0
        assert len(contents(tmp_path / "out")) == 4

    def test_vectors_of_unknown_origin(self, call, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mean_difference.safetensors").write_bytes(b"precious")
        code, _, err = call()
        assert code == 2
        assert "mean_difference.safetensors: exists, without a sidecar" in err
        assert (tmp_path / "out" / "mean_difference.safetensors").read_bytes() == b"precious"

    def test_killed_between_the_two_files(self, call, tmp_path):
        call()
        before = contents(tmp_path / "out")
        (tmp_path / "out" / "mean_difference.safetensors").unlink()
        assert call()[0] == 0
        assert contents(tmp_path / "out") == before


@pytest.mark.slow
class TestFromTheShell:
    """In processes of their own, as a user calls it."""

    ENVIRONMENT: ClassVar = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    @pytest.fixture
    def words(self, call, model_directories, tmp_path):
        given = {
            "input_path": tmp_path / "samples.json",
            "model_name": model_directories["llama"],
            "output_dir": "there",
        }
        return [word for name, value in given.items() for word in (f"--{name}", str(value))] + ["--device", "cpu"]

    def test_writes_the_same_bytes_in_any_process(self, words, call, tmp_path):
        there = subprocess.run(
            [sys.executable, str(SCRIPT), *words, "--layers", "0.5"], cwd=tmp_path, env=self.ENVIRONMENT,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert there.returncode == 0, there.stderr
        assert "48/48" in there.stderr  # the progress bar
        code, out, _ = call(methods=None, layers=0.5, output_dir=tmp_path / "here")
        assert (code, out) == (0, there.stdout)
        assert contents(tmp_path / "here") == contents(tmp_path / "there")
        assert len(contents(tmp_path / "here")) == 6

    def test_exit_code_2(self, words, tmp_path):
        found = forked.run(str(SCRIPT), [*words, "--layers", "0.5", "3"], tmp_path, self.ENVIRONMENT, timeout=120)
        assert found.returncode == 2
        assert found.stderr == (
            "error: --layers: layer 3 of a model with 3 layers (0 to 2)\n"
            "  remedy: use layers below 3, or relative depths such as 0.5\n"
        )
        assert not (tmp_path / "there").exists()


def test_date_and_settings_of_the_chat_template_are_kept(call, model_directories, tmp_path, monkeypatch):
    """Computed again on another day, the directions are the same."""
    shutil.copytree(model_directories["llama"], tmp_path / "dated")
    template = tmp_path / "dated" / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}{% if thinking %}!{% endif %}" + template.read_text())
    asked = {"model_name": tmp_path / "dated", "chat_template_kwargs": '{"thinking":true}'}
    monkeypatch.setattr(template_inputs, "today", lambda: "2026-12-31")
    assert call(**asked)[0] == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    sidecar = json.loads(written["mean_difference.json"])
    assert (sidecar["prompt_date"], sidecar["chat_template_kwargs"]) == ("2026-12-31", {"thinking": True})
    monkeypatch.setattr(template_inputs, "today", lambda: "2027-01-01")
    assert call(**asked)[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == written
    code, _, errors = call(**asked | {"chat_template_kwargs": '{"thinkin":true}'})
    assert (code, "'thinkin'" in errors) == (2, True)


def test_settings_that_are_no_json_object_are_refused_by_the_flag(call, capsys):
    for wrong in ("thinking=false", "[1]", "{"):
        with pytest.raises(SystemExit):
            call(chat_template_kwargs=wrong)
        assert "--chat_template_kwargs" in capsys.readouterr().err


def test_a_template_that_loses_the_cue_is_refused(call, model_directories, tmp_path, monkeypatch):
    shutil.copytree(model_directories["llama"], tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ messages | length }}")
    code, _, errors = call(model_name=tmp_path / "other")
    assert (code, "chat template" in errors) == (2, True)
    monkeypatch.setattr(direction_command, "encode_conversations", lambda tokenizer, turns, *rest: [[1]] * len(turns))
    code, _, errors = call()
    assert (code, "same prompt" in errors) == (2, True)
    assert call(contrast="label")[0] == 0  # texts of two labels, of which two may be equal
