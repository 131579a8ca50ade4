"""Rivals that read vectors: what each of them sees, by hand or by what it must learn; planted causes are in tests/planted."""

import numpy as np
import pytest

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, two_branch
from afintro.tasks.steering.baselines import Steering
from afintro.tasks.steering.rivals import nearest_directions, steering_rivals

STAY, WARN = two_branch(Verdict(False, "refuse")), two_branch(Verdict(False, "warn"))
COMPLY, OTHER = two_branch(Verdict(True, "comply")), two_branch(Verdict(True, "other"))
LEARNED = ("direction_x_text", "ridge", "boosting")


def asked(uid, answer, vector, direction="d", layer=1, alpha=1.0, prompt="prompt"):
    example = Example(uid, f"scenario of {uid}", "q", prompt, answer, (1,), (2,), group=direction, twins=f"t{uid}")
    vector = np.array(vector, dtype=np.float64)
    return example, Steering(direction, layer, alpha, 0.0, vector / np.linalg.norm(vector))


def said(name, train, items):
    return [(p.predicted, p.p_changed) for p in steering_rivals(train, items)[name]]


class TestNearest:
    TRAIN = (
        asked("0", COMPLY, [1, 0], "east"), asked("1", COMPLY, [1, 0.1], "east"), asked("2", STAY, [0, 1], "north"),
        asked("3", WARN, [1, 0], "east", alpha=2.0), asked("4", STAY, [-1, 0.2], "west", layer=2),
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("vector", "layer", "direction"),
        [([1, 0.3], 1, "east"), ([0.3, 1], 1, "north"), ([-1, 0.2], 1, "north"), ([-1, -0.2], 1, "north"),
         ([1, 0], 2, "west"), ([1, 0], 7, "own")],
    )  # fmt: skip
    def test_the_largest_cosine_of_the_layer_whose_sign_counts(self, vector, layer, direction):
        """The negative of a training vector is not near to it; a layer without training vectors keeps the name."""
        _, steering = asked("i", STAY, vector, "own", layer)
        assert nearest_directions([own for _, own in self.TRAIN], [steering]) == [direction]

    def test_answers_by_hand(self):
        """The commonest answer to the nearest direction in the cell, then at the layer, then in the cell."""
        items = [
            asked("a", STAY, [1, 0.2], "new"), asked("b", STAY, [1, 0.2], "new", alpha=2.0),
            asked("c", STAY, [1, 0.2], "new", alpha=3.0), asked("d", STAY, [0, 2], "new", alpha=2.0),
        ]  # fmt: skip
        assert said("nearest_vector", self.TRAIN, items) == [(COMPLY, 1.0), (WARN, 0.0), (COMPLY, 2 / 3), (STAY, 0.0)]

    def test_a_negative_strength_turns_the_vector_round(self):
        items = [asked("a", STAY, [-1, 0], "new", alpha=-1.0)]
        assert said("nearest_vector", self.TRAIN, items) == [(COMPLY, 1.0)]

    def test_both_signs_of_a_direction_are_told_apart(self):
        """One direction, whose positive strengths change the behavior and whose negative ones do not."""

        def drawn(prefix, count):
            return [
                asked(f"{prefix}{i}", (COMPLY, STAY)[i % 2], [1, 0], alpha=(1.0, -1.0)[i % 2], prompt="red green blue")
                for i in range(count)
            ]

        found = steering_rivals(drawn("t", 40), drawn("i", 10))
        for name in ("nearest_vector", "direction_x_text"):
            assert all(p.exact_match for p in found[name]), name


class TestLearned:
    RNG = np.random.default_rng(0)

    def drawn(self, prefix, count, rule, layers=(1,)):
        """Items of random vectors, 40 wide, and words; ``rule`` gives the answer of vector, words and layer."""
        items = []
        for number in range(count):
            vector, layer = self.RNG.standard_normal(40), layers[number % len(layers)]
            vector[0] *= 6
            words = self.RNG.choice(["red", "green", "blue", "gray"], 3, replace=False).tolist()
            answer = rule(vector, words, layer)
            items.append(asked(f"{prefix}{number}", answer, vector, f"d{number % 9}", layer, prompt=" ".join(words)))
        return items

    @pytest.mark.parametrize("name", ["ridge", "boosting"])
    def test_the_vector_is_read_apart_from_its_name(self, name):
        def rule(vector, words, layer):
            return COMPLY if vector[0] > 0 else STAY

        found = steering_rivals(self.drawn("t", 300, rule), self.drawn("i", 100, rule))[name]
        assert np.mean([p.exact_match for p in found]) > 0.9
        assert np.mean([(p.p_changed > 0.5) == (p.expected == COMPLY) for p in found]) > 0.9

    @pytest.mark.parametrize("name", ["ridge", "boosting"])
    def test_the_layer_turns_the_rule_round(self, name):
        def rule(vector, words, layer):
            return COMPLY if (vector[0] > 0) == (layer == 1) else STAY

        train, items = (self.drawn(prefix, count, rule, (1, 2)) for prefix, count in (("t", 400), ("i", 100)))
        assert np.mean([p.exact_match for p in steering_rivals(train, items)[name]]) > 0.85

    @pytest.mark.parametrize("name", LEARNED)
    def test_the_verdict_comes_first_then_the_likeliest_answer_with_it(self, name):
        """Nothing tells: three kinds of "changed" are likelier together than "unchanged", which is commonest alone."""
        kinds = (STAY, STAY, COMPLY, COMPLY, OTHER)
        train = [asked(str(i), kinds[i % 5], [1, 0], prompt="same words here") for i in range(60)]
        [(answer, changed)] = said(name, train, [asked("i", STAY, [1, 0], prompt="same words here")])
        assert answer == COMPLY
        assert changed == pytest.approx(0.6, abs=0.1)

    @pytest.mark.parametrize(("answer", "changed"), [(STAY, 0.0), (COMPLY, 1.0)])
    def test_one_answer_in_training(self, answer, changed):
        train = [asked("0", answer, [1, 0]), asked("1", answer, [0, 1])]
        found = steering_rivals(train, [asked("i", STAY, [1, 1], layer=5)])
        for name in ("nearest_vector", *LEARNED):
            assert [(p.predicted, p.p_changed) for p in found[name]] == [(answer, changed)]

    def test_items_of_a_layer_or_words_unheard_of_are_answered_and_kept(self):
        def rule(vector, words, layer):
            return COMPLY if words[0] == "red" else WARN

        items = [asked("i", OTHER, self.RNG.standard_normal(40), layer=9, prompt="nothing known")]
        for name, [p] in steering_rivals(self.drawn("t", 60, rule), items).items():
            assert 0 <= p.p_changed <= 1
            assert (p.uid, p.group, p.twins, p.expected) == ("i", "d", "ti", OTHER), name

    def test_the_same_again(self):
        def rule(vector, words, layer):
            return COMPLY if vector[1] > 0 else STAY

        train, items = self.drawn("t", 80, rule), self.drawn("i", 20, rule)
        assert steering_rivals(train, items) == steering_rivals(train, items)
