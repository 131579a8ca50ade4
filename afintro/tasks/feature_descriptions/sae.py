"""Decoder rows of a sparse autoencoder, read block by block from the layouts in which autoencoders are published."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from afintro.data.records import read_object
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.features import check_finite

BLOCK_FEATURES = 1024
LAYOUTS = "a SAELens folder (cfg.json, sae_weights.safetensors), or a safetensors file of W_dec or decoder.weight"


@dataclass(frozen=True)
class _Decoder:
    """Where the decoder is stored. ``transposed`` means [width, features], as in torch.nn.Linear."""

    file: Path
    tensor: str
    transposed: bool
    features: int
    width: int
    layer: int | None


def decoder_file(path: Path) -> Path:
    """Return the file that holds the weights: ``path`` itself, or the weights file of a SAELens folder."""
    return path / "sae_weights.safetensors" if path.is_dir() else path


def decoder_width(path: Path) -> tuple[int, int, int | None]:
    """Return the number of features, the width of a decoder row, and the layer where ``cfg.json`` says which.

    Args:
        path: A SAELens folder, or a safetensors file of ``W_dec`` [features, width], of ``decoder.weight`` [width,
            features], or of one tensor [features, width].

    Raises:
        UserError: The file or tensor does not exist, or ``cfg.json`` contradicts the weights.
    """
    decoder = _locate(path)
    return decoder.features, decoder.width, decoder.layer


def decoder_rows(
    path: Path, indices: NDArray[np.int64], block_features: int = BLOCK_FEATURES
) -> Iterator[NDArray[np.float32]]:
    """Read the decoder rows of some features.

    Args:
        path: As for :func:`decoder_width`.
        indices: Features [n], ascending.
        block_features: Number of features that are read at a time; blocks without a wanted feature are skipped.

    Yields:
        float32 [<=block_features, width], in the order of ``indices``.

    Raises:
        UserError: As for :func:`decoder_width`, or a row holds NaN or infinity.
        IndexError: A feature does not exist.
    """
    decoder = _locate(path)
    if len(indices) and not 0 <= indices[0] <= indices[-1] < decoder.features:
        raise IndexError(f"features {indices[0]} to {indices[-1]} of {decoder.features}")
    for first in range(0, decoder.features, block_features):
        last = first + block_features
        wanted = indices[(indices >= first) & (indices < last)]
        if wanted.size:
            with safe_open(
                decoder.file, "pt"
            ) as file:  # torch, because numpy has no bfloat16; reopened, because it is a map
                stored = file.get_slice(decoder.tensor)
                block = stored[:, first:last].T if decoder.transposed else stored[first:last]
                rows: NDArray[np.float32] = block[wanted - first].float().numpy()
            check_finite(rows, wanted, str(decoder.file))
            yield rows


def _locate(path: Path) -> _Decoder:
    file = decoder_file(path)
    if not file.is_file():
        raise UserError("does not exist", where=str(file), remedy=f"give {LAYOUTS}")
    try:
        with safe_open(file, "pt") as weights:
            shapes = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"is not a safetensors file ({error})", where=str(file), remedy=f"give {LAYOUTS}") from error
    tensor = _decoder_tensor({name: shape for name, shape in shapes.items() if len(shape) == 2}, file)
    transposed = tensor == "decoder.weight"
    features, width = reversed(shapes[tensor]) if transposed else shapes[tensor]
    if not features or not width:
        raise UserError(f"tensor {tensor!r} has the shape {shapes[tensor]}", where=str(file), remedy=f"give {LAYOUTS}")
    layer = _check_config(path / "cfg.json", features, width) if path.is_dir() else None
    return _Decoder(file, tensor, transposed, features, width, layer)


def _decoder_tensor(shapes: dict[str, list[int]], file: Path) -> str:
    for name in ("W_dec", "decoder.weight"):
        if name in shapes:
            return name
    if len(shapes) != 1:
        raise UserError(
            f"has neither W_dec nor decoder.weight, but {len(shapes)} tensors of two dimensions: {', '.join(shapes)}",
            where=str(file),
            remedy=f"give {LAYOUTS}",
        )
    return next(iter(shapes))


def _check_config(path: Path, features: int, width: int) -> int | None:
    """Compare ``cfg.json`` with the weights, and return the layer that it names."""
    config = read_object(path)
    for name, size in (("d_sae", features), ("d_in", width)):
        if config.get(name) != size:
            raise UserError(
                f"{name} is {config.get(name)}, but the decoder has {size}",
                where=str(path),
                remedy="give the cfg.json and the weights of one autoencoder",
            )
    return _layer(config)


def _layer(config: dict[str, Any]) -> int | None:
    """Return ``hook_layer``, or the number in a name like ``blocks.40.hook_resid_post``; newer files have it in metadata."""
    metadata = config.get("metadata")
    for source in (config, metadata if isinstance(metadata, dict) else {}):
        if isinstance(source.get("hook_layer"), int):
            return int(source["hook_layer"])
        number = re.search(r"\.(\d+)(\.|$)", str(source.get("hook_name")))
        if number:
            return int(number[1])
    return None
