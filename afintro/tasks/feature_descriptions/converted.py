"""Write what another tool's pickle holds as safetensors, .npy and JSON: features and explanations in this project's own schema."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.files import new_file, write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.descriptions import Description, feature_key, label_text, nonempty
from afintro.tasks.feature_descriptions.features import PICKLES, check_finite, write_features
from afintro.tasks.feature_descriptions.plain_pickle import LEAVES, read_plain_pickle
from afintro.tasks.feature_descriptions.sae import COLUMNS, ROWS

TORCH = (".pt", ".pth")
LAYER = re.compile(r"layer_(\d+)")
REMEDY = "give pickles of tensors, arrays and plain containers"


def convert(path: Path, target: Path, layer: int | None = None) -> tuple[list[Path], str]:
    """Convert one pickle.

    Args:
        path: A pickle, or a file of ``torch.save``. A matrix ``[width, features]``, alone or in a dict, in a file
            ``layer_N.pkl`` holds features in its columns, as introspective-interp reads them.
        target: Path of what is written, without an ending.
        layer: The layer of the features, where the file's name does not say it.

    Returns:
        The files that were written, and what they hold.

    Raises:
        UserError: The file holds anything but tensors, arrays and plain containers, or what cannot be written.
    """
    content = read_plain_pickle(path)
    if _is_explained(content):
        return _explanations(content, path, target.with_name(f"{target.name}.json"))
    named = LAYER.fullmatch(path.stem) if path.suffix in PICKLES else None
    if named and layer not in (None, int(named[1])):
        raise UserError(f"is of layer {named[1]} by its name", where=str(path), remedy=f"give --layer {named[1]}")
    layer = int(named[1]) if named else layer
    if layer is not None:
        return _features(content, path, target.with_name(f"layer_{layer}.safetensors"), layer)
    return _anything(content, path, target)


def _features(content: Any, path: Path, target: Path, layer: int) -> tuple[list[Path], str]:
    """Write the columns of a matrix as a file of features; columns of zeros are left out."""
    matrix, numbers = _columns(content, str(path))
    order = np.argsort(numbers, kind="stable")
    indices = numbers[order]
    if (np.diff(indices) == 0).any() or indices[0] < 0:
        raise UserError("numbers a feature twice, or below 0", where=str(path), remedy="correct feature_indices")
    vectors = np.ascontiguousarray(matrix.T[order], np.float32)
    check_finite(vectors, indices, str(path))
    active = vectors.any(axis=1)
    if not active.any():
        raise UserError("holds vectors of zeros alone", where=str(path), remedy="check the file")
    metadata = {"layer": str(layer), "source": str(path), "kind": "converted"}
    write_features(target, [vectors[active]], indices[active], vectors.shape[1], metadata)
    zeros = f", {int((~active).sum())} of zeros left out" if not active.all() else ""
    return [target], f"{int(active.sum())} features of layer {layer}, width {vectors.shape[1]}{zeros}"


def _columns(content: Any, where: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return a matrix [width, n] and the number of the feature of each column."""
    if isinstance(content, dict) and {"activations", "feature_indices"} <= set(
        content
    ):  # of extract_af_sae_features.py
        matrix, numbers = _array(content["activations"]), _array(content["feature_indices"])
    else:
        inside = content if isinstance(content, dict) else {"": content}
        matrices = {key: value for key, value in inside.items() if _is_numbers(value) and value.ndim == 2}
        if len(matrices) != 1 or set(matrices) & {*ROWS, *COLUMNS}:  # an autoencoder may have a feature in each row
            what = f"holds {len(matrices)} matrices{_names(matrices)}, not one of [width, features]"
            remedy = (
                "give a matrix, or a dict of one matrix; of an autoencoder, give extract_af_sae_features.py the weights"
            )
            raise UserError(what, where=where, remedy=remedy)
        matrix = _array(next(iter(matrices.values())))
        numbers = np.arange(matrix.shape[1])
    if matrix.dtype.kind not in "fiu" or matrix.ndim != 2 or numbers.shape != matrix.shape[1:] or not matrix.size:
        what = f"holds {matrix.dtype} of the shape {list(matrix.shape)} for {list(numbers.shape)} features"
        raise UserError(what, where=where, remedy="give real numbers [width, features]")
    if numbers.dtype.kind not in "iu":
        raise UserError(f"numbers features by {numbers.dtype}", where=where, remedy="correct feature_indices")
    return matrix, numbers.astype(np.int64)


def _names(matrices: dict[Any, Any]) -> str:
    names = [str(name) for name in matrices if name != ""]
    return f" ({', '.join(names)})" if names else ""


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _array(value: Any) -> NDArray[Any]:
    """Return a tensor or an array as an array; bfloat16, which numpy lacks, becomes float32."""
    if not _is_tensor(value):
        return np.asarray(value)
    narrow = value.is_floating_point() and value.element_size() <= 2
    return (value.float() if narrow else value).numpy()


def _is_explained(content: Any) -> bool:
    """Tell whether a content is a list of ((layer, feature), {chosen_label, ...}), as introspective-interp pickles it."""
    return (
        isinstance(content, list | tuple)
        and bool(content)
        and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in content)
        and all(isinstance(key, list | tuple) and len(key) == 2 and isinstance(label, dict) for key, label in content)
        and "chosen_label" in content[0][1]
    )


def _explanations(content: Any, path: Path, target: Path) -> tuple[list[Path], str]:
    """Write explanations as descriptions: features of one label are a cluster, and the layer is the category."""
    described: dict[str, Description] = {}
    unlabeled = 0
    for index, ((layer, number), label) in enumerate(content):
        where = f"{path}, record {index}"
        feature = feature_key(f"{layer}/{number}", where)
        listed = label.get("all_labels") or []
        if not isinstance(listed, list | tuple):
            raise UserError("has all_labels that are no list", where=where, remedy="correct the record")
        labels = [label_text(text, where) for text in (label.get("chosen_label"), *listed)]
        if not labels[0]:
            unlabeled += 1
            continue
        entry = described.setdefault(
            feature,
            {"chosen_label": labels[0], "cluster_id": labels[0], "all_labels": [], "category": f"layer {layer}"},
        )
        entry["all_labels"] += [text for text in dict.fromkeys(labels) if text and text not in entry["all_labels"]]
    write_json(target, nonempty(described, str(path)))
    rest = f", {unlabeled} without a label left out" if unlabeled else ""
    return [target], f"{len(described)} described features{rest}"


def _anything(content: Any, path: Path, target: Path) -> tuple[list[Path], str]:
    """Write tensors by their places as safetensors, one array alone as .npy, and all else as JSON."""
    if isinstance(content, np.ndarray):
        with new_file(target.with_name(f"{target.name}.npy")) as file:
            np.save(file, content, allow_pickle=False)
        return [target.with_name(f"{target.name}.npy")], f"an array {list(content.shape)}"
    tensors: dict[str, Any] = {}
    rest = _plain(content, "", tensors, str(path))
    written = []
    if tensors:
        written.append(target.with_name(f"{target.name}.safetensors"))
        _write_tensors(written[-1], tensors)
    if rest != {name: {"tensor": name} for name in tensors} and not _is_tensor(content):
        written.append(target.with_name(f"{target.name}.json"))
        write_json(written[-1], rest)
    beside = len(written) > (1 if tensors else 0)
    return written, f"{len(tensors)} tensors" + (" and what is beside them" if beside else "")


def _write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save

    whole = {name: torch.as_tensor(np.array(t) if isinstance(t, np.ndarray) else t) for name, t in tensors.items()}
    with new_file(path) as file:
        file.write(save({name: tensor.clone().contiguous() for name, tensor in whole.items()}))


def _plain(value: Any, name: str, tensors: dict[str, Any], where: str) -> Any:
    """Return a value for JSON, in which ``{"tensor": name}`` stands for a tensor that is put among the tensors."""
    if _is_numbers(value):
        name = name or "tensor"
        if name in tensors:
            raise UserError(f"has two tensors of the place {name!r}", where=where, remedy=REMEDY)
        tensors[name] = value.astype(value.dtype.newbyteorder("=")) if isinstance(value, np.ndarray) else value
        return {"tensor": name}
    if value is None or type(value) in LEAVES:
        return None if isinstance(value, float) and not math.isfinite(value) else value
    if isinstance(value, dict):
        entries = [(_name(key, where), item) for key, item in value.items()]
        plain = {key: _plain(item, f"{name}.{key}" if name else key, tensors, where) for key, item in entries}
        if len(plain) < len(entries):
            raise UserError("has a key twice, as a number and as a string", where=where, remedy=REMEDY)
        return plain
    items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
    return [_plain(item, f"{name}.{i}" if name else str(i), tensors, where) for i, item in enumerate(items)]


def _name(key: Any, where: str) -> str:
    """Return a key for JSON: (40, 123) becomes 40/123."""
    parts = key if isinstance(key, tuple) else (key,)
    if not parts or not all(type(part) in (int, str) for part in parts):
        raise UserError(f"has the key {key!r}", where=where, remedy="use numbers, strings, or tuples of them as keys")
    return "/".join(map(str, parts))


def pickles_in(folder: Path) -> Iterator[Path]:
    """Give the pickles of a folder and its folders, in the order of their names."""
    yield from sorted(file for file in folder.rglob("*") if file.suffix in PICKLES + TORCH and file.is_file())
