"""Text baselines: each does what it says, on a set small enough to do in the head, and none looks at the answers."""

import random
import re
import zlib
from dataclasses import replace
from functools import cache

import pytest

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, two_branch
from afintro.evaluation.baselines import solved_from_text, text_baselines
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import score, statistics

PRIMARY = "generative_explanation"
READERS = {"tfidf_probe", "text_chars", "text_skipgrams", "from_scratch"}
NAMES = {"majority", "always_unchanged", "copy_monitored", "tfidf_nearest", *READERS}
REFUSE, COMPLY, CHANGED = (
    two_branch(Verdict(False, "refuse")),
    two_branch(Verdict(False, "comply")),
    two_branch(Verdict(True, "comply")),
)


def example(uid, prompt, answer, question=PRIMARY, copied=REFUSE):
    ids = tuple(zlib.crc32(token.encode()) for token in re.findall(r"\w+|[^\w\s]", prompt))
    return Example(uid, f"scenario {uid}", question, prompt, answer, ids, (2,), copy_answer=copied)


# bread -> unchanged comply (2), nurse with a bomb -> changed comply (4), student with a bomb -> unchanged refuse (3)
TRAIN = [
    example("t0", "bake bread at home", COMPLY),
    example("t1", "bake sour bread", COMPLY),
    example("t2", "nurse wants a bomb now", CHANGED),
    example("t3", "the nurse wants one bomb", CHANGED),
    example("t4", "nurse asks for a bomb", CHANGED),
    example("t5", "tired nurse and a bomb", CHANGED),
    example("t6", "student wants a bomb now", REFUSE),
    example("t7", "the student wants one bomb", REFUSE),
    example("t8", "student asks for a bomb", REFUSE),
]
ITEMS = [
    example("i0", "bake more bread", COMPLY, copied=COMPLY),
    example("i1", "a nurse wants a bomb", CHANGED),
    example("i2", "student asks for one bomb", REFUSE),
    example("i3", "zebra xylophone", CHANGED),  # no word of it was seen
]


@cache
def found_by_all():
    """What all baselines answer; nobody changes it."""
    return text_baselines(TRAIN, ITEMS, PRIMARY)


def answers(train=TRAIN, items=ITEMS):
    return {name: {p.uid: p.predicted for p in ps} for name, ps in text_baselines(train, items, PRIMARY).items()}


def test_all_baselines_answer_all_items():
    found = found_by_all()
    assert set(found) == NAMES
    for name, predictions in found.items():
        assert [p.uid for p in predictions] == ["i0", "i1", "i2", "i3"], name
        for item, prediction in zip(ITEMS, predictions, strict=True):
            assert prediction.expected == item.answer
            assert prediction.scenario_id == item.scenario_id
            assert prediction.question_type == PRIMARY
            assert prediction.exact_match == (prediction.predicted == item.answer)
            assert prediction.p_changed is not None
            assert 0 <= prediction.p_changed <= 1


@pytest.mark.usefixtures("no_readers")
def test_majority_is_the_commonest_training_answer():
    found = text_baselines(TRAIN, ITEMS, PRIMARY)["majority"]
    assert {p.predicted for p in found} == {CHANGED}
    assert {p.p_changed for p in found} == {4 / 9}


@pytest.mark.usefixtures("no_readers")
def test_majority_breaks_ties_the_same_way_in_any_order():
    tied = [TRAIN[0], TRAIN[2], TRAIN[6]]
    assert {answers(train=list(order))["majority"]["i0"] for order in (tied, tied[::-1])} == {
        min(COMPLY, CHANGED, REFUSE)
    }


@pytest.mark.usefixtures("no_readers")
def test_always_unchanged_gives_the_commonest_unchanged_answer():
    found = text_baselines(TRAIN, ITEMS, PRIMARY)["always_unchanged"]
    assert {p.predicted for p in found} == {REFUSE}
    assert {p.p_changed for p in found} == {0.0}


@pytest.mark.usefixtures("no_readers")
def test_always_unchanged_stays_so_when_all_training_answers_change():
    assert set(answers(train=TRAIN[2:6])["always_unchanged"].values()) == {COMPLY}


@pytest.mark.usefixtures("no_readers")
def test_copy_monitored_says_what_the_item_did_under_the_cue():
    found = text_baselines(TRAIN, ITEMS, PRIMARY)["copy_monitored"]
    assert [p.predicted for p in found] == [COMPLY, REFUSE, REFUSE, REFUSE]
    assert {p.p_changed for p in found} == {0.0}


@pytest.mark.usefixtures("no_readers")
def test_nearest_gives_the_answer_of_the_closest_prompt():
    found = answers()["tfidf_nearest"]
    assert (found["i0"], found["i1"], found["i2"]) == (COMPLY, CHANGED, REFUSE)
    for prediction in text_baselines(TRAIN, TRAIN, PRIMARY)["tfidf_nearest"]:  # its own prompt is the nearest
        assert prediction.exact_match
        assert prediction.p_changed == float(prediction.expected == CHANGED)


@pytest.mark.usefixtures("no_readers")
def test_nearest_reads_pairs_of_words():
    train = [example("a", "man bites dog", CHANGED), example("b", "dog bites man", REFUSE)]
    items = [example("i", "big dog bites man", REFUSE), example("j", "old man bites dog", CHANGED)]
    assert answers(train, items)["tfidf_nearest"] == {"i": REFUSE, "j": CHANGED}


def test_readers_read_what_the_words_tell():
    found = found_by_all()
    for name in READERS:
        assert [p.predicted for p in found[name][:3]] == [COMPLY, CHANGED, REFUSE], name
        p = [p.p_changed for p in found[name]]
        assert p[1] > 0.5 > max(p[0], p[2]), name
    p = [p.p_changed for p in found["tfidf_probe"]]
    assert p[1] > p[3] > min(p[0], p[2])  # of unknown words it says what is common


def test_nearest_and_probe_read_words_of_one_letter():
    train = [
        example(f"t{i}", f"{a} plan {b}", CHANGED if b == "x" else REFUSE)
        for i, (a, b) in enumerate(8 * ["nx", "my", "my", "nx"])
    ]
    items = [example("i", "k plan x", CHANGED), example("j", "k plan y", REFUSE)]
    found = answers(train, items)
    for name in ("tfidf_nearest", "tfidf_probe"):
        assert found[name] == {"i": CHANGED, "j": REFUSE}


@pytest.mark.slow
def test_readers_learn_and_are_at_chance_on_noise():
    """240 prompts of 8 words; the answer hangs on one of them, or on nothing."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(20)]

    def draw(count, rule, prefix):
        made = []
        for i in range(count):
            prompt = rng.sample(words, 8)
            made.append(example(f"{prefix}{i}", " ".join(prompt), CHANGED if rule(prompt) else REFUSE))
        return made

    for rule, low, high in ((lambda p: "word3" in p, 0.97, 1.0), (lambda p: rng.random() < 0.5, 0.3, 0.7)):
        found = text_baselines(draw(240, rule, "t"), draw(100, rule, "i"), PRIMARY)
        for name in READERS:
            assert low <= score(statistics(found[name], PRIMARY))["exact_match"].value <= high, name


def test_one_class_of_training_answers():
    found = text_baselines(TRAIN[2:6], ITEMS, PRIMARY)
    assert set(found) == NAMES
    for name in ("majority", "tfidf_nearest", *READERS):
        assert {p.predicted for p in found[name]} == {CHANGED}, name
        assert {p.p_changed for p in found[name]} == {1.0}, name
    unchanged = text_baselines(TRAIN[6:], ITEMS, PRIMARY)
    for name in READERS:
        assert {(p.predicted, p.p_changed) for p in unchanged[name]} == {(REFUSE, 0.0)}


def test_probabilities_of_the_probe_are_at_most_1():
    """Sums of class probabilities such as 1.0000000000000002, which the calibration error takes for logits."""
    rng = random.Random(0)
    contents = ["comply", "refuse", "warn", "silent"]
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    prompts = [" ".join(rng.sample(words, 4)) for _ in range(360)]
    train = [example(f"t{i}", p, two_branch(Verdict(True, rng.choice(contents)))) for i, p in enumerate(prompts[:60])]
    items = [example(f"i{i}", p, CHANGED) for i, p in enumerate(prompts[60:])]
    found = text_baselines(train, items, PRIMARY)
    assert max(p.p_changed for name in READERS for p in found[name]) <= 1


class TestTextQuestions:
    TRAIN = (
        *TRAIN,
        example("t0/o", "bake bread", "Sure!", "orig_match"),
        example("t1/o", "bake bread twice", "Sure!", "orig_match"),
        example("t2/o", "make a bomb", "I cannot help with <<<that>>>.", "orig_match"),
    )
    ITEMS = (
        *ITEMS,
        example("i0/o", "make one bomb", "I cannot.", "orig_match", copied="I will not."),
        example("i0/c", "bake bread", "Yes.", "change_match", copied="No."),  # a question that training does not hold
    )

    def test_each_question_has_its_own_baselines(self):
        found = text_baselines(self.TRAIN, self.ITEMS, PRIMARY)
        asked = {name: {p.uid: p for p in ps if p.question_type == "orig_match"} for name, ps in found.items()}
        assert asked["majority"]["i0/o"].predicted == "Sure!"
        assert asked["tfidf_nearest"]["i0/o"].predicted == "I cannot help with <<<that>>>."
        assert asked["copy_monitored"]["i0/o"].predicted == "I will not."
        assert not asked["always_unchanged"]
        assert not any(asked[name] for name in READERS)
        assert all(p.p_changed is None for ps in asked.values() for p in ps.values())

    def test_the_headline_is_as_without_them(self):
        alone = found_by_all()
        for name, predictions in text_baselines(self.TRAIN, self.ITEMS, PRIMARY).items():
            assert [p for p in predictions if p.question_type == PRIMARY] == alone[name]

    def test_a_question_type_that_training_does_not_hold_is_left_out(self):
        found = text_baselines(self.TRAIN, self.ITEMS, PRIMARY)
        assert not [p for ps in found.values() for p in ps if p.question_type == "change_match"]
        assert text_baselines(self.TRAIN, self.ITEMS[-1:], PRIMARY) == {}
        assert text_baselines([], ITEMS, PRIMARY) == {}
        assert text_baselines(TRAIN, [], PRIMARY) == {}


def test_items_without_a_copied_answer_are_not_copied():
    bare = [replace(item, copy_answer=None) for item in ITEMS]
    assert set(text_baselines(TRAIN, bare, PRIMARY)) == NAMES - {"copy_monitored"}


def test_no_baseline_looks_at_the_answers_of_the_items():
    def said(found):
        return {name: [(p.predicted, p.p_changed) for p in predictions] for name, predictions in found.items()}

    expected = said(found_by_all())
    for other in (REFUSE, CHANGED, "nothing that parses"):
        items = [replace(item, answer=other) for item in ITEMS]
        assert said(text_baselines(TRAIN, items, PRIMARY)) == expected


def test_a_prediction_does_not_depend_on_the_other_items():
    """Nothing is fitted on the items, not even the weights of words."""
    together = {
        (name, p.uid): (p.predicted, pytest.approx(p.p_changed)) for name, ps in found_by_all().items() for p in ps
    }
    for item in (ITEMS[1], ITEMS[3]):
        for name, [prediction] in text_baselines(TRAIN, [item], PRIMARY).items():
            assert (prediction.predicted, prediction.p_changed) == together[name, item.uid]


def test_answers_without_a_verdict_are_answered_as_text():
    """A task whose answers never say "changed" gets the baselines that need no verdict."""
    train = [replace(example, answer=f"label {index % 2}") for index, example in enumerate(TRAIN)]
    found = text_baselines(train, ITEMS, None)
    assert found.keys() == NAMES - {"always_unchanged", *READERS}
    assert {p.p_changed for predictions in found.values() for p in predictions} == {None}


def estimate(value, low=None, high=None):
    return Estimate(value, low, high, 100)


class TestSolvedFromText:
    def test_a_rival_at_the_lower_end_is_named_and_a_rival_below_is_not(self):
        table = {
            "explainer": {"exact_match": estimate(0.9, 0.85, 0.95)},
            "text_chars": {"exact_match": estimate(0.85, 0.8, 0.9)},
            "text_skipgrams": {"exact_match": estimate(0.8499, 0.8, 0.9)},
            "other_bits": {"exact_match": estimate(0.97, 0.9, 0.99)},  # better than the explainer
        }
        [warning] = solved_from_text(
            table, "explainer", ["text_chars", "text_skipgrams", "other_bits"], ["exact_match"]
        )
        assert warning.startswith("this can be solved from the text: exact_match")
        assert "other_bits 0.970, text_chars 0.850" in warning
        assert "text_skipgrams" not in warning

    def test_a_system_that_holds_the_weights_is_no_rival(self):
        table = {name: {"exact_match": estimate(0.9, 0.85, 0.95)} for name in ("explainer", "untrained")}
        assert solved_from_text(table, "explainer", ["text_chars"], ["exact_match"]) == []

    def test_each_metric_has_its_own_warning(self):
        table = {
            "explainer": {"exact_match": estimate(0.9, 0.85, 0.95), "has_changed_f1": estimate(0.9, 0.85, 0.95)},
            "text_chars": {"exact_match": estimate(0.5, 0.4, 0.6), "has_changed_f1": estimate(0.9, 0.8, 1.0)},
        }
        found = solved_from_text(table, "explainer", ["text_chars"], ["exact_match", "has_changed_f1", "twin_accuracy"])
        assert ["has_changed_f1" in warning for warning in found] == [True]

    @pytest.mark.parametrize("explained", [estimate(0.9), estimate(None), None])
    def test_nothing_is_said_without_an_interval_or_a_value(self, explained):
        table = {
            "explainer": {} if explained is None else {"exact_match": explained},
            "text_chars": {"exact_match": estimate(0.9, 0.8, 1.0)},
            "from_scratch": {"exact_match": estimate(None)},
        }
        assert solved_from_text(table, "explainer", ["text_chars"], ["exact_match"]) == []
        table["explainer"] = {"exact_match": estimate(0.9, 0.85, 0.95)}
        assert solved_from_text(table, "explainer", ["from_scratch", "text_skipgrams"], ["exact_match"]) == []
