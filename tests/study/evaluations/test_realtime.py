"""Realtime introspection: names found in answers, planted answers, steering that stays on."""

import math
from collections import Counter

import pytest

from afintro.data.introspection_texts import read_self_prediction
from afintro.study.asking.queries import Query
from afintro.study.evaluations import realtime
from afintro.study.scoring import naming
from afintro.study.settings import Scale

PROBES = {probe.id: probe.text for probe in read_self_prediction().realtime}


def value(summary, name):
    return summary["metrics"][name]["value"]


@pytest.mark.parametrize(
    ("answer", "concept", "found"),
    [
        ("The sea, of course.", "sea", True),
        ("SEAS", "sea", True),
        ("A season at the seaside.", "sea", False),
        ("two dogs", "dog", True),
        ("Dogma", "dog", False),
        ("three torches", "torch", True),
        ("knives out", "knife", True),
        ("sea-green", "sea", True),
        ("train_garden", "garden", True),
        ("", "sea", False),
    ],
)
def test_names(answer, concept, found):
    assert realtime.names_concept(answer, concept) is found


def test_a_planted_answer_is_found_and_what_is_said_anyway_is_shown(planted):
    session = planted()
    vectors = session.material.vectors("test", "concept")
    known = {vectors.of(name).tobytes(): vectors.concept(name) for name in vectors.names}
    always = vectors.concept(naming.steered_concepts(session)[0].vector)

    def writes(system, query):
        thought = None if query.steering is None else known[query.steering.vector.tobytes()]
        return f"I think of a {thought if system == 'adapter' and thought else always}."

    session.writes = writes
    session.scores = lambda system, query, words: [-float(place) for place in range(len(words))]
    rows = realtime.measure(session)
    found = realtime.summarize(rows, 0)
    assert value(found, "named/adapter") == 1.0
    assert value(found, "named/base") == value(found, "named_unsteered/base") == 0.25  # one concept of four
    assert value(found, "shift/named") == 0.75
    assert value(found, "gain/adapter") == 0.0
    assert [one["metrics"]["named/adapter"]["value"] for one in found["doses"]] == [1.0] * 3
    assert found["chance"]["top1"] == pytest.approx(1 / 28)
    assert found["warnings"] == []


def test_rows(planted):
    session = planted(
        scores=lambda system, query, words: [0.0] * len(words), writes=lambda system, query: "A word."
    )  # fmt: skip
    rows = realtime.measure(session)
    own = [row for row in rows if row["system"] == "adapter"]
    counts = Counter((row["concept"], str(row["layers"]), row["dose"]) for row in own)
    assert len(counts) == 4 * 3 * 3
    assert set(counts.values()) == {realtime.PROBES_PER_CONCEPT}
    for row in own:
        assert row["prompt"] == PROBES[row["question"]]
        assert (row["context"], row["answer"], row["named"], row["rank"]) == (None, "A word.", False, 28)
    assert {row["question"] for row in own} == set(PROBES)


def test_steering_stays_on_for_what_is_written_and_for_what_is_scored(open_session):
    """The token that is written after the prefix is the one that scores highest with steering on."""
    session = open_session(scale=Scale(contexts=2, vectors=3, new_tokens=1))
    tokens = [session.module.tokenizer.decode([token]) for token in range(300, 1500)]
    words = [token[1:] for token in tokens if token[0] == " " and len(session.dialogues.word(token[1:])) == 1]
    queries = [
        Query(None, thought.steering, probe)
        for thought in naming.steered_concepts(session)[::2]
        for probe in list(PROBES.values())[:2]
    ]
    with session.system("adapter"):
        staying = session.score(queries, [words] * len(queries), keep_steering=True)
        removed = session.score(queries[:4:2], [words] * 2)
        written = [answer.text for answer in session.write(queries, keep_steering=True)]
    best = [" " + words[max(range(len(words)), key=scores.__getitem__)] for scores in staying]
    pairs = [(likely, said) for likely, said in zip(best, written, strict=True) if said[1:] in words and said[0] == " "]
    assert len(pairs) >= 2
    assert all(likely == said for likely, said in pairs)
    # Without a context nothing is left of a steering that is removed before the question.
    assert removed[0] == pytest.approx(removed[1], abs=1e-4)
    assert max(abs(one - other) for one, other in zip(staying[0], removed[0], strict=True)) > 0.01


@pytest.mark.slow
def test_batched_equals_one_by_one(open_session, one_by_one):
    scale = Scale(vectors=1, items=3, new_tokens=3)
    together = realtime.measure(open_session(scale=scale))
    one_by_one()
    assert realtime.measure(open_session(scale=scale)) == together
    assert realtime.measure(open_session(scale=Scale(vectors=1, items=3, new_tokens=3, batch_size=1))) == together
    adapter, base = together[: len(together) // 2], together[len(together) // 2 :]
    assert [row["answer"] for row in adapter] != [row["answer"] for row in base]
    assert any(row["rank"] != row["rank_unsteered"] for row in base)


@pytest.mark.slow
def test_probabilities_with_steering_on_do_not_depend_on_the_batch(open_session, one_by_one):
    session = open_session()
    queries = [
        Query(None, thought.steering, text) for thought in naming.steered_concepts(session) for text in PROBES.values()
    ]
    words = [naming.candidates()] * len(queries)
    with session.system("base"):
        together = session.score(queries, words, keep_steering=True)
        one_by_one()
        for scores, same in zip(together, session.score(queries, words, keep_steering=True), strict=True):
            assert [*map(math.exp, scores)] == pytest.approx([*map(math.exp, same)], abs=1e-6)


def test_no_rows():
    found = realtime.summarize([], 0)
    assert found["metrics"]["named/adapter"]["value"] is None
    assert len(found["warnings"]) == len(found["metrics"])
