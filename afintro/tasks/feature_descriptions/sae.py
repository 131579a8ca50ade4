"""Decoder rows of a sparse autoencoder, read block by block from the layouts in which people publish them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from afintro.data.samples import read_object
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.features import check_finite

BLOCK_FEATURES = 1024
LAYOUTS = "a SAELens folder (cfg.json, sae_weights.safetensors), or a safetensors file of W_dec or decoder.weight"


@dataclass(frozen=True)
class _Decoder:
    """Where the decoder lies. ``transposed``: stored as [width, features], as torch.nn.Linear has it."""

    file: Path
    tensor: str
    transposed: bool
    features: int
    width: int
    layer: int | None


def decoder_file(path: Path) -> Path:
    """The file that holds the weights: ``path`` itself, or the one in a SAELens folder."""
    return path / "sae_weights.safetensors" if path.is_dir() else path


def decoder_width(path: Path) -> tuple[int, int, int | None]:
    """Number of features, width of a decoder row, and the layer where ``cfg.json`` tells it.

    Args:
        path: A SAELens folder, or a safetensors file of ``W_dec`` [features, width], of ``decoder.weight`` [width,
            features], or of one tensor [features, width].

    Raises:
        UserError: No such file or tensor, or ``cfg.json`` says otherwise than the weights.
    """
    decoder = _locate(path)
    return decoder.features, decoder.width, decoder.layer


def decoder_rows(path: Path, indices: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Decoder rows of some features, in the order given, which must be ascending.

    Args:
        path: As for :func:`decoder_width`.
        indices: Features [n].

    Yields:
        float32 [<=1024, width].

    Raises:
        UserError: As for :func:`decoder_width`, or NaN or infinity in a row.
        IndexError: No such feature.
    """
    decoder = _locate(path)
    if len(indices) and not 0 <= indices[0] <= indices[-1] < decoder.features:
        raise IndexError(f"features {indices[0]} to {indices[-1]} of {decoder.features}")
    for first in range(0, decoder.features, BLOCK_FEATURES):
        last = first + BLOCK_FEATURES
        wanted = indices[(indices >= first) & (indices < last)]
        if wanted.size:
            with safe_open(decoder.file, "pt") as file:  # torch, since numpy has no bfloat16; open anew: it is a map
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
        raise UserError(f"tensor {tensor!r} is {shapes[tensor]}", where=str(file), remedy=f"give {LAYOUTS}")
    layer = _check_config(path / "cfg.json", features, width) if path.is_dir() else None
    return _Decoder(file, tensor, transposed, features, width, layer)


def _decoder_tensor(shapes: dict[str, list[int]], file: Path) -> str:
    for name in ("W_dec", "decoder.weight"):
        if name in shapes:
            return name
    if len(shapes) != 1:
        raise UserError(
            f"has neither W_dec nor decoder.weight, and {len(shapes)} tensors of two dimensions: {', '.join(shapes)}",
            where=str(file),
            remedy=f"give {LAYOUTS}",
        )
    return next(iter(shapes))


def _check_config(path: Path, features: int, width: int) -> int | None:
    """Compare ``cfg.json`` with the weights; gives the layer it names."""
    config = read_object(path)
    for name, found in (("d_sae", features), ("d_in", width)):
        if config.get(name) != found:
            raise UserError(
                f"{name} is {config.get(name)}, but the decoder has {found}",
                where=str(path),
                remedy="give the cfg.json and the weights of one autoencoder",
            )
    return _layer(config)


def _layer(config: dict[str, Any]) -> int | None:
    """``hook_layer``, or the number in a name like ``blocks.40.hook_resid_post``; newer files have it in metadata."""
    metadata = config.get("metadata")
    for source in (config, metadata if isinstance(metadata, dict) else {}):
        if isinstance(source.get("hook_layer"), int):
            return int(source["hook_layer"])
        number = re.search(r"\.(\d+)(\.|$)", str(source.get("hook_name")))
        if number:
            return int(number[1])
    return None
