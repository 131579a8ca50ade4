"""Steering vectors: one vector a layer. How files are read is in :mod:`afintro.tasks.steering.direction_files`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from afintro.data.files import new_file, write_json
from afintro.errors import UserError

Vector = NDArray[np.float32]
RESIDUAL = "residual_mean"  # name of the direction that holds the mean residual stream of an organism
BEYOND = "layer {} of a model with {} layers (0 to {})"
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

    @property
    def group(self) -> str:
        """Return the name under which intervals and tables count a direction: its family, unless the metadata say otherwise."""
        return str(self.metadata.get("group") or self.family)

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
