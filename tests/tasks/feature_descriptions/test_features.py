"""Feature files: the bytes on disk, reading rows alone, wrong files."""

import errno
import json
import multiprocessing
import os
import pickle
import re
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.features import FeatureFile, write_features

INDICES = np.array([1, 3, 12, 13, 40], np.int64)
VECTORS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    """A written file of five vectors of width 3."""
    path = tmp_path / "features" / "layer_40.safetensors"
    write_features(path, [VECTORS[:2], VECTORS[2:]], INDICES, 3, {"layer": "40", "kind": "decoder"})
    return path


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def exit_code(work, *arguments):
    """The exit code of a forked process that does the work."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def resident_mb():
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024


class TestWrite:
    def test_bytes(self, tmp_path):
        """The layout that other programs read: length, header padded to eight bytes, indices, vectors."""
        vectors = np.array([[1, -2], [0.5, 3]], np.float32)
        write_features(tmp_path / "f", [vectors], np.array([7, 300]), 2, {"source": "a.npy", "layer": "4"})
        header = (
            b'{"__metadata__":{"layer":"4","source":"a.npy","width":"2"},'
            b'"feature_indices":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},'
            b'"vectors":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]}}  '
        )
        assert len(header) % 8 == 0
        data = struct.pack("<qqffff", 7, 300, 1, -2, 0.5, 3)
        assert (tmp_path / "f").read_bytes() == struct.pack("<Q", len(header)) + header + data

    def test_the_library_reads_it(self, path):
        tensors = load_file(path)
        np.testing.assert_array_equal(tensors["vectors"], VECTORS)
        np.testing.assert_array_equal(tensors["feature_indices"], INDICES)
        assert tensors["vectors"].dtype == np.float32
        assert tensors["feature_indices"].dtype == np.int64
        with safe_open(path, "np") as file:
            assert file.metadata() == {"layer": "40", "kind": "decoder", "width": "3"}
            np.testing.assert_array_equal(file.get_slice("vectors")[3:], VECTORS[3:])

    def test_any_memory_layout(self, tmp_path):
        write_features(tmp_path / "f", [np.asfortranarray(VECTORS)], INDICES, 3, {"layer": "0"})
        np.testing.assert_array_equal(load_file(tmp_path / "f")["vectors"], VECTORS)

    @pytest.mark.parametrize(
        ("blocks", "indices", "names_it"),
        [
            ([VECTORS[:4]], INDICES, "4 vectors for 5 indices"),
            ([VECTORS, VECTORS[:1]], INDICES, "6 vectors for 5 indices"),
            ([VECTORS[:, :2]], INDICES, "width 3"),
            ([VECTORS[0]], INDICES, "shape (3,)"),
            ([VECTORS], INDICES[::-1], "ascending"),
            ([VECTORS[:2]], np.array([3, 3]), "ascending"),
            ([], INDICES[:0], "at least one"),
        ],
    )
    def test_blocks_that_do_not_fit_leave_the_old_file(self, path, blocks, indices, names_it):
        before = path.read_bytes()
        with pytest.raises(ValueError, match=re.escape(names_it)):
            write_features(path, blocks, indices, 3, {"layer": "40"})
        assert path.read_bytes() == before
        assert names(path.parent) == [path.name]

    @pytest.mark.slow
    @pytest.mark.parametrize("old", [True, False])
    def test_kill_while_writing_leaves_no_half_file(self, tmp_path, old):
        path = tmp_path / "layer_40.safetensors"
        if old:
            write_features(path, [VECTORS], INDICES, 3, {"layer": "40"})
        before = path.read_bytes() if old else None
        written = multiprocessing.get_context("fork").Value("q", 0)

        def blocks():
            yield np.ones((600, 4096), np.float32)  # more than any buffer: on the disk by now
            written.value = sum(entry.stat().st_size for entry in tmp_path.iterdir())
            os.kill(os.getpid(), signal.SIGKILL)

        assert exit_code(write_features, path, blocks(), np.arange(700), 4096, {"layer": "40"}) == -signal.SIGKILL
        assert written.value > 2**20, "nothing was written yet"
        assert (path.read_bytes() if path.exists() else None) == before
        write_features(path, [VECTORS], INDICES, 3, {"layer": "40"})
        assert FeatureFile(path).count == 5

    def test_full_disk(self, path, monkeypatch):
        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = path.read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"layer_40.safetensors: cannot be written \(No space left"):
            write_features(path, [VECTORS], INDICES, 3, {"layer": "40"})
        assert path.read_bytes() == before
        assert names(path.parent) == [path.name]


class TestRead:
    def test_attributes(self, path):
        file = FeatureFile(path)
        assert (file.path, file.layer, file.width, file.count) == (path, 40, 3, 5)
        assert file.metadata == {"layer": "40", "kind": "decoder", "width": "3"}
        assert file.indices.dtype == np.int64
        assert file.indices.tolist() == [1, 3, 12, 13, 40]

    @pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [4, 1, 1], [], range(2, 4), np.array([3])])
    def test_rows(self, path, rows):
        found = FeatureFile(path).rows(rows)
        assert found.dtype == np.float32
        assert found.shape == (len(rows), 3)
        np.testing.assert_array_equal(found, VECTORS[list(rows)])

    @pytest.mark.parametrize("rows", [[5], [0, -1]])
    def test_no_such_row(self, path, rows):
        with pytest.raises(IndexError):
            FeatureFile(path).rows(rows)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_other_writers_and_types(self, tmp_path, dtype):
        """As torch converts, which is exact to float32; with tensors in another order and one more."""
        values = torch.tensor([[1e-3, -2.5, 0.0], [3.1416, 6e-8, 1000.0]]).to(dtype)
        tensors = {"vectors": values, "feature_indices": torch.tensor([4, 9]), "a": torch.ones(3)}
        save_torch(tensors, tmp_path / "f", {"layer": "7"})
        file = FeatureFile(tmp_path / "f")
        np.testing.assert_array_equal(file.rows([1, 0]), values.float().numpy()[::-1])
        assert file.layer == 7

    @pytest.mark.slow
    def test_in_other_processes(self, path):
        file = FeatureFile(path)
        file.rows([0])  # opened here before the others use it
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map(file.rows, [[row] for row in range(5)], chunksize=1)
        np.testing.assert_array_equal(np.concatenate(found), VECTORS)

    def test_pickle_holds_no_vectors(self, tmp_path):
        write_features(tmp_path / "f", [np.zeros((4, 5000), np.float32)], np.arange(4), 5000, {"layer": "0"})
        pickled = pickle.dumps(FeatureFile(tmp_path / "f"))
        assert len(pickled) < 2000
        assert not pickle.loads(pickled).rows([3]).any()

    @pytest.mark.slow
    def test_resident_memory_does_not_grow(self, tmp_path):
        """Neither with 200 rows from anywhere, nor with the whole 200 MB in blocks."""
        count, width = 51200, 1024
        header = {
            "__metadata__": {"layer": "1"},
            "feature_indices": {"dtype": "I64", "shape": [count], "data_offsets": [0, 8 * count]},
            "vectors": {
                "dtype": "F32", "shape": [count, width], "data_offsets": [8 * count, 8 * count + 4 * count * width],
            },
        }  # fmt: skip
        text = json.dumps(header).encode()
        with open(tmp_path / "big", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + np.arange(count).tobytes())
            file.truncate(file.tell() + 4 * count * width)  # sparse: zeros that take no room
        grown = multiprocessing.get_context("fork").Array("q", 2)

        def read():
            before = resident_mb()
            file = FeatureFile(tmp_path / "big")
            vectors = file.rows(np.random.default_rng(0).integers(0, file.count, 200))
            grown[0] = resident_mb() - before
            del vectors
            for first in range(0, file.count, 256):
                file.rows(range(first, first + 256))
                grown[1] = max(grown[1], resident_mb() - before)

        assert exit_code(read) == 0
        assert grown[0] < 20, f"200 rows: {grown[0]} MB more"
        assert grown[1] < 20, f"all rows: {grown[1]} MB more"

    def test_a_file_written_anew_is_noticed(self, path):
        file = FeatureFile(path)
        write_features(path, [VECTORS[1:]], INDICES[1:], 3, {"layer": "40"})
        with pytest.raises(UserError, match="has changed since it was opened"):
            file.rows([0])
        np.testing.assert_array_equal(FeatureFile(path).rows([0]), VECTORS[1:2])

    @pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "an infinite value")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_not_finite(self, tmp_path, value, what, dtype):
        vectors = torch.from_numpy(VECTORS).to(dtype)
        vectors[2, 1] = value
        save_torch({"vectors": vectors, "feature_indices": torch.from_numpy(INDICES)}, tmp_path / "f", {"layer": "1"})
        file = FeatureFile(tmp_path / "f")
        assert file.rows([0, 1, 3, 4]).shape == (4, 3)
        with pytest.raises(UserError, match=f"f: vector of feature 12 holds {what}"):
            file.rows([0, 2])


def saved(metadata={"layer": "1"}, **tensors):  # noqa: B006
    """A file of these tensors as the library writes it; None leaves one out."""
    both = {"vectors": VECTORS, "feature_indices": INDICES} | tensors

    def make(path):
        save_file({name: tensor for name, tensor in both.items() if tensor is not None}, path, metadata)

    return make


def header(**entries):
    """A file whose header alone is wrong."""
    right = {
        "__metadata__": {"layer": "1"},
        "feature_indices": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "vectors": {"dtype": "F32", "shape": [2, 3], "data_offsets": [16, 40]},
    }

    def make(path):
        text = json.dumps({**right, **entries}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<qq", 1, 2) + bytes(24))

    return make


def cut(keep):
    """A whole file, cut."""

    def make(path):
        saved()(path)
        path.write_bytes(path.read_bytes()[:keep])

    return make


def array(**entry):
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [16, 40]} | entry


WRONG = {  # what is wrong: (makes the file, what the message names)
    "missing": (lambda path: None, "does not exist"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "not a safetensors file, or is cut off"),
    "text": (lambda path: path.write_text("no tensors here, but a text"), "not a safetensors file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"vectors": VECTORS})), "not a safetensors file"),
    "no JSON": (lambda path: path.write_bytes(struct.pack("<Q", 3) + b"{x}"), "not a safetensors file"),
    "not UTF-8": (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"\xff\xfe"), "not a safetensors file"),
    "a list": (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"), "not a safetensors file"),
    "cut in the length": (cut(5), "cut off"),
    "cut in the header": (cut(60), "cut off"),
    "cut in the vectors": (cut(-1), "cut off: tensor 'vectors' ends at byte"),
    "no vectors": (saved(vectors=None), "has no tensor 'vectors'"),
    "no indices": (saved(feature_indices=None), "has no tensor 'feature_indices'"),
    "float64": (saved(vectors=VECTORS.astype(np.float64)), "'vectors' is F64, not F32 or F16 or BF16"),
    "int32 indices": (saved(feature_indices=INDICES.astype(np.int32)), "'feature_indices' is I32, not I64"),
    "one vector alone": (saved(vectors=VECTORS[0].copy()), "'vectors' is [3], not of 2 dimensions"),
    "more vectors than indices": (saved(feature_indices=INDICES[:4].copy()), "vectors [5, 3] and feature_indices [4]"),
    "no feature": (saved(vectors=VECTORS[:0], feature_indices=INDICES[:0]), "vectors [0, 3]"),
    "not ascending": (saved(feature_indices=INDICES[::-1].copy()), "not ascending"),
    "an index twice": (saved(feature_indices=np.array([1, 3, 3, 4, 5])), "not ascending"),
    "negative index": (saved(feature_indices=np.array([-1, 3, 4, 5, 6])), "not ascending"),
    "no metadata": (saved(metadata=None), "metadata has no 'layer'"),
    "no layer": (saved(metadata={"width": "3"}), "metadata has no 'layer'"),
    "layer not a number": (saved(metadata={"layer": "last"}), "metadata 'layer' is 'last'"),
    "another width": (saved(metadata={"layer": "1", "width": "4"}), "metadata says width 4, the vectors have 3"),
    "metadata a list": (header(__metadata__=["layer"]), "not a safetensors file"),
    "metadata of numbers": (header(__metadata__={"layer": 4}), "not a safetensors file"),
    "entry a number": (header(vectors=3), "'vectors' is malformed"),
    "entry without offsets": (header(vectors={"dtype": "F32", "shape": [2, 3]}), "'vectors' is malformed"),
    "dtype a list": (header(vectors=array(dtype=["F32"])), "'vectors' is ['F32'], not F32"),
    "negative offset": (header(vectors=array(data_offsets=[-8, 16])), "at bytes -8 to 16"),
    "shape of fractions": (header(vectors=array(shape=[2.0, 3])), "is [2.0, 3] at"),
    "shape and offsets differ": (header(vectors=array(shape=[2, 2])), "is [2, 2] F32 in 24 bytes"),
    "past the end": (header(vectors=array(data_offsets=[1016, 1040])), "is cut off"),
}


class TestWrongFile:
    @pytest.mark.parametrize("what", WRONG)
    def test_is_named(self, tmp_path, what):
        make, message = WRONG[what]
        make(tmp_path / "bad.safetensors")
        with pytest.raises(UserError) as error:
            FeatureFile(tmp_path / "bad.safetensors")
        assert str(error.value).startswith(f"{tmp_path}/bad.safetensors: ")
        assert message in str(error.value)
        assert "\n  remedy: " in str(error.value)

    def test_the_header_of_these_tests_is_right(self, tmp_path):
        header()(tmp_path / "good")
        assert FeatureFile(tmp_path / "good").rows([0, 1]).shape == (2, 3)
