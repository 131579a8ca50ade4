"""The one reader of pickles: what is plain is read exactly, and whatever else a pickle names is refused by name and never run."""

import ast
import io
import os
import pickle
import struct
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.plain_pickle import KNOWN, read_plain_pickle

ROOT = Path(__file__).resolve().parents[3]
MATRIX = torch.arange(12, dtype=torch.float32).reshape(3, 4)
PLAIN = {
    "list": [1, 2.5, "text", None, True, (1, ("a",))],
    "sets": ({1, 2}, frozenset({"a"})),
    "ordered": OrderedDict(a=1),
    "default": defaultdict(list, {(40, 7): [1]}),
    "scalars": (np.float32(0.5), np.int64(4), np.bool_(True)),
}
TENSORS = {
    "matrix": MATRIX, "columns": MATRIX.T, "part": MATRIX[1:, 1:3], "parameter": torch.nn.Parameter(MATRIX),
    "bfloat16": MATRIX.bfloat16(), "whole": torch.arange(3), "empty": torch.zeros(0, 4), "number": torch.tensor(2.0),
}  # fmt: skip
ARRAYS = {
    "matrix": MATRIX.numpy().astype(np.float64), "columns": MATRIX.numpy().T, "swapped": np.arange(3, dtype=">i4"),
    "half": np.ones(2, np.float16), "bool": np.array([True, False]), "empty": np.zeros((0, 3)), "number": np.array(3.0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, in which planted code would leave a folder ``ran``."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("ran").exists()


def read(content, protocol=None):
    raw = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
    Path("f.pkl").write_bytes(raw)
    return read_plain_pickle(Path("f.pkl"))


def refused(content, *words):
    with pytest.raises(UserError) as error:
        read(content)
    assert error.value.where == "f.pkl"
    for word in words:
        assert word in error.value.what


class Calls:
    """Is pickled as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


BOMB = Calls(os.mkdir, "ran")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
class TestPlain:
    def test_containers(self, protocol):
        assert read(PLAIN, protocol) == PLAIN
        assert type(read(PLAIN, protocol)["ordered"]) is dict

    def test_tensors(self, protocol):
        found = read(TENSORS, protocol)
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)

    def test_arrays(self, protocol):
        found = read(ARRAYS, protocol)
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_tensors_that_share_values():
    first, second = read([MATRIX, MATRIX[0]])
    assert torch.equal(first[0], second)


@pytest.mark.parametrize("new", [True, False])
def test_files_of_torch(new):
    torch.save({"step": 3, "weights": {"a": MATRIX}}, "f.pkl", _use_new_zipfile_serialization=new)
    found = read_plain_pickle(Path("f.pkl"))
    assert found["step"] == 3
    assert torch.equal(found["weights"]["a"], MATRIX)
    torch.save({"a": MATRIX, "b": BOMB}, "f.pkl", _use_new_zipfile_serialization=new)
    refused(Path("f.pkl").read_bytes(), "mkdir")


def named(module, name):
    """A pickle of a function without a call."""
    return f"c{module}\n{name}\n.".encode()


class TestPlantedCode:
    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec"),
            ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "bytearray"), ("builtins", "open"),
            ("torch", "load"), ("torch.serialization", "load"), ("torch.hub", "load"), ("torch._utils", "_rebuild_from_type_v2"),
            ("torch._tensor", "_rebuild_from_type_v2"), ("torch.storage", "TypedStorage"), ("torch", "Tensor"),
            ("numpy", "load"), ("numpy", "fromfile"), ("numpy", "memmap"), ("numpy.core.multiarray", "fromfile"),
            ("operator", "attrgetter"), ("functools", "partial"), ("copyreg", "_reconstructor"), ("pickle", "loads"),
            ("collections", "OrderedDict.fromkeys"), ("collections", "_sys"), ("codecs", "encode"), ("_codecs", "decode"),
            ("afintro.errors", "UserError"), ("__main__", "Calls"),
        ],
    )  # fmt: skip
    def test_names(self, module, name):
        refused(named(module, name), f"{module}.{name}")
        refused(pickle.PROTO + b"\x04" + text(module) + text(name) + pickle.STACK_GLOBAL + b".", f"{module}.{name}")

    def test_calls(self):
        for content in (BOMB, [MATRIX, {"a": BOMB}], {(BOMB,): 1}, PLAIN | {"b": (1, [BOMB])}):
            refused(content, "mkdir")
        refused(Calls(eval, "__import__('os').mkdir('ran')"), "builtins.eval")

    def test_modules_are_not_imported(self):
        Path("planted.py").write_text("import os; os.mkdir('ran')")
        refused(named("planted", "anything"), "planted.anything")

    @pytest.mark.parametrize(
        "opcodes",
        [
            b"(S'ran'\nios\nmkdir\n.",  # INST
            b"(cos\nmkdir\nS'ran'\no.",  # OBJ
            b"\x80\x04cos\nmkdir\nS'ran'\n\x85\x81.",  # NEWOBJ
            b"\x80\x04cos\nmkdir\nS'ran'\n\x85}\x92.",  # NEWOBJ_EX
            b"\x80\x02\x82\x01.",  # EXT1
            b"Pname\n.",  # PERSID
            b"\x80\x05\x97.",  # NEXT_BUFFER
        ],
    )
    def test_opcodes(self, opcodes):
        refused(opcodes)

    def test_classes_of_ours_cannot_be_made_anew(self):
        refused(b"\x80\x04ccollections\nOrderedDict\n)\x81.", "NEWOBJ")
        refused(b"(icollections\nOrderedDict\n}b.")

    @pytest.mark.parametrize("state", [b"}S'__defaults__'\nI1\ns", b"(}}S'_make'\nI1\nst", b"N", b"I1\n"])
    @pytest.mark.parametrize(
        "target", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy\nndarray\n", b"ctorch\nSize\n"]
    )
    def test_states_of_functions(self, target, state):
        refused(target + state + b"b.", "state")
        assert all(type(entry).__name__ == "_StandIn" for entry in KNOWN.values())

    def test_states_of_tensors_and_containers(self):
        tensor = pickle.dumps(MATRIX, 2)[:-1]
        refused(tensor + b"}S'_backward_hooks'\nI1\nsb.", "state")
        refused(tensor + b"(I1\nI2\nI3\nI4\ntb.", "state")
        refused(b"]}S'a'\nI1\nsb.")
        refused(b"ccollections\nOrderedDict\n)R}S'a'\nI1\nsb.")
        array = pickle.dumps(np.ones(2), 2)[:-1]
        refused(array + b"}S'a'\nI1\nsb.")
        refused(array + b"}S'a'\nI1\nss.")

    def test_hooks_of_a_tensor_are_dropped(self):
        hooks = OrderedDict({1: "hook"})
        content = Calls(torch._utils._rebuild_tensor_v2, MATRIX.storage(), 0, (2,), (1,), True, hooks)
        found = read(content)
        assert found.tolist() == [0, 1]
        assert not found.requires_grad
        assert found._backward_hooks is None

    def test_pickles_within_the_values_of_a_tensor(self):
        buffer = io.BytesIO()
        torch.save([BOMB], buffer, _use_new_zipfile_serialization=False)
        archive = io.BytesIO()
        torch.save(BOMB, archive)
        for inner in (pickle.dumps(BOMB), buffer.getvalue(), archive.getvalue(), b"", pickle.dumps([1])):
            refused(Calls(torch.storage._load_from_bytes, inner), "values of a tensor")
        refused(Calls(torch.storage._load_from_bytes, "text"), "no bytes")
        whole = io.BytesIO()
        torch.save(MATRIX, whole)
        refused(Calls(torch.storage._load_from_bytes, whole.getvalue()), "Tensor")

    @pytest.mark.parametrize(
        "array",
        [
            np.array([1, "a"], object), np.array([BOMB]), np.array(["text"]), np.array([1 + 2j]), np.array([(1, 2.0)], "i4,f4"),
            np.array(["2020-01-01"], "datetime64[D]"), np.array([b"raw"]),
        ],
    )  # fmt: skip
    def test_arrays_of_other_things(self, array):
        refused(array)

    def test_subclasses(self):
        refused(np.ma.array([1.0]), "numpy.ma")
        refused(torch.nn.Linear(2, 2), "Linear")
        refused(torch.eye(2).to_sparse(), "sparse")
        refused(complex(1, 2), "complex")
        refused(Path("x"), "pathlib")
        refused(b"bytes at last", "is no pickle")
        refused(pickle.dumps(b"bytes"), "bytes")


def text(value):
    return pickle.SHORT_BINUNICODE + struct.pack("B", len(value)) + value.encode()


class TestDamaged:
    @pytest.mark.parametrize("content", [b"", b".", b"plain text", b"\x80\x04", pickle.dumps([1]) + b"more", b"]a."])
    def test_no_pickle(self, content):
        refused(content)

    def test_cut_off_anywhere(self):
        whole = pickle.dumps({"a": MATRIX, "b": [1, 2]}, 4)
        for length in range(0, len(whole), 37):
            refused(whole[:length])
        torch.save({"a": MATRIX}, "f.pkl")
        archive = Path("f.pkl").read_bytes()
        refused(archive[: len(archive) // 2])

    def test_places_that_would_fill_the_memory(self):
        refused(b"\x80\x04Nr\x00\x00\x00\x10.", "268435456")
        refused(b"N" + b"p268435456\n.", "268435456")

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"})" + b"\x85" * 500_000 + b"K\x01s.", id="the hash of a deep key would crash Python"),
            pytest.param(b"}])" + b"2\x86" * 40 + b"a\x85K\x01s.", id="the hash of a list's tuple"),
            pytest.param(b"})" + b"2\x86" * 40 + b"K\x01s.", id="the hash of a wide key would never end"),
            pytest.param(b"cnumpy\ndtype\n)" + b"2\x86" * 40 + b"\x85R.", id="the text of an argument"),
            pytest.param(b"](q\x000h\x00" + b"h\x00" * 9 + b"e.", id="no list below the mark"),
        ],
    )
    def test_containers_that_would_exhaust_the_unpickler(self, content):
        refused(b"\x80\x04" + content)

    def test_many_values_in_few_containers_are_read(self):
        shared = [(1, 2)] * 1000
        content = {(number, "a"): shared[:3] for number in range(200)}
        for protocol in range(6):
            assert read(content, protocol) == content

    def test_numbers_that_no_json_holds(self):
        refused([1 << 20_000], "20001 bits")
        assert read([1 << 100]) == [1 << 100]

    @pytest.mark.parametrize("tensor", [torch.empty(3, 4, device="meta"), torch.ones(1).expand(10**6, 10**6)])
    def test_tensors_without_their_values_in_files_of_torch(self, tensor):
        torch.save({"a": tensor}, "f.pkl")
        with pytest.raises(UserError) as error:
            read_plain_pickle(Path("f.pkl"))
        assert "without its values" in error.value.what

    def test_bytes_of_a_number(self):
        refused(Calls(bytes, 10), "bytes")

    def test_absent(self):
        with pytest.raises(UserError) as error:
            read_plain_pickle(Path("absent.pkl"))
        assert error.value.where == "absent.pkl"

    @pytest.mark.parametrize(
        ("offset", "size", "stride"),
        [
            (0, (10**6, 10**6), (0, 0)),
            (8, (3, 4), (4, 1)),
            (-1, (2,), (1,)),
            (0, (2,), (-1,)),
            (0, (13,), (1,)),
            (0, "12", (1,)),
        ],
    )
    def test_tensors_beyond_their_values(self, offset, size, stride):
        refused(Calls(torch._utils._rebuild_tensor_v2, MATRIX.storage(), offset, size, stride, False, OrderedDict()))

    def test_containers_within_themselves(self):
        loop = []
        loop.append(loop)
        refused(loop, "within themselves")
        laughs = ["ha"]
        for _ in range(40):
            laughs = [laughs] * 10
        refused(laughs, "too often")

    def test_tensors_as_keys(self):
        refused({MATRIX: 1}, "key")
        refused({1: {MATRIX}}, "set")


READERS = {
    "pickle": {"load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"}, "joblib": {"load"}, "torch": {"load"},
    "pandas": {"read_pickle"}, "pd": {"read_pickle"},
}  # fmt: skip
FORBIDDEN = {"dill", "cloudpickle", "_pickle", "cPickle", "shelve", "marshal", "pickle5", "jsonpickle", "hickle"}


def test_no_other_file_reads_a_pickle():
    """Also torch.load and numpy.load may be called only so that they make no objects."""
    found = []
    for folder in ("afintro", "scripts", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                found += [(str(path.relative_to(ROOT)), what) for what in readers(node)]
    assert found == [("afintro/tasks/feature_descriptions/plain_pickle.py", "pickle.Unpickler")]


@pytest.mark.parametrize(
    ("program", "reads"),
    [
        ("pickle.loads(x)", True), ("from pickle import load", True), ("pickle.dumps(x)", False), ("import dill", True),
        ("torch.load(x)", True), ("torch.load(x, weights_only=False)", True), ("torch.load(x, weights_only=True)", False),
        ("np.load(x, allow_pickle=True)", True), ("np.load(x, allow_pickle=False)", False), ("np.load(x)", False),
        ("joblib.load(x)", True), ("pandas.read_pickle(x)", True), ("f = torch.load", True), ("from torch import load", True),
    ],
)  # fmt: skip
def test_readers_of_pickles_are_found(program, reads):
    assert any(what for node in ast.walk(ast.parse(program)) for what in readers(node)) is reads


def readers(node):
    """Yield what reads a pickle in one node of a program."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN)
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        yield from ([module] if module.partition(".")[0] in FORBIDDEN else [])
        yield from (f"{module}.{alias.name}" for alias in node.names if alias.name in READERS.get(module, ()))
    if isinstance(node, ast.Call):
        words = {word.arg: word.value.value if isinstance(word.value, ast.Constant) else None for word in node.keywords}
        if words.get("allow_pickle", False) is not False:
            yield "allow_pickle"
        node.func.safe = words.get("weights_only") is True  # ast.walk comes to a call before its function
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and not getattr(node, "safe", False)
    if named and node.attr in READERS.get(node.value.id, ()):
        yield f"{node.value.id}.{node.attr}"
