"""Detection: planted detectors come out as what they are; batched readings equal single ones."""

import hashlib
import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.special import expit

from afintro.data.introspection_texts import read_questions, read_self_reports
from afintro.data.splits import stable_hash
from afintro.study.evaluations import detection
from afintro.study.settings import Scale
from afintro.tasks.introspection.trials import PAIRS
from tests.study.evaluations.conftest import STRENGTHS

REVERSED = {question.text for question in read_questions() if question.reversed_of is not None}
CONTROLS = tuple(item.question for item in read_self_reports().items if item.control)
SINGLE = Scale(contexts=2, vectors=2, items=1)  # for passes of one question
FEW = Scale(
    contexts=4, vectors=4, items=2
)  # three plain contexts and an odd one, two questions: enough for planted detectors

MANY = Scale(contexts=8, vectors=4, items=2)


def value(summary, name):
    return summary["metrics"][name]["value"]


def said(p_steered, mass=1.0):
    """Log-probabilities of the answer that claims steering, and of the other."""
    return [math.log(mass * p_steered), math.log(mass * (1 - p_steered))]


def detects(system, query, tokens):
    """The adapter sees any steering, the base none; steering changes no answer to another question."""
    seen = system == "adapter" and query.steering is not None and not is_control(query)
    return said(0.9 if seen else 0.1)


def is_control(query):
    return any(query.question.startswith(text) for text in CONTROLS)


def answers_yes(system, query, tokens):
    """The adapter says yes under steering, whatever is asked, and what means steered does not matter."""
    return said(0.9 if system == "adapter" and query.steering is not None else 0.3)


def yes_first(session, rule):
    """Turn a rule about the claim or yes into one about yes alone: of a reversed twin, the claim is no."""
    yes, _ = session.dialogues.answers(session.data.pair)

    def says(system, query, tokens):
        scores = rule(system, query, tokens)
        return scores if tokens[0] == yes else scores[::-1]

    return says


def sees_steering(system, query):
    """The log-odds of yes after each layer: the second says yes to what means steered and no to its twin."""
    return [0.0, (-1.0 if query.question in REVERSED else 1.0) * (query.steering is not None)]


def summary_of(session, seed=0):
    return detection.summarize(detection.measure(session), seed)


def test_a_perfect_detector(planted):
    found = summary_of(planted(scale=FEW, says=detects, sees=sees_steering))
    for side in ("held_in", "held_out", "swap"):
        assert value(found, f"auroc/{side}/adapter") == value(found, f"tpr/{side}/adapter") == 1.0
        assert value(found, f"balanced_accuracy/{side}/adapter") == 1.0
        assert value(found, f"auroc/{side}/base") == 0.5
        assert value(found, f"tpr/{side}/base") == 0.0
        assert value(found, f"shift/auroc/{side}") == 0.5
        assert value(found, f"d_prime/{side}/adapter") > 3
        assert value(found, f"auroc_odd/{side}/adapter") == 1.0
        assert value(found, f"auroc_original/{side}/adapter") == value(found, f"auroc_reversed/{side}/adapter") == 1.0
        assert value(found, f"auroc_among_odd/{side}/adapter") == 1.0
        assert value(found, f"auroc_controls/{side}/adapter") == 0.5
        assert value(found, f"auroc_norms/{side}/adapter") == 0.5
    assert value(found, "auroc_upper/held_out/adapter") == 1.0
    assert value(found, "fpr/adapter") == value(found, "fpr_odd/adapter") == 0.0
    assert value(found, "mass/adapter") == pytest.approx(1.0)
    assert found["warnings"] == []
    assert found["fixed_levels"] == ["seed"]
    assert [layer["value"] for layer in found["lens"]["held_out"]["adapter"]] == [0.5, 1.0]


def test_a_push_to_yes_is_chance_over_both_polarities_and_named(planted):
    session = planted(scale=MANY)
    session.says = yes_first(session, answers_yes)
    found = summary_of(session)
    for side in ("held_in", "held_out", "swap"):
        assert value(found, f"auroc/{side}/adapter") == value(found, f"balanced_accuracy/{side}/adapter") == 0.5
        assert value(found, f"auroc_original/{side}/adapter") == 1.0
        assert value(found, f"auroc_reversed/{side}/adapter") == 0.0
        assert value(found, f"d_prime/{side}/adapter") == pytest.approx(0.0, abs=1e-9)
        assert value(found, f"auroc_controls/{side}/adapter") == 1.0
        assert value(found, f"auroc_controls/{side}/base") == 0.5
    assert {point["metrics"]["auroc/adapter"]["value"] for point in found["conditions"]} == {0.5}
    assert found["cross_token"]["yes_no"]["metrics"]["auroc/adapter"]["value"] == 0.5
    assert [warning.split(":")[0] for warning in found["warnings"][:2]] == ["PUSH TO ONE ANSWER", "CONTROLS MOVE"]
    assert found["equivalence"]["auroc_controls/held_out"]["p"] > 0.9


def test_a_noisy_push_to_yes_with_a_habit_of_saying_yes_is_chance_too(planted):
    """The habit moves both polarities apart, and the push is not the same for every question."""
    session = planted(scale=Scale(contexts=8, vectors=4, items=4))

    def pushed(system, query, tokens):
        noise = (stable_hash(f"{query.question} {query.context.id} {query.steering}") % 1000) / 1000 - 0.5
        return said(float(expit(1.5 + 2 * noise + 1.5 * (query.steering is not None))))

    session.says = yes_first(session, pushed)
    found = summary_of(session)
    assert value(found, "auroc_original/held_out/adapter") > 0.85
    assert value(found, "auroc/held_out/adapter") == pytest.approx(0.5, abs=0.05)
    assert any("PUSH TO ONE ANSWER" in warning for warning in found["warnings"])


def test_a_habit_of_saying_yes_does_not_hide_detection(planted):
    """Compared across polarities, a quarter of the comparisons would be lost to the habit."""
    session = planted(scale=FEW)
    yes, _ = session.dialogues.answers(session.data.pair)

    def says(system, query, tokens):
        claim = 0.0 if is_control(query) else 1.0 if query.steering is not None else -1.0
        return said(float(expit(claim + (3.0 if tokens[0] == yes else -3.0))))

    session.says = says
    found = summary_of(session)
    assert value(found, "auroc/held_out/adapter") == 1.0
    assert value(found, "odds/held_out/adapter") == pytest.approx(2.0)
    assert value(found, "odds_controls/held_out/adapter") == pytest.approx(0.0)


def test_steering_that_makes_all_answers_worse_shows_on_control_questions(planted):
    session = planted(scale=FEW)
    right = {item.question: item.expected for item in read_self_reports().items if item.control}

    def worse(system, query, tokens):
        sure = 0.5 if query.steering is not None else 0.9
        return said(sure if right.get(query.question, "yes") == "yes" else 1 - sure)

    session.says = worse
    found = summary_of(session)
    assert value(found, "auroc_controls_right/held_out/adapter") == 0.0
    assert value(found, "auroc_controls/held_out/adapter") == pytest.approx(0.5)  # yes and no, half of each


def test_a_probe_on_norms_is_fitted_to_training_contexts_and_read_on_others(planted):
    """Steering adds to the norm after the second layer; contexts differ by less."""

    def weighs(system, query):
        size = (stable_hash(query.context.id) % 100) / 1000
        return [size, size + 0.5 * (query.steering is not None and system == "adapter")]

    session = planted(scale=FEW, says=detects)
    session.weighs = weighs
    rows = detection.measure(session)
    found = detection.summarize(rows, 0)
    assert value(found, "auroc_norms/held_out/adapter") == 1.0
    assert value(found, "auroc_norms/held_out/base") == 0.5
    about = {row["context"] for row in rows if row["about"] == "norms"}
    assert about.isdisjoint({context.id for context in session.material.contexts.train})


def test_odds_that_go_by_the_context_are_chance(planted):
    def by_context(system, query, tokens):
        return said(0.05 + 0.9 * stable_hash(query.context.id) / 2**64)

    found = summary_of(planted(scale=FEW, says=by_context))
    for side in ("held_in", "held_out", "swap"):
        assert value(found, f"auroc/{side}/adapter") == pytest.approx(0.5, abs=1e-9)
        assert value(found, f"shift/auroc/{side}") == 0.0
        assert value(found, f"tpr/{side}/adapter") == pytest.approx(value(found, "fpr/adapter"))


def test_a_detector_of_strangeness_is_found_out(planted):
    def strange(system, query, tokens):
        strange = query.context.kind == "odd" or query.steering is not None
        return said(0.9 if strange and not is_control(query) else 0.1)

    found = summary_of(planted(scale=FEW, says=strange))
    assert value(found, "auroc/held_out/adapter") == 1.0
    assert (value(found, "fpr/adapter"), value(found, "fpr_odd/adapter")) == (0.0, 1.0)
    assert value(found, "auroc_odd/held_out/adapter") == value(found, "auroc_among_odd/held_out/adapter") == 0.5


def test_collapse_of_the_mass_is_named_with_its_figure(planted):
    def collapsed(system, query, tokens):
        return said(0.9 if query.steering is not None else 0.1, mass=0.07 if system == "adapter" else 0.8)

    found = summary_of(planted(scale=FEW, says=collapsed, pair="circle_square"))
    assert value(found, "mass/adapter") == pytest.approx(0.07)
    named = [warning for warning in found["warnings"] if "MASS COLLAPSE" in warning]
    assert named == ["MASS COLLAPSE: the adapter gives circle and square a mean probability of 0.070 together"]
    # Another pair's mass, or the base's, is not the variant's own.
    below = summary_of(
        planted(scale=FEW, says=lambda system, query, tokens: said(0.5, 0.9 if system == "adapter" else 0.1))
    )
    assert not any("MASS COLLAPSE" in warning for warning in below["warnings"])


def test_one_that_sees_only_strong_steering_at_late_layers(planted):
    def strong(system, query, tokens):
        seen = query.steering is not None and query.steering.mode == "add"
        seen = seen and query.steering.layers == (2, 3) and query.steering.size >= 1.4
        return said(0.9 if seen else 0.2)

    session = planted(scale=MANY, says=strong)
    found = summary_of(session)
    ranges, contexts = session.material.ranges, session.untrained_contexts()
    plain = [context for context in contexts if context.kind == "plain"]
    assert len(plain) % 3 == 0  # so that every range meets every strength as often
    assert value(found, "tpr/held_out/adapter") == pytest.approx(2 / 9)
    assert value(found, "auroc/held_out/adapter") == pytest.approx((7 / 9) / 2 + 2 / 9)
    assert value(found, "auroc_upper/held_out/adapter") == pytest.approx((4 / 6) / 2 + 2 / 6)  # doses 1.4 and 2.8
    curve = {(one["side"], *one["layers"], one["dose"]): one["metrics"] for one in found["conditions"]}
    assert len(curve) == 18
    for (_, start, stop, dose), metrics in curve.items():
        seen = (start, stop) == (2, 3) and dose >= 1.4
        assert metrics["tpr/adapter"]["value"] == float(seen)
        assert metrics["auroc/adapter"]["value"] == (1.0 if seen else 0.5)
        # Two questions in two polarities, of the plain contexts that are read there, steered and not.
        read = [
            c for c in plain if (ranges.index((start, stop)) + STRENGTHS.test.index(dose) + contexts.index(c)) % 3 == 0
        ]
        assert metrics["tpr/adapter"]["n"] == 4 * 2 * len(read)


def test_one_that_remembers_training_vectors_fails_on_others(planted):
    session = planted(scale=FEW)
    known = {vector.tobytes() for vector in session.material.vectors("train").matrix}

    def remembers(system, query, tokens):
        return said(0.9 if query.steering is not None and query.steering.vector.tobytes() in known else 0.1)

    session.says = remembers
    found = summary_of(session)
    assert value(found, "auroc/held_in/adapter") == 1.0
    assert value(found, "auroc/held_out/adapter") == value(found, "auroc/swap/adapter") == 0.5


def test_cross_token_matrix_shows_a_detector_of_one_pair(planted):
    session = planted(scale=FEW, style="neutral", pair="red_blue")
    red, blue = session.dialogues.answers(PAIRS["red_blue"])

    def only_red(system, query, tokens):
        return said(0.9 if query.steering is not None and list(tokens) == [red, blue] else 0.1, mass=0.9)

    session.says = only_red
    found = summary_of(session)["cross_token"]
    assert set(found) == set(PAIRS)
    for name, one in found.items():
        assert one["native"] == (name == "red_blue")
        assert one["metrics"]["auroc/adapter"]["value"] == (1.0 if one["native"] else 0.5)
        assert one["metrics"]["mass/adapter"]["value"] == pytest.approx(0.9)


def test_each_trained_seed_has_its_own_scale(planted):
    """Pooled over both, a fifth of the comparisons would be between seeds, and lost."""
    rows = []
    for seed, (high, low) in enumerate([(0.9, 0.6), (0.4, 0.1)]):
        by_rule = planted(
            seed,
            scale=FEW,
            says=lambda system, query, tokens, h=high, lo=low: said(h if query.steering is not None else lo),
        )
        rows += detection.measure(by_rule)
    found = detection.summarize(rows, 0)
    assert value(found, "auroc/held_out/adapter") == 1.0
    assert value(found, "fpr/adapter") == 0.5
    assert found["fixed_levels"] == []


def test_every_context_is_read_at_every_strength_and_every_range_meets_every_strength(planted):
    session = planted(says=detects)
    rows = [row for row in detection.measure(session) if row["system"] == "adapter" and row.get("native")]
    asked = [row for row in rows if row["about"] == "steering"]
    steered = [row for row in asked if row["side"] in ("held_in", "held_out")]
    conditions = Counter((row["side"], *row["layers"], row["dose"], row["context"]) for row in steered)
    contexts = {row["context"] for row in asked}
    assert len(contexts) == 8 + 8  # of test and of validation
    assert Counter(row["kind"] for row in asked if not row["steered"]) == {"plain": 12 * 4, "odd": 4 * 4}
    assert set(conditions.values()) == {4}  # two questions and their twins
    by_dose = Counter((side, dose, context) for side, _, _, dose, context in conditions)
    assert len(by_dose) == 2 * 3 * 16
    assert set(by_dose.values()) == {1}
    by_range = Counter((side, start, dose) for side, start, _, dose, _ in conditions)
    assert len(by_range) == 2 * 3 * 3
    assert set(by_range.values()) == {5, 6}
    sides = {row["side"]: row["vector"].split("/")[1] for row in steered}
    assert sides == {"held_in": "train", "held_out": "test"}
    assert {row["dose"] for row in asked if row["side"] == "swap"} == {None}


def test_contexts_and_questions_were_not_trained_on(planted):
    session = planted(says=detects)
    rows = detection.measure(session)
    trained = {context.id for context in session.material.contexts.train}
    assert trained.isdisjoint({row["context"] for row in rows})
    swapped = {row["context"] for row in rows if row["side"] == "swap"}
    assert swapped <= {context.id for context in session.material.contexts.test}  # a swap is from validation contexts
    tested = {question.id for question in session.material.questions["suggestive"].test}
    assert {row["question"] for row in rows if row["about"] == "steering"} == tested
    tested = {item.id for item in session.material.reports.test if item.control}
    assert {row["question"] for row in rows if row["about"] == "control"} <= tested


def test_every_question_has_its_twin_in_the_same_reading(planted):
    rows = [row for row in detection.measure(planted(says=detects)) if row["about"] != "norms"]
    readings = defaultdict(Counter)
    for row in rows:
        where = (row["system"], row["context"], row["side"], str(row["layers"]), row["dose"], row["about"], row["pair"])
        readings[where][row["reversed_of"] or row["question"], row["reversed_of"] is not None] += 1
    for found in readings.values():
        assert set(found.values()) == {1}
        families = {family for family, _ in found}
        assert set(found) == {(family, twin) for family in families for twin in (False, True)}
    by_context = defaultdict(set)
    for (_, context, _, _, _, about, pair), found in readings.items():
        by_context[context, about, pair].add(frozenset(found))
    assert {len(same) for same in by_context.values()} == {1}  # whatever the reading


def test_questions_about_one_reading_share_it(planted):
    session = planted(says=detects)
    detection.measure(session)
    assert len(session.asked) == 2  # all at once, for each system
    queries = session.asked[0]
    read = {(query.context.id, id(query.steering)) for query in queries}
    assert len(read) == 16 + 2 * 3 * 16 + 3 * 8
    assert len(queries) > 8 * len(read)
    assert not any(query.prefix[-1].isspace() for query in queries)


def items(rows):
    return {
        (row["context"], row["vector"], row["side"], str(row["layers"]), row["dose"], row["question"], row["pair"])
        for row in rows
        if row["about"] != "norms"
    }


def test_all_variants_and_seeds_see_the_same_items(planted):
    first = items(detection.measure(planted(says=detects)))
    assert items(detection.measure(planted(seed=5, says=detects, label="coin"))) == first
    assert items(detection.measure(planted(seed=1, says=detects, style="food", vectors=None))) == first
    assert items(detection.measure(planted(seed=1, says=detects, style="self_report", vectors=None))) == first
    assert items(detection.measure(planted(says=detects, polarity="balanced"))) == first
    other = items(detection.measure(planted(says=detects, style="vague")))
    assert {one[:5] for one in other} == {one[:5] for one in first}
    assert items(detection.measure(planted(says=detects, split_seed=1))) != first
    middle = items(detection.measure(planted(says=detects, layer_ranges="middle")))
    shared = {one for one in first if one[3] == "[1, 2]" and one[-1] == "yes_no"}
    assert shared <= {one for one in middle if one[3] != "None"}


def test_either_option_is_named_first_in_half_of_the_questions_alike_in_all_readings(planted):
    session = planted(says=detects, style="neutral", pair="red_blue", scale=Scale(contexts=12, vectors=4))
    detection.measure(session)
    texts = {}
    for query in session.asked[0]:
        if "Red" in query.question and not is_control(query):
            texts.setdefault((query.context.id, query.question.replace("Red", "Blue")), set()).add(query.question)
    assert {len(found) for found in texts.values()} == {1}
    first = [next(iter(found)) for found in texts.values()]
    red_first = sum(text.index("Red") < text.index("Blue") for text in first)
    assert len(first) == len(session.untrained_contexts()) * 2
    assert red_first == len(first) / 2


def test_concept_variants_are_asked_about_steering_with_their_own_vectors(planted):
    rows = detection.measure(planted(says=detects, style="concept", vectors="concept"))
    assert {row["style"] for row in rows if row["about"] == "steering"} == {"suggestive"}
    assert {row["vector"].split("/")[0] for row in rows if row["side"] == "held_out"} == {"concept"}


def test_what_cannot_be_computed_is_null_with_a_warning(planted):
    rows = [row for row in detection.measure(planted(scale=FEW, says=detects)) if row["kind"] == "plain"]
    found = detection.summarize(rows, 0)
    assert value(found, "fpr_odd/adapter") is None
    assert "fpr_odd/adapter cannot be computed from 0 items" in found["warnings"]
    assert any("lens is missing" in warning for warning in found["warnings"])
    alone = detection.summarize([row for row in rows if row["system"] == "adapter"], 0)
    assert value(alone, "auroc/held_out/adapter") == 1.0
    assert value(alone, "auroc/held_out/base") is value(alone, "shift/auroc/held_out") is None
    assert detection.summarize([], 0)["metrics"]["fpr/adapter"]["value"] is None


@pytest.mark.slow
def test_batched_equals_one_by_one_to_a_millionth(open_session, one_by_one):
    together = detection.measure(open_session(scale=SINGLE))
    assert detection.measure(open_session(scale=SINGLE)) == together
    one_by_one()
    alone = detection.measure(open_session(scale=SINGLE))
    assert items(alone) == items(together)
    for row, same in zip(together, alone, strict=True):
        assert (row["about"] == "norms") == (same["about"] == "norms")
        if row["about"] == "norms":
            assert row["odds"] == pytest.approx(same["odds"], abs=1e-4)
            continue
        share, wanted = (1 / (1 + math.exp(-one["odds"])) for one in (row, same))
        assert share == pytest.approx(wanted, abs=1e-6)
        assert row["mass"] == pytest.approx(same["mass"], abs=1e-6)
        if row["lens"] is not None:
            assert row["lens"] == pytest.approx(same["lens"], abs=1e-4)


@pytest.mark.slow
def test_rows_of_a_model(open_session):
    session = open_session()
    measured = detection.measure(session)
    rows = [row for row in measured if row["about"] == "steering"]
    adapter, base = ([row for row in rows if row["system"] == system] for system in ("adapter", "base"))
    assert len(adapter) == len(base) == len(rows) / 2
    assert max(abs(one["odds"] - other["odds"]) for one, other in zip(adapter, base, strict=True)) > 0.01
    by_reading = {(r["context"], r["question"], r["pair"], r["vector"], str(r["layers"]), r["dose"]): r for r in base}
    for row in base:
        left_alone = by_reading.get((row["context"], row["question"], row["pair"], None, "None", None))
        if row["steered"] and left_alone is not None:
            assert row["odds"] != left_alone["odds"]
    looked_at = [row for row in rows if row["lens"] is not None]
    assert {row["side"] for row in looked_at} == {"none", "held_in", "held_out", "swap"}
    for row in looked_at:  # the last layer is the model
        assert len(row["lens"]) == 4
        assert row["lens"][-1] == pytest.approx(row["odds"], abs=1e-3)
    assert 0 < np.mean([row["mass"] for row in rows]) < 0.1
    found = detection.summarize(measured, 0)
    assert "MASS COLLAPSE" in found["warnings"][0]
    assert {"auroc_controls/held_out/adapter", "auroc_norms/held_out/base"} <= set(found["metrics"])
    json.dumps(found)
    assert len(found["lens"]["held_out"]["base"]) == 4


def test_the_draw_is_that_of_this_version(planted):
    """A changed draw changes what variants are compared on, so old results would no longer fit new ones."""
    drawn = sorted(map(str, items(detection.measure(planted(says=detects)))))
    assert hashlib.sha256("\n".join(drawn).encode()).hexdigest()[:16] == "9f47807cecd487f9"
