"""Vectors that an explainer is asked about, wherever they lie: of files no more than a block is ever in memory."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from afintro.errors import UserError
from afintro.lm.injection import VectorSpace
from afintro.tasks.feature_descriptions.features import PICKLES, FeatureFile, check_finite, open_features
from afintro.tasks.feature_descriptions.sae import BLOCK_FEATURES, COLUMNS, ROWS, Decoder, find_decoder
from afintro.tasks.feature_descriptions.sae_config import layer_of_path
from afintro.tasks.feature_descriptions.tensor_files import SUFFIXES, TensorFile, open_tensors
from afintro.tasks.vectors import check_space

OF_FEATURE_FILES = {"vectors", "feature_indices"}
LAYER = "--layer"


class VectorSource(Protocol):
    """Vectors of one layer, each with the number of its feature.

    Attributes:
        layer: 0-based layer of the explained model.
        where: File of the vectors, for messages.
        state: What tells these vectors from others without reading all of them: sizes, date of change and the like.
    """

    layer: int
    where: str
    state: Any

    @property
    def indices(self) -> Sequence[int] | NDArray[np.int64]:
        """The number of the feature of each row."""

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read some rows in the order given: float32 [len(rows), width].

        Raises:
            UserError: A vector holds NaN or infinity, or the file has changed.
        """


class StoredFeatures:
    """The vectors of a feature file.

    Args:
        file: The file, of which the header and the indices are read.
    """

    def __init__(self, file: FeatureFile) -> None:
        self._file = file
        self.layer, self.where, self.indices = file.layer, str(file.path), file.indices
        self.state = [*_state(file.path), file.layer, hashlib.sha256(file.indices.tobytes()).hexdigest()]

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read some rows, see :class:`VectorSource`."""
        return self._file.rows(rows)


class StoredMatrix:
    """The rows of a decoder or of a plain matrix; the last block that was read is kept.

    Args:
        decoder: Where the matrix lies.
        layer: 0-based layer of the explained model.
        block_rows: Number of rows that are read at a time.
    """

    def __init__(self, decoder: Decoder, layer: int, block_rows: int = BLOCK_FEATURES) -> None:
        self.layer, self.where, self.indices = layer, str(decoder.file), range(decoder.features)
        self.state = [*_state(decoder.file), layer, decoder.tensor, decoder.transposed, decoder.features, decoder.width]
        self._decoder, self._block_rows = decoder, block_rows
        self._kept: tuple[int, NDArray[np.float32]] | None = None
        self._stream: TensorFile | None = None

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read some rows, see :class:`VectorSource`."""
        found = np.empty((len(rows), self._decoder.width), np.float32)
        numbers = rows // self._block_rows
        for number in np.unique(numbers).tolist():
            here = numbers == number
            found[here] = self._block(number)[rows[here] - number * self._block_rows]
        return found

    def _block(self, number: int) -> NDArray[np.float32]:
        if self._kept is None or self._kept[0] != number:
            if _state(self._decoder.file) != self.state[:2]:
                raise UserError("has changed since it was opened", where=self.where, remedy="ask again")
            first = number * self._block_rows
            last = min(first + self._block_rows, self._decoder.features)
            block = self._opened().block(self._decoder.tensor, first, last, self._decoder.transposed)
            check_finite(block, np.arange(first, last), self.where)
            self._kept = number, block
        return self._kept[1]

    def _opened(self) -> TensorFile:
        """Open the file again for every block, since the touched pages of a map count as memory; archives are read as a stream."""
        file = self._decoder.file
        if file.suffix != ".npz" and (file.suffix not in (".pt", ".pth") or is_zipfile(file)):
            return open_tensors(file)
        self._stream = self._stream or open_tensors(file)
        return self._stream


class GivenVectors:
    """Vectors that the rows of the input hold themselves.

    Args:
        layer: 0-based layer of the explained model.
        where: What messages call the input.
        vectors: Vectors [width] by the number of the feature.
    """

    def __init__(self, layer: int, where: str, vectors: Mapping[int, NDArray[np.float32]]) -> None:
        self.layer, self.where, self.indices = layer, where, np.array(list(vectors), np.int64)
        self._vectors = np.stack(list(vectors.values()))
        self.state = [layer, list(vectors), hashlib.sha256(self._vectors.tobytes()).hexdigest()]

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows, see :class:`VectorSource`."""
        check_finite(self._vectors[rows], self.indices[rows], self.where)
        return self._vectors[rows]


def holds_vectors(path: Path) -> bool:
    """Tell whether a path is of vectors, and not of rows that name features: by the ending of a file, or as a folder of tensors."""
    if path.is_dir():
        return any(file.suffix in SUFFIXES for file in path.rglob("*"))
    return path.suffix in (*SUFFIXES, *PICKLES)


def open_vectors(path: Path, layers: Sequence[int], space: VectorSpace) -> list[VectorSource]:
    """Open feature files, autoencoders or a matrix; no vector is read.

    Args:
        path: A feature file or a folder of feature files; the file or folder of autoencoders; or a file of one matrix, whose
            rows are the vectors.
        layers: 0-based layers to ask about, or the layer of a matrix that does not say it; empty for what the files say.
        space: The width and the layers of the vectors that the explainer reads.

    Raises:
        UserError: There are no vectors, the layer is not known, or the explainer does not read such vectors.
    """
    files = _feature_files(path)
    if files:
        opened = open_features([str(file) for file in files])
        of_layers = {file.layer: file for file in opened}
        for layer in layers:
            if layer not in of_layers:
                what = f"holds no features of layer {layer}, only of {', '.join(map(str, sorted(of_layers)))}"
                raise UserError(what, where=str(path), remedy=f"give another {LAYER}, or leave it out")
        for file in opened:
            check_space(space, file.width, file.layer, str(file.path))
        return [StoredFeatures(file) for file in opened if not layers or file.layer in layers]
    wanted: Sequence[int | None] = layers or (None,)
    matrices: list[VectorSource] = []
    for given in wanted:
        decoder = _decoder(path, given)
        if decoder.layer is None and (given is None or len(layers) > 1):
            what = "does not say of which layer its vectors are" if given is None else "is of one layer alone"
            known = " or ".join(map(str, space.layers))
            remedy = f"give one {LAYER}, which is {known} for this explainer"
            raise UserError(what, where=str(decoder.file), remedy=remedy)
        of_layer = decoder.layer if given is None else given
        assert of_layer is not None
        check_space(space, decoder.width, of_layer, str(decoder.file))
        matrices.append(StoredMatrix(decoder, of_layer))
    return matrices


def _feature_files(path: Path) -> list[Path]:
    """Return the feature files at a path, sorted by name."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.suffix == ".safetensors" else []
    return [file for file in files if file.is_file() and set(open_tensors(file).stored) >= OF_FEATURE_FILES]


def _decoder(path: Path, layer: int | None) -> Decoder:
    """Find an autoencoder's decoder, or the only tensor of a file, whose rows are the vectors unless its name says otherwise."""
    if path.is_file() and path.suffix in SUFFIXES:
        stored = open_tensors(path).stored
        (name, tensor), *others = stored.items() or [("", None)]
        if tensor is not None and not others and name not in ROWS + COLUMNS:
            if len(tensor.shape) != 2 or 0 in tensor.shape or not tensor.real:
                what = f"holds {tensor.dtype} {list(tensor.shape)}, not real numbers of floating point [n, width]"
                raise UserError(what, where=str(path), remedy="save one vector a row, as float32")
            said = layer_of_path(path)
            if None not in (layer, said) and layer != said:
                what = f"belongs to layer {said}, as its path says, but {LAYER} is {layer}"
                raise UserError(what, where=str(path), remedy=f"give {LAYER} {said}, or rename the file")
            return Decoder(path, name, False, *tensor.shape, layer=said)
    return find_decoder(path, layer)


def _state(path: Path) -> list[int]:
    """Return size in bytes and date of change, which differ for a file that was rewritten."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
