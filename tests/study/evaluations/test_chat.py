"""Qualitative chat: which openers are put after what, and that a steered context is heard."""

import json
from collections import Counter

import pytest

from afintro.data.introspection_texts import read_self_prediction
from afintro.study.asking.queries import WrittenAnswer
from afintro.study.evaluations import chat
from afintro.study.settings import Scale
from afintro.tasks.introspection.material import Strengths

PROBES = {probe.text: probe.id for probe in read_self_prediction().chat_openers}
ALONE, AFTER, STEERED = chat.CONDITIONS


def writes(system, query):
    """Says what it was given."""
    assert query.prefix == ""
    if query.context is None:
        return WrittenAnswer("" if system == "base" else "Nothing before.", cut=False)
    return WrittenAnswer("Steered." if query.steering else "Read.", cut=query.steering is not None)


@pytest.mark.parametrize(
    ("settings", "prefix"), [({}, "random/test/"), ({"vectors": None, "style": "food"}, "random/test/")]
)
def test_every_opener_in_three_conditions(planted, settings, prefix):
    session = planted(writes=writes, **settings)
    rows = chat.measure(session)
    assert Counter((row["system"], row["condition"]) for row in rows) == {
        (system, condition): len(PROBES) for system in ("adapter", "base") for condition in chat.CONDITIONS
    }
    assert json.loads(json.dumps(rows)) == rows
    contexts = {context.id for context in session.material.contexts.test if context.kind == "plain"}
    for row in rows:
        assert row["question"] == PROBES[row["prompt"]]
        assert row["steered"] is (row["condition"] == STEERED)
        assert row["answer"] == {ALONE: row["answer"], AFTER: "Read.", STEERED: "Steered."}[row["condition"]]
        if row["steered"]:
            assert row["vector"].startswith(prefix)
            assert (row["layers"], row["dose"]) == ([1, 2], 1.4)
        else:
            assert row["vector"] is row["layers"] is row["dose"] is None
        assert (row["context"] is None) if row["condition"] == ALONE else (row["context"] in contexts)
    after, steered = ([row for row in rows if row["condition"] == one] for one in (AFTER, STEERED))
    assert [row["context"] for row in after] == [row["context"] for row in steered]
    assert len({row["context"] for row in steered}) > 2
    assert len({row["vector"] for row in steered}) > 2


def test_the_same_for_every_training_of_every_variant(planted):
    def where(**settings):
        rows = chat.measure(planted(writes=writes, **settings))
        return [(row["context"], row["vector"], row["layers"], row["dose"]) for row in rows]

    assert where() == where(seed=5) == where(pair="red_blue", style="neutral", label="coin")


def test_the_middle_dose_of_an_even_number_is_the_upper_and_a_swap_has_none(planted):
    doses = Strengths(train=[0.5], validation=[0.6], test=[2.8, 0.7, 1.4, 5.6])
    rows = chat.measure(planted(writes=writes, doses=doses))
    assert {row["dose"] for row in rows if row["steered"]} == {2.8}
    swapped = chat.measure(planted(writes=writes, vectors="swap"))
    assert {row["dose"] for row in swapped} == {None}
    assert all(row["vector"] for row in swapped if row["steered"])


def test_counts_and_nothing_else(planted):
    rows = chat.measure(planted(writes=writes))
    found = chat.summarize(rows, 0)
    count = len(PROBES)
    assert found["metrics"] == {}
    assert found["counts"]["base"][ALONE] == {"transcripts": count, "empty": count, "cut": 0}
    assert found["counts"]["adapter"][ALONE] == {"transcripts": count, "empty": 0, "cut": 0}
    assert found["counts"]["adapter"][STEERED] == {"transcripts": count, "empty": 0, "cut": count}
    assert chat.summarize([], 0)["counts"]["base"][AFTER] == {"transcripts": 0, "empty": 0, "cut": 0}


@pytest.mark.slow
def test_a_model_hears_a_steered_context_and_the_number_of_answers_at_once(open_session):
    scale = {"contexts": 4, "vectors": 3, "items": 4, "new_tokens": 6}
    rows = chat.measure(open_session(scale=Scale(**scale, batch_size=8)))
    assert chat.measure(open_session(scale=Scale(**scale, batch_size=1))) == rows
    for system in ("adapter", "base"):
        told = [
            [row["answer"] for row in rows if (row["system"], row["condition"]) == (system, one)]
            for one in chat.CONDITIONS
        ]
        assert told[0] != told[1] != told[2]
    json.dumps(chat.summarize(rows, 0), allow_nan=False)
