"""Labels beside an activation matrix: how selective each feature is, where no file says which features are active on which text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.formats import read_text
from afintro.data.label_words import check_label, labels_of
from afintro.data.records import read_object
from afintro.data.sources import read_rows
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.activations import BLOCK_TEXTS, contrast_masks
from afintro.tasks.feature_descriptions.features import check_finite
from afintro.tasks.feature_descriptions.profiles import map_array


def read_labels(source: str, split: str | None = None, label_names: Sequence[str] = ()) -> list[str]:
    """Read the label of each text of a matrix, in order.

    Args:
        source: JSON ``{"labels": [...]}``; or rows that are labels, or objects with ``label``, in any format of samples.
        split: Split of a dataset (``train`` if None).
        label_names: Names of numbers that are labels, or ``WORD=LABEL``, see :func:`afintro.data.label_words.labels_of`.

    Raises:
        UserError: The file is wrong, or a text has no label.
    """
    labels = []
    for index, row in enumerate(_listed(source, split)):
        where = f"{source}, record {index}"
        label = check_label(row.get("label") if isinstance(row, dict) else row, where)
        if label is None:
            raise UserError("has no label", where=where, remedy="give a label for each row of the matrix")
        labels.append(label)
    return labels_of(labels, source, label_names)


def _listed(source: str, split: str | None) -> Any:
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".json" and '"labels"' in read_text(path):
        content = read_object(path)
        if isinstance(content.get("labels"), list):
            return content["labels"]
    return read_rows(source, split)


def matrix_selectivity(path: Path, labels: Sequence[str], source: str) -> NDArray[np.float64]:
    """Compute how much more often a feature is active on ``alignment_faking`` texts than on ``aligned`` texts.

    A feature is active on a text where its activation is above 0.

    Args:
        path: ``.npy`` file ``[texts, features]``, which is never in memory whole.
        labels: Label of each text.
        source: The file of the labels, for the error.

    Returns:
        Difference of the two shares of activating texts: float64 ``[features]``, in [-1, 1].

    Raises:
        UserError: Matrix and labels do not belong together, no text has one of the two labels, an activation is not finite,
            or every feature is active equally often on both kinds of text.
    """
    faking, aligned = matrix_rates(path, labels, source)
    difference: NDArray[np.float64] = faking - aligned
    if not difference.any():
        what = "holds features that are all active equally often on both kinds of text"
        raise UserError(what, where=str(path), remedy="give activations that are 0 where a feature is not active")
    return difference


def matrix_rates(path: Path, labels: Sequence[str], source: str) -> NDArray[np.float64]:
    """Compute the shares of ``alignment_faking`` texts and of ``aligned`` texts on which each feature is above 0.

    Args:
        path: ``.npy`` file ``[texts, features]``, which is never in memory whole.
        labels: Label of each text.
        source: The file of the labels, for the error.

    Returns:
        float64 ``[2, features]``, in [0, 1].

    Raises:
        UserError: Matrix and labels do not belong together, no text has one of the two labels, or an activation is not finite.
    """
    matrix = map_array(path, 2)
    texts, features = matrix.shape
    if texts != len(labels):
        what = f"holds {len(labels)} labels, but {path} holds {texts} texts"
        raise UserError(what, where=source, remedy="give one label for each row of the matrix, in its order")
    masks = contrast_masks(labels)
    active = np.zeros((len(masks), features))
    for first in range(0, texts, BLOCK_TEXTS):
        rows = slice(first, first + BLOCK_TEXTS)
        block = matrix[rows]
        check_finite(block.T, np.arange(features), str(path))
        active += [(block[mask[rows]] > 0).sum(axis=0) for mask in masks]
    return np.array([counts / mask.sum() for counts, mask in zip(active, masks, strict=True)])
