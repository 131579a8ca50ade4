"""Control directions that should have no effect: random and orthogonal ones, each of the norm of its original."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from afintro.tasks.steering.directions import Direction

RANDOM, ORTHOGONAL = "random", "orthogonal"


def with_controls(
    directions: Sequence[Direction], of: Sequence[str], layers: Sequence[int], seed: int
) -> list[Direction]:
    """Add a random and an orthogonal direction of the same norm for each of the directions named in ``of``.

    ``random/<name>`` is Gaussian; ``orthogonal/<name>`` is another Gaussian without its component in the span of all given
    directions of the layer. Both are drawn by name, layer and seed alone.

    Args:
        directions: The given directions.
        of: Names of the directions that get controls.
        layers: 0-based layers of the controls; every given direction has a vector of each.
        seed: Seed of the draws.

    Returns:
        The given directions, then the controls.
    """
    everything = list(directions)
    for direction in directions:
        if direction.name not in of:
            continue
        made: dict[str, dict[int, NDArray[np.float32]]] = {RANDOM: {}, ORTHOGONAL: {}}
        for layer in layers:
            vector = direction.at(layer)
            given = np.stack([other.at(layer) for other in directions]).astype(np.float64)
            for kind, by_layer in made.items():
                digest = hashlib.sha256(f"{seed} {kind} {direction.name} {layer}".encode()).digest()
                drawn = np.random.default_rng(list(digest)).standard_normal(len(vector))
                if kind == ORTHOGONAL:
                    basis = np.linalg.svd(given, full_matrices=False)[2][: np.linalg.matrix_rank(given)]
                    drawn -= basis.T @ (basis @ drawn)
                by_layer[layer] = (drawn * np.linalg.norm(vector) / np.linalg.norm(drawn)).astype(np.float32)
        everything += [Direction(f"{kind}/{direction.name}", by_layer) for kind, by_layer in made.items()]
    return everything
