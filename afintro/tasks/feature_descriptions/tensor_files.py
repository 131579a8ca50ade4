"""Tensors in the kinds of files in which autoencoders are published, read a block of rows at a time."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from afintro.errors import UserError, one_line
from afintro.tasks.feature_descriptions.features import convert_or
from afintro.tasks.feature_descriptions.profiles import map_array

SUFFIXES = (".safetensors", ".npz", ".npy", ".pt", ".pth")
KINDS = "safetensors, .npz, .npy, or a .pt or .pth file of tensors alone"


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Args:
        shape: Its sizes.
        dtype: The name that the file gives its type.
        real: Whether it holds real numbers of floating point.
    """

    shape: tuple[int, ...]
    dtype: str
    real: bool


class TensorFile(Protocol):
    """An open file of tensors."""

    stored: dict[str, Stored]

    def block(self, name: str, first: int, last: int, transposed: bool) -> NDArray[Any]:
        """Read the rows (or, transposed, the columns) ``first`` to ``last - 1`` of a matrix: float32 [<=n, width]."""


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors; nothing but names, types and shapes is read, and no object of a pickle is ever made.

    Args:
        path: ``.safetensors``; ``.npz``; ``.npy``, whose only tensor has the name ""; ``.pt`` or ``.pth``: a tensor or
            dicts of tensors, the names of nested dicts joined by dots, through torch's reader of weights alone.

    Raises:
        UserError: The file does not exist, or is no such file.
    """
    kinds: dict[str, Callable[[Path], TensorFile]] = {".npz": _Npz, ".npy": _Npy, ".pt": _Torch, ".pth": _Torch}
    if not path.is_file():
        raise UserError("does not exist", where=str(path), remedy=f"give {KINDS}")
    return kinds.get(path.suffix, _Safetensors)(path)


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self.stored = {
                name: Stored(tuple(part.get_shape()), part.get_dtype(), part.get_dtype().startswith(("F", "BF")))
                for name, part in slices.items()
            }

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self._path, "pt") as file:  # torch, because numpy has no bfloat16
                yield file
        except (SafetensorError, OSError) as error:
            what = f"is not a safetensors file ({one_line(error)})"
            raise UserError(what, where=str(self._path), remedy=convert_or(self._path, f"give {KINDS}")) from error

    def block(self, name: str, first: int, last: int, transposed: bool) -> NDArray[Any]:
        with (
            self._open() as file
        ):  # again for each block, because the file is a map whose touched pages count as memory
            stored = file.get_slice(name)
            block = stored[:, first:last].T if transposed else stored[first:last]
            return block.float().numpy()


class _Torch:
    def __init__(self, path: Path) -> None:
        from afintro.data.torch_files import load_tensors  # torch takes seconds to import

        content = load_tensors(path, "weights", mmap=zipfile.is_zipfile(path))
        self._tensors = dict(_named(content, ""))
        self.stored = {
            name: Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.is_floating_point())
            for name, tensor in self._tensors.items()
        }

    def block(self, name: str, first: int, last: int, transposed: bool) -> NDArray[Any]:
        tensor = self._tensors[name].detach()
        return (tensor[:, first:last].T if transposed else tensor[first:last]).float().numpy()


def _named(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Give the tensors of nested dicts with their names; what is no tensor, such as a number of steps, is passed over."""
    import torch

    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _named(value, f"{name}.{key}" if name else str(key))


class _Npy:
    def __init__(self, path: Path) -> None:
        self._array = map_array(path, 2)
        self.stored = {"": Stored(self._array.shape, str(self._array.dtype), self._array.dtype.kind == "f")}

    def block(self, name: str, first: int, last: int, transposed: bool) -> NDArray[Any]:
        block = self._array[:, first:last].T if transposed else self._array[first:last]
        with np.errstate(over="ignore"):  # what does not fit into float32 is reported as infinite
            return np.ascontiguousarray(block, np.float32)


class _Npz:
    """Arrays of ``numpy.savez``: rows in the order of the file are read as a stream, so that a decoder is never in memory whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._headers: dict[str, tuple[tuple[int, ...], bool, np.dtype, int]] = {}
        self._streams: dict[str, Any] = {}
        with self._reading():
            self._archive = zipfile.ZipFile(path)
            for member in self._archive.namelist():
                if member.endswith(".npy"):
                    with self._archive.open(member) as stream:
                        self._headers[member.removesuffix(".npy")] = _npy_header(stream)
        self.stored = {
            name: Stored(shape, str(dtype), dtype.kind == "f") for name, (shape, _, dtype, _) in self._headers.items()
        }

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError) as error:
            what = f"is not an .npz file, or is cut off ({one_line(error)})"
            raise UserError(what, where=str(self._path), remedy=f"give {KINDS}") from error

    def block(self, name: str, first: int, last: int, transposed: bool) -> NDArray[Any]:
        shape, by_columns, dtype, start = self._headers[name]
        with self._reading():
            if name not in self._streams:
                self._streams[name] = self._archive.open(f"{name}.npy")
            stream = self._streams[name]
            if transposed != by_columns:  # the wanted vectors do not lie one after another
                stream.seek(start)
                whole = _values(stream, math.prod(shape), dtype).reshape(shape, order="F" if by_columns else "C")
                block = whole[:, first:last].T if transposed else whole[first:last]
            else:
                count, width = reversed(shape) if transposed else shape
                last = min(last, count)
                stream.seek(start + first * width * dtype.itemsize)
                block = _values(stream, (last - first) * width, dtype).reshape(last - first, width)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(block, np.float32)


def _npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, whether the columns lie one after another, type, and where the values begin."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array of the version {version}")
    shape, by_columns, dtype = readers[version](stream)
    return shape, by_columns, dtype, stream.tell()


def _values(stream: Any, count: int, dtype: np.dtype) -> NDArray[Any]:
    raw = stream.read(count * dtype.itemsize)
    if len(raw) < count * dtype.itemsize:
        raise EOFError("values are missing")
    return np.frombuffer(raw, dtype)
