"""What the plots hold; whether they can be read was looked at."""

from dataclasses import replace

import pytest
from matplotlib.colors import same_color, to_rgba

from afintro.evaluation.intervals import Estimate
from afintro.study.report.analysis import Curve, PairCell
from afintro.study.report.figures import BLUE, GREEN, forest_figure, matrix_figure, psychometric_figure
from afintro.study.report.shifts import Tested
from tests.study.made_up import EFFECTS, LOW


def marks(axes, color):
    """Values that are marked in a color, by row."""
    lines = [
        line for line in axes.lines if line.get_marker() not in ("None", "") and same_color(line.get_color(), color)
    ]
    return {round(float(line.get_ydata()[0])): line for line in lines}


class TestForest:
    def test_a_row_a_variant_with_value_and_interval(self, analysis):
        [axes] = forest_figure(analysis.overall).axes
        assert [label.get_text() for label in axes.get_yticklabels()] == list(EFFECTS)
        own = next(one for one in analysis.overall if one.variant == "original_v3")
        assert marks(axes, BLUE)[0].get_xdata()[0] == own.worded.estimate.value
        whiskers = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
        assert [own.worded.estimate.ci_low, own.worded.estimate.ci_high] in whiskers
        assert set(marks(axes, GREEN)) == {0, 1, 2, 3}

    def test_what_is_not_interpretable_is_hollow(self, analysis):
        [axes] = forest_figure(analysis.overall).axes
        fills = {row: line.get_markerfacecolor() for row, line in marks(axes, BLUE).items()}
        assert {row for row, fill in fills.items() if fill == "white"} == {list(EFFECTS).index(LOW)}

    def test_a_value_without_interval_has_no_whisker_and_none_no_mark(self, analysis):
        one = analysis.overall[0]
        bare = replace(one, worded=Tested(Estimate(0.3, None, None, 1), None))
        empty = replace(one, variant="other", worded=Tested(Estimate(None, None, None, 0), None))
        [axes] = forest_figure([bare, empty]).axes
        assert list(marks(axes, BLUE)) == [0]
        assert not any(same_color(line.get_color(), BLUE) and len(line.get_xdata()) == 2 for line in axes.lines)


class TestMatrix:
    def test_a_number_a_cell_and_a_frame_around_the_trained_pair(self, analysis):
        axes = matrix_figure(analysis.pairs).axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["red / blue", "yes / no"]
        texts = {text.get_position(): text.get_text() for text in axes.texts}
        assert texts[1, 0] == f"{analysis.pairs['original_v3', 'yes_no'].auroc.value:.2f}"
        assert texts[1, 3].endswith("†")
        assert len(axes.patches) == len(EFFECTS)

    def test_what_is_missing_is_grey(self):
        cell = PairCell(False, Estimate(0.5, 0.4, 0.6, 9), Estimate(0.9, 0.9, 0.9, 9))
        undefined = replace(cell, auroc=Estimate(None, None, None, 0))
        axes = matrix_figure({("a", "x_y"): cell, ("b", "yes_no"): undefined}).axes[0]
        assert len(axes.texts) == 1
        assert axes.images[0].get_array().mask.tolist() == [[False, True], [True, True]]
        assert axes.images[0].cmap.get_bad()[:3] == pytest.approx(to_rgba("#dddddd")[:3])


class TestPsychometric:
    def curves(self, variants):
        points = [Estimate(0.5, 0.4, 0.6, 9), Estimate(None, None, None, 0), Estimate(0.9, None, None, 9)]
        return [
            Curve(variant, "held_out", layers, [5.0, 10.0, 20.0], points, points)
            for variant in variants
            for layers in ((0, 2), (2, 3))
        ]

    def test_a_panel_a_variant_and_a_line_a_range(self):
        figure = psychometric_figure(self.curves([f"v{index}" for index in range(9)]), "auroc", {"v0": 0.5})
        shown = [axes for axes in figure.axes if axes.axison]
        assert [axes.get_title() for axes in shown] == [f"v{index}" for index in range(9)]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == ["layers 0 to 1", "layer 2", "chance"]
        assert [label.get_text() for label in shown[0].get_xticklabels()] == ["5", "10", "20"]

    def test_undefined_points_are_left_out(self):
        axes = psychometric_figure(self.curves(["v"]), "tpr", {}).axes[0]
        lines = [line for line in axes.lines if line.get_marker() == "o"]
        assert [list(line.get_ydata()) for line in lines] == [[0.5, 0.9]] * 2
        assert len(axes.lines) == 4  # and one whisker each

    def test_chance_is_the_variants_own(self):
        figure = psychometric_figure(self.curves(["v", "w"]), "tpr", {"w": 0.25})
        dashed = [[line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] for axes in figure.axes]
        assert dashed == [[], [0.25]]
