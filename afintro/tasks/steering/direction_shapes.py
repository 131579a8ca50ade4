"""What the content of a direction file means: which tensor is the vector of which layer, of which direction."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afintro.errors import UserError
from afintro.tasks.steering.directions import WHOLE, Vector

log = logging.getLogger(__name__)

STATED = ("layer", "layers")  # entries beside the tensors
SHAPES = (
    "a tensor [hidden], [layers, hidden] or [layers + 1, hidden], tensors layer_<l> [hidden], {layer, vector}, or one of these "
    "for each name, as .safetensors, .npy, .pt or .gguf"
)
LAYER_NAME = re.compile(r"(?P<prefix>|.*[._/:]|.*layers?)(?P<layer>-?[0-9]+)", re.ASCII | re.DOTALL)
LAYER_WORD = re.compile(r"(?:(?:^|[._/:])model)?(?:^|[._/:])?layers?[._/:]*$|[._/:]+$", re.ASCII)
LAYER_INSIDE = re.compile(r"(.*(?:^|[._/:])(?:blocks|layers?|h)[._/:]?[0-9]+)[._/:](.*[^0-9].*)", re.ASCII | re.DOTALL)
OUTPUTS = ("hook_resid_post", "resid_post", "output")  # places whose layer is that of the block
PLAIN = (str, int, float, bool, list, type(None))  # what people put beside the vectors: a model's name, an accuracy


@dataclass(frozen=True)
class Group:
    """The tensors of one direction.

    Args:
        tensors: By layer (a name that ends in a number), or one tensor under another name.
        layers: The layers of the rows of that one tensor, as an entry beside it names them; None without such an entry.
    """

    tensors: dict[str, Tensor]
    layers: list[int] | None = None


@dataclass(frozen=True)
class Matrix:
    """What is known of the rows of a matrix.

    Args:
        first_layer: The layer of row 0 as the sidecar says it, -1 for the embedding's output; None if it does not say.
        depth: Number of layers of the model; None if it is unknown.
        where: File and direction, for messages.
    """

    first_layer: Any
    depth: int | None
    where: str

    def rows(self, tensor: Tensor) -> dict[int, Tensor]:
        """Return the rows by 0-based layer, without the embedding's output.

        Args:
            tensor: ``[layers, hidden]``, or ``[layers + 1, hidden]``.

        Raises:
            UserError: The number of rows is neither of the model, or the sidecar names no layer.
        """
        count, first = len(tensor), self.first_layer
        if first is not None and not re.fullmatch(r"-1|[0-9]+", str(first)):
            what = f"first_layer must be a layer, or -1 for the embedding's output, but is {first!r}"
            raise UserError(what, where=self.where, remedy="correct the sidecar or metadata")
        if first is None and self.depth is None:
            log.warning(
                "%s: the %d rows are read as layers 0 to %d; if row 0 is the embedding's output, put "
                '"first_layer": -1 into the sidecar',
                *(self.where, count, count - 1),
            )
        if first is None and self.depth is not None and count not in (self.depth, self.depth + 1):
            what = f"holds {count} rows, and the model has {self.depth} layers: which layers they are is not said"
            remedy = 'save a tensor layer_<l> for each layer, or put "first_layer" into the sidecar'
            raise UserError(what, where=self.where, remedy=remedy)
        offset = int(first) if first is not None else (-1 if self.depth is not None and count == self.depth + 1 else 0)
        return {offset + index: row for index, row in enumerate(tensor) if offset + index >= 0}


def shape_error(what: str, where: str) -> UserError:
    """Return the error of a file of another form."""
    return UserError(what, where=where, remedy=f"give {SHAPES}")


def groups_of(content: Any, where: str) -> dict[str, Group]:
    """Tell apart the directions of a file.

    Args:
        content: A tensor, or a dict of tensors, dicts, and plain values beside them.
        where: The file, for messages.

    Returns:
        The tensors of each direction by its name; ``""`` for a direction without a name.

    Raises:
        UserError: The content has another form.
    """
    if isinstance(content, Tensor):
        return {"": Group({"": content})}
    if not isinstance(content, dict):
        raise shape_error(f"holds a {type(content).__name__}, not a tensor or a dict of tensors", where)
    for key, value in content.items():
        vectors = isinstance(value, (Tensor, dict))
        if type(key) not in (int, str) or not (vectors or isinstance(value, PLAIN)):
            what = f"entry {key!r} is {type(value).__name__}, or its key is neither a layer nor a name"
            raise shape_error(what, where)
        if LAYER_NAME.fullmatch(str(key)) and not vectors:
            raise shape_error(f"entry {key!r} names a layer, and is {type(value).__name__}, not a tensor", where)
    if len({str(key) for key in content}) < len(content):
        raise shape_error("holds a layer twice, as a number and as a string", where)
    entries = {_layer_last(str(key), value, where): value for key, value in content.items()}
    if len(entries) < len(content):
        raise shape_error("holds a layer twice, under two names", where)
    nested = {key: value for key, value in entries.items() if isinstance(value, dict)}
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    layers = _stated(entries, where)
    if layers is not None:
        tensors = {key: value for key, value in tensors.items() if key not in STATED}
    if nested and tensors:
        raise shape_error(f"entry {next(iter(nested))!r} is dict, beside the tensor {next(iter(tensors))!r}", where)
    if nested:
        return _of_nested(nested, where)
    if not tensors:
        raise shape_error("holds no tensor", where)
    return _of_flat(tensors, layers, where)


def _layer_last(name: str, value: Any, where: str) -> str:
    """Return a name that ends in its layer: ``blocks.12.hook_resid_post`` is layer 12, as the hook is that block's output.

    Raises:
        UserError: The name of a vector holds a layer, and says another place than that layer's output.
    """
    inside = LAYER_INSIDE.fullmatch(name) if isinstance(value, (Tensor, dict)) else None
    if inside is None:
        return name
    if inside[2] not in OUTPUTS:
        what = f"entry {name!r} holds a layer, and names a place within it: vectors here are added to the output of a layer"
        raise shape_error(what, where)
    return inside[1]


def _stated(entries: Mapping[str, Any], where: str) -> list[int] | None:
    """Return the layers that an entry ``layer`` or ``layers`` beside the tensors names; None without such an entry."""
    key = next((key for key in STATED if key in entries), "")
    value = entries.get(key)
    if isinstance(value, Tensor):
        if value.ndim > 1 or value.is_floating_point() or value.is_complex():
            return None  # a vector of that name
        value = value.tolist()
    if value is None or isinstance(value, dict):
        return None
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(WHOLE.fullmatch(str(number)) for number in numbers):
        raise shape_error(f"entry {key!r} must name a layer from 0 on, but is {value!r}", where)
    return [int(number) for number in numbers]


def _of_nested(nested: Mapping[str, dict[Any, Any]], where: str) -> dict[str, Group]:
    """Return the directions of ``{name: ...}``, or of ``{layer: {name: vector}}``."""
    groups: dict[str, Group] = {}
    matches = {key: LAYER_NAME.fullmatch(key) for key in nested}
    by_layer = all(matches.values())
    for key, inner in nested.items():
        for sub, group in groups_of(inner, f"{where}, entry {key!r}").items():
            if not by_layer:
                groups[f"{key}/{sub}" if sub else key] = group
            elif len(group.tensors) > 1 or group.layers is not None or _layers_in(group.tensors):
                raise shape_error(f"entry {key!r} is a layer by its name, and holds layers", where)
            else:
                groups.setdefault(sub, Group({})).tensors[key] = next(iter(group.tensors.values()))
    return groups


def _layers_in(tensors: Mapping[str, Tensor]) -> dict[str, "re.Match[str]"]:
    matches = {name: LAYER_NAME.fullmatch(name) for name in tensors}
    return {name: match for name, match in matches.items() if match}


def _of_flat(tensors: dict[str, Tensor], layers: list[int] | None, where: str) -> dict[str, Group]:
    """Return the directions of tensors under names of layers, of concepts, or of both in one."""
    matches = _layers_in(tensors)
    if not matches:
        if len(tensors) == 1:
            return {"": Group(tensors, layers)}
        return {name: Group({name: tensor}, layers) for name, tensor in tensors.items()}
    unnamed = [name for name in tensors if name not in matches]
    if unnamed:
        raise shape_error(f"holds {len(tensors)} tensors, and the name {unnamed[0]!r} ends in no layer", where)
    groups: dict[str, Group] = {}
    for name, match in matches.items():
        groups.setdefault(LAYER_WORD.sub("", match["prefix"]), Group({})).tensors[name] = tensors[name]
    if len(groups) > 1 and "" in groups:
        raise shape_error("holds layers of a direction without a name beside those of named directions", where)
    return groups if len(groups) > 1 else {"": Group(tensors)}


def vectors_of(group: Group, stated: Any, matrix: Matrix) -> tuple[dict[int, Vector], Vector | None]:
    """Return the vectors of a direction by layer, or its bare vector.

    Args:
        group: The tensors.
        stated: The layer of a bare vector, as sidecar or metadata name it; None if neither does.
        matrix: What is known of the rows of a matrix.

    Raises:
        UserError: A tensor is no vector of real, finite numbers, or widths differ.
    """
    matches = _layers_in(group.tensors)
    if not matches:
        return _single(next(iter(group.tensors.values())), group.layers, stated, matrix)
    vectors: dict[int, Vector] = {}
    for name, match in matches.items():
        layer, tensor = int(match["layer"]), group.tensors[name]
        if layer < 0 or layer in vectors:
            what = "names a layer below 0" if layer < 0 else f"names layer {layer} twice"
            raise shape_error(f"tensor {name!r} {what}", matrix.where)
        if tensor.ndim == 2 and len(tensor) == 1:
            tensor = tensor[0]
        if tensor.ndim != 1:
            raise shape_error(f"tensor {name!r} is {list(tensor.shape)}, not [hidden]", matrix.where)
        vectors[layer] = _vector(tensor, f"vector of layer {layer}", matrix.where)
    return _same_width(dict(sorted(vectors.items())), matrix.where), None


def _single(
    tensor: Tensor, layers: list[int] | None, stated: Any, matrix: Matrix
) -> tuple[dict[int, Vector], Vector | None]:
    shape, where = list(tensor.shape), matrix.where
    if tensor.ndim not in (1, 2) or 0 in shape:
        raise shape_error(f"the tensor is {shape}, not [hidden] or [layers, hidden]", where)
    if layers is not None or (tensor.ndim == 2 and len(tensor) > 1):
        rows = tensor if tensor.ndim == 2 else tensor[None]
        if layers is not None and (len(layers) != len(rows) or len(set(layers)) < len(layers)):
            raise shape_error(f"the tensor is {shape}, for the layers {layers}", where)
        by_layer = dict(zip(layers, rows, strict=True)) if layers is not None else matrix.rows(tensor)
        return {layer: _vector(row, f"vector of layer {layer}", where) for layer, row in sorted(by_layer.items())}, None
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
        raise shape_error(f"{name} holds {tensor.dtype}, not real numbers", where)
    vector: Vector = tensor.detach().float().contiguous().numpy().copy()
    if not len(vector):
        raise shape_error(f"{name} is empty", where)
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
