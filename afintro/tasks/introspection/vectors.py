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
"""Two vectors whose absolute cosine is larger count as one."""


@dataclass(frozen=True, eq=False)
class VectorSet:
    """Vectors of one split.

    Args:
        names: Unique.
        matrix: ``[n, hidden]`` float32, rows of norm 1 in the order of the names.
        notes: By name, where there is something to say of a vector: ``concept`` and ``pair`` of a concept vector,
            ``context`` and ``position`` of a real activation. JSON values, as is ``facts``.
        facts: What a report says of them all.
    """

    names: tuple[str, ...]
    matrix: NDArray[np.float32]
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError("two vectors have one name")
        if self.matrix.dtype != np.float32 or self.matrix.ndim != 2 or len(self.matrix) != len(self.names):
            raise ValueError(
                f"{self.matrix.dtype} {list(self.matrix.shape)} is not float32 [{len(self.names)}, hidden]"
            )
        norms = np.linalg.norm(self.matrix.astype(np.float64), axis=1)
        if not np.allclose(norms, 1, rtol=0, atol=1e-5):  # NaN is not close to 1 either
            raise ValueError("rows must have norm 1")

    def of(self, name: str) -> NDArray[np.float32]:
        """The vector of that name: ``[hidden]``, norm 1."""
        row: NDArray[np.float32] = self.matrix[self._rows[name]]
        return row

    def concept(self, name: str) -> str:
        """The word that a concept vector stands for."""
        return str(self.notes[name]["concept"])

    def partner(self, name: str) -> tuple[str, str]:
        """Both words of the pair that a concept vector belongs to, in the order of the pair."""
        a, b = self.notes[name]["pair"]
        return a, b

    def source(self, name: str) -> str:
        """Id of the context that a real activation was read in."""
        return str(self.notes[name]["context"])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}


@dataclass(frozen=True)
class Geometry:
    """How far vectors point different ways.

    Args:
        mean_cosine: Mean over all pairs of vectors.
        mean_absolute_cosine: Mean of the absolute cosine over all pairs.
        participation_ratio: See :func:`participation_ratio`, of the unit vectors.
    """

    mean_cosine: float
    mean_absolute_cosine: float
    participation_ratio: float


def geometry(matrix: NDArray[Any]) -> Geometry:
    """Of two vectors or more ``[n, hidden]``, none of them zero; their norms play no part."""
    unit = unit_rows(matrix, "vectors")
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return Geometry(float(cosines.mean()), float(np.abs(cosines).mean()), participation_ratio(unit))


def participation_ratio(matrix: NDArray[Any]) -> float:
    """Number of dimensions that the rows of ``[n, hidden]`` take up: ``(sum s**2)**2 / sum s**4`` of the singular values.

    1 where all lie on one line, and n where they are orthogonal and equally long. As in Gao et al. 2017 (A theory of
    multineuronal dimensionality, dynamics and measurement), of the second moment and not of the covariance: a common
    component counts.
    """
    powers = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    return float(powers.sum() ** 2 / (powers**2).sum())


def unit_rows(matrix: NDArray[Any], where: str) -> NDArray[np.float64]:
    """The rows of ``[n, hidden]`` with norm 1.

    Raises:
        UserError: A row that is zero, NaN or infinite; ``where`` says of what.
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
    """Directions drawn uniformly, called ``random/<split>/<i>``; more of them begin with the same ones.

    A hash of seed and split keys the generator: with seeds that are added up, one study's test set would be another's
    training set.

    Args:
        count: How many.
        width: Of the residual stream.
        split: Each has a generator of its own.
        seed: Of the study.
    """
    key = int.from_bytes(hashlib.sha256(f"random vectors {seed} {split}".encode()).digest())
    drawn = np.random.default_rng(key).standard_normal((count, width))
    names = tuple(f"random/{split}/{index}" for index in range(count))
    return VectorSet(names, unit_rows(drawn, "random vectors").astype(np.float32))


def assert_disjoint_vectors(**splits: VectorSet) -> None:
    """Show that no vector is in two splits.

    Raises:
        UserError: Two have the same SHA-256 of their float32 bytes, or an absolute cosine above 0.99: names both.
    """
    digests = {
        split: [hashlib.sha256(row.tobytes()).hexdigest() for row in each.matrix] for split, each in splits.items()
    }
    for one, other in combinations(splits, 2):
        first, second = splits[one], splits[other]
        same = np.array(digests[one])[:, None] == np.array(digests[other])[None, :]
        cosines = np.abs(first.matrix @ second.matrix.T)
        found = np.argwhere(same | ~(cosines <= ALIKE))
        if len(found):
            row, column = found[0]
            how = "the same bytes" if same[row, column] else f"absolute cosine {cosines[row, column]:.4f}"
            what = f"{first.names[row]!r} of {one} and {second.names[column]!r} of {other} are one vector ({how})"
            raise UserError(what, where="vectors of the splits", remedy="draw one split anew, or leave the vector out")
