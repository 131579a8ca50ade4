"""Self-calibration: exact probabilities, planted statements, statements that cannot be read."""

import json
import math

import pytest
import torch

from afintro.data.introspection_texts import read_self_prediction
from afintro.study.asking.queries import WrittenAnswer
from afintro.study.evaluations import self_calibration
from afintro.study.scoring.stated import divergence
from afintro.study.settings import Scale

TEXTS = read_self_prediction()
PROMPTS = {prompt.text: prompt for prompt in TEXTS.prompts if prompt.task == "stated_distribution"}
ASK = next(task.ask for task in TEXTS.tasks if task.id == "stated_distribution")
BY_QUESTION = {ASK.replace("{prompt}", text): prompt for text, prompt in PROMPTS.items()}
LONG = sum(len(prompt.options) > 5 for prompt in PROMPTS.values())


def falling(options):
    """Shares in hundredths: 40 for the first, the rest divided among the others."""
    rest = 60 // (len(options) - 1)
    return [100 - rest * (len(options) - 1), *[rest] * (len(options) - 1)]


def scores(mass=0.8):
    """The first option is likeliest; all together have this mass."""

    def of(system, query, words):
        assert query.context is query.steering is None
        assert words == PROMPTS[query.question].options
        return [math.log(mass * share / 100) for share in falling(words)]

    return of


def states(numbers):
    """Writes a list of ``numbers(system, options)``, or the text that it gives."""

    def writes(system, query):
        options = BY_QUESTION[query.question].options
        found = numbers(system, options)
        if isinstance(found, (str, WrittenAnswer)):
            return found
        return "\n".join(f"{option}: {number}" for option, number in zip(options, found, strict=True))

    return writes


def value(summary, name):
    return summary["metrics"][name]["value"]


def found(session):
    return self_calibration.summarize(self_calibration.measure(session), 0)


def test_a_system_that_knows_its_distribution_beside_one_that_turns_it_round(planted):
    said = states(lambda system, options: falling(options) if system == "adapter" else falling(options)[::-1])
    summary = found(planted(scores=scores(), writes=said))
    assert 0 <= value(summary, "kl/adapter") < 0.002  # smoothing
    assert value(summary, "kl/base") > 0.2
    assert value(summary, "shift/kl") == pytest.approx(value(summary, "kl/adapter") - value(summary, "kl/base"))
    assert value(summary, "kl_over_uniform/adapter") < 0 < value(summary, "kl_over_uniform/base")
    assert value(summary, "top1/adapter") == value(summary, "top5/adapter") == 1.0
    assert value(summary, "top1/base") == 0.0
    assert value(summary, "parsed/base") == 1.0
    assert value(summary, "mass/adapter") == pytest.approx(0.8)
    assert summary["metrics"]["top5/base"]["n"] == LONG
    assert summary["chance"]["top5"] == pytest.approx(5 / 6)
    assert summary["smoothing"] == 0.005
    assert summary["warnings"] == []


def test_stating_the_same_for_all_is_the_uniform_baseline_and_earns_no_place(planted):
    said = states(lambda system, options: [20] * len(options))
    summary = found(planted(scores=scores(), writes=said))
    assert value(summary, "kl/adapter") == pytest.approx(value(summary, "kl_uniform/adapter"))
    assert value(summary, "kl_over_uniform/adapter") == pytest.approx(0.0)
    assert value(summary, "top1/adapter") == value(summary, "top5/adapter") == 0.0
    five = sum(len(prompt.options) == 5 for prompt in PROMPTS.values())  # of these the numbers come to a hundred
    assert value(summary, "renormalised/adapter") == pytest.approx(1 - five / 12)


def test_rows_hold_both_distributions(planted):
    rows = self_calibration.measure(planted(scores=scores(0.4), writes=states(lambda _, o: falling(o)[::-1])))
    assert len(rows) == 24
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        options = PROMPTS[row["prompt"]].options
        assert list(row["stated"]) == list(row["actual"]) == options
        assert list(row["actual"].values()) == pytest.approx([share / 100 for share in falling(options)])
        assert list(row["stated"].values()) == pytest.approx([share / 100 for share in falling(options)][::-1])
        assert row["mass"] == pytest.approx(0.4)
        assert row["kl"] == divergence(list(row["actual"].values()), list(row["stated"].values()))
        assert row["top5"] is None if len(options) <= 5 else row["top5"] is False


def test_statements_that_cannot_be_read_are_null_and_counted(planted):
    def said(system, options):
        if system == "adapter" and len(options) < 6:
            return "Who knows?"
        return falling(options)

    session = planted(scores=scores(0.3), writes=states(said))
    rows = self_calibration.measure(session)
    summary = self_calibration.summarize(rows, 0)
    unread = [row for row in rows if not row["parsed"]]
    assert len(unread) == 12 - LONG
    for row in unread:
        assert row["stated"] is row["kl"] is row["top1"] is row["top5"] is row["renormalised"] is None
    assert summary["metrics"]["kl/adapter"]["n"] == summary["metrics"]["shift/kl"]["n"] == LONG
    assert summary["metrics"]["kl/base"]["n"] == 12
    # On the shared questions nothing differs, though the means over all that could be read do.
    assert value(summary, "kl/adapter") != value(summary, "kl/base")
    assert value(summary, "shift/kl") == pytest.approx(0.0)
    assert value(summary, "parsed/adapter") == pytest.approx(LONG / 12)
    assert summary["warnings"] == [
        f"format failures of the adapter: {12 - LONG} of 12 statements cannot be read",
        "low mass: 12 of 12 answers of the adapter have less than 0.5 on the options",
        "low mass: 12 of 12 answers of the base have less than 0.5 on the options",
    ]


def test_the_last_line_of_a_cut_answer_is_not_read(planted):
    def said(system, options):
        text = "\n".join(f"{option}: 10" for option in options)
        return WrittenAnswer(text, cut=system == "adapter")

    summary = found(planted(scores=scores(), writes=states(said)))
    assert value(summary, "parsed/adapter") == 0.0
    assert value(summary, "kl/adapter") is None
    assert value(summary, "shift/kl") is None
    assert value(summary, "parsed/base") == 1.0
    assert any(warning.startswith("kl/adapter cannot be computed") for warning in summary["warnings"])


def test_shares_of_scores_without_probability():
    assert self_calibration.shares([-2000.0, -2000.0 + math.log(3)]) == pytest.approx([0.25, 0.75])


def test_probabilities_are_those_of_the_model(open_session, study_model, plain_model):
    """Against transformers, token by token, without adapter."""
    session = open_session(scale=Scale(items=3, new_tokens=4))
    rows = [row for row in self_calibration.measure(session) if row["system"] == "base"]
    model = plain_model(study_model)
    for row in rows:
        start = session.dialogues.asked(None, row["prompt"]).question
        scores = []
        for option in row["actual"]:
            answer = session.dialogues.word(option)
            logits = model(torch.tensor([[*start, *answer]])).logits[0].log_softmax(-1)
            scores.append(sum(logits[len(start) - 1 + at, token].item() for at, token in enumerate(answer)))
        total = math.fsum(map(math.exp, scores))
        assert row["mass"] == pytest.approx(total, rel=1e-4)
        assert list(row["actual"].values()) == pytest.approx([math.exp(s) / total for s in scores], rel=1e-4)


@pytest.mark.slow
def test_a_model_and_the_size_of_batches(open_session, one_by_one):
    together = self_calibration.measure(open_session(scale=Scale(items=4, new_tokens=6)))
    one_by_one()
    alone = self_calibration.measure(open_session(scale=Scale(items=4, new_tokens=6, batch_size=1)))
    for row, same in zip(together, alone, strict=True):
        for option, share in row["actual"].items():
            assert share == pytest.approx(same["actual"][option], abs=1e-6)
        assert row["mass"] == pytest.approx(same["mass"], abs=1e-6)
        assert (row["answer"], row["question"], row["system"]) == (same["answer"], same["question"], same["system"])
    adapter, base = together[:4], together[4:]
    assert [row["answer"] for row in adapter] != [row["answer"] for row in base]
    assert adapter[0]["mass"] != base[0]["mass"]
    json.dumps(self_calibration.summarize(together, 0), allow_nan=False)


def test_no_rows():
    summary = self_calibration.summarize([], 0)
    assert value(summary, "kl/adapter") is None
    assert summary["chance"] == {"top1": None, "top5": None}
    assert len(summary["warnings"]) == len(summary["metrics"])
