"""Concept identification: ranks by hand, planted mind readers, what words are likely anyway."""

import json
import math
from collections import Counter

import pytest

from afintro.lm.shared_prefix import Prefix, row_log_probabilities
from afintro.study.evaluations import concepts
from afintro.study.scoring import naming


@pytest.fixture
def mind_reader(planted):
    """A session whose adapter knows the concept by its vector from a dose on, and whose base never does."""

    def make(least=0.0, favorite="gold", **settings):
        session = planted(**settings)
        vectors = session.material.vectors("test", "concept")
        known = {vectors.of(name).tobytes(): vectors.concept(name) for name in vectors.names}

        def scores(system, query, words):
            found = [-10.0 - place - 5.0 * (word != favorite) for place, word in enumerate(words)]
            steering = query.steering
            if system == "adapter" and steering is not None and steering.size >= least:
                found[words.index(known[steering.vector.tobytes()])] = 0.0
            return found

        session.scores = scores
        return session

    return make


def value(summary, name):
    return summary["metrics"][name]["value"]


def test_rank_by_hand():
    words = ["sea", "dog", "clock", "king"]
    assert [naming.rank([-1.0, -3.0, -2.0, -4.0], words, word) for word in words] == [1, 3, 2, 4]
    assert naming.rank([-1.0] * 4, words, "sea") == 4  # no score at all earns nothing
    assert naming.rank([-2.0, -1.0, -2.0, -3.0], words, "sea") == 3


def test_all_concepts_are_candidates_whatever_their_side():
    words = naming.candidates()
    assert len(words) == len(set(words)) == 28
    assert {"sea", "desert", "market"} <= set(words)


def test_one_that_reads_minds(mind_reader):
    found = concepts.summarize(concepts.measure(mind_reader(layer_ranges="middle")), 0)
    assert value(found, "top1/adapter") == value(found, "rank/adapter") == 1.0
    assert value(found, "top1/base") == value(found, "top1_unsteered/base")
    assert value(found, "gain/base") == 0.0
    assert value(found, "gain/adapter") == value(found, "rank_unsteered/adapter") - 1
    assert value(found, "shift/rank") == 1 - value(found, "rank/base")
    assert found["chance"] == {"top1": pytest.approx(1 / 28), "rank": pytest.approx(14.5)}
    assert found["warnings"] == []
    assert found["fixed_levels"] == ["seed"]
    low, high = (found["metrics"]["rank/base"][end] for end in ("ci_low", "ci_high"))
    assert 1 <= low < value(found, "rank/base") < high <= 28


def test_a_word_that_is_likely_anyway_is_no_identification(mind_reader):
    """It ranks first, steered or not."""
    session = mind_reader(least=math.inf, layer_ranges="middle")
    vectors = session.material.vectors("test", "concept")
    favorite = vectors.concept(vectors.names[0])
    rows = concepts.measure(mind_reader(least=math.inf, favorite=favorite, layer_ranges="middle"))
    own = [row for row in rows if row["concept"] == favorite]
    assert all(row["rank"] == row["rank_unsteered"] == 1 and row["top1"] for row in own)
    assert value(concepts.summarize(rows, 0), "gain/adapter") == 0.0


def test_by_dose(mind_reader):
    found = concepts.summarize(concepts.measure(mind_reader(least=1.4, layer_ranges="middle")), 0)
    assert [one["dose"] for one in found["doses"]] == [0.7, 1.4, 2.8]
    assert [one["metrics"]["top1/adapter"]["value"] == 1.0 for one in found["doses"]] == [False, True, True]


def test_rows(mind_reader):
    rows = concepts.measure(mind_reader())
    json.dumps(rows)
    session = mind_reader()
    own = [row for row in rows if row["system"] == "base"]
    test_words = {session.material.vectors("test", "concept").concept(row["vector"]) for row in own}
    trained = session.material.vectors("train", "concept")
    assert {row["concept"] for row in own} == test_words
    assert test_words.isdisjoint(map(trained.concept, trained.names))
    counts = Counter((row["concept"], str(row["layers"]), row["dose"]) for row in own)
    assert len(counts) == 4 * 3 * 3
    assert set(counts.values()) == {concepts.CONTEXTS_PER_CONCEPT}
    assert {row["prompt"] for row in own} <= set(concepts.WORDINGS.values())
    plain = {context.id for context in session.material.contexts.test if context.kind == "plain"}
    assert {row["context"] for row in own} <= plain


def test_all_variants_and_seeds_see_the_same_items(mind_reader):
    def items(session):
        return [(r["concept"], r["context"], r["question"], str(r["layers"])) for r in concepts.measure(session)]

    first = items(mind_reader())
    assert items(mind_reader(seed=3, style="vague", label="coin")) == first
    assert items(mind_reader(style="food", vectors=None)) == first


def test_scores_are_those_of_single_tokens(open_session):
    """Where every concept is one token the score is what ``ask`` gives it."""
    session = open_session()
    [row, *_] = concepts.measure(session)
    context = next(one for one in session.contexts("test") if one.id == row["context"])
    thought = next(
        one for one in naming.steered_concepts(session)
        if (one.vector, list(one.layers), one.strength) == (row["vector"], row["layers"], row["dose"])
    )  # fmt: skip
    query = concepts.Query(context, thought.steering, row["prompt"])
    words = naming.candidates()
    with session.system("adapter"):
        [scores] = session.ask([query], [[session.dialogues.answer(word) for word in words]])
        [unsteered] = session.ask(
            [concepts.Query(context, None, row["prompt"])], [[session.dialogues.answer(w) for w in words]]
        )
    assert row["rank"] == naming.rank(scores, words, row["concept"])
    assert row["rank_unsteered"] == naming.rank(unsteered, words, row["concept"])
    assert max(abs(one - other) for one, other in zip(scores, unsteered, strict=True)) > 1e-3


@pytest.mark.parametrize("staying", [False, True])
def test_words_of_several_tokens_are_read_token_by_token(open_session, staying):
    session = open_session()
    words = ["sea", "seaside", "violinist", "thunderstorms", "violins"]
    answers = [session.dialogues.word(word) for word in words]
    assert len(answers[0]) == 1 < min(map(len, answers[1:]))
    thought = naming.steered_concepts(session)[-1]
    queries = [
        concepts.Query(session.contexts("test")[0], steering, wording)
        for steering in (thought.steering, None)
        for wording in concepts.WORDINGS.values()
    ]
    with session.system("adapter"):
        found = session.score(queries, [words] * len(queries), staying)
        for query, scores in zip(queries, found, strict=True):
            asked = session.dialogues.asked(query.context, query.question)
            rows = [(*asked.question, *answer) for answer in answers]
            prefix = Prefix(asked.context, query.steering, rows, staying)
            [wanted] = row_log_probabilities(session.model, [prefix], [[len(answer) for answer in answers]])
            assert scores == pytest.approx([sum(tokens) for tokens in wanted], abs=1e-4)


@pytest.mark.slow
def test_batched_equals_one_by_one(open_session, one_by_one, monkeypatch):
    """Scores to a millionth in probability, and so the ranks."""
    kept = []
    rank_fields = naming.rank_fields

    def keep(session, concept, steered, unsteered):
        kept.append([*map(math.exp, steered), *map(math.exp, unsteered)])
        return rank_fields(session, concept, steered, unsteered)

    monkeypatch.setattr(concepts, "rank_fields", keep)
    together = concepts.measure(open_session())
    one_by_one()
    alone = concepts.measure(open_session())
    assert together == alone
    half = len(kept) // 2
    for scores, same in zip(kept[:half], kept[half:], strict=True):
        assert scores == pytest.approx(same, abs=1e-6)
    assert together != [{**row, "system": "adapter"} for row in together]
    adapter, base = together[: half // 2], together[half // 2 :]
    assert [row["rank"] for row in adapter] != [row["rank"] for row in base]


def test_no_rows():
    found = concepts.summarize([], 0)
    assert found["metrics"]["rank/adapter"]["value"] is None
    assert found["chance"] == {"top1": None, "rank": None}
    assert len(found["warnings"]) == len(found["metrics"])
