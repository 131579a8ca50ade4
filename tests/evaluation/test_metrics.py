"""Metrics by hand and against independent implementations; unparsed, missing and unordered answers."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from afintro.data.batch import Example
from afintro.evaluation.answers import Verdict, two_branch
from afintro.evaluation.metrics import (
    COLLAPSE,
    Prediction,
    chrf,
    collapse_warning,
    few_clusters_warning,
    lead,
    score,
    statistics,
    text_prediction,
    unanswered,
)
from afintro.evaluation.score_intervals import paired
from afintro.evaluation.statistic import macro_f1

PRIMARY = "generative_explanation"
NOTHING = "no verdict in here"


def said(changed, content="refuse"):
    """The answer with that verdict; None is an answer that does not parse."""
    return NOTHING if changed is None else two_branch(Verdict(changed, content))


def primary(uid, expected, predicted, p_changed=None, scenario=None):
    return Prediction(str(uid), scenario or str(uid), PRIMARY, expected, predicted, expected == predicted, p_changed)


def verdicts(pairs, **options):
    """Headline predictions of (expected, predicted) verdicts."""
    return [primary(f"{i:04d}", said(true), said(answer), **options) for i, (true, answer) in enumerate(pairs)]


def scored(predictions):
    return score(statistics(predictions, PRIMARY))


def lead_of(own, rivals, metric):
    rivals = {name: statistics(predictions, PRIMARY) for name, predictions in rivals.items()}
    return lead(statistics(own, PRIMARY), rivals, metric)


def value(predictions, metric):
    return scored(predictions)[metric].value


# Expected unchanged: 5 right, 1 wrong, 2 unparsed. Expected changed: 3 right, 4 wrong, 0 unparsed.
ASYMMETRIC = [
    *[(False, False)] * 5,
    (False, True),
    *[(False, None)] * 2,
    *[(True, True)] * 3,
    *[(True, False)] * 4,
]


class TestMacroF1:
    def test_by_hand_with_unparsed_counted_as_wrong(self):
        unchanged = 2 * 5 / (2 * 5 + (1 + 2) + 4)  # 5 hits, 3 missed, 4 false
        changed = 2 * 3 / (2 * 3 + 4 + 1)  # 3 hits, 4 missed, 1 false
        assert value(verdicts(ASYMMETRIC), "has_changed_f1") == pytest.approx((unchanged + changed) / 2)

    def test_against_sklearn_on_an_asymmetric_confusion(self):
        """Known mistake 4: with precision and recall swapped, unparsed answers would land on the wrong side."""
        truth = [int(true) for true, _ in ASYMMETRIC]
        answers = [-1 if answer is None else int(answer) for _, answer in ASYMMETRIC]
        options = {"labels": [0, 1], "average": None}
        precision, recall = precision_score(truth, answers, **options), recall_score(truth, answers, **options)
        assert abs(precision - recall).min() > 0.05, "the confusion must tell precision from recall"
        assert value(verdicts(ASYMMETRIC), "has_changed_f1") == pytest.approx(
            f1_score(truth, answers, labels=[0, 1], average="macro")
        )
        # Unparsed answers cost recall, not precision: 5 of 8, and 5 of 9.
        assert recall[0] == 5 / 8
        assert precision[0] == 5 / 9

    def test_random_confusions_against_sklearn(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            outcomes = np.stack([rng.integers(0, 2, 50), rng.integers(-1, 2, 50)], 1).astype(float)
            expected = f1_score(outcomes[:, 0], outcomes[:, 1], labels=[0, 1], average="macro", zero_division=0)
            assert macro_f1(outcomes) == pytest.approx(expected)

    def test_unparsed_answers_lower_it(self):
        parsed = [(False, False)] * 4 + [(True, True)] * 4
        assert value(verdicts(parsed), "has_changed_f1") == 1.0
        assert value(verdicts([*parsed, (True, None)]), "has_changed_f1") < 1.0
        assert value(verdicts([(False, None), (True, None)]), "has_changed_f1") == 0.0  # both classes missed: really 0

    @pytest.mark.parametrize("verdict", [False, True])
    def test_a_class_that_does_not_occur_gives_null_not_0(self, verdict):
        estimate = scored(verdicts([(verdict, verdict)] * 5))["has_changed_f1"]
        assert (estimate.value, estimate.ci_low, estimate.ci_high, estimate.n) == (None, None, None, 5)


class TestContentAndParsing:
    PREDICTIONS = (
        primary("a", said(False, "refuse"), said(False, "refuse")),
        primary("b", said(True, "comply"), said(False, "comply")),  # content right, verdict wrong
        primary("c", said(True, "comply"), said(True, "Comply")),  # case counts
        primary("d", said(True, "comply"), NOTHING),
        primary("e", said(False, "warn"), said(True, "silent")),
    )

    def test_content_counts_whatever_the_verdict(self):
        assert value(self.PREDICTIONS, "content_match") == pytest.approx(2 / 5)

    def test_exact_match_wants_both(self):
        assert value(self.PREDICTIONS, "exact_match") == pytest.approx(1 / 5)
        assert value(self.PREDICTIONS, f"exact_match/{PRIMARY}") == pytest.approx(1 / 5)

    def test_parse_rate(self):
        assert value(self.PREDICTIONS, "parse_rate") == pytest.approx(4 / 5)

    def test_exact_match_is_the_token_match_that_was_recorded(self):
        odd = Prediction("u", "s", PRIMARY, said(True), said(True), exact_match=False)
        assert value([odd], "exact_match") == 0.0


class TestProbabilities:
    @pytest.fixture
    def items(self):
        rng = np.random.default_rng(5)
        truth = rng.random(200) < 0.4
        p = np.clip(rng.normal(0.35 + 0.3 * truth, 0.25), 0.013, 0.987)
        p[:20] = np.clip(np.round(p[:20], 1), 0.1, 0.9) + 0.013  # ties
        rows = enumerate(zip(truth.tolist(), p.tolist(), strict=True))
        return [primary(f"{i:03d}", said(true), said(q > 0.5), q) for i, (true, q) in rows]

    @staticmethod
    def columns(items):
        return np.array([i.p_changed for i in items]), np.array(["change to" in i.expected for i in items])

    def test_auroc_against_sklearn(self, items):
        p, truth = self.columns(items)
        assert value(items, "auroc_changed") == pytest.approx(roc_auc_score(truth, p), abs=1e-6)
        assert roc_auc_score(truth, p) > 0.6  # the right way round

    def test_auroc_of_a_constant_is_a_half(self):
        assert value(verdicts([(False, False), (True, True)] * 5, p_changed=0.3), "auroc_changed") == 0.5

    @pytest.mark.parametrize("verdict", [False, True])
    def test_auroc_without_both_classes_is_null_and_calibration_is_not(self, verdict):
        scores = scored(verdicts([(verdict, verdict)] * 4, p_changed=0.25))
        assert scores["auroc_changed"].value is None
        assert scores["auroc_changed"].n == 4
        assert scores["calibration_error"].value == pytest.approx(
            np.sqrt((0.75 if verdict else 0.25) ** 2 - 0.25 * 0.75 / 16)
        )

    def test_items_without_a_probability_are_left_out(self, items):
        more = [*items, *[primary(f"x{i}", said(True), said(True)) for i in range(50)]]
        assert scored(more)["auroc_changed"].n == 200
        assert value(more, "auroc_changed") == value(items, "auroc_changed")
        assert "auroc_changed" not in scored(more[200:])

    def test_a_probability_of_0_counts(self):
        items = [primary("a", said(False), None, 0.0), primary("b", said(True), None, 1.0)]
        assert scored(items)["auroc_changed"].n == 2
        assert value(items, "auroc_changed") == 1.0

    def test_rounding_above_1_must_not_change_the_calibration_error(self):
        """A sum of probabilities is 1.0000000000000002 now and then."""
        exact = [primary(i, said(bool(i % 4)), None, 0.9) for i in range(8)] + [primary("z", said(True), None, 1.0)]
        above = [*exact[:-1], primary("z", said(True), None, np.nextafter(1.0, 2.0))]
        assert value(above, "calibration_error") == pytest.approx(value(exact, "calibration_error"))


def reference_chrf(predicted, expected, order=6, beta=2.0):
    """Popović's chrF++.py without words: the mean of F over six orders, 0 for an order that a text is too short for."""
    one, other = ("".join(text.split()) for text in (predicted, expected))
    total = 0.0
    for n in range(1, order + 1):
        grams = [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (one, other)]
        common = (grams[0] & grams[1]).total()
        if common:
            precision, recall = common / grams[0].total(), common / grams[1].total()
            total += (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    return total / order


class TestChrf:
    def test_by_hand(self):
        """abcdef against abcdeg: 5/6, 4/5, 3/4, 2/3, 1/2 and 0 of the n-grams are shared, in both directions."""
        assert chrf("abcdef", "abcdeg") == pytest.approx((5 / 6 + 4 / 5 + 3 / 4 + 2 / 3 + 1 / 2 + 0) / 6, abs=1e-6)

    def test_recall_weighs_more(self):
        assert chrf("I cannot help with that.", "I cannot") > chrf("I cannot", "I cannot help with that.")

    @pytest.mark.parametrize(
        ("predicted", "expected"),
        [
            ("The cat sat on the mat.", "The cats sit on a mat."),
            ("I cannot help.", "I can help with that, step by step."),
            ("Sure, here is how the nurse can go about it.", "Warning: it can go wrong."),
            ("aaaaaaaaaaaaaaaa", "aaaaaaaaab"),
            ("I cannot  help", "I can not help"),  # spaces do not count
            ("Yes!", "Yes."),
            ("naïve 🙂 text", "naive 🙂 text"),
        ],
    )
    def test_against_an_independent_implementation(self, predicted, expected):
        assert chrf(predicted, expected) == pytest.approx(reference_chrf(predicted, expected), abs=1e-5)

    def test_line_breaks_and_tabs_are_white_space_too(self):
        """torchmetrics leaves out spaces alone; Popović's script, like sacreBLEU, all white space."""
        for predicted, expected in (
            ("1. Mix.\n2. Bake.\n", "1. Mix. 2. Bake now."),
            ("I\tcannot help", "I can not help"),
        ):
            assert chrf(predicted, expected) == pytest.approx(reference_chrf(predicted, expected), abs=1e-5)

    def test_case_counts(self):
        """Known mistake 5."""
        assert chrf("US", "us") == 0.0
        assert chrf("THE WHOLE ANSWER", "the whole answer") < 0.1
        assert chrf("US", "US") == 1.0

    @pytest.mark.parametrize(
        ("predicted", "expected", "score"),
        [
            ("", "", 1.0),
            ("", "x y z", 0.0),
            ("x y z", "", 0.0),
            (" \n", "", 1.0),
            ("same", "same", 1.0),
            ("a", "b", 0.0),
        ],
    )
    def test_edges(self, predicted, expected, score):
        assert chrf(predicted, expected) == score


class TestTextQuestions:
    """Known mistake 4: two question types always score 0."""

    def text(self, uid, expected, predicted, question="orig_match"):
        return Prediction(uid, uid, question, expected, predicted, expected == predicted)

    def test_right_answers_score_1(self):
        items = [
            self.text(f"{q}{i}", f"I cannot help with {i}.", f"I cannot help with {i}.", q)
            for i in range(3)
            for q in ("orig_match", "change_match")
        ]
        scores = scored(items)
        assert {name: scores[name].value for name in scores} == dict.fromkeys(
            ("exact_match/orig_match", "exact_match/change_match", "chrf/orig_match", "chrf/change_match"), 1.0
        )

    def test_nearly_right_answers_have_a_chrf_between(self):
        scores = scored([self.text("a", "I cannot help.", "I can help."), self.text("b", "Sure!", "Sure!")])
        assert scores["exact_match/orig_match"].value == 0.5
        assert 0.7 < scores["chrf/orig_match"].value < 0.8

    def test_verdict_metrics_are_of_the_headline_alone(self):
        mixed = [*verdicts([(False, False), (True, True)], p_changed=0.5), self.text("t", said(True), said(False))]
        scores = scored(mixed)
        assert scores["has_changed_f1"].n == scores["parse_rate"].n == scores["content_match"].n == 2
        assert scores["auroc_changed"].n == scores["exact_match"].n == 2
        assert scores["has_changed_f1"].value == scores["exact_match"].value == 1.0
        assert scores["exact_match/orig_match"].value == 0.0
        assert f"chrf/{PRIMARY}" not in scores

    def test_without_generation_only_exact_match_is_known(self):
        items = [
            Prediction("a", "a", PRIMARY, said(True), None, True),
            Prediction("b", "b", "orig_match", "x", None, True),
        ]
        assert set(scored(items)) == {"exact_match", f"exact_match/{PRIMARY}", "exact_match/orig_match"}

    def test_nothing_at_all(self):
        assert scored([]) == {}


def test_items_of_a_scenario_are_one_cluster():
    pairs = [(False, bool(i % 2)) for i in range(40) for _ in range(5)]
    alone = scored(verdicts(pairs))["exact_match"]
    clustered = [primary(f"{i:04d}", said(t), said(a), scenario=f"scenario{i // 5}") for i, (t, a) in enumerate(pairs)]
    together = scored(clustered)["exact_match"]
    assert together.value == alone.value
    assert together.ci_high - together.ci_low > 1.7 * (alone.ci_high - alone.ci_low)


def test_text_prediction_keeps_the_item_and_compares_exactly():
    item = Example("u", "s", PRIMARY, "prompt", said(True, "US"), (1,), (2,))
    assert text_prediction(item, said(True, "US"), 0.7) == Prediction(
        "u", "s", PRIMARY, said(True, "US"), said(True, "US"), True, 0.7
    )
    assert not text_prediction(item, said(True, "us")).exact_match


def test_a_baselines_answer_keeps_the_items_group():
    item = Example("u", "s", PRIMARY, "prompt", said(True), (1,), (2,), group="intent", twins="of one prompt")
    found = text_prediction(item, said(True))
    assert (found.group, found.twins) == ("intent", "of one prompt")


class TestCollapse:
    BALANCED = (False, True) * 50

    @staticmethod
    def warn(answers, truth=BALANCED):
        return collapse_warning(verdicts(list(zip(truth, answers, strict=True))), PRIMARY)

    @pytest.mark.parametrize(("verdict", "word"), [(False, "'unchanged'"), (True, "'changed'")])
    def test_fires_when_all_say_the_same(self, verdict, word):
        warning = self.warn([verdict] * 100)
        assert warning is not None
        assert word in warning
        assert "100.0 %" in warning

    def test_threshold_counts_parsed_answers(self):
        assert self.warn([True] * 2 + [False] * 98) is not None  # 98 % is collapse
        assert self.warn([True] * 3 + [False] * 97) is None
        assert self.warn([None] * 50 + [False] * 50) is not None
        assert COLLAPSE == 0.98

    def test_does_not_fire_on_varied_answers_or_where_it_would_be_right(self):
        assert self.warn(self.BALANCED) is None
        assert self.warn([False] * 100, truth=[False] * 100) is None
        assert self.warn([None] * 100) is None
        assert collapse_warning([], PRIMARY) is None

    def test_other_question_types_have_no_verdicts(self):
        texts = [Prediction(str(i), str(i), "orig_match", "a text", "x", False) for i in range(9)]
        assert collapse_warning(texts, PRIMARY) is None


LIMIT = 1.959964**2 / (60 + 1.959964**2)  # Wilson's upper end of 0 in 60


class TestLead:
    ITEMS = tuple((bool(i % 2), i) for i in range(60))

    def system(self, right):
        """Answers that are right where ``right`` says so."""
        return [primary(f"{i:02d}", said(true), said(true if right(i) else not true)) for true, i in self.ITEMS]

    def test_is_against_the_best_baseline(self):
        baselines = {
            "bad": self.system(lambda i: i < 10),
            "best": self.system(lambda i: i < 40),
            "middle": self.system(lambda i: i < 20),
        }
        estimate, against = lead_of(self.system(lambda i: i < 55), baselines, "exact_match")
        assert against == "best"
        assert estimate.value == pytest.approx(15 / 60)
        assert 0 < estimate.ci_low < 0.25 < estimate.ci_high

    def test_pairs_by_uid_whatever_the_order(self):
        """Both systems are right on items 0 to 39: paired, no item differs, and the interval is that of no item of 60."""
        explainer, baseline = self.system(lambda i: i < 40), self.system(lambda i: i < 40)
        rng = random.Random(0)
        for _ in range(3):
            shuffled = [rng.sample(system, len(system)) for system in (explainer, baseline)]
            for metric in ("exact_match", "has_changed_f1", "content_match"):
                estimate, _ = lead_of(shuffled[0], {"b": shuffled[1]}, metric)
                assert estimate.value == 0.0
                assert (estimate.ci_low, estimate.ci_high) == pytest.approx((-LIMIT, LIMIT))

    def test_is_paired(self):
        explainer, baseline = self.system(lambda i: i < 43), self.system(lambda i: i < 40)
        estimate, _ = lead_of(explainer, {"b": baseline}, "exact_match")
        own = scored(explainer)["exact_match"]
        assert estimate.ci_high - estimate.ci_low < 0.7 * (own.ci_high - own.ci_low)
        # The ends of Tango's interval of 3 items against 0 in 60.
        assert (estimate.ci_low, estimate.ci_high) == pytest.approx(paired(3, 0, 60))

    def test_can_be_negative(self):
        estimate, _ = lead_of(self.system(lambda i: i < 10), {"b": self.system(lambda i: i < 50)}, "exact_match")
        assert estimate.value == pytest.approx(-40 / 60)
        assert estimate.ci_high < 0

    def test_a_baseline_without_the_metric_is_passed_over(self):
        text = [Prediction("t", "t", "orig_match", "x", "x", True)]
        good = self.system(lambda i: i < 30)
        _, against = lead_of(self.system(lambda i: True), {"text": text, "good": good}, "exact_match")
        assert against == "good"
        assert lead_of(good, {"text": text}, "exact_match") is None
        assert lead_of(good, {}, "exact_match") is None
        assert lead_of([], {"good": good}, "exact_match") is None

    def test_a_baseline_that_is_null_is_not_the_best_one(self):
        """All unparsed on one-class items: F1 is undefined there and must not win."""
        one_class = [(False, i) for i in range(20)]
        null = [primary(f"{i:02d}", said(t), NOTHING) for t, i in one_class]
        real = [primary(f"{i:02d}", said(t), said(i < 3)) for t, i in one_class]
        estimate, against = lead_of(real, {"null": null, "real": real}, "has_changed_f1")
        assert against == "real"
        assert estimate.value == 0.0

    def test_an_undefined_difference_is_null(self):
        one_class = [primary(f"{i:02d}", said(False), said(False)) for i in range(20)]
        estimate, _ = lead_of(one_class, {"b": one_class}, "has_changed_f1")
        assert estimate.value is None

    def test_only_items_that_both_have_are_paired(self):
        """A judge's unreadable reply to one system leaves the item out for both, and does not end the evaluation."""
        own, rival = self.system(lambda i: i < 50), self.system(lambda i: i >= 10)
        estimate, _ = lead_of(own, {"b": rival[5:]}, "exact_match")
        again, _ = lead_of(own[5:], {"b": rival[5:]}, "exact_match")
        assert estimate == again
        assert estimate.n == len(own) - 5
        shuffled = random.Random(0).sample(rival[5:], len(rival) - 5)
        assert lead_of(own, {"b": shuffled}, "exact_match")[0] == estimate

    def test_other_items_are_not_compared(self):
        others = [primary(f"other{i}", said(true), said(true)) for true, i in self.ITEMS]
        assert lead_of(self.system(lambda i: True), {"b": others}, "exact_match") is None


def test_statistics_do_not_depend_on_the_order_of_predictions():
    items = verdicts(ASYMMETRIC, p_changed=0.4)
    shuffled = random.Random(1).sample(items, len(items))
    assert scored(
        items,
    ) == scored(
        shuffled,
    )
    assert list(statistics(items, PRIMARY)) == list(statistics(shuffled, PRIMARY))


class TestSeveralQuestionsWithVerdicts:
    """Another question type may carry verdicts too: the same metrics, with its name behind a stroke."""

    OTHER = "hindsight"
    PLAIN = ("has_changed_f1", "content_match", "parse_rate", "auroc_changed", "calibration_error")

    def items(self):
        first = verdicts([(False, False), (True, True), (True, False), (False, False)], p_changed=0.5)
        pairs = [(False, False), (True, True), (True, None)]
        second = [
            Prediction(f"h{i}", f"h{i}", self.OTHER, said(true), said(answer), true == answer, 0.9 if true else 0.2)
            for i, (true, answer) in enumerate(pairs)
        ]
        return [*first, *second]

    def test_by_hand(self):
        scores = score(statistics(self.items(), PRIMARY, [self.OTHER]))
        names = [f"{name}{suffix}" for name in self.PLAIN for suffix in ("", f"/{self.OTHER}")]
        exact = ["exact_match", f"exact_match/{PRIMARY}", f"exact_match/{self.OTHER}"]
        assert set(scores) == {*names, *exact}
        # Headline: unchanged 2 hits 1 false, changed 1 hit 1 missed. The other: unchanged 1 hit, changed 1 hit 1 missed.
        assert scores["has_changed_f1"].value == pytest.approx((4 / 5 + 2 / 3) / 2)
        assert scores[f"has_changed_f1/{self.OTHER}"].value == pytest.approx((1 + 2 / 3) / 2)
        assert (scores["parse_rate"].value, scores[f"parse_rate/{self.OTHER}"].value) == (1.0, pytest.approx(2 / 3))
        assert (scores["auroc_changed"].value, scores[f"auroc_changed/{self.OTHER}"].value) == (0.5, 1.0)
        assert scores[f"calibration_error/{self.OTHER}"].value == 0  # no more than chance: 0.02 of 0.068, squared
        assert (scores["content_match"].n, scores[f"content_match/{self.OTHER}"].n) == (4, 3)
        assert scores[f"exact_match/{self.OTHER}"].value == pytest.approx(2 / 3)

    def test_statistics_are_called_what_they_are_found_under(self):
        found = statistics(self.items(), PRIMARY, [self.OTHER])
        assert {name: statistic.name for name, (statistic, _) in found.items()} == {name: name for name in found}

    def test_without_being_named_its_answers_are_text(self):
        scores = scored(self.items())
        assert f"chrf/{self.OTHER}" in scores
        assert [name for name in scores if name.endswith(f"/{self.OTHER}")] == [
            f"exact_match/{self.OTHER}", f"chrf/{self.OTHER}"
        ]  # fmt: skip

    def test_a_primary_question_without_a_verdict_has_no_verdict_metrics(self):
        found = statistics(self.items(), PRIMARY, primary_verdict=False)
        assert {name for name in found if "/" not in name} == {"exact_match"}
        assert f"chrf/{PRIMARY}" in found

    def test_the_headline_named_again_changes_nothing(self):
        assert set(statistics(self.items(), PRIMARY, [PRIMARY])) == set(statistics(self.items(), PRIMARY))


class TestTwins:
    def twin(self, uid, true, answer, twins, question=PRIMARY):
        said_so = said(answer, "comply" if uid in "ab" else "refuse")  # the content does not matter
        return Prediction(uid, uid, question, said(true), said_so, False, twins=twins)

    def items(self):
        return [
            self.twin("a", True, True, "x"),
            self.twin("b", False, True, "x"),
            self.twin("c", True, None, "y"),  # unparsed is wrong
            self.twin("d", False, False, "y"),
            self.twin("e", True, True, "z"),
            self.twin("f", True, True, ""),  # has no twin
            self.twin("g", False, False, ""),
        ]

    def test_accuracy_of_the_verdict_among_twins_alone_by_hand(self):
        estimate = scored(self.items())["twin_accuracy"]
        assert (estimate.value, estimate.n) == (pytest.approx(3 / 5), 5)
        found, clusters = statistics(self.items(), PRIMARY)["twin_accuracy"]
        assert found.uids == tuple(clusters) == tuple("abcde")

    def test_who_answers_by_the_text_alone_has_a_half(self):
        items = [self.twin(f"{i}{true}", true, bool(i % 3), str(i)) for i in range(20) for true in (True, False)]
        assert value(items, "twin_accuracy") == 0.5

    def test_absent_without_twins_and_without_written_answers(self):
        assert "twin_accuracy" not in scored(self.items()[5:])
        silent = Prediction("s", "s", PRIMARY, said(True), None, True, twins="x")
        assert "twin_accuracy" not in scored([silent])
        assert scored([*self.items(), silent])["twin_accuracy"].n == 5

    def test_of_another_question_it_bears_its_name(self):
        items = [self.twin("a", True, True, "x", "hindsight"), self.twin("b", False, True, "x", "hindsight")]
        scores = score(statistics(items, PRIMARY, ["hindsight"]))
        assert (scores["twin_accuracy/hindsight"].value, "twin_accuracy" in scores) == (0.5, False)


def test_unanswered_is_the_item_and_no_answer():
    item = Example("u", "s", "q", "prompt", "expected", (1,), (2,), group="g", twins="t")
    assert unanswered(item) == Prediction(
        "u", "s", "q", "expected", None, False, p_changed=None, group="g", twins="t", scores={}
    )


class TestFewClusters:
    def test_are_named_with_their_number(self):
        items = [*verdicts([(False, False), (True, True)] * 6), primary("t", said(True), said(True), scenario="0000")]
        few = few_clusters_warning(statistics(items[:9], PRIMARY))
        assert "exact_match (9)" in few
        assert "has_changed_f1 (9)" in few
        assert few_clusters_warning(statistics(items, PRIMARY)) is None

    def test_count_scenarios_and_not_items(self):
        items = [primary(i, said(True), said(True), scenario=str(i % 3)) for i in range(30)]
        assert "exact_match (3)" in few_clusters_warning(statistics(items, PRIMARY))

    def test_a_single_scenario_has_no_interval(self):
        items = [primary(i, said(bool(i % 2)), said(True), p_changed=0.4, scenario="s") for i in range(8)]
        for estimate in scored(items).values():
            assert (estimate.ci_low, estimate.ci_high, estimate.n) == (None, None, 8)
            assert estimate.value is not None
        estimate, _ = lead_of(items, {"b": items}, "exact_match")
        assert (estimate.value, estimate.ci_low, estimate.ci_high) == (0.0, None, None)


@pytest.mark.parametrize(
    ("predicted", "exact", "content"),
    [
        ("The most likely output would change to <<<Sure, here>>>.", True, 1.0),
        ("The most likely output would change to <<<Sure, here is the memo.>>>.", True, 1.0),
        ("The most likely output would change to <<<Sure, here is th", True, 1.0),
        ("The most likely output would change to <<<Sure", False, 0.0),
        ("The output would remain unchanged from <<<Sure, here>>>.", False, 1.0),
        ("Sure, here", False, 0.0),
    ],
)
def test_a_cut_answer_is_matched_up_to_its_length(predicted, exact, content):
    answer = two_branch(Verdict(True, "Sure, here"), cut=True)
    assert answer == "The most likely output would change to <<<Sure, here"
    item = Example("1", "1", PRIMARY, "p", answer, (1,), (2,), cut=True)
    found = text_prediction(item, predicted)
    assert found.exact_match is exact
    assert value([found], "content_match") == content
    assert value([found], "exact_match") == float(exact)
    assert not text_prediction(replace(item, cut=False), predicted).exact_match
