"""Feature vectors on disk: one safetensors file a layer, of which only the requested rows are ever in memory."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
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
HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors library
REMAKE = "make the file again with scripts/extract_af_sae_features.py"
PICKLES = (".pkl", ".pickle", ".p")


class FeatureFile:
    """The feature vectors of one layer. Opening the file reads the header and the indices, not the vectors.

    Rows are read with ``pread`` and not through a memory map, whose touched pages would count as the process's own memory.
    The file is open only during a call, so that an instance can be pickled to another process and used after a fork.

    Args:
        path: A safetensors file of ``vectors`` [n, width] (float32, float16 or bfloat16), ``feature_indices`` [n] int64
            ascending, and string metadata with at least ``layer``.

    Attributes:
        path: The path of the file.
        layer: 0-based decoder layer that the features belong to.
        width: Length of a vector.
        count: Number of vectors, n.
        metadata: The file's metadata.
        indices: Feature of each row [n], int64, ascending.

    Raises:
        UserError: The file is not such a file, or is cut off.
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
        """Return shape, dtype and offset in the file of a tensor, after checking them against the file's size."""
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
        """Read the vectors of some rows, in the order given.

        Args:
            rows: Row numbers, 0 to ``count - 1``.

        Returns:
            float32 [len(rows), width].

        Raises:
            IndexError: A row does not exist.
            UserError: A vector holds NaN or infinity, or the file has changed since it was opened.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.count:
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.count}")
        raw = np.empty((len(wanted), self.width), self._dtype)
        stride = self.width * self._dtype.itemsize
        with open_binary(self.path) as file:
            if _state(file) != self._state:
                raise self._error("has changed since it was opened")
            for target, row in zip(raw, wanted.tolist(), strict=True):
                target[:] = np.frombuffer(os.pread(file.fileno(), stride, self._offset + row * stride), self._dtype)
        bfloat16 = raw.dtype.kind == "u"  # the upper half of a float32
        values = (raw.astype(np.uint32) << 16).view(np.float32) if bfloat16 else raw.astype(np.float32, copy=False)
        check_finite(values, self.indices[wanted], str(self.path))
        return values


def open_features(paths: Sequence[str]) -> list[FeatureFile]:
    """Open the feature files of one model, one a layer.

    Raises:
        UserError: A path is not a feature file, two files are of one layer, or vectors differ in width.
    """
    files = [FeatureFile(path) for path in paths]
    for file in files:
        if file.width != files[0].width:
            raise UserError(
                f"vectors of width {file.width} in {file.path.name}, {files[0].width} in {files[0].path.name}",
                where="data.features",
                remedy="give files of one model",
            )
    if len({file.layer for file in files}) < len(files):
        raise UserError("two files are of one layer", where="data.features", remedy="give one file for each layer")
    return files


def convert_or(path: str | Path, remedy: str) -> str:
    """Return a remedy for a file that cannot be read: to convert a pickle, which no reader of data takes."""
    return "convert the pickle with scripts/convert_pickles.py" if Path(path).suffix in PICKLES else remedy


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        UserError: The file does not exist or cannot be read.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise UserError(what, where=str(path), remedy="check the path") from error


def _state(file: IO[bytes]) -> tuple[int, int]:
    """Return size in bytes and time of change, which differ for a file that was rewritten."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _read_header(path: Path) -> tuple[dict[str, Any], int, tuple[int, int]]:
    """Read the header of a safetensors file; also returns where the data begin, and the file's state."""
    with open_binary(path) as file:
        state = _state(file)
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= min(state[0] - 8, HEADER_LIMIT) else b""
    try:
        header = json.loads(raw)
        metadata = header.get("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that are not strings")
    except (ValueError, AttributeError) as error:  # not JSON, or not objects
        what = "is not a safetensors file, or is cut off"
        raise UserError(what, where=str(path), remedy=convert_or(path, REMAKE)) from error
    return header, 8 + length, state


def check_finite(vectors: NDArray[np.float32], features: NDArray[np.int64], where: str) -> None:
    """Check that vectors hold finite numbers only.

    Args:
        vectors: [n, width].
        features: Number of the feature of each vector [n].
        where: Name of the source in the message.

    Raises:
        UserError: Names the first feature whose vector holds NaN or infinity.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        what = "NaN" if np.isnan(vectors[bad[0]]).any() else "an infinite value"
        raise UserError(
            f"vector of feature {features[bad[0]]} holds {what}",
            where=where,
            remedy="correct the feature or leave it out",
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
        path: File to write; a crash leaves the old file, or none.
        blocks: Vectors [any number, width], float32, together one vector for each index.
        indices: Features [n], int64, ascending.
        width: Length of a vector.
        metadata: String metadata of the header; ``width`` is added.

    Raises:
        ValueError: Blocks and indices do not fit together.
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
