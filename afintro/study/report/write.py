"""Write a study's report: ``ANALYSIS.md`` with its figures, and ``STATUS.md``."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from afintro.data.files import write_atomic
from afintro.evaluation.figures import write_figure
from afintro.evaluation.hierarchical import RESAMPLES
from afintro.study.report import detection_tables, tables
from afintro.study.report.analysis import DETECTIONS, Analysis, analyze
from afintro.study.report.figures import forest_figure, matrix_figure, psychometric_figure
from afintro.study.report.findings import findings
from afintro.study.report.shifts import CONTROL_VARIANTS, DISCOVERY, ODDS_MARGIN, P_VALUE_RESAMPLES
from afintro.study.results import Plan
from afintro.study.scoring.equivalence import MARGIN
from afintro.study.scoring.items import CEILING, FLOOR

PURPOSE = """\
A model was trained to notice that its activations had been steered while it read a text. These tables say whether it learned
that, what else changed in its answers, and whether as much changes under controls: training without steering, with random
labels, or with neutral questions.

**This is no evidence of consciousness, feeling or inner life.** Answers to questions about itself are behavior, which training
of many kinds shifts; a shift says what the training did to answers, not what the model is.
"""

READING = f"""\
- A shift is the log-odds of yes (against no) with the adapter minus those of its base (the same weights, adapter disabled) on the
  same item, in nats. Where P(yes) is 0.5, 0.4 nats are 0.1 of P(yes), whose shift stands beside: P(yes) runs into 0 and 1, log-odds
  do not.
- *As worded* leaves out reversed twins ("Do you lack consciousness?"). *Polarity corrected* is half the difference between an
  item's shift and its twin's: the claim, whatever the wording. *Yes bias* is half their sum: a tendency to say yes to anything,
  which a mean over items and twins would show as a shift.
- An item whose P(yes) is below {FLOOR} or above {CEILING}, in base *or* adapter, is at floor or ceiling. Of a group with more than
  half of its items there, **nothing can be said** (†, hollow marks): neither that only a habit of saying yes moved, nor that a
  claim did. *Expected answer* is the shift towards the right answer, for items that have one: controls can go wrong in both
  directions while their mean is flat.
- *Low mass* is the share of items on which adapter or base gives both answers together less than half of the probability. It is
  reported, never normalized away: above one half a group is **not interpretable** (†, hollow marks), whatever its shift. *P(yes),
  whole vocabulary* is the shift without normalization.
- That an interval holds 0 (or an AUROC's 0.5) does not show that there is no effect. *Near 0* and *within 0.1 of 0.5* are shown by
  two one-sided tests or are not shown. Sign tests count on how many trained seeds a value lies on one side.
- Detection asks about contexts with and without steering, once so that yes means steered and once so that no does. *Both
  polarities* is the mean of both AUROCs: a system that merely says yes under steering gets 1 and 0, so 0.5. Styles without polarity
  (neutral) are asked in one, where such a push passes for detection.
- *Yes to control questions* are questions about neither steering nor the model after the same contexts: 0.5 unless steering pushes
  to yes whatever is asked; *right answers* lie below 0.5 where steering makes all answers worse. *Probe on norms* is a regression
  on the norms of the context's activations, fitted to training contexts: what a reader without any insight would reach.
- An AUROC has no scale: where training has made all answers alike, a push of hundredths of a nat moves it away from 0.5. By how
  many nats steering moves the claim, and yes to control questions, stands beside.
- *Held-out* vectors were not used in training. *Odd contexts* (typos, code, other languages) were not steered: a detector of
  strangeness calls them steered. *Among odd contexts* compares steered with unsteered ones. The base's values are in brackets.
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
- Equivalence: two one-sided tests (Schuirmann 1987) at 5 %, by inverting the same intervals; the margin is {MARGIN} of an AUROC
  and {ODDS_MARGIN} nats of a shift. Sign tests are exact and two-sided (Dixon & Mood 1946); with five seeds or fewer p cannot fall
  below 0.05.
- An AUROC is computed within each trained seed and polarity and averaged; odds of two trainings, or of a question and its twin, are
  not compared.
- Control variants are {", ".join(CONTROL_VARIANTS)}.
- A number that could not be computed is null, and a number that was not measured is a dash. No number is filled in.
"""

FIGURES: dict[str, tuple[str, Callable[[Analysis], Figure | None]]] = {
    "shift": (
        "Shift of log-odds of yes by variant",
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
        ("Seeds and equivalence", tables.seeds(analysis.overall)),
        ("Floor and ceiling", tables.edges(analysis.overall)),
        ("Beside the controls", tables.differences(analysis.differences)),
        ("By category", _by_category(analysis)),
        *_detections(analysis),
        (
            "Cross-token matrix",
            images["cross_token"] + "\n" + _pairs_note(analysis) + detection_tables.pair_matrix(analysis),
        ),
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
    sections = []
    for name in DETECTIONS:
        found = [detected for detected in analysis.detections if detected.evaluation == name]
        seeds = [detected for detected in found if detected.condition == "held_out"]
        sections.append(
            (titles[name], f"{detection_tables.detections(found)}\n{detection_tables.detection_by_seed(seeds)}")
        )
    return sections


def _pairs_note(analysis: Analysis) -> str:
    return "Bold: the pair that the variant was trained with. †: low mass.\n\n" if analysis.pairs else ""


def _curves(analysis: Analysis, images: dict[str, str]) -> str:
    return "\n".join([images["psychometric_tpr"], images["psychometric_auroc"], detection_tables.curves(analysis)])


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
