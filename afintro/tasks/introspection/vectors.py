"""Unit vectors that a residual stream is steered by: a named set for each split, and the proof that splits share none."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from afintro.errors import UserError

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
ALIKE = 0.99
"""Two vectors whose absolute cosine is larger than this count as the same vector."""


@dataclass(frozen=True, eq=False)
class VectorSet:
    """Vectors of one split.

    Args:
        names: Unique names of the vectors.
        matrix: ``[n, hidden]`` float32, rows of norm 1 in the order of the names.
        notes: Facts about single vectors by name, as JSON values: ``concept`` and ``pair`` of a concept vector,
            ``context`` and ``position`` of a real activation.
        facts: Facts about all vectors, for a report, as JSON values.

    Raises:
        ValueError: Names are not unique, or the matrix has another shape, dtype or norm.
    """

    names: tuple[str, ...]
    matrix: NDArray[np.float32]
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError("two vectors have the same name")
        if self.matrix.dtype != np.float32 or self.matrix.ndim != 2 or len(self.matrix) != len(self.names):
            raise ValueError(
                f"{self.matrix.dtype} {list(self.matrix.shape)} is not float32 [{len(self.names)}, hidden]"
            )
        norms = np.linalg.norm(self.matrix.astype(np.float64), axis=1)
        if not np.allclose(norms, 1, rtol=0, atol=1e-5):  # NaN is not close to 1 either
            raise ValueError("rows must have norm 1")

    def of(self, name: str) -> NDArray[np.float32]:
        """Return the vector with a name: ``[hidden]``, norm 1."""
        row: NDArray[np.float32] = self.matrix[self._rows[name]]
        return row

    def concept(self, name: str) -> str:
        """Return the word that a concept vector stands for."""
        return str(self.notes[name]["concept"])

    def partner(self, name: str) -> tuple[str, str]:
        """Return both words of the pair that a concept vector belongs to, in the order of the pair."""
        a, b = self.notes[name]["pair"]
        return a, b

    def source(self, name: str) -> str:
        """Return the id of the context that a real activation was read in."""
        return str(self.notes[name]["context"])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}


@dataclass(frozen=True)
class Geometry:
    """How far vectors point in different directions.

    Args:
        mean_cosine: Mean cosine over all pairs of vectors.
        mean_absolute_cosine: Mean absolute cosine over all pairs of vectors.
        participation_ratio: The participation ratio of the unit vectors, see :func:`participation_ratio`.
    """

    mean_cosine: float
    mean_absolute_cosine: float
    participation_ratio: float


def geometry(matrix: NDArray[Any]) -> Geometry:
    """Measure the geometry of two or more vectors ``[n, hidden]``; their norms play no part.

    Raises:
        UserError: A vector is zero, NaN or infinite.
    """
    unit = unit_rows(matrix, "vectors")
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return Geometry(float(cosines.mean()), float(np.abs(cosines).mean()), participation_ratio(unit))


def participation_ratio(matrix: NDArray[Any]) -> float:
    """Compute how many dimensions the rows of ``[n, hidden]`` occupy: ``(sum s**2)**2 / sum s**4`` of the singular values.

    The ratio is 1 where all rows lie on one line, and n where they are orthogonal and equally long. It follows Gao et al.
    2017 (A theory of multineuronal dimensionality, dynamics and measurement), but uses the second moment and not the
    covariance, so that a common component counts.
    """
    powers = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    return float(powers.sum() ** 2 / (powers**2).sum())


def unit_rows(matrix: NDArray[Any], where: str) -> NDArray[np.float64]:
    """Scale the rows of ``[n, hidden]`` to norm 1.

    Args:
        matrix: ``[n, hidden]``.
        where: Name of the rows in the message.

    Returns:
        float64 ``[n, hidden]``.

    Raises:
        UserError: A row is zero, NaN or infinite.
    """
    wide = matrix.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(wrong):
        what = f"vector {wrong[0]} is zero, NaN or infinite, and has no direction"
        raise UserError(what, where=where, remedy="use another layer, dtype or model")
    unit: NDArray[np.float64] = wide / norms
    return unit


def random_vectors(count: int, width: int, split: SplitName, seed: int) -> VectorSet:
    """Draw uniformly distributed directions, called ``random/<split>/<i>``.

    A larger set begins with the vectors of a smaller set. A hash of seed and split keys the generator, because with seeds
    that are added up one study's test set would be another study's training set.

    Args:
        count: Number of vectors.
        width: Width of the residual stream.
        split: Each split has its own generator.
        seed: Seed of the study.
    """
    key = int.from_bytes(hashlib.sha256(f"random vectors {seed} {split}".encode()).digest())
    drawn = np.random.default_rng(key).standard_normal((count, width))
    names = tuple(f"random/{split}/{index}" for index in range(count))
    return VectorSet(names, unit_rows(drawn, "random vectors").astype(np.float32))


def assert_disjoint_vectors(**sets: VectorSet) -> None:
    """Show that no two sets share a vector.

    Raises:
        UserError: Two vectors have the same SHA-256 of their float32 bytes, or an absolute cosine above 0.99; names both.
    """
    digests = {name: [hashlib.sha256(row.tobytes()).hexdigest() for row in each.matrix] for name, each in sets.items()}
    for name, other in combinations(sets, 2):
        first, second = sets[name], sets[other]
        same = np.array(digests[name])[:, None] == np.array(digests[other])[None, :]
        cosines = np.abs(first.matrix @ second.matrix.T)
        shared = np.argwhere(same | ~(cosines <= ALIKE))
        if len(shared):
            row, column = shared[0]
            how = "the same bytes" if same[row, column] else f"absolute cosine {cosines[row, column]:.4f}"
            what = f"{first.names[row]!r} of {name} and {second.names[column]!r} of {other} are one vector ({how})"
            raise UserError(what, where="vectors of the splits", remedy="redraw one split, or leave the vector out")
