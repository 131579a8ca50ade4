"""Feature files: the bytes on disk, reading rows alone, wrong files; choosing features and their activation profiles."""

import errno
import json
import multiprocessing
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from afintro.errors import UserError
from afintro.tasks.feature_descriptions import features
from afintro.tasks.feature_descriptions.features import (
    FeatureFile,
    activation_profiles,
    map_array,
    most_selective,
    write_features,
)

ROOT = Path(__file__).resolve().parents[3]
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


def process(code, *arguments):
    """Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


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

    @pytest.mark.parametrize("old", [True, False])
    def test_kill_while_writing_leaves_no_half_file(self, tmp_path, old):
        path = tmp_path / "layer_40.safetensors"
        if old:
            write_features(path, [VECTORS], INDICES, 3, {"layer": "40"})
        before = path.read_bytes() if old else None
        result = process(
            """
            import os, signal, sys
            from pathlib import Path
            import numpy as np
            from afintro.tasks.feature_descriptions.features import write_features

            def blocks():
                yield np.ones((600, 4096), np.float32)  # more than any buffer: on the disk by now
                print(sum(path.stat().st_size for path in Path(sys.argv[1]).parent.iterdir()), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

            write_features(Path(sys.argv[1]), blocks(), np.arange(700), 4096, {"layer": "40"})
            """,
            path,
        )
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert int(result.stdout) > 2**20, "nothing was written yet"
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

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_in_other_processes(self, path, method):
        file = FeatureFile(path)
        file.rows([0])  # opened here before the others use it
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = pool.map(file.rows, [[row] for row in range(5)], chunksize=1)
        np.testing.assert_array_equal(np.concatenate(found), VECTORS)

    def test_pickle_holds_no_vectors(self, tmp_path):
        write_features(tmp_path / "f", [np.zeros((4, 5000), np.float32)], np.arange(4), 5000, {"layer": "0"})
        assert len(pickle.dumps(FeatureFile(tmp_path / "f"))) < 2000

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
        result = process(
            """
            import re, sys
            import numpy as np
            from afintro.tasks.feature_descriptions.features import FeatureFile

            def resident():
                with open("/proc/self/status") as status:
                    return int(re.search(r"VmRSS:\\s+(\\d+) kB", status.read())[1]) // 1024

            before = resident()
            file = FeatureFile(sys.argv[1])
            vectors = file.rows(np.random.default_rng(0).integers(0, file.count, 200))
            print(resident() - before)
            for first in range(0, file.count, 256):
                file.rows(range(first, first + 256))
                highest = resident()
            print(highest - before)
            """,
            tmp_path / "big",
        )
        assert result.returncode == 0, result.stderr
        rows, blocks = map(int, result.stdout.split())
        assert rows < 20, f"200 rows: {rows} MB more"
        assert blocks < 20, f"all rows: {blocks} MB more"

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
            ([0.1, np.nan, np.nan], 1, "selectivity of feature 1 is nan (2 such of 3)"),
            ([0.1, 0.2, -np.inf], 1, "selectivity of feature 2 is -inf"),
            ([0.25, 0.25, 0.25], 1, "selectivity is 0.25 for every feature"),
            ([[0.1, 0.2]], 1, "selectivity is [1, 2], not [features]"),
            ([0.1, 0.2], 3, "top_k is 3, of 2 features"),
            ([0.1, 0.2], 0, "top_k is 0"),
            ([0.1, 0.2], -1, "top_k is -1"),
        ],
    )
    def test_wrong(self, selectivity, top_k, what):
        with pytest.raises(UserError, match=re.escape(f"s.npy: {what}")):
            most_selective(np.array(selectivity), top_k, "s.npy")


class TestActivationProfiles:
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, np.bool_])
    def test_columns_as_rows(self, tmp_path, monkeypatch, dtype, order):
        monkeypatch.setattr(features, "BLOCK_BYTES", 3 * 9 * np.dtype(dtype).itemsize)  # three texts at a time
        matrix = np.random.default_rng(0).integers(0, 2, (10, 9)).astype(dtype, order=order)
        np.save(tmp_path / "a.npy", matrix)
        columns = np.array([0, 2, 3, 7, 8])
        blocks = list(activation_profiles(tmp_path / "a.npy", columns, block_columns=2))
        assert [block.shape for block in blocks] == [(2, 10), (2, 10), (1, 10)]
        assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(np.concatenate(blocks), matrix[:, columns].T.astype(np.float32))

    def test_the_matrix_is_never_in_memory(self, tmp_path):
        matrix = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (2000, 25_000))  # 200 MB, sparse
        del matrix
        result = process(
            """
            import re, sys
            from pathlib import Path
            import numpy as np
            from afintro.tasks.feature_descriptions.features import activation_profiles

            def highest():
                with open("/proc/self/status") as status:
                    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) // 1024

            before = highest()
            for block in activation_profiles(Path(sys.argv[1]), np.arange(0, 25_000, 250)):
                assert block.shape == (100, 2000)
            print(highest() - before)
            """,
            tmp_path / "a.npy",
        )
        assert result.returncode == 0, result.stderr
        assert int(result.stdout) < 60

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
    "empty": (lambda path: path.write_bytes(b""), "is no .npy file"),
    "text": (lambda path: path.write_text("1 2 3\n4 5 6\n"), "is no .npy file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "is no .npy file"),
    "objects": (lambda path: np.save(path, np.array([[Bomb()]], object)), "holds Python objects"),
    "an archive": (lambda path: np.savez(path.open("wb"), a=VECTORS), "is no .npy file"),
    "cut off": (
        lambda path: (np.save(path, VECTORS), path.write_bytes(path.read_bytes()[:-4])),
        "is no .npy file (mmap length",
    ),
    "one dimension": (lambda path: np.save(path, VECTORS[0]), "is [3]"),
    "three dimensions": (lambda path: np.save(path, VECTORS[None]), "is [1, 5, 3]"),
    "complex": (lambda path: np.save(path, VECTORS.astype(complex)), "complex128, not real numbers"),
    "strings": (lambda path: np.save(path, VECTORS.astype(str)), "not real numbers"),
}


class TestNotAnArray:
    @pytest.mark.parametrize("what", NOT_ARRAYS)
    def test_is_named_and_never_unpickled(self, tmp_path, monkeypatch, what):
        monkeypatch.chdir(tmp_path)
        make, message = NOT_ARRAYS[what]
        make(tmp_path / "bad.npy")
        with pytest.raises(UserError, match=re.escape(message)) as error:
            list(activation_profiles(tmp_path / "bad.npy", np.array([0])))
        assert str(error.value).startswith(f"{tmp_path}/bad.npy: ")
        assert not Path("unpickled").exists()

    def test_map_is_read_only(self, tmp_path):
        np.save(tmp_path / "a.npy", VECTORS)
        with pytest.raises(ValueError, match="read-only"):
            map_array(tmp_path / "a.npy", 2)[0, 0] = 1
