"""Which texts activate which features: strict reading, drawing texts, the activation matrix and the selectivity."""

import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.activations import (
    Activations,
    activation_matrix,
    read_activations,
    selectivity,
)

REAL = (
    Path(os.environ.get("AFINTRO_AF_DATA") or Path(__file__).parents[4] / "shared/data/af") / "sae_feature_firings.json"
)
SAMPLES = {
    "a": {"text": "one ", "label": "alignment_faking", "source_dataset": "x", "fired_features": [3, "40/5"]},
    "b": {"text": "two", "label": "aligned", "fired_features": []},
    "c": {"text": "three", "fired_features": [3, 0]},
}


def small():
    """Six texts: feature 1 is active on all that fake, feature 4 on one text of each label."""
    labels = ("alignment_faking", "aligned", "aligned", "alignment_faking", "aligned", "unknown")
    fired = {"1": frozenset({0, 3, 5}), "4": frozenset({1, 3}), "2": frozenset({5})}
    return Activations(tuple(f"text {index}" for index in range(6)), labels, fired)


def many(count=60, **more):
    """Every third text activates feature 7."""
    texts = tuple(f"text {index}" for index in range(count))
    return Activations(texts, ("aligned",) * count, {"7": frozenset(range(0, count, 3)), **more})


class TestRead:
    @pytest.mark.parametrize("samples", [SAMPLES, list(SAMPLES.values())])
    def test_object_or_list(self, tmp_path, samples):
        (tmp_path / "f.json").write_text(json.dumps({"metadata": {"n_samples": 3}, "samples": samples}))
        found = read_activations(tmp_path / "f.json")
        assert found.texts == ("one ", "two", "three")
        assert found.labels == ("alignment_faking", "aligned", "unknown")
        assert found.activating == {"3": frozenset({0, 2}), "40/5": frozenset({0}), "0": frozenset({2})}

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ({"metadata": {}}, ": holds no object or list 'samples'"),
            ({"samples": "many"}, ": holds no object or list 'samples'"),
            ([], ": "),
            ({"samples": {}}, ": holds no text that activates a feature"),
            ({"samples": {"b": SAMPLES["b"]}}, ": holds no text that activates a feature"),
            ({"samples": {"a": "text"}}, ", record a: is of type str, not an object"),
            ({"samples": [SAMPLES["a"], None]}, ", record 1: is of type NoneType, not an object"),
            ({"samples": {"a": SAMPLES["a"] | {"text": " "}}}, ", record a: has no text"),
            ({"samples": {"a": SAMPLES["a"] | {"text": 4}}}, ", record a, text: is of type int"),
            ({"samples": {"a": SAMPLES["a"] | {"label": [4]}}}, ", record a: field 'label' is list"),
            ({"samples": {"a": SAMPLES["a"] | {"label": 4}}}, ", record 0: field 'label' is int 4"),
            ({"samples": SAMPLES, "data": []}, ": holds several"),
            ({"samples": {"a": {"text": "one"}}}, ", record a: fired_features is missing"),
            (
                {"samples": {"a": SAMPLES["a"] | {"fired_features": {"3": 1}}}},
                ", record a: fired_features is of type dict",
            ),
            *[
                (
                    {"samples": [SAMPLES["a"] | {"fired_features": [1, wrong]}]},
                    f", record 0, fired_features: {wrong!r} is not a feature",
                )
                for wrong in (True, None, 1.0, -1, "a", "40/", [1])
            ],
        ],
    )
    def test_wrong(self, tmp_path, content, what):
        path = tmp_path / "f.json"
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=re.escape(f"{path}{what}")):
            read_activations(path)

    def test_missing_and_named_twice(self, tmp_path):
        with pytest.raises(UserError, match=r"absent\.json"):
            read_activations(tmp_path / "absent.json")
        (tmp_path / "f.json").write_text('{"samples": {"a": {}, "a": {}}}')
        with pytest.raises(UserError, match=r"f\.json.*'a'"):
            read_activations(tmp_path / "f.json")


class TestSample:
    def test_sides(self):
        found = many()
        activating, others = found.sample("7", 8, seed=0)
        active = {found.texts[index] for index in found.activating["7"]}
        assert len(activating) == len(set(activating)) == len(others) == len(set(others)) == 8
        assert set(activating) <= active
        assert not set(others) & active

    def test_golden(self):
        """The draw is part of what makes a data set again: the same on every machine and in every process."""
        assert many(12).sample("7", 2, seed=3) == (("text 6", "text 3"), ("text 10", "text 11"))

    def test_depends_on_seed_and_feature(self):
        found = many(**{"40/7": many().activating["7"]})
        assert found.sample("7", 5, 0) == found.sample("7", 5, 0)
        assert found.sample("7", 5, 0)[0] != found.sample("7", 5, 1)[0]
        assert found.sample("7", 5, 0)[1] != found.sample("7", 5, 1)[1]
        assert found.sample("7", 5, 0)[0] != found.sample("40/7", 5, 0)[0]

    def test_does_not_depend_on_other_features_order_or_number(self):
        found = many()
        reordered = Activations(
            found.texts, found.labels, {"1": frozenset({4}), "7": frozenset(sorted(found.activating["7"])[::-1])}
        )
        assert reordered.sample("7", 9, 0) == found.sample("7", 9, 0)
        assert tuple(side[:4] for side in found.sample("7", 9, 0)) == found.sample("7", 4, 0)

    def test_fewer_where_there_are_not_so_many(self):
        assert [len(side) for side in many(10).sample("7", 6, 0)] == [4, 6]
        assert [len(side) for side in many(10).sample("7", 0, 0)] == [0, 0]
        assert [len(side) for side in many(10).sample("8", 20, 0)] == [0, 10]

    def test_a_string_that_occurs_twice_is_drawn_once_and_on_one_side(self):
        """Texts that were cut can be equal, though only one of them activates the feature."""
        texts = ("same", "same", "other", "other", "active", "active")
        found = Activations(texts, ("aligned",) * 6, {"7": frozenset({0, 4, 5})})
        for seed in range(20):
            activating, others = found.sample("7", 6, seed)
            assert sorted(activating) == ["active", "same"]
            assert others == ("other",)


class TestMatrix:
    def test_matrix(self, tmp_path):
        expected = np.zeros((6, 6), np.float32)
        expected[[0, 3, 5], 1] = expected[[1, 3], 4] = expected[5, 2] = 1
        np.save(tmp_path / "expected.npy", expected)
        for block in (1, 2, 4, 6, 256):
            activation_matrix(small(), 6, tmp_path / "out" / "a.npy", block)
            assert (tmp_path / "out" / "a.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
        assert os.listdir(tmp_path / "out") == ["a.npy"]

    def test_selectivity(self):
        found = selectivity(small(), 6)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, [0, 1, 0, 0, 1 / 2 - 1 / 3, 0], rtol=0, atol=1e-15)

    @pytest.mark.parametrize("compute", [selectivity, lambda *both: activation_matrix(*both, Path("a.npy"))])
    @pytest.mark.parametrize(
        ("feature", "what"),
        [("6", "feature '6': is not below the width 6"), ("40/1", "feature '40/1': names a layer")],
    )
    def test_feature_that_has_no_column(self, tmp_path, monkeypatch, compute, feature, what):
        monkeypatch.chdir(tmp_path)
        found = small()
        with pytest.raises(UserError, match=what):
            compute(Activations(found.texts, found.labels, {**found.activating, feature: frozenset({0})}), 6)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("label", ["alignment_faking", "aligned"])
    def test_one_label_only(self, label):
        found = small()
        labels = tuple("unknown" if each == label else each for each in found.labels)
        with pytest.raises(UserError, match=f"no text has the label '{label}'"):
            selectivity(Activations(found.texts, labels, found.activating), 6)

    @pytest.mark.slow
    def test_kill_while_writing_leaves_no_half_file(self, tmp_path):
        fork = multiprocessing.get_context("fork")
        written = fork.Value("q", 0)

        class Texts(frozenset):
            """Indices that kill the process when a third block is made of them."""

            passes = 0

            def __iter__(self):
                self.passes += 1
                if self.passes == 3:
                    written.value = sum(path.stat().st_size for path in tmp_path.iterdir())
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__iter__()

        activations = Activations(("t",) * 2000, ("aligned",) * 2000, {"1": Texts({0})})
        process = fork.Process(target=activation_matrix, args=(activations, 1024, tmp_path / "a.npy"))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert written.value > 2**20, "nothing was written yet"
        assert not (tmp_path / "a.npy").exists()

    @pytest.mark.skipif(not REAL.exists(), reason="the real activations are not here")
    def test_real_file(self):
        found = read_activations(REAL)
        assert (len(found.texts), len(found.activating)) == (750, 973)
        selective = selectivity(found, 16384)
        assert np.count_nonzero(selective) == 973
        assert np.abs(selective).max() < 1
