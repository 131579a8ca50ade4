"""Choosing features by selectivity, and their activation profiles: read without the matrix, wrong files are named."""

import multiprocessing
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions import profiles
from afintro.tasks.feature_descriptions.profiles import activation_profiles, map_array, most_selective

VECTORS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


class TestMostSelective:
    @pytest.mark.parametrize(
        ("top_k", "chosen"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [1, 2, 3, 4]), (5, [0, 1, 2, 3, 4])]
    )
    def test_largest_absolute_values_lower_index_first(self, top_k, chosen):
        found = most_selective(np.array([0.1, -0.5, 0.5, -0.2, 0.5]), top_k, "s.npy")
        assert found.dtype == np.int64
        assert found.tolist() == chosen

    def test_many_equals(self):
        """Short arrays are sorted in a way that keeps the order by chance."""
        selectivity = np.tile([0.5, -0.5, 0.1], 1000)
        assert most_selective(selectivity, 4, "s").tolist() == [0, 1, 3, 4]

    def test_unsigned_and_single(self):
        assert most_selective(np.array([0, 1, 255], np.uint8), 2, "s").tolist() == [1, 2]
        assert most_selective(np.array([0.3]), 1, "s").tolist() == [0]

    @pytest.mark.parametrize(
        ("selectivity", "top_k", "what"),
        [
            ([0.1, np.nan, np.nan], 1, "selectivity of feature 1 is nan (2 of 3"),
            ([0.1, 0.2, -np.inf], 1, "selectivity of feature 2 is -inf"),
            ([0.25, 0.25, 0.25], 1, "selectivity is 0.25 for every feature"),
            ([[0.1, 0.2]], 1, "selectivity has the shape [1, 2], not [features]"),
            ([0.1, 0.2], 3, "top_k is 3, but there are 2 features"),
            ([0.1, 0.2], 0, "top_k is 0"),
            ([0.1, 0.2], -1, "top_k is -1"),
        ],
    )
    def test_wrong(self, selectivity, top_k, what):
        with pytest.raises(UserError, match=re.escape(f"s.npy: {what}")):
            most_selective(np.array(selectivity), top_k, "s.npy")


def highest_mb():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024


class TestActivationProfiles:
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, np.bool_])
    def test_columns_as_rows(self, tmp_path, monkeypatch, dtype, order):
        monkeypatch.setattr(profiles, "BLOCK_BYTES", 3 * 9 * np.dtype(dtype).itemsize)  # three texts at a time
        matrix = np.random.default_rng(0).integers(0, 2, (10, 9)).astype(dtype, order=order)
        np.save(tmp_path / "a.npy", matrix)
        columns = np.array([0, 2, 3, 7, 8])
        blocks = list(activation_profiles(tmp_path / "a.npy", columns, block_columns=2))
        assert [block.shape for block in blocks] == [(2, 10), (2, 10), (1, 10)]
        assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(np.concatenate(blocks), matrix[:, columns].T.astype(np.float32))

    @pytest.mark.slow
    def test_the_matrix_is_never_in_memory(self, tmp_path):
        matrix = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (2000, 25_000))  # 200 MB, sparse
        del matrix
        grown = multiprocessing.get_context("fork").Value("q", -1)

        def read():
            before = highest_mb()
            for block in activation_profiles(tmp_path / "a.npy", np.arange(0, 25_000, 250)):
                assert block.shape == (100, 2000)
            grown.value = highest_mb() - before

        process = multiprocessing.get_context("fork").Process(target=read)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert 0 <= grown.value < 60

    @pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (1e300, "an infinite value")])
    def test_not_finite(self, tmp_path, value, what):
        matrix = np.zeros((4, 6))
        matrix[3, 5] = value
        np.save(tmp_path / "a.npy", matrix)
        assert len(list(activation_profiles(tmp_path / "a.npy", np.arange(5)))) == 1
        with pytest.raises(UserError, match=f"a.npy: vector of feature 5 holds {what}"):
            list(activation_profiles(tmp_path / "a.npy", np.arange(6)))


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


NOT_ARRAYS = {  # what is wrong: (makes the file, what the message names)
    "missing": (lambda path: None, "does not exist"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "is not a .npy file"),
    "text": (lambda path: path.write_text("1 2 3\n4 5 6\n"), "is not a .npy file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "is not a .npy file"),
    "objects": (lambda path: np.save(path, np.array([[Bomb()]], object)), "holds Python objects"),
    "an archive": (lambda path: np.savez(path.open("wb"), a=VECTORS), "is not a .npy file"),
    "cut off": (
        lambda path: (np.save(path, VECTORS), path.write_bytes(path.read_bytes()[:-4])),
        "is not a .npy file (mmap length",
    ),
    "one dimension": (lambda path: np.save(path, VECTORS[0]), "has the shape [3]"),
    "three dimensions": (lambda path: np.save(path, VECTORS[None]), "has the shape [1, 5, 3]"),
    "complex": (lambda path: np.save(path, VECTORS.astype(complex)), "complex128, not real numbers"),
    "strings": (lambda path: np.save(path, VECTORS.astype(str)), "not real numbers"),
}


class TestNotAnArray:
    @pytest.mark.parametrize("what", NOT_ARRAYS)
    def test_is_named_and_never_unpickled(self, tmp_path, monkeypatch, what):
        monkeypatch.chdir(tmp_path)
        make, message = NOT_ARRAYS[what]
        make(tmp_path / "bad.npy")
        with pytest.raises(UserError) as error:
            list(activation_profiles(tmp_path / "bad.npy", np.array([0])))
        assert error.value.where == f"{tmp_path}/bad.npy"
        assert message in error.value.what
        assert not Path("unpickled").exists()

    def test_map_is_read_only(self, tmp_path):
        np.save(tmp_path / "a.npy", VECTORS)
        with pytest.raises(ValueError, match="read-only"):
            map_array(tmp_path / "a.npy", 2)[0, 0] = 1
