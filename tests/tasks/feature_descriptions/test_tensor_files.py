"""Tensors of every kind of file, whole and damaged."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.tensor_files import open_tensors

MATRIX = np.arange(12, dtype=np.float64).reshape(4, 3)


def whole(path, name="W", transposed=False, step=3):
    file = open_tensors(path)
    count = file.stored[name].shape[1 if transposed else 0]
    blocks = [file.block(name, first, first + step, transposed) for first in range(0, count, step)]
    return np.concatenate(blocks)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_by_rows_and_by_columns(tmp_path, order, transposed, save):
    stored = np.array(MATRIX.T if transposed else MATRIX, order=order)
    save(tmp_path / "f.npz", other=np.ones(2), W=stored)
    np.save(tmp_path / "f.npy", stored)
    for path, name in ((tmp_path / "f.npz", "W"), (tmp_path / "f.npy", "")):
        found = whole(path, name, transposed)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, MATRIX)
    assert open_tensors(tmp_path / "f.npz").stored["other"].shape == (2,)


def test_blocks_in_any_order(tmp_path):
    np.savez(tmp_path / "f.npz", W=MATRIX)
    file = open_tensors(tmp_path / "f.npz")
    for first in (2, 0, 3):
        np.testing.assert_array_equal(file.block("W", first, first + 1, False), MATRIX[first : first + 1])


@pytest.mark.parametrize("new", [True, False])
def test_nested_tensors_of_torch(tmp_path, new):
    content = {"sae": {"W": torch.nn.Parameter(torch.tensor(MATRIX)), "k": 3}, "step": 1}
    torch.save(content, tmp_path / "f.pt", _use_new_zipfile_serialization=new)
    assert list(open_tensors(tmp_path / "f.pt").stored) == ["sae.W"]
    np.testing.assert_array_equal(whole(tmp_path / "f.pt", "sae.W"), MATRIX)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt", ".pth", ".safetensors"])
class TestWrong:
    def save(self, path):
        if path.suffix == ".npz":
            np.savez(path, W=MATRIX)
        elif path.suffix == ".npy":
            np.save(path, MATRIX)
        elif path.suffix == ".safetensors":
            save_file({"W": torch.tensor(MATRIX)}, path)
        else:
            torch.save({"W": torch.tensor(MATRIX)}, path)

    def refused(self, path):
        with pytest.raises(UserError) as error:
            open_tensors(path)
        assert error.value.where == str(path)

    def test_absent_empty_cut_off(self, tmp_path, suffix):
        path = tmp_path / f"f{suffix}"
        self.refused(path)
        path.write_bytes(b"")
        self.refused(path)
        self.save(path)
        cut(path)
        self.refused(path)

    def test_planted_code_never_runs(self, tmp_path, suffix, monkeypatch):
        monkeypatch.chdir(tmp_path)
        path = tmp_path / f"f{suffix}"
        path.write_bytes(pickle.dumps({"W": Bomb()}))
        self.refused(path)
        if suffix in (".pt", ".pth"):
            torch.save({"W": torch.tensor(MATRIX), "hook": Bomb()}, path)
            self.refused(path)
        if suffix in (".npy", ".npz"):
            array = np.array([[Bomb()]], object)
            np.save(path, array) if suffix == ".npy" else np.savez(path, W=array)
            if suffix == ".npy":
                self.refused(path)
            else:
                assert not open_tensors(path).stored["W"].real
        assert not Path("unpickled").exists()
