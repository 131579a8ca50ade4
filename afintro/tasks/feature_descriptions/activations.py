"""Which texts activate the features of an autoencoder, and what is computed from that."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.files import new_file
from afintro.data.formats import WRAPPERS, read_text
from afintro.data.label_words import Label, check_label, labels_of
from afintro.data.records import read_object
from afintro.data.sources import read_rows
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.descriptions import feature_key, label_text

CONTRAST = ("alignment_faking", "aligned")
BLOCK_TEXTS = 256


@dataclass(frozen=True)
class Activations:
    """Texts, and for each feature the texts that activate it.

    Args:
        texts: The texts.
        labels: A label for each text, e.g. ``alignment_faking``, ``aligned`` or ``unknown``.
        activating: For each feature that is ever active ("123" or "40/123"), the indices of its activating texts.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    activating: Mapping[str, frozenset[int]]

    def sample(self, feature: str, per_side: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Draw texts that activate a feature, and texts that do not.

        The draw depends on the seed, the feature and a text's index alone; a smaller draw is the start of a larger draw.
        A string is drawn at most once. A string that activates the feature anywhere (a text that was cut short may occur
        twice) never counts as non-activating.

        Args:
            feature: Feature as in ``activating``; a feature that is absent there is active on no text.
            per_side: How many texts of each kind to draw, at least 0.
            seed: Another seed gives other texts.

        Returns:
            Activating and non-activating texts, fewer than ``per_side`` where there are fewer.
        """
        active = self.activating.get(feature, frozenset())
        active_texts = {self.texts[index] for index in active}

        def digest(index: int) -> bytes:
            return hashlib.blake2b(f"{seed} {feature} {index}".encode(), digest_size=8).digest()

        order = sorted(range(len(self.texts)), key=digest)
        activating = dict.fromkeys(self.texts[index] for index in order if index in active)
        others = dict.fromkeys(self.texts[index] for index in order if self.texts[index] not in active_texts)
        return tuple(activating)[:per_side], tuple(others)[:per_side]


def read_activations(path: str | Path, split: str | None = None, label_names: Sequence[str] = ()) -> Activations:
    """Read ``{"samples": {id: {text, label, fired_features}}}``, or rows of ``{text, label, fired_features}`` in other formats.

    Args:
        path: JSON, JSONL or Parquet file, dataset directory or hub id. A feature in ``fired_features`` is a number, or a string
            "layer/feature".
        split: Split of a dataset (``train`` if None).
        label_names: Names of numbers that are labels, or ``WORD=LABEL``, see :func:`afintro.data.label_words.labels_of`.

    Raises:
        UserError: The file is wrong; names file and record.
    """
    texts: list[str] = []
    labels: list[Label] = []
    activating: dict[str, set[int]] = {}
    for name, row in _rows(str(path), split):
        where = f"{path}, record {name}"
        text, label, features = _sample(row, where)
        for feature in features:
            activating.setdefault(feature_key(feature, f"{where}, fired_features"), set()).add(len(texts))
        texts.append(text)
        labels.append(label)
    if not activating:
        raise UserError("holds no text that activates a feature", where=str(path), remedy="check the file")
    return Activations(
        tuple(texts),
        tuple(labels_of(labels, str(path), label_names)),
        {feature: frozenset(indices) for feature, indices in activating.items()},
    )


def _rows(source: str, split: str | None) -> Iterable[tuple[Any, Any]]:
    """Return each row with its name in the file: its id, or its number."""
    path = Path(source)
    if path.suffix.lower() != ".json" or (path.is_file() and read_text(path).lstrip()[:1] != "{"):
        return enumerate(read_rows(source, split))
    content = read_object(path)
    held = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict | list)]
    if len(held) != 1:
        raise UserError(
            "holds no object or list 'samples'" if not held else "holds several objects or lists of samples",
            where=source,
            remedy="give texts and the features that were active on each, under 'samples'",
        )
    return held[0].items() if isinstance(held[0], dict) else enumerate(held[0])


def _sample(row: Any, where: str) -> tuple[str, Label, list[Any]]:
    if not isinstance(row, dict):
        what = f"is of type {type(row).__name__}, not an object"
        raise UserError(what, where=where, remedy="give one object for each text")
    text, label = label_text(row.get("text"), f"{where}, text"), check_label(row.get("label"), where)
    if not text:
        raise UserError("has no text", where=where, remedy="give the text under 'text'")
    features = row.get("fired_features")
    if not isinstance(features, list):
        kind = "missing" if features is None else f"of type {type(features).__name__}"
        what = f"fired_features is {kind}, not a list"
        raise UserError(what, where=where, remedy="list the active features, [] for none")
    return row["text"], label, features


def activation_matrix(activations: Activations, width: int, path: Path, block_texts: int = BLOCK_TEXTS) -> None:
    """Write a matrix with 1.0 where a text activates a feature and 0.0 elsewhere: ``.npy``, float32 [texts, width].

    Args:
        activations: Activations of one layer's features.
        width: Number of features, including features that are never active.
        path: File to write, block by block; a crash leaves the old file, or none.
        block_texts: Number of texts in a block.

    Raises:
        UserError: A feature is not below ``width`` or names a layer; or the file cannot be written.
    """
    columns = _columns(activations, width)
    count = len(activations.texts)
    with new_file(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, count, block_texts):
            last = min(first + block_texts, count)
            block = np.zeros((last - first, width), "<f4")
            for column, texts in columns.items():
                block[[index - first for index in texts if first <= index < last], column] = 1
            file.write(block.data)


def selectivity(activations: Activations, width: int) -> NDArray[np.float64]:
    """Compute how much more often a feature is active on ``alignment_faking`` texts than on ``aligned`` texts.

    Args:
        activations: Activations of one layer's features.
        width: Number of features, including features that are never active.

    Returns:
        Difference of the two shares of activating texts: float64 [width], in [-1, 1].

    Raises:
        UserError: No text has one of the two labels; or a feature is not below ``width`` or names a layer.
    """
    rates = activation_rates(activations, width)
    return rates[0] - rates[1]


def activation_rates(activations: Activations, width: int) -> NDArray[np.float64]:
    """Compute the shares of ``alignment_faking`` texts and of ``aligned`` texts that activate each feature.

    Args:
        activations: Activations of one layer's features.
        width: Number of features, including features that are never active.

    Returns:
        float64 ``[2, width]``, in [0, 1].

    Raises:
        UserError: As for :func:`selectivity`.
    """
    masks = contrast_masks(activations.labels)
    rates = np.zeros((2, width))
    for column, texts in _columns(activations, width).items():
        indices = sorted(texts)
        rates[:, column] = [mask[indices].sum() / mask.sum() for mask in masks]
    return rates


def contrast_masks(labels: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Return which texts have each label of :data:`CONTRAST`.

    Args:
        labels: Label of each text.

    Returns:
        A mask ``[texts]`` for each label.

    Raises:
        UserError: No text has one of the labels.
    """
    masks = [np.array(labels) == label for label in CONTRAST]
    for label, mask in zip(CONTRAST, masks, strict=True):
        if not mask.any():
            raise UserError(
                f"no text has the label {label!r}",
                where="label of the samples",
                remedy=f"give texts of both labels, {' and '.join(CONTRAST)}",
            )
    return masks


def _columns(activations: Activations, width: int) -> dict[int, frozenset[int]]:
    """Return the texts of each feature by its number; numbers of several layers would collide."""
    for feature in activations.activating:
        where = f"feature {feature!r}"
        if "/" in feature:
            raise UserError("names a layer", where=where, remedy="use one file for each layer, with numbers alone")
        if int(feature) >= width:
            raise UserError(f"is not below the width {width}", where=where, remedy="give the autoencoder's width")
    return {int(feature): texts for feature, texts in activations.activating.items()}
