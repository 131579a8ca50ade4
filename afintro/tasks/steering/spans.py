"""Which directions are unseen: those that lie mostly outside of the span of the directions that are trained on."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from afintro.data.splits import stable_hash
from afintro.errors import UserError
from afintro.tasks.steering.directions import Direction

log = logging.getLogger(__name__)

UNSEEN = 0.5
"""A direction is unseen if a larger part of its norm lies outside of the span of the training directions."""
ROUNDING = 1e-3  # of a unit vector: what training directions differ by less is rounding, and no direction of its own
Places = Mapping[str, Collection[int]]
"""The layers at which each direction steers, by name."""


@dataclass(frozen=True)
class Span:
    """Hold the span of the training directions at each layer.

    Args:
        bases: Orthonormal rows ``[rank, width]`` float64 by 0-based layer.
    """

    bases: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def of(cls, directions: Mapping[str, Direction], places: Places) -> "Span":
        """Compute the span of some directions at the layers at which they steer.

        Args:
            directions: The directions by name.
            places: The directions that are trained on, with their layers.
        """
        by_layer: dict[int, list[NDArray[np.float64]]] = {}
        for name, layers in places.items():
            for layer in layers:
                by_layer.setdefault(layer, []).append(unit(directions[name], layer))
        bases = {}
        for layer, vectors in by_layer.items():
            _, sizes, rows = np.linalg.svd(np.stack(vectors), full_matrices=False)
            bases[layer] = rows[sizes > ROUNDING]
        return cls(bases)

    def residual(self, direction: Direction, layers: Collection[int]) -> float:
        """Compute the part of a direction's norm outside of the span, between 0 and 1: the smallest over its layers."""
        return min(self._outside(unit(direction, layer), layer) for layer in layers)

    def _outside(self, vector: NDArray[np.float64], layer: int) -> float:
        basis = self.bases.get(layer)
        return 1.0 if basis is None else float(np.linalg.norm(vector - basis.T @ (basis @ vector)))


def unit(direction: Direction, layer: int) -> NDArray[np.float64]:
    """Return a direction's vector of a layer at norm 1: float64 ``[hidden]``."""
    vector = direction.at(layer).astype(np.float64)
    return vector / np.linalg.norm(vector)


def named_unseen(directions: Mapping[str, Direction], places: Places, patterns: Sequence[str]) -> dict[str, float]:
    """Return the directions that a setting keeps out of training, with their residuals.

    Args:
        directions: The directions by name.
        places: The directions of the training file, with their layers.
        patterns: Names, or patterns such as ``rotated/*``.

    Raises:
        UserError: A pattern names no direction, nothing is left to train on, or a named direction is not unseen.
    """
    where = "data.unseen_directions"
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in places):
            what = f"{pattern!r} names no direction of the training file"
            raise UserError(what, where=where, remedy=f"use names or patterns of {', '.join(sorted(places))}")
    held = {name for name in places if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if len(held) == len(places):
        raise UserError("leaves no direction to train on", where=where, remedy="name fewer directions")
    found = _residuals(directions, places, held)
    close = {name: residual for name, residual in found.items() if residual <= UNSEEN}
    if close:
        listed = ", ".join(f"{name} ({residual:.2f})" for name, residual in sorted(close.items()))
        raise UserError(
            f"names directions of which at most {UNSEEN:g} lies outside of the span of the training directions: {listed}",
            where=where,
            remedy="leave them in training, or keep the directions that they are made of out of training too",
        )
    return found


def drawn_unseen(
    directions: Mapping[str, Direction], places: Places, fraction: float, seed: int
) -> tuple[dict[str, float], list[str]]:
    """Draw directions that are kept out of training, each of which lies mostly outside of the span of what is left.

    Directions that lie within 30 degrees of each other's line (``v`` and ``-v``, a direction and its jittered copies) are kept
    out together. Directions in an order drawn by the seed are kept out one after the other, wherever the residual allows it.

    Args:
        directions: The directions by name.
        places: The directions of the training file, with their layers.
        fraction: Share of the directions to keep out, rounded down.
        seed: Decides, with the names, which directions are kept out.

    Returns:
        The residual of each direction that is kept out, and a warning where there are fewer than were asked for.
    """
    wanted, held = int(fraction * len(places)), set[str]()
    alike = _alike(directions, places)
    for name in sorted(places, key=lambda name: stable_hash(f"{seed} {name}")):
        together = held | alike[name]
        if name in held or len(together) > wanted:
            continue
        # The span only shrinks, so that directions that were kept out before stay outside of it.
        if all(residual > UNSEEN for residual in _residuals(directions, places, together).values()):
            held = together
    few = (
        f"{len(held)} directions are unseen, where data.unseen_fraction asks for {wanted}: of no other directions does more "
        f"than {UNSEEN:g} lie outside of the span of the rest"
    )
    return _residuals(directions, places, held), [few] if len(held) < wanted else []


def measured(
    directions: Mapping[str, Direction], trained: Places, places: Places, known: Collection[str]
) -> dict[str, float]:
    """Measure the directions of another file that are not trained on: near the span of training, they count as known.

    Args:
        directions: The directions by name.
        trained: The directions that are trained on, with their layers.
        places: The directions of the other file, with their layers.
        known: Names of directions that were measured before.

    Returns:
        The residual of each direction that is neither trained on nor known.
    """
    new = {name: layers for name, layers in places.items() if name not in trained and name not in known}
    if not new:
        return {}
    span = Span.of(directions, trained)
    found = {name: span.residual(directions[name], layers) for name, layers in new.items()}
    report(found)
    return found


def _residuals(directions: Mapping[str, Direction], places: Places, held: Collection[str]) -> dict[str, float]:
    span = Span.of(directions, {name: layers for name, layers in places.items() if name not in held})
    return {name: span.residual(directions[name], places[name]) for name in sorted(held)}


def _alike(directions: Mapping[str, Direction], places: Places) -> dict[str, set[str]]:
    """Return for each direction those that are kept out with it: its neighbors, their neighbors, and so on."""
    names = sorted(places)
    near = np.zeros((len(names), len(names)), dtype=bool)
    for layer in {layer for layers in places.values() for layer in layers}:
        rows = [row for row, name in enumerate(names) if layer in places[name]]
        units = np.stack([unit(directions[names[row]], layer) for row in rows])
        near[np.ix_(rows, rows)] |= np.abs(units @ units.T) >= np.sqrt(1 - UNSEEN**2)
    _, group = connected_components(near, directed=False)
    members: dict[int, set[str]] = {}
    for name, number in zip(names, group, strict=True):
        members.setdefault(int(number), set()).add(name)
    return {name: members[int(number)] for name, number in zip(names, group, strict=True)}


def report(residuals: Mapping[str, float]) -> None:
    """Log the residual of each direction that training never saw, the smallest first."""
    for name, residual in sorted(residuals.items(), key=lambda item: (item[1], item[0])):
        kind = "unseen" if residual > UNSEEN else "NOT unseen: it counts as known"
        log.info("direction %s: %.2f of its norm is outside of the span of training (%s)", name, residual, kind)
