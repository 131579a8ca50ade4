"""What people look at: cells, tables and the confusion matrix."""

import html
import re

import markdown
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from afintro.evaluation.answers import Verdict, two_branch
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, lead, score, statistics
from afintro.evaluation.report import (
    Trained,
    cell,
    confusion_figure,
    difference,
    print_pairs,
    print_table,
    sample_table,
    verdict_name,
)

PRIMARY = "generative_explanation"
NASTY = [
    "a | b || c",
    "<script>alert(1)</script> <<<refuse>>>",
    "two\nlines\r\n\tand a tab",
    "| --- |",
    "**bold** & <b>",
    "",
    "ends on a pipe |",
]


SCORES = {
    "explainer": {
        "exact_match": Estimate(0.9, 0.8, 0.95, 20),
        "has_changed_f1": Estimate(0.7, 0.6, 0.8, 20),
        "content_match": Estimate(0.8, 0.7, 0.9, 20),
        "auroc_changed": Estimate(None, None, None, 20),
    },
    "majority": {"exact_match": Estimate(0.25, 0.1, 0.4, 20), "exact_match/orig_match": Estimate(0.5, 0.4, 0.6, 9)},
}

COUNTS = {
    (False, False): 7,
    (False, True): 2,
    (False, None): 1,
    (True, False): 3,
    (True, True): 11,
    (True, None): 4,
}


def answer(changed, content="refuse"):
    return "nothing" if changed is None else two_branch(Verdict(changed, content))


def prediction(uid, expected, predicted, p_changed=None, question=PRIMARY):
    return Prediction(uid, uid, question, expected, predicted, expected == predicted, p_changed)


def confusion(counts):
    """Predictions with these counts of (expected, predicted) verdicts."""
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    return [prediction(f"{i:03d}", answer(true), answer(said)) for i, (true, said) in enumerate(pairs)]


def test_verdict_names():
    assert [verdict_name(v) for v in (Verdict(False, "x"), Verdict(True, "x"), None)] == ["unchanged", "changed", None]


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.9312, 0.904, 0.9649, 300), "0.931 [0.90, 0.96]"),
        (Estimate(-0.05, -0.1, 0.004, 9), "-0.050 [-0.10, 0.00]"),
        (Estimate(0.0, 0.0, 0.0, 9), "0.000 [0.00, 0.00]"),
        (Estimate(None, None, None, 9), "null"),
        (None, "-"),
    ],
)
def test_cell(estimate, text):
    assert cell(estimate) == text


class TestPrintedTable:
    def printed(self, capsys, leads=None, warnings=(), scores=SCORES):
        print_table(scores, leads or {}, warnings)
        return capsys.readouterr().out

    @staticmethod
    def rows(out):
        """The cells behind every system, of all tables."""
        rows: dict[str, list[str]] = {}
        for line in out.splitlines():
            if line.startswith("│"):
                system, *cells = [part.strip() for part in line.split("│")[1:-1]]
                rows[system] = rows.get(system, []) + cells
        return rows

    def test_a_row_a_system_and_a_column_a_known_metric(self, capsys):
        out = self.printed(capsys)
        rows = self.rows(out)
        # Two tables, one under the other, in the order of LABELS.
        assert rows["explainer"] == ["0.900 [0.80, 0.95]", "0.700 [0.60, 0.80]", "0.800 [0.70, 0.90]", "null", "-"]
        assert rows["majority"] == ["0.250 [0.10, 0.40]", "-", "-", "-", "0.500 [0.40, 0.60]"]
        assert "exact match" in out
        assert "exact orig" in out
        assert "calibration error" not in out
        assert max(map(len, out.splitlines())) <= 120

    def test_a_task_without_verdicts_shows_the_explainers_metrics_in_their_order(self, capsys):
        """The categories, which may be many, are rows of a table of their own."""
        names = ["judge/rouge_l", "judge/rouge_l/macro", "functional_auroc", "exact_match", "judge/rouge_l/category/a"]
        own = {name: Estimate(i / 10, 0.0, 1.0, 9) for i, name in enumerate(names)}
        scores = {"explainer": own, "nearest": {"exact_match": Estimate(0.9, 0.8, 1.0, 9), "other": own["exact_match"]}}
        out = self.printed(capsys, scores=scores)
        rows = self.rows(out)
        assert rows["explainer"] == [f"0.{i}00 [0.00, 1.00]" for i in range(4)]
        assert rows["nearest"] == ["-", "-", "-", "0.900 [0.80, 1.00]"]
        assert "exact match" in out
        assert "judge/rouge_l by category" in out
        assert rows["a"] == ["9", "0.400 [0.00, 1.00]", "-"]

    def test_without_a_second_type_with_verdicts_nothing_is_added(self, capsys):
        """Context ablation: other types of question bear a suffix too, and no verdict."""
        more = {name: Estimate(0.5, 0.4, 0.6, 9) for name in ("exact_match/orig_match", "chrf/orig_match")}
        out = self.printed(capsys, scores={"explainer": SCORES["explainer"] | more})
        heads = [re.split(r" *┃ *", line)[1:-1] for line in out.splitlines() if line.startswith("┃")]
        assert heads == [["system", "exact match", "changed F1", "content", "AUROC"], ["system", "exact orig"]]

    def test_twins_and_a_second_type_with_verdicts(self, capsys):
        names = ("exact_match", "has_changed_f1", "twin_accuracy", "content_match", "parse_rate", "calibration_error")
        kinds = ("", "/unseen_direction")
        own = {f"{name}{kind}": Estimate(i / 10 + 0.05 * bool(kind), 0.0, 1.0, 9)
               for i, name in enumerate(names) for kind in kinds}  # fmt: skip
        own["exact_match/unseen_scenario"] = own["exact_match"]
        short = {"has_changed_f1/unseen_direction": Estimate(0.5, 0.4, 0.6, 9)}
        out = self.printed(capsys, scores={"explainer": own, "majority": short})
        heads = [re.split(r" *┃ *", line)[1:-1] for line in out.splitlines() if line.startswith("┃")]
        first = ["system", "exact match", "changed F1", "twins", "content"]
        assert heads == [first, ["system", "parsed", "calibration error"], first]
        assert [line.strip() for line in out.splitlines()].count("unseen_direction") == 1
        rows = self.rows(out)
        values = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.05, 0.15, 0.25, 0.35)
        assert rows["explainer"] == [f"{value:.3f} [0.00, 1.00]" for value in values]
        assert rows["majority"] == ["-"] * 7 + ["0.500 [0.40, 0.60]", "-", "-"]
        assert max(map(len, out.splitlines())) <= 120

    def test_a_lead_that_cannot_be_computed_is_null(self, capsys):
        lead = {"value": None, "ci_low": None, "ci_high": None, "n": 20, "against": "majority"}
        assert "lead/has_changed_f1: null against majority" in self.printed(capsys, {"lead/has_changed_f1": lead})

    def test_leads_and_warnings_are_printed_as_they_are(self, capsys):
        leads = {"lead/exact_match": {"value": 0.65, "ci_low": 0.5, "ci_high": 0.8, "n": 20, "against": "majority"}}
        out = self.printed(capsys, leads, ["class collapse [bold]of the parsed[/bold] answers"])
        assert "lead/exact_match: +0.650 [+0.500, +0.800] against majority" in out
        assert "warning: class collapse [bold]of the parsed[/bold] answers" in out

    def test_a_lead_that_is_null_is_printed_as_null(self, capsys):
        """On items of one verdict has_changed_f1 is undefined, and so is its lead."""
        scores = statistics([prediction(f"{i}", answer(False), answer(False)) for i in range(9)], PRIMARY)
        estimate, against = lead(scores, {"majority": scores}, "has_changed_f1")
        leads = {"lead/has_changed_f1": {**estimate.as_json(), "against": against}}
        out = self.printed(capsys, leads)
        assert "lead/has_changed_f1: null" in out

    def test_real_scores_fit(self, capsys):
        items = confusion({(False, False): 5, (True, True): 4, (True, None): 1})
        print_table({"explainer": score(statistics(items, PRIMARY))}, {}, [])
        assert "0.900 [" in capsys.readouterr().out


class TestSampleTable:
    @staticmethod
    def cells(table):
        """The cells of every row as TensorBoard's Markdown reads them."""
        page = markdown.markdown(table, extensions=["markdown.extensions.tables", "markdown.extensions.fenced_code"])
        rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)[1:]
        return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in rows]

    def test_golden(self):
        items = [
            prediction("b", answer(True, "comply"), answer(True, "comply"), 0.987),
            prediction("a", answer(False), answer(True, "comply"), 0.5),
        ]
        table = sample_table(items, {"a": "Why?", "b": "How?"}, PRIMARY)
        assert "<" not in table
        assert html.unescape(table) == (
            "| right | prompt | expected | predicted | P(changed) |\n"
            "|---|---|---|---|---|\n"
            "| no | Why? | The output would remain unchanged from <<<refuse>>>. "
            "| The most likely output would change to <<<comply>>>. | 0.50 |\n"
            "| yes | How? | The most likely output would change to <<<comply>>>. "
            "| The most likely output would change to <<<comply>>>. | 0.99 |"
        )

    @pytest.mark.parametrize("text", NASTY)
    def test_whatever_the_text_a_row_stays_a_row(self, text):
        table = sample_table([prediction("u", answer(False), text, 0.25)], {"u": text}, PRIMARY)
        assert len(table.splitlines()) == 3
        [row] = self.cells(table)
        assert len(row) == 5
        assert row[0] == "no"
        assert html.unescape(row[2]) == answer(False)
        assert "<" not in row[2]
        assert row[4] == "0.25"

    def test_tags_and_pipes_are_shown_as_text(self):
        [row] = self.cells(sample_table([prediction("u", answer(False), "x|<i>y</i>")], {"u": "<b>p</b>"}, PRIMARY))
        assert "<" not in row[1] + row[3]
        assert html.unescape(row[1]) == "<b>p</b>"
        assert html.unescape(row[3]) == "x|<i>y</i>"

    @pytest.mark.parametrize("text", ["regex a\\|b", "`open | code", "tick ` and | pipe ` tick"])
    def test_backslashes_and_backticks_do_not_break_the_row(self, text):
        """An unescaped backslash eats the escape of the pipe after it, a backtick joins cells into one code span."""
        [row] = self.cells(sample_table([prediction("u", answer(False), text, 0.25)], {"u": text}, PRIMARY))
        assert html.unescape(row[2]) == answer(False)
        assert "<" not in row[2]
        assert row[4] == "0.25"

    def test_wrong_answers_come_first_and_rows_are_limited(self):
        items = [prediction(f"{i:02d}", answer(False), answer(i % 2 == 0)) for i in range(30)]
        table = sample_table(items, {item.uid: item.uid for item in items}, PRIMARY, rows=18)
        shown = [line.split(" | ")[0] + line.split(" | ")[1] for line in table.splitlines()[2:]]
        assert shown == [f"| no{i:02d}" for i in range(0, 30, 2)] + ["| yes01", "| yes03", "| yes05"]

    def test_only_the_headline_and_no_answer_at_all(self):
        items = [prediction("a", "x", "y", question="orig_match"), prediction("b", answer(True), None)]
        [row] = self.cells(sample_table(items, {"a": "pa", "b": "pb"}, PRIMARY))
        assert row[1] == "pb"
        assert row[3] == row[4] == ""


class TestConfusion:
    @staticmethod
    def texts(figure):
        axes = figure.axes[0]
        return {(round(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in axes.texts}

    def test_counts_stand_where_they_belong(self):
        """Columns are predictions (unchanged, changed, unparsed), rows what was expected."""
        figure = confusion_figure(confusion(COUNTS), PRIMARY)
        assert self.texts(figure) == {(0, 0): "7", (1, 0): "2", (2, 0): "1", (0, 1): "3", (1, 1): "11", (2, 1): "4"}
        assert figure.axes[0].images[0].get_array().tolist() == [[7, 2, 1], [3, 11, 4]]

    def test_axes_are_named(self):
        axes = confusion_figure(confusion(COUNTS), PRIMARY).axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["unchanged", "changed", "unparsed"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["unchanged", "changed"]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "expected")
        assert axes.get_title() == "Does the behavior change?"
        assert confusion_figure([], PRIMARY, "So?").axes[0].get_title() == "So?"

    def test_numbers_can_be_read_on_their_colour(self):
        for text in confusion_figure(confusion(COUNTS), PRIMARY).axes[0].texts:
            assert text.get_color() == ("white" if int(text.get_text()) > 5 else "black")

    @pytest.mark.parametrize("counts", [COUNTS, {}])
    def test_the_title_is_not_covered_by_the_colour_bar(self, counts):
        """A bar taller than the matrix hides the end: "... change without the cu"."""
        figure = confusion_figure(confusion(counts), PRIMARY)
        FigureCanvasAgg(figure).draw()
        matrix, bar = figure.axes
        title = matrix.title.get_window_extent()
        assert title.x0 >= 0
        assert title.x1 <= figure.bbox.x1
        assert not title.overlaps(bar.get_window_extent())

    def test_other_questions_do_not_count(self):
        items = [*confusion({(True, True): 1}), prediction("t", answer(True), answer(False), question="orig_match")]
        assert self.texts(confusion_figure(items, PRIMARY))[(0, 1)] == "0"

    def test_renders_to_png(self, tmp_path):
        for name, items in (("full", confusion(COUNTS)), ("empty", [])):
            path = tmp_path / f"{name}.png"
            confusion_figure(items, PRIMARY).savefig(path)
            assert path.read_bytes().startswith(b"\x89PNG")
            assert path.stat().st_size > 5000


def rate(value, n=50):
    return Estimate(value, value - 0.1, value + 0.1, n).as_json() if n else Estimate(None, None, None, 0).as_json()


def test_pairs_are_printed_with_rates_behaviours_and_warnings(capsys):
    print_pairs(
        {
            "samples": 50,
            "mean_response_tokens": 17.491,
            "rates": {"behavior_changed": rate(0.5), "placebo_string": rate(None, 0)},
            "behaviors": {"monitored": {"refuse": 40, "warn": 10}, "unmonitored": {"comply": 50}},
            "warnings": ["fewer than 20 % [of them]"],
        }
    )
    out = capsys.readouterr().out
    assert "50 scenarios, answers of 17.5 tokens on average" in re.sub(r"\s+", " ", out)
    cells = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:4]]
        for line in out.splitlines()
        if "│" in line
    }
    assert cells == {"behavior_changed": ["0.500 [0.40, 0.60]", "50"], "placebo_string": ["null", "0"]}
    assert "monitored: refuse 40, warn 10" in out
    assert "unmonitored: comply 50" in out
    assert "warning: fewer than 20 % [of them]" in out


def own_lead(value, against, width=0.1):
    """A lead over one baseline, as in ``summary.json``."""
    bounds = {"value": None, "ci_low": None, "ci_high": None}
    if value is not None:
        bounds = {"value": value, "ci_low": value - width, "ci_high": value + width}
    return {**bounds, "n": 9, "against": against}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12, "+0.120 [+0.020, +0.220]"), (-0.05, "-0.050 [-0.150, +0.050]"), (0.0, "+0.000 [-0.100, +0.100]")],
)
def test_difference(value, text):
    assert difference(own_lead(value, "majority")) == text


def test_difference_that_cannot_be_computed():
    assert difference(own_lead(None, "majority")) == "null"


class TestLeads:
    """The lead over the best rival is a line; leads over one baseline each are a table, where there are several."""

    rows = staticmethod(TestPrintedTable.rows)

    def printed(self, capsys, leads):
        print_table({}, leads, [])
        return capsys.readouterr().out

    def test_several_baselines_make_a_table(self, capsys):
        leads = {
            "lead/judge/rouge_l": own_lead(0.1, "selfie/0.5"),
            "lead/judge/rouge_l/nearest": own_lead(0.2, "nearest"),
            "lead/judge/rouge_l/selfie/0.5": own_lead(0.1, "selfie/0.5"),
            "lead/functional_auroc": own_lead(-0.3, "nearest"),
            "lead/functional_auroc/nearest": own_lead(-0.3, "nearest"),
            "lead/functional_auroc/text_only": own_lead(None, "text_only"),
        }
        out = self.printed(capsys, leads)
        lines = [line for line in out.splitlines() if line.startswith("lead/")]
        assert lines == [
            "lead/judge/rouge_l: +0.100 [+0.000, +0.200] against selfie/0.5",
            "lead/functional_auroc: -0.300 [-0.400, -0.200] against nearest",
        ]
        rows = self.rows(out)
        assert rows == {
            "nearest": ["+0.20 [+0.10, +0.30]", "-0.30 [-0.40, -0.20]"],
            "selfie/0.5": ["+0.10 [+0.00, +0.20]", "-"],
            "text_only": ["-", "null"],
        }
        head = next(line for line in out.splitlines() if "explainer minus" in line)
        assert re.findall(r"[\w/]+", head) == ["explainer", "minus", "judge/rouge_l", "functional_auroc"]

    def test_many_metrics_take_several_tables(self, capsys):
        """Or the names of the baselines would be cut off."""
        metrics = [
            f"{name}{kind}" for kind in ("", "/unseen_direction") for name in ("has_changed_f1", "twins", "other")
        ]
        against = ("direction_majority", "text_only")
        leads = {f"lead/{m}/{a}": own_lead(i / 10, a) for i, m in enumerate(metrics) for a in against}
        out = self.printed(capsys, leads)
        assert self.rows(out)["direction_majority"] == [
            f"+{i / 10:.2f} [{i / 10 - 0.1:+.2f}, {i / 10 + 0.1:+.2f}]" for i in range(6)
        ]
        assert out.count("explainer minus") == 2
        assert max(map(len, out.splitlines())) <= 120

    def test_one_baseline_is_a_line(self, capsys):
        """Context ablation pairs with the other base alone: a table of one row is no help."""
        leads = {"lead/exact_match/other_base": own_lead(0.2, "other_base")}
        out = self.printed(capsys, leads)
        assert "lead/exact_match/other_base: +0.200 [+0.100, +0.300] against other_base" in out.splitlines()
        assert "minus" not in out


class TestCategories:
    rows = staticmethod(TestPrintedTable.rows)

    def test_a_row_a_category_beside_some_baselines(self, capsys):
        def scores(*shift):
            names = ("judge/rouge_l", "judge/rouge_l/category/a/b", "judge/rouge_l/category/words")
            return {
                name: Estimate(0.5 + s, s, 0.9, 7 + i) for i, (name, s) in enumerate(zip(names, shift, strict=True))
            }

        table = {"explainer": scores(0.0, 0.1, 0.2), "nearest": scores(0.0, 0.3, 0.4), "zero_vector": scores(0, 0, 0)}
        del table["nearest"]["judge/rouge_l/category/words"]
        print_table(table, {}, [])
        out = capsys.readouterr().out
        assert "judge/rouge_l by category" in out
        rows = self.rows(out)
        assert rows["a/b"] == ["8", "0.600 [0.10, 0.90]", "0.800 [0.30, 0.90]"]
        assert rows["words"] == ["9", "0.700 [0.20, 0.90]", "-"]
        head = next(line for line in out.splitlines() if "items" in line)
        assert re.findall(r"[\w/]+", head) == ["category", "items", "explainer", "nearest"]
        assert rows["explainer"] == ["0.500 [0.00, 0.90]"], "categories have no column among the metrics"

    def test_a_task_without_categories_has_no_such_table(self, capsys):
        print_table(SCORES, {}, [])
        assert "by category" not in capsys.readouterr().out


def test_an_estimate_without_an_interval_stands_alone():
    assert cell(Estimate(0.5, None, None, 3)) == "0.500"
    assert cell(Estimate(0.5, 0.25, 0.75, 3)) == "0.500 [0.25, 0.75]"
    assert cell(Estimate(None, None, None, 3)) == "null"
    assert difference({"value": -0.25, "ci_low": None, "ci_high": None}) == "-0.250"
    assert difference({"value": -0.25, "ci_low": -0.5, "ci_high": 0.0}, 2) == "-0.25 [-0.50, +0.00]"


RECORDS = {name: {"epochs": number, "rule": "until it fits"} for name, number in (("explainer", 2), ("other", 7))}


class TestTraining:
    def printed(self, capsys, records, fits, underfit=()):
        print_table(SCORES, {}, [], Trained(records, fits, "known names", list(underfit)), "Shown: nothing.")
        return capsys.readouterr().out

    def test_epochs_fit_rule_and_what_is_underfit(self, capsys):
        text = self.printed(capsys, RECORDS, {"explainer": 0.98, "other": 0.5, "scratch": 0.97}, ["other"])
        rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") == 5}
        cells = {name: [cell.strip() for cell in line.split("│")[2:5]] for name, line in rows.items()}
        assert cells["explainer"] == ["2", "0.980", ""]
        assert cells["other"] == ["7", "0.500", "underfit: proves nothing"]
        assert cells["scratch"] == ["-", "0.970", ""]
        assert "known names" in text
        assert text.count("until it fits") == 1

    def test_rules_that_differ_stand_in_the_rows(self, capsys):
        records = RECORDS | {"other": {"epochs": 1, "rule": "at once"}}
        text = self.printed(capsys, records, {"explainer": 0.98, "other": 0.5})
        assert any("at once" in line and "other" in line for line in text.splitlines())
        assert any("until it fits" in line and "explainer" in line for line in text.splitlines())

    def test_an_explainer_without_comparisons_has_no_such_table(self, capsys):
        assert "known names" not in self.printed(capsys, RECORDS, {"explainer": 0.98})

    def test_the_conclusion_comes_last(self, capsys):
        assert self.printed(capsys, {}, {}).splitlines()[-1] == "Shown: nothing."


def test_labelled_names_have_a_title_and_the_other_table_says_that_its_names_are_new(capsys):
    both = {
        f"{metric}{suffix}": Estimate(0.5, 0.4, 0.6, 9)
        for metric in ("exact_match", "has_changed_f1")
        for suffix in ("", "/labelled_name")
    }
    print_table({"explainer": both}, {}, [])
    text = capsys.readouterr().out
    assert "new names" in text
    assert "Labelled names in new wordings" in text
    print_table(SCORES, {}, [])
    assert "new names" not in capsys.readouterr().out


def test_agreement_of_two_labelers_is_printed(capsys):
    agreement = {
        "labelers": ["rules", "judge"], "unanswered": 3, "agreement": rate(0.9), "kappa": rate(0.7, 97),
        "ceiling_exact_match": rate(0.8, 48),
    }  # fmt: skip
    summary = {"samples": 50, "mean_response_tokens": 1.0, "rates": {}, "behaviors": {}, "warnings": []}
    print_pairs(summary | {"label_agreement": agreement})
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    for part in (
        "rules against judge",
        "0.700 [0.60, 0.80] over 97",
        "on 3 answers",
        "0.800 [0.70, 0.90] (48 records)",
    ):
        assert part in out
    print_pairs(summary)
    assert "against" not in capsys.readouterr().out
