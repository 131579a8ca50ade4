"""Sets of unit vectors: what they refuse, how many directions they take up, and that splits share none."""

from itertools import combinations

import numpy as np
import pytest

from afintro.errors import UserError
from afintro.tasks.introspection.vectors import (
    SPLITS,
    VectorSet,
    assert_disjoint_vectors,
    geometry,
    participation_ratio,
    random_vectors,
    unit_rows,
)

GOLDEN = [-0.058036, 0.947571, -0.054221, 0.309518]
EYE = np.eye(4, dtype=np.float32)


def named(prefix, matrix):
    return VectorSet(tuple(f"{prefix}{index}" for index in range(len(matrix))), np.asarray(matrix, np.float32))


class TestVectorSet:
    def test_by_name(self):
        notes = {
            "concept/sea": {"concept": "sea", "pair": ["desert", "sea"]},
            "swap/x/3": {"context": "x", "position": 3},
        }
        found = VectorSet(tuple(notes), EYE[:2], notes)
        np.testing.assert_array_equal(found.of("swap/x/3"), [0, 1, 0, 0])
        assert found.of("concept/sea").dtype == np.float32
        assert found.concept("concept/sea") == "sea"
        assert found.partner("concept/sea") == ("desert", "sea")
        assert found.source("swap/x/3") == "x"
        with pytest.raises(KeyError):
            found.of("concept/desert")

    @pytest.mark.parametrize(
        ("names", "matrix", "message"),
        [
            (("a", "a"), EYE[:2], "same name"),
            (("a",), EYE[:2], "not float32"),
            (("a", "b"), EYE[:2].astype(np.float64), "float64"),
            (("a",), EYE[0], "not float32"),
            (("a", "b"), EYE[:2] * [[1], [1.001]], "not float32"),
            (("a", "b"), (EYE[:2] * [[1], [1.001]]).astype(np.float32), "norm 1"),
            (("a",), np.full((1, 4), np.nan, np.float32), "norm 1"),
        ],
    )
    def test_refuses(self, names, matrix, message):
        with pytest.raises(ValueError, match=message):
            VectorSet(names, matrix)


class TestGeometry:
    @pytest.mark.parametrize(
        ("rows", "ratio"),
        [
            (np.eye(5), 5),
            (np.ones((7, 3)), 1),
            ([[1, 0], [-2, 0], [3, 0]], 1),
            ([[1, 0], [1, 0], [0, 1]], 9 / 5),  # squares of the singular values: 2 and 1
            ([[3, 0], [0, 1]], 100 / 82),  # 9 and 1
        ],
    )
    def test_participation_ratio_by_hand(self, rows, ratio):
        assert participation_ratio(np.array(rows, np.float32)) == pytest.approx(ratio, rel=1e-6)

    def test_participation_ratio_of_many_directions(self):
        """Of n Gaussian rows of width d it is about n d / (n + d) (Marchenko & Pastur)."""
        drawn = np.random.default_rng(0).standard_normal((300, 200))
        assert participation_ratio(drawn) == pytest.approx(300 * 200 / 500, rel=0.02)

    def test_cosines_by_hand(self):
        found = geometry(np.array([[2, 0], [0, 3], [-5, 0]]))  # cosines 0, -1, 0
        assert found.mean_cosine == pytest.approx(-1 / 3)
        assert found.mean_absolute_cosine == pytest.approx(1 / 3)
        assert found.participation_ratio == pytest.approx(9 / 5)

    @pytest.mark.parametrize("wrong", [0.0, np.nan, np.inf])
    def test_a_row_without_direction(self, wrong):
        rows = np.ones((3, 2))
        rows[1] = wrong
        with pytest.raises(UserError, match="here: vector 1 is zero, NaN or infinite"):
            unit_rows(rows, "here")


class TestRandom:
    def test_unit_norm_and_names(self):
        found = random_vectors(3, 64, "train", 0)
        assert found.names == ("random/train/0", "random/train/1", "random/train/2")
        assert (found.matrix.shape, found.matrix.dtype) == ((3, 64), np.float32)
        np.testing.assert_allclose(np.linalg.norm(found.matrix, axis=1), 1, atol=1e-6)

    def test_are_the_same_in_every_process(self):
        np.testing.assert_allclose(random_vectors(1, 4, "test", 7).matrix, [GOLDEN], atol=1e-6)

    def test_more_begin_with_the_same(self):
        few, many = random_vectors(5, 32, "validation", 3), random_vectors(50, 32, "validation", 3)
        np.testing.assert_array_equal(few.matrix, many.matrix[:5])

    def test_directions_are_uniform(self):
        matrix = random_vectors(4000, 16, "train", 1).matrix.astype(np.float64)
        assert np.abs(matrix.mean(0)).max() < 4 / np.sqrt(16 * 4000)
        np.testing.assert_allclose(matrix.T @ matrix / 4000, np.eye(16) / 16, atol=0.01)

    def test_no_seed_gives_one_side_what_another_seed_gives_to_any(self):
        drawn = {(seed, split): random_vectors(20, 64, split, seed) for seed in range(-2, 12) for split in SPLITS}
        for one, other in combinations(drawn, 2):
            assert np.abs(drawn[one].matrix @ drawn[other].matrix.T).max() < 0.8, (one, other)

    def test_does_not_touch_the_global_generator(self):
        before = np.random.get_state()[1].copy()
        random_vectors(2, 4, "train", 0)
        np.testing.assert_array_equal(np.random.get_state()[1], before)


class TestDisjoint:
    def test_sides_of_random_vectors(self):
        assert_disjoint_vectors(**{split: random_vectors(100, 64, split, 0) for split in SPLITS})

    def test_nothing_to_compare(self):
        assert_disjoint_vectors()
        assert_disjoint_vectors(train=random_vectors(2, 8, "train", 0))

    def test_the_same_vector(self):
        with pytest.raises(UserError, match=r"'a1' of train and 'b0' of test are one vector \(the same bytes\)"):
            assert_disjoint_vectors(train=named("a", EYE[:2]), other=named("c", EYE[2:]), test=named("b", EYE[1:2]))

    def test_equal_bytes_where_the_cosine_says_nothing(self, monkeypatch):
        """The hash stands on its own."""
        monkeypatch.setattr("afintro.tasks.introspection.vectors.ALIKE", 2.0)
        with pytest.raises(UserError, match="the same bytes"):
            assert_disjoint_vectors(train=named("a", EYE[:1]), test=named("b", EYE[:1]))

    @pytest.mark.parametrize("sign", [1, -1])
    def test_nearly_the_same(self, sign):
        def turned(cosine):
            return named("b", [[0, sign * cosine, np.sqrt(1 - cosine**2), 0]])

        assert_disjoint_vectors(train=named("a", EYE[:2]), test=turned(0.989))
        with pytest.raises(UserError, match=r"'a1' of train and 'b0' of test .*absolute cosine 0.9910"):
            assert_disjoint_vectors(train=named("a", EYE[:2]), test=turned(0.991))
