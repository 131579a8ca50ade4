"""Unseen directions lie outside of the span of training: exact residuals, greedy draws, and splits that are refused."""

import numpy as np
import pytest

from afintro.errors import UserError
from afintro.tasks.steering.directions import Direction
from afintro.tasks.steering.spans import UNSEEN, Span, drawn_unseen, named_unseen

WIDTH = 16


def axis(*numbers):
    """A unit vector whose first components are the numbers."""
    vector = np.zeros(WIDTH)
    vector[: len(numbers)] = numbers
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def made(**vectors):
    """Directions of layers 0 and 1, and the layers of each; norms differ and do not count."""
    directions = {name: Direction(name, {0: 3.0 * vector, 1: 0.01 * vector}) for name, vector in vectors.items()}
    return directions, dict.fromkeys(directions, (0, 1))


def independent(count, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((WIDTH, count)))[0].T
    return {f"d{number}": row.astype(np.float32) for number, row in enumerate(basis)}


class TestResidual:
    @pytest.mark.parametrize("degrees", [0, 10, 29.9, 30.1, 45, 60, 90])
    def test_it_is_the_sine_of_the_angle_to_the_span(self, degrees):
        angle = np.deg2rad(degrees)
        directions, places = made(a=axis(1), b=axis(1, 1), c=axis(np.cos(angle), 0, np.sin(angle)))
        span = Span.of(directions, {name: places[name] for name in "ab"})
        assert span.residual(directions["c"], (0, 1)) == pytest.approx(np.sin(angle), abs=1e-6)

    def test_a_negative_and_a_sum_have_none(self):
        directions, places = made(a=axis(1), b=axis(0, 1), minus=-axis(1), sum=axis(1, 1), other=axis(0, 0, 1))
        span = Span.of(directions, {name: places[name] for name in "ab"})
        found = {name: span.residual(directions[name], (0, 1)) for name in ("minus", "sum", "other")}
        assert found == {"minus": pytest.approx(0, abs=1e-6), "sum": pytest.approx(0, abs=1e-6), "other": 1.0}

    def test_the_smallest_over_the_layers_counts(self):
        known = Direction("known", {0: axis(1), 1: axis(1)})
        turned = Direction("turned", {0: axis(0, 1), 1: axis(1)})
        span = Span.of({"known": known}, {"known": (0, 1)})
        assert span.residual(turned, (0,)) == 1.0
        assert span.residual(turned, (0, 1)) == pytest.approx(0, abs=1e-6)

    def test_directions_that_differ_by_rounding_do_not_widen_the_span(self):
        directions, places = made(a=axis(1), a2=axis(1, 1e-5), c=axis(0, 1))
        span = Span.of(directions, {name: places[name] for name in ("a", "a2")})
        assert span.residual(directions["c"], (0, 1)) == pytest.approx(1.0, abs=1e-3)

    def test_a_layer_without_training_directions_has_no_span(self):
        directions, _ = made(a=axis(1))
        assert Span.of(directions, {"a": (0,)}).residual(directions["a"], (1,)) == 1.0


class TestDrawn:
    @pytest.mark.parametrize("seed", range(8))
    def test_every_drawn_direction_is_outside_of_the_span_of_the_rest(self, seed):
        vectors = independent(8, seed)
        vectors |= {f"minus{n}": -vectors[f"d{n}"] for n in range(3)}
        vectors |= {"sum": vectors["d3"] + vectors["d4"], "near": vectors["d5"] + 0.2 * vectors["d6"]}
        directions, places = made(**vectors)
        found, warnings = drawn_unseen(directions, places, 0.3, seed)
        assert 1 <= len(found) <= int(0.3 * len(vectors))
        assert (len(warnings) == 1) == (len(found) < int(0.3 * len(vectors)))
        rest = np.stack([v for name, v in vectors.items() if name not in found])
        for name, residual in found.items():  # computed otherwise: by least squares
            unit = vectors[name] / np.linalg.norm(vectors[name])
            away = np.linalg.norm(unit - rest.T @ np.linalg.lstsq(rest.T, unit, rcond=1e-3)[0])
            assert residual == pytest.approx(away, abs=1e-4)
            assert residual > UNSEEN

    @pytest.mark.parametrize("seed", range(8))
    def test_a_negative_or_a_jittered_copy_is_kept_out_with_its_original_or_trained_on_with_it(self, seed):
        vectors = independent(6)
        copies = {f"{name}~": vector + 0.2 * vectors["d0"] for name, vector in vectors.items() if name != "d0"}
        negatives = {f"-{name}": -vector for name, vector in vectors.items()}
        directions, places = made(**vectors, **copies, **negatives)
        found, _ = drawn_unseen(directions, places, 0.4, seed)
        assert found
        for name in vectors:
            family = {name, f"{name}~", f"-{name}"} & directions.keys()
            assert family <= found.keys() or not family & found.keys()

    def test_nothing_is_drawn_where_everything_lies_in_the_span_of_the_rest(self):
        drawn = np.random.default_rng(0).standard_normal((40, WIDTH)).astype(np.float32)
        directions, places = made(**{f"d{n}": row for n, row in enumerate(drawn)})
        found, [warning] = drawn_unseen(directions, places, 0.5, 0)
        assert found == {}
        assert "data.unseen_fraction asks for 20" in warning

    @pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.19, 0), (0.2, 1), (0.39, 1), (0.6, 3), (1.0, 5)])
    def test_of_independent_directions_a_share_rounded_down(self, fraction, count):
        found, warnings = drawn_unseen(*made(**independent(5)), fraction, 0)
        assert (len(found), warnings) == (count, [])

    def test_the_order_is_by_sha256_of_seed_and_name(self):
        """By sha256("7 <name>"), as sha256sum sorts them: b, a, c, e, d."""
        vectors = dict(zip("abcde", independent(5).values(), strict=True))
        assert drawn_unseen(*made(**vectors), 0.5, 7)[0].keys() == {"a", "b"}
        assert drawn_unseen(*made(**dict(reversed(vectors.items()))), 0.5, 7)[0].keys() == {"a", "b"}


class TestNamed:
    FAMILY = made(a=axis(1), b=axis(0, 1), ra=axis(1, 0, 1), rb=axis(0, 1, 0, 2), minus=-axis(1))

    def test_patterns_name_directions_and_give_residuals(self):
        found = named_unseen(*self.FAMILY, ["r*"])
        assert found == {"ra": pytest.approx(2**-0.5, abs=1e-6), "rb": pytest.approx(2 / 5**0.5, abs=1e-6)}
        assert named_unseen(*self.FAMILY, ["rb"]).keys() == {"rb"}

    @pytest.mark.parametrize(
        ("patterns", "named"),
        [(["minus"], "minus (0.00)"), (["r*", "a"], "a (0.00)"), (["nobody"], "'nobody'"), (["*"], "no direction to train on")],
    )  # fmt: skip
    def test_a_split_that_violates_the_rule_is_refused(self, patterns, named):
        with pytest.raises(UserError) as error:
            named_unseen(*self.FAMILY, patterns)
        assert error.value.where == "data.unseen_directions"
        assert named in error.value.what

    def test_kept_out_with_its_negative_a_direction_is_unseen(self):
        assert named_unseen(*self.FAMILY, ["a", "minus", "ra"])["minus"] == pytest.approx(1.0)
