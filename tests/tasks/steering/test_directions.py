"""Steering vectors on disk: every shape in which people save them, and what is refused."""

import importlib.util
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from afintro.errors import UserError
from afintro.tasks.steering.control_vectors import write_gguf
from afintro.tasks.steering.direction_files import read_direction
from afintro.tasks.steering.directions import Direction, resolve_layers, write_direction

ROW = [1.0, -2.0, 0.5, 4.0]
TWO = [[1.0, -2.0, 0.5, 4.0], [3.0, 0.0, -1.0, 0.25]]  # exact in every float dtype


def refused(call, *names):
    with pytest.raises(UserError) as error:
        call()
    what, remedy = str(error.value).split("\n")
    assert all(name in what for name in names), what
    assert remedy.startswith("  remedy: ")


class TestResolveLayers:
    @pytest.mark.parametrize(
        ("given", "depth", "layers"),
        [
            ([0.5], 32, [16]),
            (["0.5"], 32, [16]),
            (["1"], 32, [1]),
            ([1], 32, [1]),
            (["0"], 1, [0]),
            ([31, "0", 7, "7"], 32, [0, 7, 31]),
            ([0.99], 32, [31]),  # round(31.68) is 32: the last one
            ([".25", "0.75", 12], 24, [6, 12, 18]),
            ([0.5], 1, [0]),
            ([0.1], 3, [0]),
            ([0.5, 2], 4, [2]),
        ],
    )
    def test_golden(self, given, depth, layers):
        assert resolve_layers(given, depth, "--layers") == layers

    @pytest.mark.parametrize("given", [40, "40"])
    def test_a_layer_that_is_not_there(self, given):
        with pytest.raises(UserError) as error:
            resolve_layers([1, given], 32, "--layers")
        assert str(error.value) == (
            "--layers: layer 40 of a model with 32 layers (0 to 31)\n"
            "  remedy: use layers below 32, or relative depths such as 0.5"
        )

    def test_the_first_one_too_many(self):
        refused(lambda: resolve_layers([2], 2, "x"), "layer 2 of a model with 2 layers (0 to 1)")

    @pytest.mark.parametrize(
        "given", [1.5, "1.5", -1, "-1", "-0.5", 1.0, "1.0", "0.0", 0.0, "last", "", True, "nan", float("inf"), "1e-1"]
    )
    def test_neither(self, given):
        refused(lambda: resolve_layers([given], 32, "--layers"), "--layers", repr(given), "0 to 31")

    def test_none(self):
        refused(lambda: resolve_layers([], 32, "--layers"), "names no layer")


def same(direction, vectors, everywhere=None):
    assert {layer: vector.tolist() for layer, vector in direction.vectors.items()} == vectors
    assert (direction.everywhere is None) == (everywhere is None)
    if everywhere is not None:
        assert direction.everywhere.tolist() == everywhere
    found = [*direction.vectors.values(), *([direction.everywhere] if everywhere is not None else [])]
    assert all(vector.dtype == np.float32 and vector.ndim == 1 for vector in found)


class TestNpy:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int64"])
    def test_dtypes(self, tmp_path, dtype):
        np.save(tmp_path / "v.npy", (np.array(TWO) * 4).astype(dtype))
        same(read_direction(str(tmp_path / "v.npy")), {0: [4, -8, 2, 16], 1: [12, 0, -4, 1]})

    @pytest.mark.parametrize("shape", [ROW, [ROW]])
    def test_bare(self, tmp_path, shape):
        np.save(tmp_path / "v.npy", np.array(shape))
        found = read_direction(str(tmp_path / "v.npy"))
        same(found, {}, ROW)
        assert (found.name, found.metadata) == ("v", {})
        assert found.at(17).tolist() == ROW

    def test_fortran_order(self, tmp_path):
        np.save(tmp_path / "v.npy", np.asfortranarray(TWO))
        same(read_direction(str(tmp_path / "v.npy")), {0: TWO[0], 1: TWO[1]})

    def test_sidecar(self, tmp_path):
        np.save(tmp_path / "v.npy", np.array(ROW))
        (tmp_path / "v.json").write_text('{"name": "deceit", "layer": 12, "more": [1]}')
        found = read_direction(str(tmp_path / "v.npy"))
        same(found, {12: ROW})
        assert found.name == "deceit"
        assert found.metadata == {"name": "deceit", "layer": 12, "more": [1]}
        assert read_direction(str(tmp_path / "v.npy"), "mine").name == "mine"


class TestSafetensors:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("name", ["layer_{}", "{}", "layers.{}", "model.layers.{}", "layer{}", "direction.{}"])
    def test_by_layer(self, tmp_path, name, dtype):
        tensors = {name.format(12): torch.tensor(TWO[1], dtype=dtype), name.format(3): torch.tensor(ROW, dtype=dtype)}
        save_file(tensors, tmp_path / "v.safetensors")
        found = read_direction(str(tmp_path / "v.safetensors"))
        same(found, {3: ROW, 12: TWO[1]})
        assert list(found.vectors) == [3, 12]

    def test_one_tensor_named_by_layer(self, tmp_path):
        save_file({"layer_5": torch.tensor(ROW)}, tmp_path / "v.safetensors")
        same(read_direction(str(tmp_path / "v.safetensors")), {5: ROW})

    def test_one_tensor_of_other_name(self, tmp_path):
        path = tmp_path / "v.safetensors"
        save_file({"vector": torch.tensor(ROW)}, path)
        same(read_direction(str(path)), {}, ROW)
        save_file({"v2": torch.tensor([ROW])}, path)
        same(read_direction(str(path)), {}, ROW)
        save_file({"vectors": torch.tensor(TWO)}, path)
        same(read_direction(str(path)), {0: TWO[0], 1: TWO[1]})

    def test_layer_of_the_metadata(self, tmp_path):
        save_file({"vector": torch.tensor(ROW)}, tmp_path / "v.safetensors", metadata={"layer": "7"})
        same(read_direction(str(tmp_path / "v.safetensors")), {7: ROW})
        (tmp_path / "v.json").write_text('{"layer": 8}')  # beside the file, so that a person can mend it
        same(read_direction(str(tmp_path / "v.safetensors")), {8: ROW})


class TestPt:
    @pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
    @pytest.mark.parametrize(
        ("content", "vectors", "everywhere"),
        [
            (torch.tensor(ROW, requires_grad=True), {}, ROW),
            (torch.tensor(ROW, dtype=torch.bfloat16), {}, ROW),
            (torch.tensor(TWO), {0: TWO[0], 1: TWO[1]}, None),
            (torch.tensor(TWO).T.contiguous().T, {0: TWO[0], 1: TWO[1]}, None),
            ({4: torch.tensor(ROW), 2: torch.tensor(TWO[1])}, {2: TWO[1], 4: ROW}, None),
            ({"layers.4": torch.tensor(ROW), "layer_2": torch.tensor(TWO[1])}, {2: TWO[1], 4: ROW}, None),
            ({4: torch.tensor(ROW)}, {4: ROW}, None),
            ({"vector": torch.tensor(ROW)}, {}, ROW),
        ],
    )
    def test_shapes(self, tmp_path, suffix, content, vectors, everywhere):
        torch.save(content, tmp_path / f"v.{suffix}")
        same(read_direction(str(tmp_path / f"v.{suffix}")), vectors, everywhere)

    def test_no_code_of_a_pickle_runs(self, tmp_path):
        (tmp_path / "v.pt").write_bytes(pickle.dumps(Trap(str(tmp_path / "ran"))))
        torch.save({"v": Trap(str(tmp_path / "ran"))}, tmp_path / "w.pt")
        for name in "vw":
            path = tmp_path / f"{name}.pt"
            with pytest.raises(UserError, match=r"something other than tensors.*\n.*remedy: save .* safetensors"):
                read_direction(str(path))
        assert not (tmp_path / "ran").exists()


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def npy(content):
    return "v.npy", lambda path: np.save(path, content)


def tensors(**content):
    content = {name: torch.tensor(value) for name, value in content.items()}
    return "v.safetensors", lambda path: save_file(content, path)


def pt(content):
    return "v.pt", lambda path: torch.save(content, path)


def raw(name, content):
    return name, lambda path: path.write_bytes(content)


WRONG = {  # what is wrong: (file name and how to write it, what the message names)
    "missing": (("v.npy", lambda path: None), "does not exist"),
    "other kind": (raw("v.txt", b"1 2 3"), "ends in '.txt'"),
    "three dimensions": (npy(np.ones((2, 3, 4))), "[2, 3, 4]"),
    "no dimension": (npy(np.float32(1)), "is []"),
    "empty": (npy(np.zeros((0, 4))), "v.npy"),
    "empty tensor": (tensors(layer_1=[]), "vector of layer 1 is empty"),
    "no tensors": (tensors(), "holds no tensor"),
    "NaN": (npy([ROW, [1, np.nan, 0, 0]]), "vector of layer 1 holds NaN"),
    "infinity": (tensors(layer_3=[1.0, float("inf")]), "vector of layer 3 holds an infinite value"),
    "too large for float32": (npy([1e39, 1.0]), "infinite"),
    "zero layer": (npy([[0.0, 0.0], [1.0, 0.0]]), "vector of layer 0 is zero"),
    "zero bare": (pt(torch.zeros(3)), "vector is zero"),
    "complex": (npy(np.ones(3, complex)), "complex128"),
    "bool": (tensors(v=[True, False]), "torch.bool"),
    "objects": (npy(np.array([{}], object)), "Python objects"),
    "not npy": (raw("v.npy", b"hello"), "is not an .npy file"),
    "empty npy": (raw("v.npy", b""), "is not an .npy file"),
    "pickle as npy": (raw("v.npy", pickle.dumps([1.0])), "is not an .npy file"),
    "not safetensors": (raw("v.safetensors", b"hello there"), "is not a safetensors file"),
    "empty safetensors": (raw("v.safetensors", b""), "is not a safetensors file"),
    "not torch": (raw("v.pt", b"hello"), "is cut off"),
    "empty torch": (raw("v.pt", b""), "is cut off"),
    "list": (pt([torch.ones(2)]), "holds a list"),
    "nested": (pt({"a": {"b": torch.ones(2)}, "c": torch.ones(2)}), "entry 'a' is dict"),
    "other key": (pt({(1, 2): torch.ones(2)}), "entry (1, 2)"),
    "no layer in a name": (tensors(layer_1=ROW, bias=ROW), "holds 2 tensors, and the name 'bias'"),
    "layer twice": (tensors(layer_1=ROW, layer_01=ROW), "names layer 1 twice"),
    "key twice": (pt({1: torch.ones(2), "1": torch.ones(2)}), "twice"),
    "negative layer": (pt({-1: torch.ones(2)}), "names a layer below 0"),
    "negative layer in a name": (tensors(**{"layer_-1": ROW}), "names a layer below 0"),
    "matrix under a layer": (tensors(layer_1=TWO), "tensor 'layer_1' is [2, 4], not [hidden]"),
    "widths": (tensors(layer_1=ROW, layer_3=ROW[:3]), "layer 3 has 3 numbers, the vector of layer 1 has 4"),
}


class TestWrongFiles:
    @pytest.mark.parametrize("what", WRONG)
    def test_names_what(self, tmp_path, what):
        (name, write), message = WRONG[what]
        write(tmp_path / name)
        refused(lambda: read_direction(str(tmp_path / name)), str(tmp_path / name), message)

    @pytest.mark.parametrize("suffix", ["npy", "safetensors", "pt"])
    def test_cut_off_anywhere(self, tmp_path, suffix):
        path = tmp_path / f"v.{suffix}"
        {"npy": np.save, "safetensors": lambda p, a: save_file({"v": torch.tensor(a)}, p),
         "pt": lambda p, a: torch.save(torch.tensor(a), p)}[suffix](path, TWO)  # fmt: skip
        whole = path.read_bytes()
        for size in {0, 1, 7, 8, 9, 40, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:size])
            refused(lambda: read_direction(str(path)), str(path))

    @pytest.mark.parametrize("sidecar", ["[]", "{", '{"layer": "x"}', '{"layer": -1}', '{"layer": true}'])
    def test_sidecar(self, tmp_path, sidecar):
        np.save(tmp_path / "v.npy", np.array(ROW))
        (tmp_path / "v.json").write_text(sidecar)
        refused(lambda: read_direction(str(tmp_path / "v.npy")), str(tmp_path / "v."))


class TestDirection:
    direction = Direction("deceit", {2: np.ones(4, np.float32), 5: np.full(4, 2, np.float32)})

    def test_at(self):
        assert self.direction.at(5).tolist() == [2] * 4
        refused(lambda: self.direction.at(3), "'deceit'", "layer 3", "2, 5")

    def test_check(self):
        self.direction.check(4, 6, "x")
        refused(lambda: self.direction.check(4, 5, "x.npy"), "x.npy: layer 5 of a model with 5 layers (0 to 4)")
        refused(lambda: self.direction.check(8, 6, "x.npy"), "vector of layer 2 has 4 numbers", "is 8 wide")
        refused(lambda: Direction("n", {-1: np.ones(4, np.float32)}).check(4, 5, "x"), "layer -1", "5 layers")

    def test_check_bare(self):
        bare = Direction("n", {}, np.ones(4, np.float32))
        bare.check(4, 1, "x")
        refused(lambda: bare.check(5, 1, "x"), "4 numbers", "5 wide")


class TestWrite:
    def test_and_read(self, tmp_path):
        wide = np.arange(8, dtype=np.float64) + 1
        vectors = {11: wide[::2], 2: np.array([0.1, 2, 3, 4], np.float32)}  # a view with gaps, and float64
        write_direction(tmp_path / "new" / "v.safetensors", Direction("deceit", vectors, None, {"site": "last"}))
        found = read_direction(str(tmp_path / "new" / "v.safetensors"))
        same(found, {2: vectors[2].tolist(), 11: [1, 3, 5, 7]})
        assert found.metadata == {"name": "deceit", "site": "last"}
        with safe_open(tmp_path / "new" / "v.safetensors", "np") as file:
            assert set(file.keys()) == {"layer_2", "layer_11"}
            assert file.get_tensor("layer_11").dtype == np.float32
        before = [path.read_bytes() for path in sorted((tmp_path / "new").iterdir())]
        write_direction(tmp_path / "new" / "v.safetensors", found)
        assert [path.read_bytes() for path in sorted((tmp_path / "new").iterdir())] == before
        assert len(before) == 2

    def test_bare(self, tmp_path):
        write_direction(tmp_path / "v.safetensors", Direction("n", {}, np.array(ROW, np.float32)))
        same(read_direction(str(tmp_path / "v.safetensors")), {}, ROW)

    def test_name_is_the_direction_s(self, tmp_path):
        vectors = {0: np.ones(2, np.float32)}
        write_direction(tmp_path / "v.safetensors", Direction("new", vectors, None, {"name": "old"}))
        assert json.loads((tmp_path / "v.json").read_text()) == {"name": "new"}

    def test_folder_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        direction = Direction("n", {0: np.ones(2, np.float32)})
        refused(lambda: write_direction(tmp_path / "file" / "v.safetensors", direction), "cannot be written")


class TestGguf:
    direction = Direction(
        "n", {i: np.array(ROW, np.float32) * (i + 1) for i in (0, 1, 4)}, None, {"model_type": "llama"}
    )

    def test_without_the_library(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(UserError, match=r"v\.gguf.*\n  remedy: pip install gguf"):
            write_gguf(tmp_path / "v.gguf", self.direction)
        assert not list(tmp_path.iterdir())

    def test_nothing_to_write(self, tmp_path):
        path = tmp_path / "v.gguf"
        refused(lambda: write_gguf(path, Direction("n", {0: np.ones(2, np.float32)})), "'n' is of layer 0 alone")
        refused(lambda: write_gguf(path, Direction("n", {}, np.ones(2, np.float32))), "'n' names no layer")

    @pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="an optional library")
    def test_file(self, tmp_path):
        from gguf import GGUFReader

        assert write_gguf(tmp_path / "v.gguf", self.direction) == [0]
        reader = GGUFReader(tmp_path / "v.gguf")
        assert reader.fields["general.architecture"].contents() == "controlvector"
        assert reader.fields["controlvector.model_hint"].contents() == "llama"
        assert reader.fields["controlvector.layer_count"].contents() == 2
        found = {tensor.name: tensor for tensor in reader.tensors}
        assert set(found) == {"direction.1", "direction.4"}
        assert all(tensor.tensor_type.name == "F32" for tensor in found.values())
        np.testing.assert_array_equal(found["direction.4"].data, np.array(ROW) * 5)
        assert [path.name for path in tmp_path.iterdir()] == ["v.gguf"]
