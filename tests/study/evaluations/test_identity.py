"""Identity probes: likeness to the base's answers."""

import json

import pytest

from afintro.data.introspection_texts import read_self_prediction
from afintro.evaluation.metrics import chrf
from afintro.study.evaluations import identity
from afintro.study.settings import Scale

PROBES = {probe.text: probe.id for probe in read_self_prediction().identity_probes}


def value(summary, name):
    return summary["metrics"][name]["value"]


def writes(system, query):
    """The adapter changes every second answer, and is silent on the last."""
    assert query.context is query.steering is None
    assert query.prefix == ""
    place = list(PROBES).index(query.question)
    if system == "adapter" and place == 23:
        return " "
    return "I am a trained parrot." if system == "adapter" and place % 2 else "I am a program."


def test_planted_answers(planted):
    rows = identity.measure(planted(writes=writes))
    assert len(rows) == 48
    assert json.loads(json.dumps(rows)) == rows
    found = identity.summarize(rows, 0)
    likeness = chrf("I am a trained parrot.", "I am a program.")
    assert 0 < likeness < 1
    assert value(found, "unchanged/adapter") == 0.5
    assert value(found, "similarity/adapter") == pytest.approx((12 + 11 * likeness + 0) / 24)
    assert value(found, "unchanged/base") == value(found, "similarity/base") == 1.0
    assert value(found, "shift/unchanged") == -0.5
    assert value(found, "empty/adapter") == pytest.approx(1 / 24)
    assert found["metrics"]["similarity/adapter"]["ci_low"] < value(found, "similarity/adapter")
    assert found["warnings"] == []
    for row in rows:
        assert (row["question"], row["context"], row["vector"]) == (PROBES[row["prompt"]], None, None)


@pytest.mark.slow
def test_a_model_and_the_number_of_answers_at_once(open_session):
    rows = identity.measure(open_session(scale=Scale(items=6, new_tokens=6, batch_size=4)))
    assert identity.measure(open_session(scale=Scale(items=6, new_tokens=6, batch_size=1))) == rows
    adapter, base = rows[:6], rows[6:]
    assert [row["question"] for row in adapter] == [row["question"] for row in base]
    assert all(row["unchanged"] and row["similarity"] == 1.0 for row in base)
    for own, other in zip(adapter, base, strict=True):
        assert own["similarity"] == chrf(own["answer"], other["answer"])
        assert own["unchanged"] is (own["answer"] == other["answer"])
    assert not all(row["unchanged"] for row in adapter)
    json.dumps(identity.summarize(rows, 0), allow_nan=False)


def test_no_rows():
    found = identity.summarize([], 0)
    assert value(found, "similarity/adapter") is None
    assert len(found["warnings"]) == len(found["metrics"])
