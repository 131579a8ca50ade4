"""Feature vectors on disk: one safetensors file a layer, of which only the rows that are asked for are ever in memory."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.files import new_file
from afintro.errors import UserError

VECTOR_TYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}  # numpy has no bfloat16
INDEX_TYPES: dict[str, np.dtype] = {"I64": np.dtype("<i8")}
HEADER_LIMIT = 100_000_000  # bytes, that of the safetensors library
BLOCK_BYTES = 16 * 2**20
REMAKE = "make the file again with scripts/extract_af_sae_features.py"


class FeatureFile:
    """The feature vectors of one layer. Opening it reads the header and the indices, not the vectors.

    Rows are read with ``pread`` and not through a map, whose touched pages would count as the process's own memory. The
    file is open during a call only, so that an instance can be pickled to another process and used after a fork.

    Args:
        path: A safetensors file of ``vectors`` [n, width] (float32, float16 or bfloat16), ``feature_indices`` [n] int64
            ascending, and string metadata with at least ``layer``.

    Attributes:
        path: As given.
        layer: The layer that the features are of.
        width: Length of a vector.
        count: Number of vectors, n.
        metadata: The file's metadata.
        indices: Feature of each row [n], int64, ascending.

    Raises:
        UserError: Not such a file, or cut off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header, start, self._state = _read_header(self.path)
        shape, self._dtype, self._offset = self._tensor(header, "vectors", VECTOR_TYPES, 2, start)
        index_shape, index_type, index_offset = self._tensor(header, "feature_indices", INDEX_TYPES, 1, start)
        self.count, self.width = shape
        self.metadata: dict[str, str] = header.get("__metadata__", {})
        if index_shape != [self.count] or not self.count or not self.width:
            raise self._error(f"vectors {shape} and feature_indices {index_shape} are not [n, width] and [n]")
        self.indices: NDArray[np.int64] = np.fromfile(self.path, index_type, self.count, offset=index_offset)
        if self.indices[0] < 0 or (np.diff(self.indices) <= 0).any():
            raise self._error("feature_indices are not ascending")
        layer = self.metadata.get("layer", "")
        if not (layer.isascii() and layer.isdigit()):
            raise self._error(f"metadata 'layer' is {layer!r}, not a number" if layer else "metadata has no 'layer'")
        self.layer = int(layer)
        if self.metadata.get("width", str(self.width)) != str(self.width):
            raise self._error(f"metadata says width {self.metadata['width']}, the vectors have {self.width}")

    def _error(self, what: str) -> UserError:
        return UserError(what, where=str(self.path), remedy=REMAKE)

    def _tensor(
        self, header: dict[str, Any], name: str, types: Mapping[str, np.dtype], dimensions: int, start: int
    ) -> tuple[list[int], np.dtype, int]:
        """Shape, dtype and offset in the file of a tensor, checked against the file's size."""
        if name not in header:
            raise self._error(f"has no tensor {name!r}")
        try:
            kind, shape, (begin, end) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
            numbers = [*shape, begin, end]
        except (TypeError, KeyError, ValueError) as error:
            raise self._error(f"is not a safetensors file: the header's entry {name!r} is malformed") from error
        if str(kind) not in types:
            raise self._error(f"tensor {name!r} is {kind}, not {' or '.join(types)}")
        if len(shape) != dimensions:
            raise self._error(f"tensor {name!r} is {shape}, not of {dimensions} dimensions")
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise self._error(f"is not a safetensors file: tensor {name!r} is {shape} at bytes {begin} to {end}")
        if end - begin != math.prod(shape) * types[kind].itemsize:
            raise self._error(f"is not a safetensors file: tensor {name!r} is {shape} {kind} in {end - begin} bytes")
        size = self._state[0]
        if start + end > size:
            raise self._error(f"is cut off: tensor {name!r} ends at byte {start + end} of {size}")
        return shape, types[kind], start + begin

    def rows(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows, in the order given: float32 [len(rows), width].

        Raises:
            IndexError: No such row.
            UserError: NaN or infinity in a vector, or the file has changed.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.count:
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.count}")
        raw = np.empty((len(wanted), self.width), self._dtype)
        stride = self.width * self._dtype.itemsize
        with _opened(self.path) as file:
            if _state(file) != self._state:
                raise self._error("has changed since it was opened")
            for target, row in zip(raw, wanted.tolist(), strict=True):
                target[:] = np.frombuffer(os.pread(file.fileno(), stride, self._offset + row * stride), self._dtype)
        bfloat16 = raw.dtype.kind == "u"  # the upper half of a float32
        values = (raw.astype(np.uint32) << 16).view(np.float32) if bfloat16 else raw.astype(np.float32, copy=False)
        check_finite(values, self.indices[wanted], str(self.path))
        return values


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(what, where=str(path), remedy="check the path") from error


def _state(file: IO[bytes]) -> tuple[int, int]:
    """Size in bytes and time of change, to know a file that was written anew."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _read_header(path: Path) -> tuple[dict[str, Any], int, tuple[int, int]]:
    """The header of a safetensors file, where the data begin, and the file's state."""
    with _opened(path) as file:
        state = _state(file)
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= min(state[0] - 8, HEADER_LIMIT) else b""
    try:
        header = json.loads(raw)
        metadata = header.get("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that are not strings")
    except (ValueError, AttributeError) as error:  # not JSON, or not objects
        raise UserError("is not a safetensors file, or is cut off", where=str(path), remedy=REMAKE) from error
    return header, 8 + length, state


def check_finite(vectors: NDArray[np.float32], features: NDArray[np.int64], where: str) -> None:
    """Check that vectors [n, width] of features [n] hold numbers only.

    Raises:
        UserError: Names the first feature whose vector holds NaN or infinity.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        what = "NaN" if np.isnan(vectors[bad[0]]).any() else "an infinite value"
        raise UserError(
            f"vector of feature {features[bad[0]]} holds {what}", where=where, remedy="mend or leave out that feature"
        )


def write_features(
    path: Path,
    blocks: Iterable[NDArray[np.float32]],
    indices: NDArray[np.int64],
    width: int,
    metadata: Mapping[str, str],
) -> None:
    """Write a file that :class:`FeatureFile` reads, block by block.

    Args:
        path: The file; a crash leaves none, or the old one.
        blocks: Vectors [any number, width], float32, in all one for each index.
        indices: Features [n], int64, ascending.
        width: Length of a vector.
        metadata: What the header tells; ``width`` is added.

    Raises:
        ValueError: Blocks and indices do not fit.
        UserError: The file cannot be written.
    """
    if not len(indices) or (np.diff(indices) <= 0).any():
        raise ValueError("indices must be ascending, and at least one")
    split, end = 8 * len(indices), 8 * len(indices) + 4 * len(indices) * width
    header = {
        "__metadata__": dict(sorted({**metadata, "width": str(width)}.items())),
        "feature_indices": {"dtype": "I64", "shape": [len(indices)], "data_offsets": [0, split]},
        "vectors": {"dtype": "F32", "shape": [len(indices), width], "data_offsets": [split, end]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text + indices.astype("<i8").tobytes())
        written = 0
        for block in blocks:
            if block.ndim != 2 or block.shape[1] != width:
                raise ValueError(f"a block of shape {block.shape} for vectors of width {width}")
            file.write(np.ascontiguousarray(block, "<f4").data)
            written += len(block)
        if written != len(indices):
            raise ValueError(f"{written} vectors for {len(indices)} indices")


def map_array(path: Path, dimensions: int) -> NDArray[Any]:
    """Map a ``.npy`` file of numbers read-only; a pickled one is never loaded.

    Raises:
        UserError: No such file, not ``.npy``, not numbers, or not of so many dimensions.
    """
    _opened(path).close()
    remedy = f"give numbers saved by numpy.save, of {dimensions} dimension{'s' * (dimensions > 1)}"
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # as np.load(mmap_mode="r"), but .npy alone
    except (ValueError, OSError, EOFError) as error:
        what = "holds Python objects, which are not loaded" if "object" in str(error) else f"is no .npy file ({error})"
        raise UserError(what, where=str(path), remedy=remedy) from error
    if array.dtype.kind not in "fiub":
        raise UserError(f"holds {array.dtype}, not real numbers", where=str(path), remedy=remedy)
    if array.ndim != dimensions:
        raise UserError(f"is {list(array.shape)}", where=str(path), remedy=remedy)
    return array


def most_selective(selectivity: NDArray[Any], top_k: int, where: str) -> NDArray[np.int64]:
    """Features of the largest absolute selectivity: indices [top_k], int64, ascending; of equals the lower index.

    Args:
        selectivity: One number a feature [features].
        top_k: How many, from 1 to the number of features.
        where: Name of the selectivity in messages.

    Raises:
        UserError: Selectivity that is not [features], not finite, or all one value; ``top_k`` out of range.
    """
    remedy = "compute it again, e.g. with scripts/build_af_activations.py"
    if selectivity.ndim != 1:
        raise UserError(f"selectivity is {list(selectivity.shape)}, not [features]", where=where, remedy=remedy)
    bad = np.flatnonzero(~np.isfinite(selectivity))
    if bad.size:
        what = f"selectivity of feature {bad[0]} is {selectivity[bad[0]]} ({bad.size} such of {len(selectivity)})"
        raise UserError(what, where=where, remedy=remedy)
    if not 1 <= top_k <= len(selectivity):
        what = f"top_k is {top_k}, of {len(selectivity)} features"
        raise UserError(what, where=where, remedy=f"use a number from 1 to {len(selectivity)}")
    if len(selectivity) > 1 and (selectivity == selectivity[0]).all():
        raise UserError(f"selectivity is {selectivity[0]} for every feature", where=where, remedy=remedy)
    order = np.argsort(-np.abs(selectivity.astype(np.float64)), kind="stable")
    return np.sort(order[:top_k]).astype(np.int64)


def activation_profiles(
    path: Path, indices: NDArray[np.int64], block_columns: int = 512
) -> Iterator[NDArray[np.float32]]:
    """Columns of an activation matrix as rows, without ever holding the matrix.

    Args:
        path: ``.npy`` file [texts, features].
        indices: Columns [n].
        block_columns: How many columns go through the file at a time.

    Yields:
        float32 [<=block_columns, texts].

    Raises:
        UserError: Not such a file, or NaN or infinity in a column.
        IndexError: No such column.
    """
    matrix = map_array(path, 2)
    texts, features = matrix.shape
    step = max(1, BLOCK_BYTES // max(1, features * matrix.itemsize))
    for first in range(0, len(indices), block_columns):
        columns = indices[first : first + block_columns]
        block = np.empty((len(columns), texts), np.float32)
        for row in range(0, texts, step):
            matrix = map_array(path, 2)  # a new map gives the pages of the last one back
            with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused below
                block[:, row : row + step] = matrix[row : row + step][:, columns].T
        check_finite(block, columns, str(path))
        yield block
