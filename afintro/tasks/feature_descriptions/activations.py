"""On which texts the features of an autoencoder fire, and what is computed from that."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.files import new_file
from afintro.data.samples import read_object
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.descriptions import feature_key, label_text

CONTRAST = ("alignment_faking", "aligned")
BLOCK_TEXTS = 256


@dataclass(frozen=True)
class Firings:
    """Texts, and for each feature the texts on which it fires.

    Args:
        texts: The texts.
        labels: A label for each, e.g. ``alignment_faking``, ``aligned`` or ``unknown``.
        fired: For each feature that ever fires ("123" or "40/123"), the indices of those texts.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    fired: Mapping[str, frozenset[int]]

    def sample(self, feature: str, per_side: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Draw texts on which a feature fires and texts on which it is silent.

        The draw depends on the seed, the feature and a text's index alone; a smaller draw is the start of a larger one.
        A string is drawn once at most, and one that fires anywhere (a text cut short may occur twice) is never silent.

        Args:
            feature: As in ``fired``; one that is not there fires nowhere.
            per_side: How many of each, at least 0.
            seed: Another seed gives other texts.

        Returns:
            Firing and silent texts, fewer than ``per_side`` where there are not so many.
        """
        firing = self.fired.get(feature, frozenset())
        loud = {self.texts[index] for index in firing}

        def draw(index: int) -> bytes:
            return hashlib.blake2b(f"{seed} {feature} {index}".encode(), digest_size=8).digest()

        order = sorted(range(len(self.texts)), key=draw)
        fires = dict.fromkeys(self.texts[index] for index in order if index in firing)
        silent = dict.fromkeys(self.texts[index] for index in order if self.texts[index] not in loud)
        return tuple(fires)[:per_side], tuple(silent)[:per_side]


def read_firings(path: str | Path) -> Firings:
    """Read ``{"samples": {id: {text, label, fired_features}}}``; the samples may be a list too.

    Args:
        path: JSON file. A fired feature is a number, or a string "layer/feature".

    Raises:
        UserError: Names file and record.
    """
    samples = read_object(path).get("samples")
    if not isinstance(samples, dict | list):
        raise UserError(
            "holds no object or list 'samples'", where=str(path), remedy="give texts and what fired on them"
        )
    texts: list[str] = []
    labels: list[str] = []
    fired: dict[str, set[int]] = {}
    for name, row in samples.items() if isinstance(samples, dict) else enumerate(samples):
        where = f"{path}, record {name}"
        text, label, features = _sample(row, where)
        for feature in features:
            fired.setdefault(feature_key(feature, f"{where}, fired_features"), set()).add(len(texts))
        texts.append(text)
        labels.append(label)
    if not fired:
        raise UserError("no feature fires on any text", where=str(path), remedy="check the file")
    return Firings(tuple(texts), tuple(labels), {feature: frozenset(found) for feature, found in fired.items()})


def _sample(row: Any, where: str) -> tuple[str, str, list[Any]]:
    if not isinstance(row, dict):
        raise UserError(f"is {type(row).__name__}, not an object", where=where, remedy="give one object a text")
    text, label = (label_text(row.get(name), f"{where}, {name}") for name in ("text", "label"))
    if not text:
        raise UserError("has no text", where=where, remedy="give the text under 'text'")
    features = row.get("fired_features")
    if not isinstance(features, list):
        kind = "missing" if features is None else type(features).__name__
        raise UserError(f"fired_features is {kind}, not a list", where=where, remedy="list what fired, [] for nothing")
    return row["text"], label or "unknown", features


def activation_matrix(firings: Firings, width: int, path: Path) -> None:
    """Write 1.0 where a feature fires on a text and 0.0 elsewhere: ``.npy``, float32 [texts, width].

    Args:
        firings: Of one layer.
        width: Number of features, also of those that never fire.
        path: The file, written block by block; a crash leaves none, or the old one.

    Raises:
        UserError: A feature is not below ``width`` or names a layer; or the file cannot be written.
    """
    columns = _columns(firings, width)
    count = len(firings.texts)
    with new_file(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, count, BLOCK_TEXTS):
            block = np.zeros((min(BLOCK_TEXTS, count - first), width), "<f4")
            for column, texts in columns.items():
                block[[index - first for index in texts if first <= index < first + BLOCK_TEXTS], column] = 1
            file.write(block.data)


def selectivity(firings: Firings, width: int) -> NDArray[np.float64]:
    """Firing rate on ``alignment_faking`` texts minus firing rate on ``aligned`` texts: float64 [width], in [-1, 1].

    Raises:
        UserError: No text of one of the two labels; a feature is not below ``width`` or names a layer.
    """
    labels = np.array(firings.labels)
    sides = [labels == label for label in CONTRAST]
    for label, side in zip(CONTRAST, sides, strict=True):
        if not side.any():
            raise UserError(
                f"no text has the label {label!r}",
                where="label of the samples",
                remedy=f"give texts of both labels, {' and '.join(CONTRAST)}",
            )
    rates = np.zeros((2, width))
    for column, texts in _columns(firings, width).items():
        found = sorted(texts)
        rates[:, column] = [side[found].sum() / side.sum() for side in sides]
    return rates[0] - rates[1]


def _columns(firings: Firings, width: int) -> dict[int, frozenset[int]]:
    """Texts of each feature by its number; numbers of several layers would fall together."""
    for feature in firings.fired:
        where = f"fired feature {feature!r}"
        if "/" in feature:
            raise UserError("names a layer", where=where, remedy="use one file a layer, with numbers alone")
        if int(feature) >= width:
            raise UserError(f"is not below the width {width}", where=where, remedy="give the autoencoder's width")
    return {int(feature): texts for feature, texts in firings.fired.items()}
