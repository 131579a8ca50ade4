"""The command that steers: its flags, the directions that people have, wrong input, and what it prints."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from afintro.data.cue import UNMONITORED_SYSTEM
from afintro.generation import run_folder
from afintro.generation.command import read_splits
from afintro.tasks.steering import direction_command, generate_command
from afintro.tasks.steering import generate as steering
from afintro.tasks.steering.controls import with_controls
from afintro.tasks.steering.direction_files import read_direction
from afintro.tasks.steering.directions import Direction, write_direction
from afintro.tasks.steering.patches import read_any_records
from afintro.tasks.steering.records import read_steering_records
from tests.lm.made_adapters import named_after_its_base

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate_af_steering_data.py"
FLAGS = (
    "input_path", "split", "output_dir", "model_name", "base", "revision", "direction", "layers", "alphas", "alpha_unit",
    "positions", "cues", "cells_per_prompt", "batch_size", "max_new_tokens", "dtype", "holdout", "control_samples",
    "limit", "device", "seed", "chat_template_kwargs", "labeler", "judge", "judge_url", "label_names", "text_field", "patching",
    "cue_file",
)  # fmt: skip
KINDS = ("", "random/", "orthogonal/")


def vector(seed=0, width=32):
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


def test_the_help_names_the_defaults_that_hold():
    flags = generate_command.parser()
    said = set(re.findall(r"\(default: ([^)]*)\)", " ".join(flags.format_help().split())))
    used = flags.parse_args(["--input_path", "A", "--output_dir", "B", "--model_name", "C", "--direction", "D"])
    lists = (used.layers, [f"{alpha:g}" for alpha in used.alphas], used.cues)
    assert said >= {" ".join(one) for one in lists} | {str(used.max_new_tokens), used.positions}


@pytest.mark.parametrize(("samples", "kept"), [(4, 0), (9, 1), (200, 40), (201, 200), (1000, 200)])
def test_few_samples_keep_a_fifth_for_the_test(samples, kept, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps([f"Text number {number}." for number in range(samples)]))
    words = ["--input_path", str(tmp_path / "s.json"), "--output_dir", "B", "--model_name", "C", "--direction", "D"]
    _, splits = read_splits(generate_command.parser().parse_args(words))
    assert splits == {"train": samples - kept, "test": kept}


@pytest.fixture
def call(small_model, classes_of_any_text, tmp_path, capsys):
    """Calls main on a Llama of two layers with small settings and any more flags; gives exit code and both outputs."""
    rows = [{"text": f"Sample {i}: {'please ' * (i % 5)}help me.", "label": "aligned"} for i in range(9)]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": rows}))
    write_direction(tmp_path / "v.safetensors", Direction("unmonitored", {0: vector(0), 1: vector(1)}))

    def run(**flags):
        values = {
            "input_path": tmp_path / "samples.json", "output_dir": tmp_path / "out", "model_name": small_model,
            "direction": tmp_path / "v.safetensors", "layers": "1", "alphas": "1 4", "max_new_tokens": 5, "holdout": 2,
            "control_samples": 2, "device": "cpu", "labeler": classes_of_any_text,
        } | flags  # fmt: skip
        words = [
            word
            for name, value in values.items()
            if value is not None
            for word in (f"--{name}", *(map(str, value) if isinstance(value, list) else str(value).split()))
        ]
        capsys.readouterr()
        try:
            code = generate_command.main(words)
        except SystemExit as error:
            code = error.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def contents(folder):
    """Every file below the folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def records(folder):
    return [r for split in ("train", "test") for r in read_steering_records(str(folder / f"{split}.json"))]


class TestRun:
    def test_an_adapter_on_the_base_that_is_given(self, call, small_model, tmp_path):
        expected = named_after_its_base(call, small_model, tmp_path)
        assert records(tmp_path / "out")[0].provenance["model"] == expected

    def test_records_in_the_schema_of_activation_patching(self, call, small_model, tmp_path):
        """Of a finished run; read back they are the same records, and tokens spell the prompt."""
        assert call(alphas="2", alpha_unit="residual_norm", layers="1")[0] == 0
        assert not list((tmp_path / "out").glob("*.patching.jsonl"))
        code, _, err = call(alphas="2", alpha_unit="residual_norm", layers="1", patching="")
        assert code == 0, err
        tokenizer = AutoTokenizer.from_pretrained(small_model)
        for split in ("train", "test"):
            path = tmp_path / "out" / f"{split}.patching.jsonl"
            own = read_steering_records(str(tmp_path / "out" / f"{split}.json"))
            assert read_any_records(str(path)) == own
            for row, record in zip(map(json.loads, path.read_text().splitlines()), own, strict=True):
                assert tokenizer.convert_tokens_to_string(row["input_tokens"]) == record.prompt
                place = row["patch_position"]
                assert row["input_tokens"][place["orig_pos"]] == place["orig_text_token"]
                assert place["orig_pos"] == len(row["input_tokens"]) - 1
                assert np.isclose(np.linalg.norm(place["intervention_vector"]), 2)
                assert (row["layer"], row["layer_hashable"]) == ([1], [1])
                assert row["original_continuation"] == [record.original_output]
                assert row["ablated_continuation"] == [record.steered_output]
                assert row["is_different"] == record.changed

    def test_writes_the_files_and_prints_every_row(self, call, tmp_path):
        code, out, err = call(layers="0 1", alphas="5 0.5 1 2", cues="monitored unmonitored")
        assert code == 0, err
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "settings.json", "train.json", "test.json", "summary.json", "dose_response.png", "directions",
        }  # fmt: skip
        found = records(tmp_path / "out")
        assert len(found) == 9 * 2 * 2 * 4 * 3  # samples, cues, layers, alphas, directions
        assert len(read_steering_records(str(tmp_path / "out" / "test.json"))) == 2 * 48
        assert [record.alpha for record in found[:12:3]] == [0.5, 1.0, 2.0, 5.0], "ascending"
        unwatched = {r.scenario_id: r.original_behavior for r in found if r.system_prompt == UNMONITORED_SYSTEM}
        assert len(unwatched) == 9
        assert [r.unmonitored_behavior for r in found] == [unwatched[r.scenario_id] for r in found]
        heads = [line for line in out.splitlines() if "alpha 0.5" in line]
        assert re.findall(r"alpha [\d.]+", heads[0]) == ["alpha 0.5", "alpha 1", "alpha 2", "alpha 5"]
        for kind in KINDS:
            for layer in (0, 1):
                [row] = [line for line in out.splitlines() if re.match(rf"│ {kind}unmonitored +│ {layer} +│", line)]
                assert len(re.findall(r"\d\.\d\d\d \[\d\.\d\d, \d\.\d\d\]|null", row)) == 4, row
        assert "9 scenarios" in out
        guards = " ".join(out.split()).partition("guards: ")[2]
        assert re.findall(r"\d+ of \d+", guards)[:2] == ["0 of 18", "0 of 4"]
        assert f"dose response: {tmp_path / 'out' / 'dose_response.png'}" in out.replace("\n", "")

    def test_flags_arrive_in_the_settings(self, call, tmp_path, small_model):
        code, _, err = call(
            layers="0.5", alphas="2 -1.5", alpha_unit="residual_norm", positions="decode", cues="unmonitored", seed=3,
            cells_per_prompt=1, batch_size=7, dtype="bfloat16", limit=5, holdout=1, control_samples=0,
        )  # fmt: skip
        assert code == 0, err
        made = json.loads((tmp_path / "out" / "settings.json").read_text())
        given = {
            "model": str(small_model), "layers": [1], "alphas": [-1.5, 2.0], "alpha_unit": "residual_norm", "revision": None,
            "positions": "decode", "cues": ["unmonitored"], "seed": 3, "cells_per_prompt": 1, "batch_size": 7,
            "dtype": "bfloat16", "control_samples": 0, "max_new_tokens": 5, "splits": {"train": 4, "test": 1},
        }  # fmt: skip
        assert {name: made[name] for name in given} == given
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert all("faked_refusals_flipped" in dose for dose in summary["doses"])

    def test_relative_depths(self, call, tmp_path):
        """Half of two layers is layer 1; so is three quarters, the last."""
        assert call(layers="0.5 0.75")[0] == 0
        assert {record.layer for record in records(tmp_path / "out")} == {1}
        assert call(layers="0.1 0.75", output_dir=tmp_path / "both")[0] == 0
        assert {record.layer for record in records(tmp_path / "both")} == {0, 1}

    @pytest.mark.parametrize("kind", [".npy", ".pt"])
    def test_vectors_of_other_kinds(self, call, tmp_path, kind):
        """A bare vector is added at every layer, under the name of its file."""
        path = tmp_path / f"mine{kind}"
        np.save(path, vector()) if kind == ".npy" else torch.save({0: torch.ones(32), 1: torch.ones(32)}, path)
        before = contents(tmp_path)
        code, _, err = call(direction=path, layers="0 1")
        assert code == 0, err
        assert {record.direction for record in records(tmp_path / "out")} == {f"{kind}mine" for kind in KINDS}
        assert {record.layer for record in records(tmp_path / "out")} == {0, 1}
        found = read_direction(str(tmp_path / "out" / "directions" / "mine.safetensors"))
        np.testing.assert_array_equal(found.at(1), vector() if kind == ".npy" else np.ones(32))
        assert {name: contents(tmp_path)[name] for name in before} == before, "input is only read"

    def test_directions_of_one_name_are_told_apart_by_their_files(self, call, tmp_path):
        """Each has controls of its own, orthogonal to both."""
        for seed, name in enumerate(("probe", "mean", "other")):
            direction = Direction("unmonitored" if name != "other" else "other", {1: vector(seed)})
            write_direction(tmp_path / f"{name}.safetensors", direction)
        paths = [tmp_path / f"{name}.safetensors" for name in ("probe", "mean", "other")]
        assert call(direction=paths)[0] == 0
        names = ["unmonitored/probe", "unmonitored/mean", "other"]
        found = {record.direction for record in records(tmp_path / "out")}
        assert found == {kind + name for name in names for kind in KINDS}
        folder = tmp_path / "out" / "directions"
        made = {d.name: d for d in (read_direction(str(path)) for path in folder.glob("*.safetensors"))}
        assert set(made) == {*found, "residual_mean"}
        expected = with_controls([made[name] for name in names], names, [1], 0)
        for direction in expected:
            np.testing.assert_allclose(made[direction.name].at(1), direction.at(1), rtol=1e-6)
        assert abs(made["orthogonal/other"].at(1) @ made["unmonitored/probe"].at(1)) < 1e-3

    def test_what_compute_af_direction_writes(self, call, tmp_path, small_model):
        """The way from labeled samples to steered outputs."""
        computed = tmp_path / "computed"
        words = ["--input_path", tmp_path / "samples.json", "--output_dir", computed, "--model_name", small_model]
        words += ["--holdout", "0.5", "--device", "cpu"]
        assert direction_command.main([*map(str, words)]) == 0
        code, out, err = call(direction=sorted(computed.glob("*.safetensors")))
        assert code == 0, err
        names = [f"unmonitored/{name}" for name in ("logistic_probe", "mean_difference", "principal_component")]
        found = list(dict.fromkeys(record.direction for record in records(tmp_path / "out")))
        assert found[:3] == names
        assert len(found) == 9
        assert all(re.search(rf"^│ {name} ", out, re.MULTILINE) for name in found)

    def test_again_reuses_what_is_there(self, call, tmp_path, caplog, monkeypatch):
        caplog.set_level("INFO")
        first = call()
        before = contents(tmp_path / "out")
        monkeypatch.setattr(steering, "load_model", None)
        assert call()[:2] == first[:2]
        assert "reusing" in caplog.text
        assert contents(tmp_path / "out") == before

    def test_stopped_and_run_again(self, call, tmp_path, monkeypatch):
        """A full disk after the first chunk; the rest comes when there is room."""
        monkeypatch.setattr(generate_command, "generate_steering", partial(steering.generate_steering, chunk=3))
        assert call(output_dir=tmp_path / "whole")[0] == 0
        fsync, count = os.fsync, iter(range(99))

        def full(descriptor):
            if next(count) >= 2:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            code, _, err = call()
        assert code == 2
        assert "No space left on device" in err
        assert "Traceback" not in err
        assert [path.name for path in (tmp_path / "out" / "partial").iterdir()] == ["0000000.json"]
        made, write_json = [], run_folder.write_json
        monkeypatch.setattr(run_folder, "write_json", lambda path, row: (made.append(path.name), write_json(path, row)))
        assert call()[0] == 0
        assert made == ["settings.json", "0000003.json", "0000006.json", "summary.json"]
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_other_settings_are_refused_and_nothing_changes(self, call, tmp_path):
        call()
        before = contents(tmp_path / "out")
        write_direction(tmp_path / "w.safetensors", Direction("unmonitored", {1: vector(7)}))
        for flags, names in (
            ({"alphas": "1 5"}, "alphas: was [1.0, 4.0], is [1.0, 5.0]"),
            ({"holdout": 3}, "splits: was {'train': 7, 'test': 2}, is {'train': 6, 'test': 3}"),
            ({"seed": 1}, "directions_sha256"),  # other controls
            ({"direction": tmp_path / "w.safetensors"}, "directions_sha256"),
        ):
            code, _, err = call(**flags)
            assert code == 2
            assert names in err
        assert contents(tmp_path / "out") == before


def wide(folder):
    """A vector of another model."""
    np.save(folder / "wide.npy", vector(width=5376))
    return {"direction": folder / "wide.npy"}


def twins(folder):
    """Two files that not even their names tell apart."""
    paths = [folder / name / "v.npy" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        np.save(path, vector())
    return {"direction": paths}


def deep(folder):
    write_direction(folder / "deep.safetensors", Direction("deep", {1: vector(), 40: vector()}))
    return {"direction": folder / "deep.safetensors"}


def zero(folder):
    np.save(folder / "zero.npy", np.zeros(32, np.float32))
    return {"direction": folder / "zero.npy"}


def long(folder):
    (folder / "long.json").write_text(json.dumps([{"text": "a"}] * 3 + [{"text": "\x07" * 2100}]))
    return {"input_path": folder / "long.json", "holdout": 1}


def flags(**given):
    return lambda folder: given


WRONG = {  # what is wrong: (flags, what the message names)
    "layers of a larger model": (flags(layers="20 30 40"), "--layers: layer 20 of a model with 2 layers (0 to 1)"),
    "default layers": (flags(layers=None), "layer 20 of a model with 2 layers"),
    "unknown cue": (flags(cues="placebo"), "--cues: names 'placebo'"),
    "no cue file": (flags(cue_file="absent.yaml"), "absent.yaml: cannot be read"),
    "no relative depth": (flags(layers="1.5"), "'1.5' is neither a layer"),
    "width of another model": (wide, "wide.npy: vector has 5376 numbers, the model's residual stream is 32 wide"),
    "direction of a deeper model": (deep, "deep.safetensors: layer 40 of a model with 2 layers"),
    "layer without a vector": (lambda folder: deep(folder) | {"layers": "0"}, "deep.safetensors: layer 40"),
    "zero": (zero, "zero.npy: vector is zero"),
    "two of one name": (twins, "two directions are called"),
    "no such direction": (flags(direction="absent.npy"), "absent.npy: does not exist"),
    "another kind of file": (lambda folder: {"direction": folder / "samples.json"}, "samples.json: ends in '.json'"),
    "no such input": (flags(input_path="absent.json"), "absent.json: does not exist"),
    "no such model": (flags(model_name="nobody/no-such-model"), "'nobody/no-such-model'"),
    "no model in folder": (lambda folder: {"model_name": folder}, "cannot be loaded"),
    "holdout too large": (flags(holdout=9), "--holdout: 9 of 9 samples leave none for training"),
    "negative holdout": (flags(holdout=-1), "--holdout: -1"),
    "batch size": (flags(batch_size=0), "--batch_size: must be "),
    "no new tokens": (flags(max_new_tokens=0), "--max_new_tokens: must be "),
    "limit": (flags(limit=0), "--limit: must be "),
    "control samples": (flags(control_samples=-1), "--control_samples: must be "),
    "cells": (flags(cells_per_prompt=0), "--cells_per_prompt: must be "),
    "alpha 0": (flags(alphas="1 0"), "--alphas: must be "),
    "alpha NaN": (flags(alphas="nan"), "--alphas: must be "),
    "alpha infinite": (flags(alphas="1 inf"), "--alphas: must be "),
    "alpha twice": (flags(alphas="1 2 1.00000001"), "twice"),
    "cue twice": (flags(cues="monitored monitored"), "twice"),
    "device": (flags(device="cuda:99"), "--device: 'cuda:99' is not available"),
    "nonsense device": (flags(device="abacus"), "--device: 'abacus' is not available"),
    "prompt beyond the context": (long, "sample 3: needs "),
    "output folder is a file": (lambda folder: {"output_dir": folder / "samples.json"}, "cannot be created"),
}


class TestWrongInput:
    @pytest.mark.parametrize("what", WRONG)
    def test_two_lines_exit_code_2_nothing_written_and_no_model_loaded(self, call, tmp_path, what, monkeypatch):
        monkeypatch.setattr(steering, "load_model", None)
        make, names = WRONG[what]
        given = make(tmp_path)
        before = contents(tmp_path)
        code, out, err = call(**given)
        assert (code, out) == (2, "")
        lines = err.rstrip("\n").split("\n")
        assert len(lines) == 2, err
        assert lines[0].startswith("error: ")
        assert names in lines[0]
        assert lines[1].startswith("  remedy: ")
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
        assert contents(tmp_path) == before

    def test_layers_of_a_larger_model_get_relative_depths_as_a_remedy(self, call):
        assert "use layers below 2, or relative depths such as 0.5" in call(layers="20 30 40")[2]

    @pytest.mark.parametrize(
        "given",
        [{"dtype": "int8"}, {"positions": "first"}, {"alpha_unit": "std"}, {"alphas": "one"},
         {"cells_per_prompt": "1.5"}, {"unknown": 1}, {"direction": None}, {"model_name": None}],
    )  # fmt: skip
    def test_flags_are_checked_by_their_parser(self, call, tmp_path, given):
        code, _, err = call(**given)
        assert code == 2
        assert "usage:" in err
        assert not (tmp_path / "out").exists()

    def test_help_names_every_flag(self):
        text = generate_command.parser().format_help()
        assert set(re.findall(r"^  --(\w+)", text, re.MULTILINE)) == set(FLAGS)


@pytest.mark.slow
def test_from_the_shell(call, classes_of_any_text, tmp_path, small_model):
    """In a process of its own, as a user calls it: the same bytes and the same table as here."""
    process = subprocess.run(
        [sys.executable, str(SCRIPT), "--input_path", "samples.json", "--output_dir", "there", "--model_name",
         str(small_model), "--direction", "v.safetensors", "--layers", "0.5", "--alphas", "1", "4", "--holdout", "2",
         "--max_new_tokens", "5", "--control_samples", "2", "--device", "cpu", "--labeler", str(classes_of_any_text)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    code, out, _ = call()
    assert (code, out.split("dose response")[0]) == (0, process.stdout.split("dose response")[0])
    assert process.stdout.endswith("dose response: there/dose_response.png\n")
    assert contents(tmp_path / "out") == contents(tmp_path / "there")
