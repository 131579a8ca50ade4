"""A draw of mutations that moves with the code: what only changes its file or its surroundings is drawn again."""

import ast
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.mutations.points import Point

# How often a kind is drawn, where it is not once: a third of all points are strings, and most of these fail at once.
WEIGHTS = {"string changed": 0.2, "returns None": 0.5}


def in_order(every: Iterable[Point], seed: int) -> list[Point]:
    """Return the points by rising key. A key depends on the function and the node, not on the file or the code around them.

    The keys are the arrival times of a race in which a kind of twice the weight is twice as fast, so that the first so many
    are a weighted draw without replacement.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    keys = []
    for point in every:
        what = (point.function, point.kind, point.before, point.after)
        text = "\0".join((str(seed), *what, str(seen[(point.file, *what)])))
        seen[(point.file, *what)] += 1
        uniform = (int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) + 1) / 16**13
        keys.append((-math.log(uniform) / WEIGHTS.get(point.kind, 1.0), point.file, point))
    return [point for *_, point in sorted(keys, key=lambda each: each[:2])]


def draw(root: Path, every: Sequence[Point], count: int, seed: int) -> list[Point]:
    """Return the points with the lowest keys of each room, at most one a line.

    Args:
        root: Of the tree.
        every: What :func:`points` returns.
        count: How many to draw. Every room that has a point gets at least one, and the rest are shared out in proportion to
            the executable lines.
        seed: Another one gives other keys.
    """
    sizes: Counter[str] = Counter()
    for file, room in sorted({(point.file, point.room) for point in every}):
        tree = ast.parse((root / file).read_bytes())
        sizes[room] += len({node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)})
    share = dict.fromkeys(sizes, 1)
    while sum(share.values()) < count:  # the quotients of Sainte-Lague, from the second seat on
        share[max(share, key=lambda room: (sizes[room] / (2 * share[room] + 1), room))] += 1
    drawn: dict[str, dict[tuple[str, int], Point]] = {room: {} for room in sorted(share)}
    for point in in_order(every, seed):
        taken, place = drawn[point.room], (point.file, point.line)
        if len(taken) < share[point.room] and place not in taken and _compiles(point, root):
            taken[place] = point
    return [point for taken in drawn.values() for point in taken.values()]


def _compiles(point: Point, root: Path) -> bool:
    try:
        compile(point.apply((root / point.file).read_bytes()), "<mutation>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True
