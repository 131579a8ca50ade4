"""Read other tools' pickles through an unpickler that knows tensors, arrays and plain containers, and runs nothing that they name.

This is the only place of the project that reads a pickle, for ``scripts/convert_pickles.py``. Every function that a pickle may
name is one of :data:`KNOWN`, by exact module and name, and is answered by a stand-in of this file that builds plain data from
checked arguments. A stand-in and what it builds take no state, so that the opcode BUILD can change nothing, and are no classes,
so that NEWOBJ cannot make anything. Whatever else a pickle names is refused by name before it is even imported.
"""

import io
import math
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from afintro.errors import UserError, one_line
from afintro.tasks.feature_descriptions.features import open_binary
from afintro.tasks.feature_descriptions.pickle_nesting import SHARING, excess

REMEDY = "nothing that it names was run; ask its author for the tensors as safetensors"
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch.save wrote before it wrote zip archives
DTYPE = re.compile(r"[biuf][1248]")
DEPTH = 100  # of containers in each other
MANY_BITS = 1024  # of a whole number, which JSON would write in digits
LEAVES = (bool, int, float, str)


class _Refused(Exception):
    """Something that a pickle may not hold."""


class _StandIn:
    """What a pickle gets for a name: it builds plain data, and takes no state."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self._name, self._make = name, make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"gives {self._name} a state")


class _Held:
    """A tensor, storage, type or array within the unpickler, out of reach of its opcodes."""

    __slots__ = ("value",)

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"gives a {type(self.value).__name__} a state")


class _Dtype(_Held):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        version, order, *parts = state
        if version != 3 or order not in ("<", ">", "=", "|") or any(part is not None for part in parts[:3]):
            raise _Refused("holds an array of records or of subarrays")
        self.value = self.value.newbyteorder(order)


class _Array(_Held):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, by_columns, content = state
        if version != 1 or not isinstance(content, bytes | bytearray):
            raise _Refused("holds an array of Python objects")
        self.value = _numbers(content, dtype, shape, "F" if by_columns else "C")


class _Values(NamedTuple):
    """The values of tensors: a torch.dtype and a torch.UntypedStorage."""

    dtype: Any
    storage: Any


def _held(kind: type, value: Any) -> Any:
    """Return what is held by one of our holders, whose value is of a kind."""
    if not isinstance(value, _Held) or not isinstance(value.value, kind):
        raise _Refused(f"gives {type(value).__name__} where {kind.__name__} belongs")
    return value.value


def _shown(value: Any) -> str:
    """Name a value in a message: a string as it is; of anything else, which may be huge, its type."""
    return one_line(value, 40) if isinstance(value, str) else type(value).__name__


def _whole(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple | list) or not all(type(number) is int and number >= 0 for number in numbers):
        raise _Refused("holds sizes that are no list of whole numbers")
    return tuple(numbers)


def _dtype(name: Any, *_: Any) -> _Dtype:
    if not (isinstance(name, str) and DTYPE.fullmatch(name)):
        raise _Refused(f"holds an array of the type {_shown(name)}, not of real numbers")
    return _Dtype(np.dtype(name))


def _numbers(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    kind, sizes = _held(np.dtype, dtype), _whole(shape)
    if not isinstance(content, bytes | bytearray) or len(content) != math.prod(sizes) * kind.itemsize:
        raise _Refused(f"holds an array of the shape {list(sizes)} in other than its bytes")
    return np.frombuffer(content, kind).reshape(sizes, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not NDARRAY:
        raise _Refused(f"makes an array of {_shown(kind)}")
    return _Array()


def _scalar(dtype: Any, content: Any) -> Any:
    return _numbers(content, dtype, (1,), "C")[0].item()


def _storage(content: Any) -> _Held:
    """Read the values of a tensor, which are a file of torch within the pickle, through torch's reader of weights alone."""
    import torch

    if not isinstance(content, bytes):
        raise _Refused("holds values of a tensor that are no bytes")
    try:
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        named = _named_by_torch(error)
        what = f" (it names {named})" if named else ""
        raise _Refused(f"holds values of a tensor that are something other than numbers{what}") from error
    if not isinstance(storage, torch.storage.TypedStorage):
        raise _Refused(f"holds a {type(storage).__name__} where the values of a tensor belong")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that a class which torch itself writes into pickles is old
        return _Held(_Values(storage.dtype, storage.untyped()))


def _named_by_torch(error: Exception) -> str:
    """Return what a file names that torch's reader of weights refuses; "" if the reader says no such name."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return named[1] if named else ""


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    import torch

    values = _held(_Values, storage)
    (start,), sizes, strides = _whole((offset,)), _whole(size), _whole(stride)
    count = values.storage.nbytes() // values.dtype.itemsize
    last = start + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    # torch would make room for values that are not there; and a small file might stand for a huge tensor.
    if math.prod(sizes) > count or (math.prod(sizes) and last >= count):
        raise _Refused(f"holds a tensor of the shape {list(sizes)} in {count} values")
    return _Held(torch.empty(0, dtype=values.dtype).set_(values.storage, start, sizes, strides))


def _parameter(tensor: Any, *_: Any) -> _Held:
    import torch

    return _Held(_held(torch.Tensor, tensor))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"encodes text as {_shown(encoding)}")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise _Refused("makes bytes of something else")
    return b""


def _default_dict(*arguments: Any) -> dict[Any, Any]:
    return dict(*arguments[1:])


def _in(modules: tuple[str, ...], **makers: Callable[..., Any]) -> dict[tuple[str, str], _StandIn]:
    return {(module, name): _StandIn(f"{module}.{name}", make) for module in modules for name, make in makers.items()}


NDARRAY = _StandIn("numpy.ndarray", _reconstruct)
KNOWN = {
    **_in(("torch._utils",), _rebuild_tensor=_tensor, _rebuild_tensor_v2=_tensor, _rebuild_parameter=_parameter),
    **_in(("torch.storage",), _load_from_bytes=_storage),
    **_in(("torch",), Size=tuple),
    **_in(("numpy.core.multiarray", "numpy._core.multiarray"), _reconstruct=_reconstruct, scalar=_scalar),
    **_in(
        ("numpy.core.numeric", "numpy._core.numeric"),
        _frombuffer=lambda content, dtype, shape, order: _Held(_numbers(content, dtype, shape, order)),
    ),
    **_in(("numpy",), dtype=_dtype),
    ("numpy", "ndarray"): NDARRAY,
    **_in(("_codecs",), encode=_encode),
    **_in(("collections",), OrderedDict=dict, defaultdict=_default_dict),
    **_in(("builtins", "__builtin__"), set=set, frozenset=frozenset, list=list, dict=dict, tuple=tuple),
    **_in(("builtins", "__builtin__"), int=int, float=float, bytes=_no_bytes),
}
"""All functions and classes that a pickle may name, and what answers for each."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise _Refused(f"names {module}.{name}, which makes no tensor, array or plain container")
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("refers to objects outside of the file")


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle, or a file of ``torch.save``, that holds tensors, arrays, plain containers, numbers and strings alone.

    Args:
        path: The file. Nothing that it names is imported or run.

    Returns:
        dicts, lists, tuples, sets, strings, numbers, None, ``torch.Tensor`` and ``numpy.ndarray``. Arrays may be read-only.

    Raises:
        UserError: The file does not exist, is damaged, or holds or names anything else, which the error names.
    """
    with open_binary(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if file.read(2) == b"PK":
            return _released(_torch_file(path), path, size)
        file.seek(0)
        try:
            if (what := excess(file, size)) is not None:
                raise _Refused(what)
            file.seek(0)
            content = _Reader(file).load()
            rest = content != TORCH_MAGIC and file.read(1)
        except _Refused as error:
            raise UserError(str(error), where=str(path), remedy=REMEDY) from error
        except Exception as error:  # a malformed pickle raises almost anything
            what = (
                f"is no pickle of tensors, arrays and plain containers ({type(error).__name__}: {one_line(error, 100)})"
            )
            raise UserError(what, where=str(path), remedy=REMEDY) from error
    if rest:
        raise UserError("goes on after its pickle", where=str(path), remedy="give files of one pickle each")
    return _released(_torch_file(path) if content == TORCH_MAGIC else content, path, size)


def _torch_file(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        named = _named_by_torch(error)
        what = f"names {named}" if named else f"is cut off ({type(error).__name__})"
        raise UserError(f"holds something other than tensors, or {what}", where=str(path), remedy=REMEDY) from error


def _released(content: Any, path: Path, size: int) -> Any:
    """Return the content with tensors and arrays in place of their holders, after checking that all of it is plain."""
    left = SHARING * max(size, 1024)

    def refuse(what: str) -> UserError:
        return UserError(what, where=str(path), remedy=REMEDY)

    def release(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEPTH:
            raise refuse("holds containers within themselves, or the same container too often")
        value = value.value if isinstance(value, _Held) else value
        if type(value) is int and value.bit_length() > MANY_BITS:
            raise refuse(f"holds a whole number of {value.bit_length()} bits")
        if value is None or type(value) in LEAVES or type(value) is np.ndarray:
            return value
        if type(value) in (list, tuple):
            return type(value)(release(item, depth + 1) for item in value)
        if type(value) in (set, frozenset):
            return type(value)(name(item, depth + 1) for item in value)
        if type(value) in (dict, OrderedDict):
            return {name(key, depth + 1): release(item, depth + 1) for key, item in value.items()}
        if type(value).__module__.partition(".")[0] == "torch":
            return _released_by_torch(value, SHARING * max(size, 1024), refuse)
        raise refuse(f"holds a {type(value).__name__}, which is no tensor, array, number, string or plain container")

    def name(value: Any, depth: int) -> Any:
        value = release(value, depth)
        for part in value if type(value) is tuple else (value,):
            if part is not None and type(part) not in LEAVES:
                raise refuse(f"has a {type(part).__name__} as a key, or in a set")
        return value

    return release(content, 0)


def _released_by_torch(value: Any, most: int, refuse: Callable[[str], UserError]) -> Any:
    import torch

    if isinstance(value, torch.Size):
        return tuple(value)
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_quantized:
        raise refuse(f"holds a {type(value).__name__}, which is no plain tensor")
    if value.is_meta or value.numel() > most:  # one value may stand for a tensor of any size
        raise refuse(f"holds a tensor of the shape {list(value.shape)} without its values")
    return value.detach().resolve_conj().resolve_neg()
