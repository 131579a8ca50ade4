"""Read steering vectors from the files in which people save them; what a file's content means is in ``direction_shapes``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from afintro.data.records import read_object
from afintro.data.torch_files import load_tensors
from afintro.errors import UserError
from afintro.tasks.steering.control_vectors import read_gguf
from afintro.tasks.steering.direction_shapes import SHAPES, Group, Matrix, groups_of, shape_error, vectors_of
from afintro.tasks.steering.directions import Direction

CHOSEN = "::"  # FILE::NAME is one direction of a file that names several
MANY = 10  # names in a message


def read_direction(path: str, name: str | None = None, depth: int | None = None) -> Direction:
    """Read a direction, and its sidecar ``<stem>.json`` if there is one.

    A file may hold a bare vector ``[hidden]`` (or ``[1, hidden]``); a matrix ``[layers, hidden]``, or ``[layers + 1, hidden]``
    with the embedding's output first, as ``output_hidden_states`` gives them; a vector for each layer, by its number or by a name
    that ends in the number (``layers.12``); ``{"layer": 12, "vector": ...}``; or any of these under names of concepts.
    ``.npy`` holds one array, ``.safetensors`` tensors, whose layer the file's metadata or the sidecar may name; ``.pt``, ``.pth``
    and ``.bin`` hold tensors in dicts and are read without unpickling any object; ``.gguf`` is a control vector of llama.cpp.
    Any float dtype.

    Args:
        path: The file; ``FILE::NAME`` chooses one of several named directions.
        name: Name of the direction; None for the concept's name in the file, the sidecar's ``name`` or the file's stem.
        depth: Number of layers of the model, which tells what the rows of a matrix are; None if it is unknown.

    Raises:
        UserError: The file does not exist or has another form, names several directions and none was chosen, widths differ, or
            a vector is zero, NaN or infinite.
    """
    file, _, chosen = path.partition(CHOSEN)
    opened = _open(Path(file), depth)
    names = ", ".join(sorted(opened.groups)[:MANY]) + (", ..." if len(opened.groups) > MANY else "")
    if chosen and chosen not in opened.groups:
        remedy = f"name a direction of the file: {names}" if "" not in opened.groups else f"give {file} alone"
        raise UserError(f"holds no direction {chosen!r}", where=file, remedy=remedy)
    if not chosen and len(opened.groups) > 1:
        remedy = f"choose a direction as {file}{CHOSEN}{sorted(opened.groups)[0]}"
        raise UserError(f"holds {len(opened.groups)} directions: {names}", where=file, remedy=remedy)
    direction = opened.direction(chosen or next(iter(opened.groups)))
    return replace(direction, name=name or direction.name)


def read_directions(folder: Path) -> dict[str, Direction]:
    """Read all direction files of a folder, and all directions of a file that names several.

    A control vector beside a safetensors file of the same name is a copy, and is passed over.

    Returns:
        The directions by name, in the order of their files' names.

    Raises:
        UserError: The folder holds no direction file, two directions have the same name, or the widths differ.
    """
    paths = [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix in (".safetensors", ".npy", ".pt")
        or (path.suffix == ".gguf" and not path.with_suffix(".safetensors").is_file())
    ]
    if not paths:
        raise UserError(
            "holds no direction", where=str(folder), remedy="set data.directions to the folder of the vectors"
        )
    opened = [_open(path, None) for path in paths]
    found = [(file.direction(name), file.path) for file in opened for name in file.groups]
    names = [direction.name for direction, _ in found]
    double = [str(path) for direction, path in found if names.count(direction.name) > 1]
    if double:
        raise UserError("name the same direction", where=" and ".join(double), remedy="rename or remove one")
    widths = {len(v): d.name for d, _ in found for v in (*d.vectors.values(), d.everywhere) if v is not None}
    if len(widths) > 1:
        raise UserError(
            "holds vectors of width " + " and ".join(f"{width} ({name})" for width, name in sorted(widths.items())),
            where=str(folder),
            remedy="give vectors of one model",
        )
    return {direction.name: direction for direction, _ in found}


@dataclass(frozen=True)
class _Opened:
    """A direction file that is read, and whose directions are not checked yet.

    Args:
        path: The file.
        groups: The tensors of each direction by its name, ``""`` for a direction that the file does not name.
        stated: What the file says of its tensors beside them.
        sidecar: Content of the sidecar.
        depth: Number of layers of the model; None if it is unknown.
    """

    path: Path
    groups: Mapping[str, Group]
    stated: Mapping[str, Any]
    sidecar: Mapping[str, Any]
    depth: int | None

    def direction(self, name: str) -> Direction:
        """Return a direction of the file, see :func:`read_direction`."""
        known = {**self.stated, **self.sidecar}
        where = f"{self.path}, direction {name!r}" if name else str(self.path)
        matrix = Matrix(known.get("first_layer"), self.depth, where)
        vectors, everywhere = vectors_of(self.groups[name], known.get("layer"), matrix)
        metadata = {key: value for key, value in self.stated.items() if key == "model_type"} | dict(self.sidecar)
        return Direction(name or str(metadata.get("name") or self.path.stem), vectors, everywhere, metadata)


def _open(path: Path, depth: int | None) -> _Opened:
    if not path.is_file():
        raise UserError("does not exist", where=str(path), remedy=f"give {SHAPES}")
    if path.suffix not in READERS:
        raise shape_error(f"ends in {path.suffix!r}, not in {', '.join(READERS)}", str(path))
    sidecar = path.with_suffix(".json")
    metadata = read_object(sidecar) if sidecar.is_file() else {}
    content, stated = READERS[path.suffix](path)
    return _Opened(path, groups_of(content, str(path)), stated, metadata, depth)


def _read_npy(path: Path) -> tuple[Any, Mapping[str, Any]]:
    try:
        array = np.array(np.lib.format.open_memmap(path, mode="r"))  # as np.load, but .npy alone, and no pickle
    except (ValueError, OSError, EOFError) as error:
        what = (
            "holds Python objects, which are not loaded" if "object" in str(error) else f"is not an .npy file ({error})"
        )
        raise shape_error(what, str(path)) from error
    if array.dtype.kind not in "fiu":
        raise shape_error(f"holds {array.dtype}, not real numbers", str(path))
    return torch.from_numpy(array.astype(np.float64)), {}


def _read_safetensors(path: Path) -> tuple[Any, Mapping[str, Any]]:
    try:
        with safe_open(path, "pt") as file:  # torch, since numpy has no bfloat16
            stated = {key: value for key, value in (file.metadata() or {}).items() if key in ("layer", "first_layer")}
            return {name: file.get_tensor(name) for name in file.keys()}, stated  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise shape_error(f"is not a safetensors file, or is cut off ({error})", str(path)) from error


def _read_pt(path: Path) -> tuple[Any, Mapping[str, Any]]:
    return load_tensors(path, "vectors"), {}


READERS: dict[str, Callable[[Path], tuple[Any, Mapping[str, Any]]]] = {
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    **dict.fromkeys((".pt", ".pth", ".bin"), _read_pt),
    ".gguf": read_gguf,
}
