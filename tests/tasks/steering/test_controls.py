"""Directions that should do nothing: as long as their original, orthogonal where they say so, the same in every process."""

import os
import subprocess
import sys

import numpy as np
import pytest

from afintro.errors import UserError
from afintro.tasks.steering.controls import with_controls
from afintro.tasks.steering.directions import Direction

WIDTH, LAYERS = 24, (2, 5)


def vectors(seed, scale=1.0):
    drawn = np.random.default_rng(seed)
    return {layer: (scale * drawn.standard_normal(WIDTH)).astype(np.float32) for layer in LAYERS}


A, B = Direction("a", vectors(0, 3.0)), Direction("b", vectors(1, 100.0))
SUM = Direction("a + b", {layer: A.at(layer) + B.at(layer) for layer in LAYERS})  # linearly dependent
TWICE = Direction("2 a", {layer: 2 * A.at(layer) for layer in LAYERS})
BARE = Direction("bare", {}, everywhere=vectors(2, 0.01)[2])
GIVEN = [A, B, SUM, TWICE, BARE]


def made(given=GIVEN, of=("a", "b", "bare"), seed=0):
    found = with_controls(given, of, LAYERS, seed)
    assert found[: len(given)] == list(given)
    return {direction.name: direction for direction in found[len(given) :]}


def cosine(one, other):
    one, other = one.astype(np.float64), other.astype(np.float64)
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def test_a_random_and_an_orthogonal_one_for_each_that_is_named_after_those_given():
    assert list(made()) == [f"{kind}/{name}" for name in ("a", "b", "bare") for kind in ("random", "orthogonal")]
    assert made(of=()) == {}
    for control in made().values():
        assert set(control.vectors) == set(LAYERS)
        assert all(vector.shape == (WIDTH,) and vector.dtype == np.float32 for vector in control.vectors.values())


@pytest.mark.parametrize("layer", LAYERS)
def test_norms_are_those_of_the_direction_at_the_layer(layer):
    for name, control in made().items():
        original = next(direction for direction in GIVEN if direction.name == name.split("/")[1])
        norm = np.linalg.norm(original.at(layer).astype(np.float64))
        assert np.linalg.norm(control.at(layer).astype(np.float64)) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_orthogonal_to_every_given_direction_whatever_their_length_and_dependence(layer):
    for name, control in made().items():
        cosines = [abs(cosine(control.at(layer), other.at(layer))) for other in GIVEN]
        if name.startswith("orthogonal/"):
            assert max(cosines) < 1e-6
        else:
            assert max(cosines) > 0.05  # a random one is not: the test above can fail


def test_no_more_is_taken_away_than_what_lies_along_the_given_directions():
    """One that is another twice as long changes nothing: by rank three dimensions go, of four vectors."""
    fewer = made([A, B, BARE])
    more = made([A, B, TWICE, BARE])
    for name, control in more.items():
        for layer in LAYERS:
            np.testing.assert_allclose(control.at(layer), fewer[name].at(layer), rtol=0, atol=1e-4)


def test_controls_are_drawn_apart():
    """Of two names, kinds and layers no two are alike."""
    drawn = [control.at(layer) for control in made().values() for layer in LAYERS]
    cosines = [abs(cosine(one, other)) for i, one in enumerate(drawn) for other in drawn[:i]]
    assert max(cosines) < 0.75


def test_drawn_by_name_layer_and_seed_alone():
    again, other = made(), made(seed=1)
    for name, control in made().items():
        for layer in LAYERS:
            assert np.array_equal(control.at(layer), again[name].at(layer))
            assert abs(cosine(control.at(layer), other[name].at(layer))) < 0.75
    assert np.array_equal(made([B, A], of=("a",))["random/a"].at(5), made([A], of=("a",))["random/a"].at(5))
    longer = Direction("a", {layer: 2 * A.at(layer) for layer in LAYERS})
    np.testing.assert_allclose(made([longer], of=("a",))["random/a"].at(2), 2 * made()["random/a"].at(2), rtol=1e-6)


def test_the_given_directions_are_left_as_they_are():
    before = {direction.name: direction.at(2).copy() for direction in GIVEN}
    made()
    assert all(np.array_equal(direction.at(2), before[direction.name]) for direction in GIVEN)


def test_a_layer_that_a_direction_lacks():
    with pytest.raises(UserError, match="direction 'a': has no vector of layer 7, only of 2, 5"):
        with_controls([A], ["a"], [2, 7], 0)


CODE = """
import numpy as np
from afintro.tasks.steering.directions import Direction
from afintro.tasks.steering.controls import with_controls
given = [Direction(n, {1: np.arange(1, 7, dtype=np.float32) ** i}) for i, n in enumerate("ab")]
printed = repr([(d.name, d.at(1).tobytes().hex()) for d in with_controls(given, ["a", "b"], [1], 0)])
"""


@pytest.mark.slow
def test_does_not_depend_on_the_hash_seed():
    """Known mistake 15: the same here and in a process whose seed is another one."""
    here = {}
    exec(CODE, here)
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    there = subprocess.run(
        [sys.executable, "-c", f"{CODE}\nprint(printed)"],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert there == f"{here['printed']}\n"
    assert "orthogonal/b" in there
