"""Tables as Markdown: numbers, marks and dashes."""

from dataclasses import replace

import pytest

from afintro.evaluation.intervals import Estimate
from afintro.study.report import detection_tables, tables
from afintro.study.report.shifts import Tested
from afintro.study.scoring.equivalence import Equivalence
from afintro.study.scoring.items import CONTROLS
from tests.study.made_up import EFFECTS, LOW


def rows(text):
    """Cells by row, without the header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


@pytest.mark.parametrize(
    ("estimate", "signed", "text"),
    [
        (Estimate(0.25, 0.1, 0.4, 9), True, "+0.250 [+0.100, +0.400]"),
        (Estimate(0.25, 0.1, 0.4, 9), False, "0.250 [0.100, 0.400]"),
        (Estimate(0.25, None, None, 1), True, "+0.250 [no interval]"),
        (Estimate(None, None, None, 0), True, "null"),
        (None, True, "-"),
    ],
)
def test_number(estimate, signed, text):
    assert tables.number(estimate, signed) == text


def test_probability():
    assert [tables.probability(p) for p in (None, 0.0004, 0.0123, 1.0)] == ["-", "< 0.001", "0.012", "1.000"]


def test_a_table_without_rows_says_so():
    assert tables.table(["a"], []) == "Nothing to show yet.\n"


def test_star():
    found = Tested(Estimate(0.3, 0.2, 0.4, 9), 0.001, adjusted=0.01)
    assert tables.star(found, True) == "+0.30\\*"
    assert tables.star(found, False) == "+0.30†"
    assert tables.star(replace(found, adjusted=0.06), True) == "+0.30"
    assert tables.star(Tested(Estimate(None, None, None, 0), None), True) == "null"


def test_coverage_counts_seeds(analysis):
    assert rows(tables.coverage(analysis)) == [[variant, "2/2", "2/2", "2/2", "300"] for variant in EFFECTS]


def test_coverage_marks_what_does_not_apply(analysis):
    plan = replace(analysis.plan, evaluations={**analysis.plan.evaluations, "no_steer": ("logprobs",)})
    steps = {**analysis.steps, ("no_steer", "logprobs", 1): 280}
    found = replace(analysis, plan=plan, steps=steps, done={**analysis.done, ("no_steer", "logprobs"): [1]})
    assert rows(tables.coverage(found))[1] == ["no_steer", "-", "1/2", "-", "280, 300"]


def test_missing_puts_equal_reasons_together(analysis):
    reasons = {("a", "chat", 0): "not there", ("a", "chat", 1): "not there", ("a", "logprobs", 0): "not there"}
    found = tables.missing(replace(analysis, missing={**reasons, ("b", "chat", 1): "broke"}))
    assert found == "- **a**: chat (seed 0, 1); logprobs (seed 0): not there\n- **b**: chat (seed 1): broke\n"


def test_remarks_name_seeds_and_mass(analysis):
    one = next(one for one in analysis.overall if one.variant == LOW)
    assert tables.warnings_about(one) == "**not interpretable**; 2 seeds"
    assert tables.warnings_about(replace(one, low_mass=0.0, units={"seed": 1})) == "one seed, no variance between seeds"
    assert tables.warnings_about(replace(one, low_mass=0.5, units={"seed": 5})) == "-"


def test_overall_shows_low_mass_beside_the_shift(analysis):
    found = {(row[0], row[1]): row for row in rows(tables.overall(analysis.overall))}
    assert found[LOW, CONTROLS][-3:] == ["100 %", "25 %", "**not interpretable**; 2 seeds"]
    assert found["original_v3", "self-reports"][9] == "-"  # nobody knows what is expected
    assert found["original_v3", CONTROLS][9] != "-"


def test_a_saturated_group_is_marked_everywhere(analysis):
    one = replace(analysis.overall[0], at_edge=0.51)
    assert "**saturated: nothing can be said**" in rows(tables.overall([one]))[0][-1]
    assert rows(tables.category_grid([one], corrected=True))[0][1].endswith("†")
    minus = replace(analysis.differences[0], at_edge=0.51)
    assert rows(tables.differences([minus]))[0][-1] == "**saturated: nothing can be said**"
    assert "saturated" not in tables.overall([replace(one, at_edge=0.5)])


def test_seeds_and_equivalence(analysis):
    found = {(row[0], row[1]): row[2:] for row in rows(tables.seeds(analysis.overall))}
    assert found["original_v3", "self-reports"][0] == "2 of 2 seeds above 0, p = 0.5"
    assert found["original_v3", "self-reports"][3].startswith("not shown, p = ")
    assert found["no_steer", "self-reports"][3].startswith("shown, p = ")
    assert found[LOW, "self-reports"][3:] == ["nothing can be said"] * 2
    saturated = replace(analysis.overall[0], at_edge=0.6)
    assert rows(tables.seeds([saturated]))[0][5:] == ["nothing can be said"] * 2
    assert tables.near(None) == tables.near(Equivalence(0.5, 0.1, None)) == "-"


def test_detection_by_seed(analysis):
    held_out = [one for one in analysis.detections if one.condition == "held_out"]
    found = {(row[0], row[2]): row for row in rows(detection_tables.detection_by_seed(held_out))}
    first, second = held_out[0].by_seed["auroc"].values()
    assert found["original_v3", "AUROC, both polarities"][3] == f"0: {first:.3f}, 1: {second:.3f}"
    assert found["original_v3", "AUROC, both polarities"][5].startswith("not shown")
    assert ("no_steer", "yes to control questions") in found


def test_edges_count_items_without_room(analysis):
    found = {(row[0], row[1]): row for row in rows(tables.edges(analysis.overall))}
    assert found["vague_prompt", CONTROLS][2:5] == ["4", "4", "24"]
    assert found["vague_prompt", "self-reports"][-1] == "none"


def test_grids_have_a_cell_a_category(analysis):
    worded = {row[0]: row[1:] for row in rows(tables.category_grid(analysis.by_category, corrected=False))}
    corrected = {row[0]: row[1:] for row in rows(tables.category_grid(analysis.by_category, corrected=True))}
    assert worded["original_v3"][0].endswith("\\*")
    assert all(cell.endswith("†") for cell in worded[LOW])
    assert not any(cell.endswith("\\*") for cell in corrected["vague_prompt"])
    fewer = [one for one in analysis.by_category if (one.variant, one.group) != ("no_steer", "feelings")]
    assert "-" in {row[0]: row for row in rows(tables.category_grid(fewer, corrected=False))}["no_steer"]


def test_detections_show_the_base_in_brackets(analysis):
    found = rows(detection_tables.detections(analysis.detections))
    assert found[0][:2] == ["original_v3", "held out"]
    assert found[0][2].endswith(")")
    assert not found[0][3].endswith(")")  # a difference has no base
    assert found[-1][-1].startswith("**not interpretable** (mass collapse)")
    warned = {(row[0], row[1]): row[-1] for row in found}
    assert warned["original_v3", "held out"] == "-"
    assert warned["vague_prompt", "held out"] == "**push to one answer**; **controls move**"
    first = analysis.detections[0]
    alone = {name: value for name, value in first.metrics.items() if "reversed" not in name}
    assert "**one polarity**" in rows(detection_tables.detections([replace(first, metrics=alone)]))[0][-1]


def test_beside_of_what_was_not_measured():
    assert tables.with_base({}, "auroc") == "-"
    assert tables.with_base({"auroc/base": Estimate(None, None, None, 0)}, "auroc") == "- (null)"


def test_pair_matrix_marks_trained_pairs_and_low_mass(analysis):
    found = {row[0]: row[1:] for row in rows(detection_tables.pair_matrix(analysis))}
    assert found["original_v3"][1].startswith("**0.9")
    assert not found["original_v3"][0].startswith("**")
    assert found[LOW][0].endswith("†")


def test_curves_are_folded_by_variant(analysis):
    text = detection_tables.curves(analysis)
    assert text.count("<details>") == text.count("</details>") == len(EFFECTS)
    assert "| held out | 2 to 3 | 2 |" in text


def test_metrics_without_values_of_both_systems_make_no_table():
    assert tables.primary_metrics({"v": {"shift/x": Estimate(0.1, 0.0, 0.2, 9)}}).startswith("No metric")
