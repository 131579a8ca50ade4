"""Baselines of the steering task against tables made by hand."""

import pytest

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, two_branch
from afintro.tasks.steering.baselines import Steering, steering_baselines

STAY, WARN = two_branch(Verdict(False, "refuse")), two_branch(Verdict(False, "warn"))
COMPLY, OTHER = two_branch(Verdict(True, "comply")), two_branch(Verdict(True, "other"))


def asked(uid, answer, direction="d", layer=1, alpha=1.0, projection=0.0, copy=None):
    example = Example(
        uid, f"scenario of {uid}", "q", "prompt", answer, (1,), (2,), copy_answer=copy, group="g", twins=f"t{uid}"
    )
    return example, Steering(direction, layer, alpha, projection)


# Cell (1, 1.0): comply 3, refuse 2; cell (1, 4.0): refuse 1, other 1; cell (2, 1.0): warn 2, comply 1.
TRAIN = [
    asked("0", COMPLY, "a"),
    asked("1", COMPLY, "a"),
    asked("2", COMPLY, "b"),
    asked("3", STAY, "b"),
    asked("4", STAY, "b"),
    asked("5", STAY, "a", alpha=4.0),
    asked("6", OTHER, "b", alpha=4.0),
    asked("7", WARN, "a", layer=2),
    asked("8", WARN, "b", layer=2),
    asked("9", COMPLY, "c", layer=2),
]
ITEMS = [
    asked("i0", COMPLY, "a", copy=STAY),
    asked("i1", STAY, "b", copy=STAY),
    asked("i2", STAY, "unheard of", copy=WARN),
    asked("i3", STAY, "a", alpha=4.0),
    asked("i4", COMPLY, "c", layer=2, copy=COMPLY),
    asked("i5", WARN, "unheard of", layer=2, copy=WARN),
    asked("i6", WARN, "a", layer=9, copy=WARN),
]


def of(name, train=TRAIN, items=ITEMS):
    return [(p.predicted, p.p_changed) for p in steering_baselines(train, items)[name]]


def test_cell_majority_by_hand():
    """A tie goes to the answer that comes first by name; a cell unheard of gets the commonest answer of all: comply."""
    assert of("cell_majority") == [
        (COMPLY, 3 / 5),
        (COMPLY, 3 / 5),
        (COMPLY, 3 / 5),
        (min(STAY, OTHER), 1 / 2),
        (WARN, 1 / 3),
        (WARN, 1 / 3),
        (COMPLY, 5 / 10),
    ]


def test_direction_majority_by_hand():
    """The direction's own answers in the cell; where the direction is unheard of, the cell's."""
    assert of("direction_majority") == [
        (COMPLY, 1.0),
        (STAY, 1 / 3),
        (COMPLY, 3 / 5),
        (STAY, 0.0),
        (COMPLY, 1.0),
        (WARN, 1 / 3),
        (COMPLY, 5 / 10),
    ]


def test_always_unchanged_gives_the_commonest_unchanged_answer():
    assert of("always_unchanged") == [(STAY, 0.0)] * 7  # refuse 3, warn 2, though comply is the commonest of all
    changed = [asked("0", OTHER), asked("1", COMPLY), asked("2", COMPLY)]
    assert of("always_unchanged", changed) == [(two_branch(Verdict(False, "comply")), 0.0)] * 7


def test_copy_original_gives_what_the_unsteered_organism_did_and_leaves_out_who_has_none():
    found = steering_baselines(TRAIN, ITEMS)["copy_original"]
    assert [p.uid for p in found] == ["i0", "i1", "i2", "i4", "i5", "i6"]
    assert [(p.predicted, p.p_changed) for p in found[:3]] == [(STAY, 0.0), (STAY, 0.0), (WARN, 0.0)]


def test_ties_do_not_depend_on_the_order_of_training():
    for name in ("cell_majority", "direction_majority", "always_unchanged"):
        assert of(name, TRAIN[::-1]) == of(name)


def test_predictions_keep_the_item():
    for name, found in steering_baselines(TRAIN, [asked("i", COMPLY, "a", copy=STAY)]).items():
        (p,) = found
        assert (p.uid, p.scenario_id, p.question_type, p.expected) == ("i", "scenario of i", "q", COMPLY)
        assert (p.group, p.twins, p.exact_match) == ("g", "ti", p.predicted == COMPLY), name


class TestVectorProbe:
    """Changed where the projection is above a threshold, which lies elsewhere in every layer."""

    LINE = tuple(i / 20 for i in range(-20, 21))

    def data(self, prefix, points):
        return [
            asked(f"{prefix}{layer}{x}", COMPLY if x * sign > 0 else STAY, layer=layer, projection=x)
            for layer, sign in ((1, 1), (2, -1))
            for x in points
        ]

    def test_learns_a_sign_by_layer(self):
        items = self.data("i", (-0.73, -0.31, 0.33, 0.77))
        found = steering_baselines(self.data("t", self.LINE), items)["vector_probe"]
        assert all(p.exact_match for p in found)
        assert all((p.p_changed > 0.5) == (p.expected == COMPLY) for p in found)
        # The surer the further from the threshold.
        assert found[0].p_changed < found[1].p_changed < 0.5 < found[2].p_changed < found[3].p_changed

    def test_the_sign_of_alpha_turns_the_vector_round(self):
        def data(prefix, points):
            return [
                asked(f"{prefix}{alpha}{x}", COMPLY if alpha * x > 0 else STAY, alpha=alpha, projection=x)
                for alpha in (-2.0, 2.0)
                for x in points
            ]

        found = steering_baselines(data("t", self.LINE), data("i", (-0.7, 0.7)))["vector_probe"]
        assert all(p.exact_match for p in found)

    def test_probability_is_of_all_changed_answers_together(self):
        train = [asked(str(i), (STAY, COMPLY, OTHER, OTHER)[i % 4]) for i in range(40)]  # no input tells anything
        (p,) = steering_baselines(train, [asked("i", STAY)])["vector_probe"]
        assert p.predicted == OTHER
        assert p.p_changed == pytest.approx(3 / 4, abs=1e-3)

    @pytest.mark.parametrize(("answer", "changed"), [(STAY, 0.0), (COMPLY, 1.0)])
    def test_one_answer_in_training(self, answer, changed):
        assert of("vector_probe", [asked("0", answer), asked("1", answer)]) == [(answer, changed)] * 7

    def test_an_item_of_a_layer_unheard_of(self):
        (p,) = steering_baselines(self.data("t", self.LINE), [asked("i", STAY, layer=9)])["vector_probe"]
        assert 0 <= p.p_changed <= 1
