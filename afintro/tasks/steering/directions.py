"""Steering vectors on disk: one vector a layer, read from the shapes in which people save them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from afintro.data.files import new_file, write_json
from afintro.data.records import read_object
from afintro.errors import UserError

Vector = NDArray[np.float32]
RESIDUAL = "residual_mean"  # name of the direction that holds the mean residual stream of an organism
SHAPES = "safetensors of tensors layer_<l> [hidden], or one tensor [hidden] or [layers, hidden], also as .npy or .pt"
BEYOND = "layer {} of a model with {} layers (0 to {})"
LAYER_NAME = re.compile(r"(?:^|.*[._/:]|.*layers?)(-?[0-9]+)", re.ASCII | re.DOTALL)
WHOLE = re.compile(r"[0-9]+", re.ASCII)
RELATIVE = re.compile(r"0?\.[0-9]+", re.ASCII)


@dataclass(frozen=True)
class Direction:
    """A direction in the residual stream: a vector for each layer, or one vector for every layer.

    Args:
        name: What the direction points to.
        vectors: float32 ``[hidden]`` by 0-based decoder layer, whose output the vector belongs to; the norm is as in the file.
        everywhere: float32 ``[hidden]``, a bare vector that names no layer: used at every layer without a vector of its own.
        metadata: Content of the sidecar, ``{}`` without a sidecar.
    """

    name: str
    vectors: Mapping[int, Vector]
    everywhere: Vector | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Return the name that a direction shares with its jittered copies: ``family`` of the sidecar, else its own name."""
        return str(self.metadata.get("family") or self.name)

    def at(self, layer: int) -> Vector:
        """Return the vector of a 0-based layer, float32 ``[hidden]``.

        Raises:
            UserError: The direction has no vector of the layer.
        """
        vector = self.vectors.get(layer, self.everywhere)
        if vector is None:
            what = f"has no vector of layer {layer}, only of {', '.join(map(str, sorted(self.vectors)))}"
            raise UserError(what, where=f"direction {self.name!r}", remedy="use one of these layers")
        return vector

    def check(self, width: int, depth: int, where: str) -> None:
        """Check that the direction fits a model.

        Args:
            width: Width of the model's residual stream.
            depth: Number of the model's layers.
            where: File or setting, for the message.

        Raises:
            UserError: A vector is of another width, or of a layer that the model does not have.
        """
        for layer, vector in sorted(self.vectors.items()):
            if not 0 <= layer < depth:
                what = BEYOND.format(layer, depth, depth - 1)
                raise UserError(what, where=where, remedy="use a direction of this model")
            _check_width(len(vector), width, f"vector of layer {layer}", where)
        if self.everywhere is not None:
            _check_width(len(self.everywhere), width, "vector", where)


def _check_width(size: int, width: int, name: str, where: str) -> None:
    if size != width:
        what = f"{name} has {size} numbers, the model's residual stream is {width} wide"
        raise UserError(what, where=where, remedy="use a direction of this model")


def resolve_layers(given: Sequence[float | int | str], depth: int, where: str) -> list[int]:
    """Turn layers as a person names them into ascending numbers without repetitions.

    A whole number is a 0-based layer. A number with a dot, between 0 and 1, is a relative depth: ``0.5`` is layer
    ``round(0.5 * depth)``, or the last layer if that is smaller.

    Args:
        given: Layers such as ``[0.5, 12]``, or the same as strings.
        depth: Number of layers of the model.
        where: Name of the setting in messages.

    Raises:
        UserError: A value is neither of the two, or the model does not have the layer.
    """
    if not given:
        raise UserError("names no layer", where=where, remedy="give layers, or relative depths such as 0.5")
    return sorted({_resolve_layer(item, depth, where) for item in given})


def _resolve_layer(item: float | int | str, depth: int, where: str) -> int:
    # The text decides, so that 1 (a layer) and 1.0 (no relative depth) differ whether they come from a shell or YAML.
    text = str(item)
    if WHOLE.fullmatch(text) and int(text) < depth:
        return int(text)
    if RELATIVE.fullmatch(text) and float(text) > 0:
        return min(round(float(text) * depth), depth - 1)
    what = f"{item!r} is neither a layer (a whole number, 0 to {depth - 1}) nor a relative depth between 0 and 1"
    if WHOLE.fullmatch(text):
        what = BEYOND.format(text, depth, depth - 1)
    raise UserError(what, where=where, remedy=f"use layers below {depth}, or relative depths such as 0.5")


def read_direction(path: str, name: str | None = None) -> Direction:
    """Read a direction, and its sidecar ``<stem>.json`` if there is one.

    Args:
        path: ``.npy``: ``[hidden]``, a bare vector, or ``[layers, hidden]``, layer 0 first. ``.safetensors``:
            tensors ``layer_<l>``, ``<l>`` or with another name that ends in the layer (``layers.12``), or one tensor
            as in ``.npy``, whose layer the file's metadata or the sidecar may name. ``.pt``, ``.pth``, ``.bin``: a
            tensor, or a dict of tensors with such names, read without unpickling any object. ``[1, hidden]`` is a bare
            vector. Any float dtype.
        name: Name of the direction; None for the sidecar's ``name`` or the file's stem.

    Raises:
        UserError: The file does not exist or has another form, widths differ, or a vector is zero, NaN or infinite.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("does not exist", where=path, remedy=f"give {SHAPES}")
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, **dict.fromkeys((".pt", ".pth", ".bin"), _read_pt)}
    if file.suffix not in readers:
        raise _error(f"ends in {file.suffix!r}, not in {', '.join(readers)}", path)
    sidecar = file.with_suffix(".json")
    metadata = read_object(sidecar) if sidecar.is_file() else {}
    tensors, file_layer = readers[file.suffix](file)
    vectors, everywhere = _by_layer(tensors, metadata.get("layer", file_layer), path)
    return Direction(name or str(metadata.get("name") or file.stem), vectors, everywhere, metadata)


def read_directions(folder: Path) -> dict[str, Direction]:
    """Read all direction files of a folder.

    Returns:
        The directions by name, in the order of their files' names.

    Raises:
        UserError: The folder holds no direction file, two files name the same direction, or the widths differ.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".npy", ".pt"))
    if not paths:
        raise UserError(
            "holds no direction", where=str(folder), remedy="set data.directions to the folder of the vectors"
        )
    directions = [read_direction(str(path)) for path in paths]
    names = [direction.name for direction in directions]
    double = [str(path) for path, name in zip(paths, names, strict=True) if names.count(name) > 1]
    if double:
        raise UserError("name the same direction", where=" and ".join(double), remedy="rename or remove one")
    widths = {len(v): d.name for d in directions for v in (*d.vectors.values(), d.everywhere) if v is not None}
    if len(widths) > 1:
        raise UserError(
            "holds vectors of width " + " and ".join(f"{width} ({name})" for width, name in sorted(widths.items())),
            where=str(folder),
            remedy="give vectors of one model",
        )
    return dict(zip(names, directions, strict=True))


def _error(what: str, where: str) -> UserError:
    return UserError(what, where=where, remedy=f"give {SHAPES}")


def _read_npy(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        array = np.array(np.lib.format.open_memmap(path, mode="r"))  # as np.load, but .npy alone, and no pickle
    except (ValueError, OSError, EOFError) as error:
        what = (
            "holds Python objects, which are not loaded" if "object" in str(error) else f"is not an .npy file ({error})"
        )
        raise _error(what, str(path)) from error
    if array.dtype.kind not in "fiu":
        raise _error(f"holds {array.dtype}, not real numbers", str(path))
    return {"": torch.from_numpy(array.astype(np.float64))}, None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        with safe_open(path, "pt") as file:  # torch, since numpy has no bfloat16
            layer = (file.metadata() or {}).get("layer")
            return {name: file.get_tensor(name) for name in file.keys()}, layer  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _error(f"is not a safetensors file, or is cut off ({error})", str(path)) from error


def _read_pt(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed archive or pickle raises almost anything
        what = f"holds something other than tensors, or is cut off ({type(error).__name__})"
        raise UserError(what, where=str(path), remedy="save the vectors as a safetensors file") from error
    tensors = {"": content} if isinstance(content, Tensor) else content
    if not isinstance(tensors, dict):
        what = f"holds a {type(content).__name__}, not a tensor or a dict of tensors"
        raise UserError(what, where=str(path), remedy="save the vectors as a safetensors file")
    wrong = [key for key, value in tensors.items() if type(key) not in (int, str) or not isinstance(value, Tensor)]
    if wrong:
        what = f"entry {wrong[0]!r} is {type(tensors[wrong[0]]).__name__}, or its key is neither a layer nor a name"
        raise UserError(what, where=str(path), remedy="save the vectors as a safetensors file")
    if len({str(key) for key in tensors}) < len(tensors):
        raise _error("holds a layer twice, as a number and as a string", str(path))
    return {str(key): value for key, value in tensors.items()}, None


def _by_layer(tensors: dict[str, Tensor], stated: Any, where: str) -> tuple[dict[int, Vector], Vector | None]:
    """Return the vectors by layer, or the bare vector; ``stated`` is the layer that sidecar or metadata name, or None."""
    layers = {name: LAYER_NAME.fullmatch(name) for name in tensors}
    unnamed = [name for name, match in layers.items() if match is None]
    if len(tensors) == 1 and unnamed:
        return _single(next(iter(tensors.values())), stated, where)
    if unnamed:
        raise _error(f"holds {len(tensors)} tensors, and the name {unnamed[0]!r} ends in no layer", where)
    vectors: dict[int, Vector] = {}
    for name, match in layers.items():
        layer = int(match[1]) if match else -1
        if match is None or layer < 0 or layer in vectors:
            raise _error(
                f"tensor {name!r} " + ("names a layer below 0" if layer < 0 else f"names layer {layer} twice"), where
            )
        if tensors[name].ndim != 1:
            raise _error(f"tensor {name!r} is {list(tensors[name].shape)}, not [hidden]", where)
        vectors[layer] = _vector(tensors[name], f"vector of layer {layer}", where)
    if not vectors:
        raise _error("holds no tensor", where)
    return _same_width(dict(sorted(vectors.items())), where), None


def _single(tensor: Tensor, stated: Any, where: str) -> tuple[dict[int, Vector], Vector | None]:
    shape = list(tensor.shape)
    if tensor.ndim not in (1, 2) or 0 in shape:
        raise _error(f"the tensor is {shape}, not [hidden] or [layers, hidden]", where)
    if tensor.ndim == 2 and len(tensor) > 1:
        return {layer: _vector(row, f"vector of layer {layer}", where) for layer, row in enumerate(tensor)}, None
    bare = _vector(tensor.reshape(-1), "vector", where)
    if stated is None:
        return {}, bare
    if isinstance(stated, bool) or not WHOLE.fullmatch(str(stated)):
        raise UserError(
            f"layer must be a number from 0, but is {stated!r}", where=where, remedy="correct the sidecar or metadata"
        )
    return {int(stated): bare}, None


def _vector(tensor: Tensor, name: str, where: str) -> Vector:
    """Return a checked float32 ``[hidden]`` array."""
    if tensor.is_complex() or tensor.dtype == torch.bool or tensor.is_sparse:
        raise _error(f"{name} holds {tensor.dtype}, not real numbers", where)
    vector: Vector = tensor.detach().float().contiguous().numpy().copy()
    if not len(vector):
        raise _error(f"{name} is empty", where)
    if not np.isfinite(vector).all():
        what = f"{name} holds {'NaN' if np.isnan(vector).any() else 'an infinite value'}"
        raise UserError(what, where=where, remedy="compute the direction again, in float32")
    if not vector.any():
        raise UserError(f"{name} is zero", where=where, remedy="leave that layer out, or compute the direction again")
    return vector


def _same_width(vectors: dict[int, Vector], where: str) -> dict[int, Vector]:
    first = next(iter(vectors))
    for layer, vector in vectors.items():
        if len(vector) != len(vectors[first]):
            what = f"vector of layer {layer} has {len(vector)} numbers, the vector of layer {first} has {len(vectors[first])}"
            raise UserError(what, where=where, remedy="give the vectors of one model")
    return vectors


def write_direction(path: Path, direction: Direction) -> None:
    """Write a safetensors file of float32 tensors ``layer_<l>``, or ``direction`` for a bare vector, and its sidecar.

    The sidecar is written first, so that a crash leaves no vectors of unknown origin.

    Raises:
        UserError: A file cannot be written; the old file stays unchanged.
    """
    content = {f"layer_{layer}": np.ascontiguousarray(vector, "<f4") for layer, vector in direction.vectors.items()}
    if direction.everywhere is not None:
        assert not content, "a direction that has both kinds has no file format"
        content = {"direction": np.ascontiguousarray(direction.everywhere, "<f4")}
    write_json(path.with_suffix(".json"), {"name": None, **direction.metadata} | {"name": direction.name})
    with new_file(path) as file:
        file.write(save(content))
