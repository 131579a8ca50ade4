"""Decoder rows of a sparse autoencoder, read block by block from the layouts in which autoencoders are published.

A row of a result is a feature, as in the decoder of the file: nothing is normalized, folded or reordered. Which tensor is the
decoder, and whether a feature is a row or a column of the tensor, follows from the names that SAELens, Gemma Scope, sparsify,
dictionary_learning, Goodfire and Llama Scope write, and from the sizes of the tensors and settings beside the decoder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.features import check_finite
from afintro.tasks.feature_descriptions.sae_config import About, about
from afintro.tasks.feature_descriptions.sae_files import weights_file
from afintro.tasks.feature_descriptions.tensor_files import Stored, open_tensors

BLOCK_FEATURES = 1024
# A feature is a row of a parameter [features, width], and a column of the weight [width, features] of torch.nn.Linear.
ROWS = ("W_dec", "w_dec", "W_D", "D")
COLUMNS = ("decoder.weight", "decoder_linear.weight")
OF_FEATURES = (
    "b_enc", "b_E", "encoder.bias", "encoder_linear.bias", "latent_bias", "threshold", "log_threshold",
    "log_jumprelu_threshold", "b_gate", "b_mag", "r_mag", "gate_bias", "mag_bias",
)  # fmt: skip
OF_WIDTH = ("b_dec", "b_D", "decoder.bias", "decoder_linear.bias", "decoder_bias", "pre_bias")
ENCODERS = ("encoder.weight", "encoder_linear.weight")  # [features, width of the input]
NAMED = "name the decoder W_dec [features, width] or decoder.weight [width, features]"
STRICT = ("sae_weights.safetensors", "cfg.json")  # SAELens always writes both sizes


@dataclass(frozen=True)
class Decoder:
    """Where the decoder of an autoencoder is stored.

    Args:
        file: The file of the weights.
        tensor: Name of the tensor.
        transposed: Whether the tensor is [width, features], as the weight of torch.nn.Linear.
        features: Number of features.
        width: Length of a decoder row.
        hook: Name of the place where the decoder writes, or "" where no file says it.
        layer: 0-based layer that the files beside the weights or the path name, or None.
    """

    file: Path
    tensor: str
    transposed: bool
    features: int
    width: int
    hook: str = ""
    layer: int | None = None


def find_decoder(path: Path, layer: int | None = None) -> Decoder:
    """Find the decoder of an autoencoder; the weights themselves are not read.

    Args:
        path: The file of the weights, or a folder of one or several autoencoders.
        layer: The layer that is wanted; None where the files name one.

    Raises:
        UserError: There is no such autoencoder, several are and the layer does not choose one of them, the files contradict
            each other or the layer, or it cannot be told whether a feature is a row or a column.
    """
    file = weights_file(path, layer)
    known = about(file)
    if path.is_dir() and file.name == STRICT[0] and known.config is None:
        what = "does not exist"
        raise UserError(
            what, where=str(file.with_name(STRICT[1])), remedy="give the file of the settings, or the weights alone"
        )
    if None not in (layer, known.layer) and known.layer != layer:
        what = f"belongs to layer {known.layer}, but --layer is {layer}"
        raise UserError(
            what, where=str(path), remedy=f"give --layer {known.layer}, or the autoencoder of layer {layer}"
        )
    stored = open_tensors(file).stored
    name = _decoder_tensor(stored, file)
    _check_type(name, stored[name], file)
    transposed = _is_transposed(name, stored, known, file)
    features, width = reversed(stored[name].shape) if transposed else stored[name].shape
    _check_config(known, file, features, width)
    return Decoder(file, name, transposed, features, width, known.hook, known.layer)


def decoder_rows(
    decoder: Decoder, indices: NDArray[np.int64], block_features: int = BLOCK_FEATURES
) -> Iterator[NDArray[np.float32]]:
    """Read the decoder rows of some features.

    Args:
        decoder: As :func:`find_decoder` returns it.
        indices: Features [n], ascending.
        block_features: Number of features that are read at a time; blocks without a wanted feature are skipped.

    Yields:
        float32 [<=block_features, width], in the order of ``indices``.

    Raises:
        UserError: A row holds NaN or infinity, or the file is damaged.
        IndexError: A feature does not exist.
    """
    if len(indices) and not 0 <= indices[0] <= indices[-1] < decoder.features:
        raise IndexError(f"features {indices[0]} to {indices[-1]} of {decoder.features}")
    file = open_tensors(decoder.file)
    for first in range(0, decoder.features, block_features):
        last = first + block_features
        wanted = indices[(indices >= first) & (indices < last)]
        if wanted.size:
            rows = file.block(decoder.tensor, first, last, decoder.transposed)[wanted - first]
            check_finite(rows, wanted, str(decoder.file))
            yield rows


def _known_as(name: str, names: tuple[str, ...]) -> bool:
    """Return whether a tensor has one of some names, perhaps behind the name of a module."""
    return name in names or any(name.endswith(f".{known}") for known in names if len(known) > 1)


def _decoder_tensor(stored: Mapping[str, Stored], file: Path) -> str:
    """Return the name of the decoder: the tensor of a known name, or the only matrix."""
    if {"vectors", "feature_indices"} <= set(stored):
        what = "holds features that were extracted already, by their numbers"
        raise UserError(what, where=str(file), remedy="give the file to data.features, or the autoencoder itself")
    known = [name for name in stored if _known_as(name, ROWS + COLUMNS)]
    deep = [name for name in known if len(stored[name].shape) > 2]
    matrices = [name for name, tensor in stored.items() if len(tensor.shape) == 2]
    named = [name for name in known if name in matrices]
    if deep and not named:
        what = f"tensor {deep[0]!r} has the shape {list(stored[deep[0]].shape)}: a feature writes to several places"
        remedy = "give an autoencoder or transcoder of one layer, not a crosscoder or cross-layer transcoder"
        raise UserError(what, where=str(file), remedy=remedy)
    if len(named) > 1:
        raise UserError(f"has several decoders: {', '.join(named)}", where=str(file), remedy="give one file for each")
    if named or len(matrices) == 1:
        return (named or matrices)[0]
    names = f": {', '.join(matrices)}" if matrices else ""
    what = f"has no decoder of a known name, but {len(matrices)} tensors of two dimensions{names}"
    raise UserError(what, where=str(file), remedy=NAMED)


def _check_type(name: str, tensor: Stored, file: Path) -> None:
    if not tensor.real:
        what = f"tensor {name!r} holds {tensor.dtype}, not real numbers of floating point"
        raise UserError(what, where=str(file), remedy="save the decoder as float32")
    if 0 in tensor.shape:
        what = f"tensor {name!r} has the shape {list(tensor.shape)}"
        raise UserError(what, where=str(file), remedy="give an autoencoder with features")


def _is_transposed(name: str, stored: Mapping[str, Stored], known: About, file: Path) -> bool:
    """Return whether a feature is a column: as the sizes beside the decoder say, else as its name says."""
    first, second = stored[name].shape
    features, widths = _sizes_beside(stored)
    for sizes_of_features, sizes_of_width in (
        (features, widths),
        ({known.features[1]} if known.features else set(), {known.width[1]} if known.width else set()),
    ):
        fits = [
            sizes_of_features <= {rows} and sizes_of_width <= {columns}
            for rows, columns in ((first, second), (second, first))
        ]
        if not any(fits):
            if sizes_of_features is not features:
                break  # the settings do not fit at all, which is refused by name below
            what = f"tensor {name!r} is [{first}, {second}], but other tensors are of "
            what += f"{_some(features)} features and of width {_some(widths)}"
            raise UserError(what, where=str(file), remedy="give the tensors of one autoencoder")
        if not all(fits):
            return not fits[0]
    if _known_as(name, ROWS + COLUMNS):
        return _known_as(name, COLUMNS)
    if first == second:
        what = f"tensor {name!r} is [{first}, {second}], so that a feature may be a row or a column"
        raise UserError(what, where=str(file), remedy=NAMED)
    return False


def _some(sizes: set[int]) -> str:
    return " or ".join(map(str, sorted(sizes))) or "any"


def _sizes_beside(stored: Mapping[str, Stored]) -> tuple[set[int], set[int]]:
    """Return the numbers of features, and the widths, that thresholds, biases and linear encoders have."""
    vectors = {
        name: tensor.shape[0] for name, tensor in stored.items() if len(tensor.shape) == 1 and tensor.shape[0] > 1
    }
    features = {size for name, size in vectors.items() if _known_as(name, OF_FEATURES)}
    features |= {
        tensor.shape[0] for name, tensor in stored.items() if len(tensor.shape) == 2 and _known_as(name, ENCODERS)
    }
    return features, {size for name, size in vectors.items() if _known_as(name, OF_WIDTH)}


def _check_config(known: About, file: Path, features: int, width: int) -> None:
    """Compare the sizes that the file beside the weights names with the weights."""
    strict = known.config is not None and (file.name, known.config.name) == STRICT
    for what, stated, size in (("d_sae", known.features, features), ("d_in", known.width, width)):
        if stated is None and not strict:
            continue
        field, number = stated or (what, None)
        if number != size:
            raise UserError(
                f"{field} is {number}, but the decoder has {size}",
                where=str(known.config),
                remedy="give the settings and the weights of one autoencoder",
            )
