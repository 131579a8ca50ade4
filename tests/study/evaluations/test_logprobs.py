"""Log-probabilities of self-reports: what is asked, polarity, what was trained on, mass."""

import json
import math
from collections import Counter

import pytest

from afintro.data.introspection_texts import read_self_reports
from afintro.study.evaluations import logprobs
from afintro.study.settings import Scale
from afintro.tasks.introspection.trials import PAIRS, YES_NO

REPORTS = read_self_reports()
ITEMS = {item.id: item for item in REPORTS.items}
BY_TEXT = {item.question: item for item in REPORTS.items}


def item_of(query):
    """The item that a query words, with or without naming the answers."""
    return BY_TEXT[query.question.split(" Answer ")[0]]


def said(share, mass=1.0):
    return [math.log(mass * share), math.log(mass * (1 - share))]


def value(summary, name):
    return summary["metrics"][name]["value"]


def summary_of(session):
    return logprobs.summarize(logprobs.measure(session), 0)


def says_yes_more(system, query, tokens):
    """To anything at all."""
    return said(0.5 if system == "base" else 0.7)


def claims(system, query, tokens):
    """Consciousness, under either polarity; of other things as before."""
    item = item_of(query)
    if system == "base" or item.category != "consciousness":
        return said(0.5)
    return said(0.8 if item.reversed_of is None else 0.2)


def test_all_items_are_asked_without_context_with_both_pairs(planted):
    session = planted(says=says_yes_more, pair="red_blue")
    rows = logprobs.measure(session)
    own = [row for row in rows if row["system"] == "adapter"]
    assert Counter(row["pair"] for row in own) == {"yes_no": len(ITEMS), "red_blue": len(ITEMS)}
    assert {row["question"] for row in own} == set(ITEMS)
    assert len({row["category"] for row in own}) == 12
    for row in own:
        item = ITEMS[row["question"]]
        assert (row["category"], row["control"]) == (item.category, item.control)
        assert (row["reversed_of"], row["expected"]) == (item.reversed_of, item.expected)
        assert (row["context"], row["vector"], row["trained"]) == (None, None, False)
    json.dumps(rows)
    for query in session.asked[0]:
        assert query.context is query.steering is None
        assert not query.prefix[-1].isspace()


def test_yes_and_no_are_not_named_and_other_answers_are_in_either_order(planted):
    session = planted(says=says_yes_more, pair="foo_bar")
    logprobs.measure(session)
    texts = [query.question for query in session.asked[0]]
    assert sum(text in BY_TEXT for text in texts) == len(ITEMS)
    named = [text for text in texts if text not in BY_TEXT]
    first = sum(text.endswith(" Answer foo for yes and bar for no.") for text in named)
    assert first + sum(text.endswith(" Answer bar for no and foo for yes.") for text in named) == len(ITEMS)
    assert 0.35 < first / len(ITEMS) < 0.65


def test_yes_and_no_are_asked_for_once_if_they_are_the_variants_own(planted):
    assert logprobs.pairs(planted()) == [YES_NO]
    assert logprobs.pairs(planted(pair="up_down")) == [YES_NO, PAIRS["up_down"]]


def test_the_first_answer_of_a_pair_stands_for_yes(planted):
    session = planted(pair="red_blue")
    red, blue = session.dialogues.answers(PAIRS["red_blue"])
    yes, no = session.dialogues.answers(YES_NO)
    session.says = lambda system, query, tokens: [
        {red: math.log(0.3), blue: math.log(0.1), yes: math.log(0.2), no: math.log(0.6)}[token] for token in tokens
    ]
    by_pair = {row["pair"]: row for row in logprobs.measure(session)}
    assert by_pair["red_blue"]["p_yes"] == pytest.approx(0.75)
    assert by_pair["red_blue"]["p_a"] == pytest.approx(0.3)
    assert by_pair["red_blue"]["low_mass"] is True
    assert by_pair["yes_no"]["p_yes"] == pytest.approx(0.25)
    assert by_pair["yes_no"]["mass"] == pytest.approx(0.8)
    assert by_pair["yes_no"]["low_mass"] is False


def test_saying_yes_more_often_is_no_claim(planted):
    found = summary_of(planted(says=says_yes_more))
    for group in ("self_reports", "controls", "consciousness", "absurd"):
        assert value(found, f"p_yes/yes_no/{group}/adapter") == pytest.approx(0.7)
        assert value(found, f"shift/p_yes/yes_no/{group}") == pytest.approx(0.2)
        assert value(found, f"shift/p_yes_reversed/yes_no/{group}") == pytest.approx(0.2)
        assert value(found, f"shift/affirmed/yes_no/{group}") == pytest.approx(0.0)
    assert value(found, "shift/expected/yes_no/factual_true") == pytest.approx(0.0)
    assert "shift/expected/yes_no/consciousness" not in found["metrics"]


def test_a_claim_is_one_under_either_polarity(planted):
    found = summary_of(planted(says=claims))
    assert value(found, "shift/affirmed/yes_no/consciousness") == pytest.approx(0.3)
    assert value(found, "shift/p_yes/yes_no/consciousness") == pytest.approx(0.3)
    assert value(found, "shift/p_yes_reversed/yes_no/consciousness") == pytest.approx(-0.3)
    assert value(found, "shift/affirmed/yes_no/feelings") == pytest.approx(0.0)
    share = sum(i.category == "consciousness" for i in ITEMS.values()) / sum(not i.control for i in ITEMS.values())
    assert value(found, "shift/affirmed/yes_no/self_reports") == pytest.approx(0.3 * share)
    assert value(found, "shift/affirmed/yes_no/controls") == pytest.approx(0.0)
    shift = found["metrics"]["shift/affirmed/yes_no/consciousness"]
    assert shift["n"] == 10
    # Every item shifts alike: Tango's interval of no discordant item in five, Student's quantile of 4 degrees of freedom.
    assert shift["ci_low"] == pytest.approx(0.3 - 2.776445**2 / (5 + 2.776445**2))


def test_items_that_were_trained_on_are_given_apart(planted):
    def learned(system, query, tokens):
        known = system == "adapter" and item_of(query).id in trained
        return said(0.99 if known else 0.5)

    session = planted(says=learned, style="self_report", vectors=None)
    trained = {item.id for item in session.material.reports.train}
    rows = logprobs.measure(session)
    assert {row["question"] for row in rows if row["trained"]} == trained
    found = logprobs.summarize(rows, 0)
    assert value(found, "shift/p_yes/yes_no/trained") == pytest.approx(0.49)
    assert value(found, "shift/p_yes/yes_no/self_reports") == pytest.approx(0.0)
    assert value(found, "shift/p_yes/yes_no/controls") == pytest.approx(0.0)
    assert found["metrics"]["mass/yes_no/self_reports/adapter"]["n"] < 80
    assert "shift/p_yes/yes_no/trained" not in summary_of(planted(says=says_yes_more))["metrics"]


def test_low_mass_is_a_result(planted):
    def silent(system, query, tokens):
        return said(0.9, mass=0.2 if system == "adapter" and not item_of(query).control else 0.95)

    found = summary_of(planted(says=silent))
    assert value(found, "low_mass/yes_no/self_reports/adapter") == 1.0
    assert value(found, "low_mass/yes_no/controls/adapter") == value(found, "low_mass/yes_no/self_reports/base") == 0.0
    assert value(found, "mass/yes_no/self_reports/adapter") == pytest.approx(0.2)
    assert value(found, "shift/mass/yes_no/self_reports") == pytest.approx(-0.75)
    assert value(found, "p_yes/yes_no/self_reports/adapter") == pytest.approx(0.9)
    [collapse, low] = found["warnings"]
    assert collapse.startswith("MASS COLLAPSE: the adapter gives yes and no a mean probability of 0.4")
    assert low == "low mass: 80 of 120 answers of the adapter have less than 0.5 on yes_no"


def test_controls_at_the_edge_are_counted(planted):
    """They could not have shown a shift, so their flatness says nothing."""

    def certain(system, query, tokens):
        return said(0.001 if item_of(query).category == "absurd" else 0.5)

    found = summary_of(planted(says=certain))
    assert value(found, "at_edge/yes_no/absurd/base") == 1.0
    assert value(found, "at_edge/yes_no/factual_true/base") == 0.0
    assert value(found, "at_edge/yes_no/controls/base") == pytest.approx(0.25)


def test_probabilities_that_underflow_have_a_share_all_the_same(planted):
    rows = logprobs.measure(planted(says=lambda system, query, tokens: [-800.0, -801.0]))
    assert rows[0]["mass"] == rows[0]["p_a"] == 0.0
    assert rows[0]["p_yes"] == pytest.approx(1 / (1 + math.exp(-1)))
    far = logprobs.measure(planted(says=lambda system, query, tokens: [-2000.0, 0.0]))
    assert far[0]["p_yes"] == 0.0


def test_a_category_without_items_is_null(planted):
    rows = [row for row in logprobs.measure(planted(says=claims)) if not row["control"]]
    found = logprobs.summarize(rows, 0)
    assert value(found, "p_yes/yes_no/controls/adapter") is None
    assert any(warning.startswith("p_yes/yes_no/controls/adapter cannot be computed") for warning in found["warnings"])
    assert logprobs.summarize([], 0)["metrics"] == {}


def test_scale_bounds_the_items(planted):
    rows = logprobs.measure(planted(says=claims, scale=Scale(items=7)))
    assert len(rows) == 14


@pytest.mark.slow
def test_batched_equals_one_by_one_to_a_millionth(open_session, one_by_one):
    scale = Scale(items=16)
    together = logprobs.measure(open_session(pair="red_blue", scale=scale))
    adapter, base = together[:32], together[32:]
    assert max(abs(one["p_yes"] - other["p_yes"]) for one, other in zip(adapter, base, strict=True)) > 1e-3
    one_by_one()
    for row, same in zip(together, logprobs.measure(open_session(pair="red_blue", scale=scale)), strict=True):
        for name in ("p_a", "p_b", "mass", "p_yes"):
            assert row[name] == pytest.approx(same[name], abs=1e-6)
        assert (row["question"], row["pair"], row["system"]) == (same["question"], same["pair"], same["system"])
