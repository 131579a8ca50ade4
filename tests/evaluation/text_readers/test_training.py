"""Answers become a bounded number of kinds; too many examples are drawn from, the same way each time."""

import numpy as np

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, expected_verdict, two_branch
from afintro.evaluation.text_readers.training import KINDS, draw, teach


def taught(answers):
    return teach([Example(f"{i}", f"{i}", "q", "prompt", answer, (1,), (1,)) for i, answer in enumerate(answers)])


def test_few_answers_are_their_own_kinds():
    given = [two_branch(Verdict(changed, content)) for changed, content in ((True, "a"), (False, "b"), (True, "a"))]
    found = taught(given)
    assert found.kinds == 2
    assert [found.answers[label] for label in found.labels] == given


def test_a_rare_answer_counts_as_the_commonest_of_its_verdict():
    common = [two_branch(Verdict(False, "same"))] * 3 + [two_branch(Verdict(True, "usual"))] * 2
    rare = [two_branch(Verdict(i % 2 == 0, f"text {i}")) for i in range(100)]
    found = taught(common + rare)
    assert found.kinds == KINDS
    kept = [found.answers[label] for label in found.labels]
    assert [expected_verdict(a).changed for a in kept] == [expected_verdict(a).changed for a in common + rare]
    assert kept[:5] == common
    assert set(kept) == set(found.answers)
    assert kept[5:].count(common[0]) + kept[5:].count(common[3]) == 100 - (KINDS - 2)


def test_a_draw_stays_within_the_bound_and_keeps_the_order(caplog):
    found = taught([two_branch(Verdict(i % 2 == 0, "x")) for i in range(100)])
    drawn = draw("reader", found, [10] * 100, 305)
    assert len(drawn.examples) == len(drawn.labels) == 30
    uids = [int(example.uid) for example in drawn.examples]
    assert uids == sorted(uids)
    np.testing.assert_array_equal(drawn.labels, found.labels[uids])
    assert "reader learns from 30 of 100" in caplog.text
    assert [e.uid for e in draw("reader", found, [10] * 100, 305).examples] == [e.uid for e in drawn.examples]


def test_what_is_within_the_bound_is_not_drawn_from(caplog):
    found = taught([two_branch(Verdict(True, "x"))] * 3)
    assert draw("reader", found, [10] * 3, 30) is found
    assert len(draw("reader", found, [10] * 3, 5).examples) == 1  # something is learned from in any case
    assert "1 of 3" in caplog.text
