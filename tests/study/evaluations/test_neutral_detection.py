"""Neutral detection: probes that name two labels, on the readings of detection."""

import math
from collections import defaultdict

import pytest

from afintro.data.introspection_texts import read_self_prediction
from afintro.study.evaluations import detection, neutral_detection
from afintro.study.settings import Scale
from afintro.tasks.introspection.trials import PAIRS

SINGLE = Scale(contexts=2, vectors=3, items=1)  # for passes of one question
PROBES = {probe.id for probe in read_self_prediction().neutral_detection}


def said(share):
    return [math.log(share), math.log(1 - share)]


def by_probe(system, query, tokens):
    """Steering moves the odds by less than probes differ; the base has no idea."""
    ease = 0.1 + 0.6 * (len(query.question) % 7) / 7
    return said(ease + (0.05 if query.steering is not None and system == "adapter" else 0.0))


@pytest.fixture
def rows(planted):
    session = planted(says=by_probe, style="neutral", pair="red_blue")
    found = neutral_detection.measure(session)
    return session, found


def test_readings_are_those_of_detection_without_swaps(rows, planted):
    def read(found):
        return {
            (row["side"], row["context"], row["vector"], str(row["layers"]), row["dose"])
            for row in found
            if row["side"] != "swap"
        }

    _, found = rows
    assert read(found) == read(detection.measure(planted(says=by_probe, style="neutral", pair="red_blue")))
    assert {row["side"] for row in found} == {"none", "held_in", "held_out"}


def test_probes(rows):
    """Four about a context, the same in every reading of it, others about another."""
    _, found = rows
    own = [row for row in found if row["system"] == "adapter" and row["native"]]
    assert {row["style"] for row in own} == {"neutral_ood"}
    readings = defaultdict(set)
    for row in own:
        readings[row["context"], row["side"], str(row["layers"]), row["dose"]].add(row["question"])
    by_context = defaultdict(set)
    for (context, *_), asked in readings.items():
        by_context[context].add(frozenset(asked))
    assert {len(asked) for asked in readings.values()} == {4}
    assert {len(variants) for variants in by_context.values()} == {1}
    assert len({row["question"] for row in own} & PROBES) > 15
    assert all(row["lens"] is None for row in found)


def test_options_are_filled_in_and_stand_first_about_equally_often(rows):
    session, _ = rows
    texts = [query.question for query in session.asked[0]]
    assert not any("{" in text or text != text.strip() for text in texts)
    named = [text for text in texts if "Red" in text and "Blue" in text]
    assert sum(text.index("Red") < text.index("Blue") for text in named) == len(named) / 2
    assert set(PAIRS) == {row["pair"] for row in rows[1]}


def test_a_weak_effect_is_a_weak_auroc(rows):
    found = neutral_detection.summarize(rows[1], 0)
    adapter, base = (found["metrics"][f"auroc/held_out/{system}"]["value"] for system in ("adapter", "base"))
    assert 0.5 < adapter < 0.75
    assert base == pytest.approx(0.5, abs=1e-9)
    assert found["metrics"]["shift/auroc/held_out"]["value"] == pytest.approx(adapter - base)
    assert found["metrics"]["mass/adapter"]["value"] == pytest.approx(1.0)
    assert found["lens"] == {}
    [warning] = found["warnings"]
    assert warning.startswith("one polarity")
    assert not any("original" in name or "reversed" in name or "controls" in name for name in found["metrics"])


def test_the_first_option_is_the_claim_whatever_their_order(planted):
    """A rule that always gives the pair's first word is a false alarm, also where it is named second."""
    session = planted(says=lambda system, query, tokens: said(0.9), pair="foo_bar")
    found = neutral_detection.summarize(neutral_detection.measure(session), 0)
    assert found["metrics"]["fpr/adapter"]["value"] == found["metrics"]["tpr/held_out/adapter"]["value"] == 1.0


@pytest.mark.slow
def test_batched_equals_one_by_one_to_a_millionth(open_session, one_by_one):
    together = neutral_detection.measure(open_session(pair="up_down", scale=SINGLE))
    one_by_one()
    alone = neutral_detection.measure(open_session(pair="up_down", scale=SINGLE))
    for row, same in zip(together, alone, strict=True):
        share, wanted = (1 / (1 + math.exp(-one["odds"])) for one in (row, same))
        assert share == pytest.approx(wanted, abs=1e-6)
        assert row["mass"] == pytest.approx(same["mass"], abs=1e-6)
        assert {**row, "odds": 0, "mass": 0} == {**same, "odds": 0, "mass": 0}
