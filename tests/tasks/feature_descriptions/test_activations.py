"""Firings: strict reading, drawing texts, the activation matrix and the selectivity."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions import activations as module
from afintro.tasks.feature_descriptions.activations import Firings, activation_matrix, read_firings, selectivity

ROOT = Path(__file__).resolve().parents[3]
REAL = Path("/work/shared/data/af/sae_feature_firings.json")
SAMPLES = {
    "a": {"text": "one ", "label": "alignment_faking", "source_dataset": "x", "fired_features": [3, "40/5"]},
    "b": {"text": "two", "label": "aligned", "fired_features": []},
    "c": {"text": "three", "fired_features": [3, 0]},
}


def small():
    """Five texts of two labels and one of none; feature 1 on all that fake, feature 4 on one of each."""
    labels = ("alignment_faking", "aligned", "aligned", "alignment_faking", "aligned", "unknown")
    fired = {"1": frozenset({0, 3, 5}), "4": frozenset({1, 3}), "2": frozenset({5})}
    return Firings(tuple(f"text {index}" for index in range(6)), labels, fired)


def many(count=60, **more):
    """Feature 7 fires on every third text."""
    texts = tuple(f"text {index}" for index in range(count))
    return Firings(texts, ("aligned",) * count, {"7": frozenset(range(0, count, 3)), **more})


class TestRead:
    @pytest.mark.parametrize("samples", [SAMPLES, list(SAMPLES.values())])
    def test_object_or_list(self, tmp_path, samples):
        (tmp_path / "f.json").write_text(json.dumps({"metadata": {"n_samples": 3}, "samples": samples}))
        found = read_firings(tmp_path / "f.json")
        assert found.texts == ("one ", "two", "three")
        assert found.labels == ("alignment_faking", "aligned", "unknown")
        assert found.fired == {"3": frozenset({0, 2}), "40/5": frozenset({0}), "0": frozenset({2})}

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ({"metadata": {}}, ": holds no object or list 'samples'"),
            ({"samples": "many"}, ": holds no object or list 'samples'"),
            ([], ": is list, not an object"),
            ({"samples": {}}, ": no feature fires on any text"),
            ({"samples": {"b": SAMPLES["b"]}}, ": no feature fires on any text"),
            ({"samples": {"a": "text"}}, ", record a: is str, not an object"),
            ({"samples": [SAMPLES["a"], None]}, ", record 1: is NoneType, not an object"),
            ({"samples": {"a": SAMPLES["a"] | {"text": " "}}}, ", record a: has no text"),
            ({"samples": {"a": SAMPLES["a"] | {"text": 4}}}, ", record a, text: is int"),
            ({"samples": {"a": SAMPLES["a"] | {"label": 4}}}, ", record a, label: is int"),
            ({"samples": {"a": {"text": "one"}}}, ", record a: fired_features is missing"),
            ({"samples": {"a": SAMPLES["a"] | {"fired_features": {"3": 1}}}}, ", record a: fired_features is dict"),
            *[
                (
                    {"samples": [SAMPLES["a"] | {"fired_features": [1, wrong]}]},
                    f", record 0, fired_features: {wrong!r} is no feature",
                )
                for wrong in (True, None, 1.0, -1, "a", "40/", [1])
            ],
        ],
    )
    def test_wrong(self, tmp_path, content, what):
        path = tmp_path / "f.json"
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=re.escape(f"{path}{what}")):
            read_firings(path)

    def test_missing_and_named_twice(self, tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            read_firings(tmp_path / "absent.json")
        (tmp_path / "f.json").write_text('{"samples": {"a": {}, "a": {}}}')
        with pytest.raises(UserError, match="'a' stands there twice"):
            read_firings(tmp_path / "f.json")


class TestSample:
    def test_sides(self):
        found = many()
        fires, silent = found.sample("7", 8, seed=0)
        loud = {found.texts[index] for index in found.fired["7"]}
        assert len(fires) == len(set(fires)) == len(silent) == len(set(silent)) == 8
        assert set(fires) <= loud
        assert not set(silent) & loud

    def test_golden(self):
        """The draw is part of what makes a data set again: the same on every machine and in every process."""
        assert many(12).sample("7", 2, seed=3) == (("text 6", "text 3"), ("text 10", "text 11"))

    def test_depends_on_seed_and_feature(self):
        found = many(**{"40/7": many().fired["7"]})
        assert found.sample("7", 5, 0) == found.sample("7", 5, 0)
        assert found.sample("7", 5, 0)[0] != found.sample("7", 5, 1)[0]
        assert found.sample("7", 5, 0)[1] != found.sample("7", 5, 1)[1]
        assert found.sample("7", 5, 0)[0] != found.sample("40/7", 5, 0)[0]

    def test_does_not_depend_on_other_features_order_or_number(self):
        found = many()
        reordered = Firings(
            found.texts, found.labels, {"1": frozenset({4}), "7": frozenset(sorted(found.fired["7"])[::-1])}
        )
        assert reordered.sample("7", 9, 0) == found.sample("7", 9, 0)
        assert tuple(side[:4] for side in found.sample("7", 9, 0)) == found.sample("7", 4, 0)

    def test_fewer_where_there_are_not_so_many(self):
        assert [len(side) for side in many(10).sample("7", 6, 0)] == [4, 6]
        assert [len(side) for side in many(10).sample("7", 0, 0)] == [0, 0]
        assert [len(side) for side in many(10).sample("8", 20, 0)] == [0, 10]

    def test_a_string_that_occurs_twice_is_drawn_once_and_on_one_side(self):
        """Texts that were cut can be equal, though only one of them fired."""
        texts = ("same", "same", "other", "other", "fires", "fires")
        found = Firings(texts, ("aligned",) * 6, {"7": frozenset({0, 4, 5})})
        for seed in range(20):
            fires, silent = found.sample("7", 6, seed)
            assert sorted(fires) == ["fires", "same"]
            assert silent == ("other",)


class TestActivations:
    def test_matrix(self, tmp_path, monkeypatch):
        expected = np.zeros((6, 6), np.float32)
        expected[[0, 3, 5], 1] = expected[[1, 3], 4] = expected[5, 2] = 1
        np.save(tmp_path / "expected.npy", expected)
        for block in (1, 2, 4, 6, 256):
            monkeypatch.setattr(module, "BLOCK_TEXTS", block)
            activation_matrix(small(), 6, tmp_path / "out" / "a.npy")
            assert (tmp_path / "out" / "a.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
        assert os.listdir(tmp_path / "out") == ["a.npy"]

    def test_selectivity(self):
        found = selectivity(small(), 6)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, [0, 1, 0, 0, 1 / 2 - 1 / 3, 0], rtol=0, atol=1e-15)

    @pytest.mark.parametrize("compute", [selectivity, lambda *both: activation_matrix(*both, Path("a.npy"))])
    @pytest.mark.parametrize(
        ("feature", "what"),
        [("6", "fired feature '6': is not below the width 6"), ("40/1", "'40/1': names a layer\n.*one file a layer")],
    )
    def test_feature_that_has_no_column(self, tmp_path, monkeypatch, compute, feature, what):
        monkeypatch.chdir(tmp_path)
        found = small()
        with pytest.raises(UserError, match=what):
            compute(Firings(found.texts, found.labels, {**found.fired, feature: frozenset({0})}), 6)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("label", ["alignment_faking", "aligned"])
    def test_one_label_only(self, label):
        found = small()
        labels = tuple("unknown" if each == label else each for each in found.labels)
        with pytest.raises(UserError, match=f"no text has the label '{label}'"):
            selectivity(Firings(found.texts, labels, found.fired), 6)

    def test_kill_while_writing_leaves_no_half_file(self, tmp_path):
        path = tmp_path / "a.npy"
        code = """
            import os, signal, sys
            from pathlib import Path
            import numpy as np
            from afintro.tasks.feature_descriptions.activations import Firings, activation_matrix

            class Texts(frozenset):
                passes = 0
                def __iter__(self):
                    self.passes += 1
                    if self.passes == 3:
                        print(sum(path.stat().st_size for path in Path(sys.argv[1]).parent.iterdir()), flush=True)
                        os.kill(os.getpid(), signal.SIGKILL)
                    return super().__iter__()

            activation_matrix(Firings(("t",) * 2000, ("aligned",) * 2000, {"1": Texts({0})}), 1024, Path(sys.argv[1]))
            """
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert int(result.stdout) > 2**20, "nothing was written yet"
        assert not path.exists()

    @pytest.mark.skipif(not REAL.exists(), reason="the real firings are not here")
    def test_real_file(self):
        found = read_firings(REAL)
        assert (len(found.texts), len(found.fired)) == (750, 973)
        selective = selectivity(found, 16384)
        assert np.count_nonzero(selective) == 973
        assert np.abs(selective).max() < 1
