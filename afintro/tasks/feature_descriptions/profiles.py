"""Choose features by their selectivity, and read their activation profiles from a matrix that is never in memory whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.features import check_finite, open_binary

BLOCK_BYTES = 16 * 2**20


def map_array(path: Path, dimensions: int) -> NDArray[Any]:
    """Map a ``.npy`` file of numbers into memory, read-only; a file of pickled objects is never loaded.

    Args:
        path: File to map.
        dimensions: Required number of dimensions.

    Raises:
        UserError: The file does not exist, is not ``.npy``, does not hold numbers, or has other dimensions.
    """
    open_binary(path).close()
    remedy = f"give numbers saved by numpy.save, of {dimensions} dimension{'s' * (dimensions > 1)}"
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # as np.load(mmap_mode="r"), but .npy alone
    except (ValueError, OSError, EOFError) as error:
        what = (
            "holds Python objects, which are not loaded" if "object" in str(error) else f"is not a .npy file ({error})"
        )
        raise UserError(what, where=str(path), remedy=remedy) from error
    if array.dtype.kind not in "fiub":
        raise UserError(f"holds {array.dtype}, not real numbers", where=str(path), remedy=remedy)
    if array.ndim != dimensions:
        raise UserError(f"has the shape {list(array.shape)}", where=str(path), remedy=remedy)
    return array


def check_selectivity(selectivity: NDArray[Any], top_k: int, where: str) -> None:
    """Check that features can be chosen by a selectivity.

    Args:
        selectivity: One number for each feature [features].
        top_k: How many features to choose, from 1 to the number of features.
        where: Name of the selectivity in messages.

    Raises:
        UserError: The selectivity is not [features], not finite, or the same everywhere; or ``top_k`` is out of range.
    """
    remedy = "compute it again, e.g. with scripts/build_af_activations.py"
    if selectivity.ndim != 1:
        raise UserError(
            f"selectivity has the shape {list(selectivity.shape)}, not [features]", where=where, remedy=remedy
        )
    bad = np.flatnonzero(~np.isfinite(selectivity))
    if bad.size:
        what = f"selectivity of feature {bad[0]} is {selectivity[bad[0]]} ({bad.size} of {len(selectivity)} are not finite)"
        raise UserError(what, where=where, remedy=remedy)
    if not 1 <= top_k <= len(selectivity):
        what = f"top_k is {top_k}, but there are {len(selectivity)} features"
        raise UserError(what, where=where, remedy=f"use a --top_k from 1 to {len(selectivity)}")
    if len(selectivity) > 1 and (selectivity == selectivity[0]).all():
        raise UserError(f"selectivity is {selectivity[0]} for every feature", where=where, remedy=remedy)


def most_selective(selectivity: NDArray[Any], top_k: int, where: str) -> NDArray[np.int64]:
    """Choose the features of the largest absolute selectivity, for which either kind of text counts.

    Args:
        selectivity: One number for each feature [features].
        top_k: How many features to choose, from 1 to the number of features.
        where: Name of the selectivity in messages.

    Returns:
        Indices of the features [top_k], int64, ascending. Of equally selective features the lower index is chosen.

    Raises:
        UserError: As for :func:`check_selectivity`.
    """
    check_selectivity(selectivity, top_k, where)
    order = np.argsort(-np.abs(selectivity.astype(np.float64)), kind="stable")
    return np.sort(order[:top_k]).astype(np.int64)


def by_signed_selectivity(selectivity: NDArray[Any], top_k: int, where: str) -> NDArray[np.int64]:
    """Choose the features of the largest selectivity with its sign, for which alignment faking alone counts.

    Args:
        selectivity: One number for each feature [features].
        top_k: How many features to choose, from 1 to the number of features.
        where: Name of the selectivity in messages.

    Returns:
        Indices of the features [top_k], int64, the most selective first; of equally selective features the lower index.

    Raises:
        UserError: As for :func:`check_selectivity`.
    """
    check_selectivity(selectivity, top_k, where)
    return np.argsort(-selectivity.astype(np.float64), kind="stable")[:top_k].astype(np.int64)


def activation_profiles(
    path: Path, indices: NDArray[np.int64], block_columns: int = 512
) -> Iterator[NDArray[np.float32]]:
    """Read columns of an activation matrix as rows, without ever holding the matrix in memory.

    Args:
        path: ``.npy`` file [texts, features].
        indices: Columns to read [n].
        block_columns: Number of columns that one pass over the file reads.

    Yields:
        float32 [<=block_columns, texts].

    Raises:
        UserError: The file is not such a file, or a column holds NaN or infinity.
        IndexError: A column does not exist.
    """
    matrix = map_array(path, 2)
    texts, features = matrix.shape
    step = max(1, BLOCK_BYTES // max(1, features * matrix.itemsize))
    for first in range(0, len(indices), block_columns):
        columns = indices[first : first + block_columns]
        block = np.empty((len(columns), texts), np.float32)
        for row in range(0, texts, step):
            matrix = map_array(path, 2)  # a new map gives the pages of the last map back
            with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite and is refused below
                block[:, row : row + step] = matrix[row : row + step][:, columns].T
        check_finite(block, columns, str(path))
        yield block
