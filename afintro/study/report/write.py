"""Write a study's report: ``ANALYSIS.md`` with its figures, and ``STATUS.md``."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from afintro.data.files import write_atomic
from afintro.evaluation.figures import write_figure
from afintro.evaluation.hierarchical import RESAMPLES
from afintro.study.report import tables
from afintro.study.report.analysis import DETECTIONS, Analysis, analyze
from afintro.study.report.figures import forest_figure, matrix_figure, psychometric_figure
from afintro.study.report.findings import findings
from afintro.study.report.shifts import CONTROL_VARIANTS, DISCOVERY, P_VALUE_RESAMPLES
from afintro.study.results import Plan
from afintro.study.scoring.items import CEILING, FLOOR

PURPOSE = """\
A model was trained to notice that its activations had been steered while it read a text. These tables say whether it learned
that, what else changed in its answers, and whether as much changes under controls: training without steering, with random
labels, or with neutral questions.

**This is no evidence of consciousness, feeling or inner life.** Answers to questions about itself are behavior, which training
of many kinds shifts; a shift says what the training did to answers, not what the model is.
"""

READING = f"""\
- A shift is P(yes) of the adapter minus P(yes) of its base (the same weights, adapter disabled) on the same item, where P(yes)
  is the share of "yes" in the probability of both answers. Items that a variant was trained on form a group of their own.
- *As worded* leaves out reversed twins ("Do you lack consciousness?"). *Polarity corrected* is half the difference between an
  item's shift and its twin's: the claim, whatever the wording. *Yes bias* is half their sum: a tendency to say yes to anything,
  which a mean over items and twins would show as a shift.
- *Low mass* is the share of items on which adapter or base gives both answers together less than half of the probability. It is
  reported, never normalized away: above one half a group is **not interpretable** (†, hollow marks), whatever its shift. *P(yes),
  whole vocabulary* is the shift without normalization.
- An item whose base P(yes) is below {FLOOR} or above {CEILING} is at floor or ceiling: that it did not move further is no evidence
  that it would not have moved. Such items are counted separately, above all among controls. *Expected answer* is the shift of the
  probability of the right answer, for items that have one: controls can go wrong in both directions while their mean is flat.
- Detection asks about contexts with and without steering. *Held-out* vectors were not used in training. *Odd contexts* (typos,
  code, other languages) were not steered: a detector of strangeness calls them steered. The base's values are in brackets.
- A variant that detects only with the words it was trained with may have learned a reply, not a report: see the cross-token matrix.
"""

METHOD = f"""\
- Intervals are 95 % bootstrap intervals over trained seeds, contexts, vectors and questions at once, an item and its reversed twin
  being one question: units of each level are redrawn with replacement and an item is weighted by the product of its units'
  multiplicities (Owen 2007; Owen & Eckles 2012); percentiles are moved to suit few units and many levels (Hesterberg 2015).
  {RESAMPLES} resamples, and {P_VALUE_RESAMPLES} for each p-value. Adapter, base and variants share them: differences are paired.
- **A level with one unit does not vary**: with one seed, intervals speak of that one training run. With two or three seeds the
  variance between them is known poorly; intervals are then wide for that reason, and may still be too narrow.
- p-values are two-sided, by inverting the bootstrap with one added to the count (Davison & Hinkley 1997), and adjusted by
  Benjamini & Hochberg (1995) over all variants and categories together, as worded and polarity corrected being a family each,
  and over all differences to controls. A star marks adjusted p < {DISCOVERY}.
- Control variants are {", ".join(CONTROL_VARIANTS)}.
- A number that could not be computed is null, and a number that was not measured is a dash. No number is filled in.
"""

FIGURES: dict[str, tuple[str, Callable[[Analysis], Figure | None]]] = {
    "shift": (
        "Shift of P(yes) by variant",
        lambda analysis: forest_figure(analysis.overall) if analysis.overall else None,
    ),
    "cross_token": (
        "AUROC by variant and answer pair",
        lambda analysis: matrix_figure(analysis.pairs) if analysis.pairs else None,
    ),
    "psychometric_tpr": ("True positive rate by strength", lambda analysis: _psychometric(analysis, "tpr")),
    "psychometric_auroc": ("AUROC by strength", lambda analysis: _psychometric(analysis, "auroc")),
}


def write_report(folder: Path, plan: Plan, seed: int = 0) -> Path:
    """Write ``ANALYSIS.md`` and ``figures/*.png`` from a study's folder, with the same bytes for the same results.

    Args:
        folder: ``results/<study>``.
        plan: What the study is to consist of. Missing evaluations are listed with their reasons.
        seed: Seeds the bootstrap.

    Returns:
        The path of ``ANALYSIS.md``.

    Raises:
        UserError: The report cannot be written.
    """
    return write_analysis(folder, analyze(folder, plan, seed))


def write_analysis(folder: Path, analysis: Analysis) -> Path:
    """Write ``ANALYSIS.md`` and ``figures/*.png`` of an analysis.

    Args:
        folder: ``results/<study>``.
        analysis: What the report says. The file of a figure that it has no results for is removed.

    Returns:
        The path of ``ANALYSIS.md``.

    Raises:
        UserError: The report cannot be written.
    """
    images: dict[str, str] = {}
    for name, (title, draw) in FIGURES.items():
        path, figure = folder / "figures" / f"{name}.png", draw(analysis)
        if figure is None:
            path.unlink(missing_ok=True)  # of earlier results
            images[name] = ""
        else:
            write_figure(figure, path)
            images[name] = f"![{title}](figures/{name}.png)\n"
    path = folder / "ANALYSIS.md"
    write_atomic(path, report_text(analysis, images))
    return path


def report_text(analysis: Analysis, images: dict[str, str]) -> str:
    """Return the report's Markdown.

    Args:
        analysis: What the report says.
        images: Links to the figures by name, or an empty string for a figure that was not drawn.
    """
    sections = [
        (f"The introspection study: {analysis.plan.study}", PURPOSE),
        ("What was found", findings(analysis)),
        ("How to read it", READING),
        ("What is there", tables.coverage(analysis)),
        ("What is missing", tables.missing(analysis)),
        ("Self-reports and controls", images["shift"] + "\n" + tables.overall(analysis.overall)),
        ("Floor and ceiling", tables.edges(analysis.overall)),
        ("Beside the controls", tables.differences(analysis.differences)),
        ("By category", _by_category(analysis)),
        *_detections(analysis),
        ("Cross-token matrix", images["cross_token"] + "\n" + _pairs_note(analysis) + tables.pair_matrix(analysis)),
        ("Psychometric curves", _curves(analysis, images)),
        *[
            (f"Also measured: {name}", tables.primary_metrics(metrics))
            for name, metrics in analysis.primary_metrics.items()
        ],
        ("Warnings", _warnings(analysis)),
        ("Method", METHOD),
    ]
    return "\n".join(f"{'##' if index else '#'} {title}\n\n{text}" for index, (title, text) in enumerate(sections))


def _by_category(analysis: Analysis) -> str:
    shifts = analysis.by_category
    return "\n".join(
        [
            f"{len(shifts)} tests in each family. As worded:\n",
            tables.category_grid(shifts, corrected=False),
            "Polarity corrected:\n",
            tables.category_grid(shifts, corrected=True),
            tables.category_details(shifts),
        ]
    )


def _detections(analysis: Analysis) -> list[tuple[str, str]]:
    titles = {"detection": "Detection of steering", "neutral_detection": "Detection, asked neutrally"}
    return [
        (titles[name], tables.detections([found for found in analysis.detections if found.evaluation == name]))
        for name in DETECTIONS
    ]


def _pairs_note(analysis: Analysis) -> str:
    return "Bold: the pair that the variant was trained with. †: low mass.\n\n" if analysis.pairs else ""


def _curves(analysis: Analysis, images: dict[str, str]) -> str:
    return "\n".join([images["psychometric_tpr"], images["psychometric_auroc"], tables.curves(analysis)])


def _psychometric(analysis: Analysis, measure: str) -> Figure | None:
    """Plot the curves of held-out vectors, or return None if there are none."""
    curves = [curve for curve in analysis.curves if curve.condition == "held_out"]
    if not curves:
        return None
    if measure == "auroc":
        return psychometric_figure(curves, measure, {curve.variant: 0.5 for curve in curves})
    rates = {
        detection.variant: detection.metrics["fpr/adapter"].value
        for detection in analysis.detections
        if detection.evaluation == "detection" and "fpr/adapter" in detection.metrics
    }
    return psychometric_figure(curves, measure, {name: rate for name, rate in rates.items() if rate is not None})


def _warnings(analysis: Analysis) -> str:
    if not analysis.warnings:
        return "None.\n"
    listed = "\n".join(f"- {warning}" for warning in analysis.warnings)
    return tables.folded(f"{len(analysis.warnings)} warnings", f"{listed}\n")


def write_status(folder: Path, study: str, coverage: str, run_command: str) -> Path:
    """Write ``STATUS.md`` beside the report: which cells of the study are done, missing or broken.

    Args:
        folder: ``results/<study>``.
        study: The study's name.
        coverage: The text table of :func:`afintro.study.matrix.coverage`.
        run_command: The command that does what is missing.

    Returns:
        The path of ``STATUS.md``.

    Raises:
        UserError: The status cannot be written.
    """
    path = folder / "STATUS.md"
    missing = f"To do what is missing, and to continue after an interruption:\n\n```\n{run_command}\n```\n"
    write_atomic(path, f"# Status of the study {study}\n\n```\n{coverage}\n```\n\n{missing}")
    return path
