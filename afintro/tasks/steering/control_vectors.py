"""Steering vectors as control vectors of llama.cpp: GGUF files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afintro.data.files import new_file
from afintro.errors import UserError, one_line
from afintro.tasks.steering.directions import Direction


def gguf_writer(where: str) -> Any:
    """Return the class that writes GGUF files, which belongs to an optional library.

    Raises:
        UserError: The library is not installed; ``where`` is the file or the setting that needs it.
    """
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        what = "cannot be written without the gguf library"
        raise UserError(what, where=where, remedy="pip install gguf, or leave GGUF out") from error
    return GGUFWriter


def write_gguf(path: Path, direction: Direction) -> list[int]:
    """Write a llama.cpp control vector: tensors ``direction.<l>``, added to the output of 0-based layer ``l`` as here.

    llama.cpp fills its layer ``il`` from ``direction.<il>``, and has no control vector at layer 0, which is left out.

    Args:
        path: The file to write.
        direction: The direction, with a vector of at least one layer above 0.

    Returns:
        The layers that were left out: ``[]`` or ``[0]``.

    Raises:
        UserError: The ``gguf`` library is missing, the direction has no layer above 0, or the file cannot be written.
    """
    layers = [layer for layer in sorted(direction.vectors) if layer > 0]
    if not layers:
        layers_held = "is of layer 0 alone" if direction.vectors else "names no layer"
        what = f"direction {direction.name!r} {layers_held}, which no control vector can hold"
        raise UserError(what, where=str(path), remedy="use a direction with a vector of layer 1 or above")
    writer_type = gguf_writer(str(path))
    with tempfile.TemporaryDirectory() as folder:  # the library writes to a path only
        writer = writer_type(draft := Path(folder) / "draft.gguf", "controlvector")
        writer.add_string("controlvector.model_hint", str(direction.metadata.get("model_type") or "unknown"))
        writer.add_uint32("controlvector.layer_count", len(layers))
        for layer in layers:
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(direction.vectors[layer], "<f4"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with new_file(path) as file:
            file.write(draft.read_bytes())
    return [0] if 0 in direction.vectors else []


def read_gguf(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Read a control vector: ``direction.<l>`` belongs to the output of 0-based layer ``l``, for llama.cpp and for repeng.

    llama.cpp adds ``direction.<il>`` to what its layer ``il`` gives out, and repeng names a vector by the index of the decoder
    layer whose output it was found in.

    Args:
        path: A ``.gguf`` file.

    Returns:
        float32 tensors ``[hidden]`` by name, and ``model_type``, the model that the file names.

    Raises:
        UserError: The ``gguf`` library is missing, or the file holds no control vector.
    """
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        what = "cannot be read without the gguf library"
        raise UserError(what, where=str(path), remedy="pip install gguf, or convert the file") from error
    try:
        reader = GGUFReader(path)
        tensors = {
            tensor.name: torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
            for tensor in reader.tensors
            if tensor.name.startswith("direction.")
        }
        hint = reader.get_field("controlvector.model_hint")
    except Exception as error:  # a malformed file raises almost anything
        what = f"is not a GGUF file, or is cut off ({type(error).__name__}: {one_line(error, 80)})"
        raise UserError(what, where=str(path), remedy="give the whole file") from error
    if not tensors or not all(name.removeprefix("direction.").isdecimal() for name in tensors):
        what = f"holds {'other tensors than' if tensors else 'no tensor'} direction.<layer>"
        raise UserError(what, where=str(path), remedy="give a control vector, not a model")
    return tensors, {} if hint is None else {"model_type": hint.contents()}
