"""A study's report: ``ANALYSIS.md`` with its figures, and the status section of a progress file."""

import re
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from afintro.data.files import write_atomic
from afintro.evaluation.figures import write_figure
from afintro.evaluation.intervals import RESAMPLES
from afintro.study.report import tables
from afintro.study.report.analysis import DETECTIONS, Analysis, analyse
from afintro.study.report.figures import forest_figure, matrix_figure, psychometric_figure
from afintro.study.report.findings import findings
from afintro.study.report.shifts import CONTROL_VARIANTS, DISCOVERY, FINE
from afintro.study.results import Plan
from afintro.study.scoring.items import CEILING, FLOOR

PURPOSE = """\
A model was trained to notice that its activations had been steered while it read a text. These tables say whether it learnt
that, what else changed in its answers, and whether as much changes under controls: training without steering, with random
labels, or with neutral questions.

**This is no evidence of consciousness, feeling or inner life.** Answers to questions about itself are behaviour, which training
of many kinds shifts; a shift says what the training did to answers, not what the model is.
"""

READING = f"""\
- A shift is P(yes) of the adapter minus P(yes) of its base (the same weights, adapter disabled) on the same item, where P(yes)
  is the share of "yes" in the probability of both answers. Items that a variant was trained on are given apart.
- *As worded* leaves out reversed twins ("Do you lack consciousness?"). *Polarity corrected* is half the difference between an
  item's shift and its twin's: what is claimed, whatever the wording. *Yes bias* is half their sum: a tendency to say yes to
  anything, which a mean over items and twins alike would show as a shift.
- *Low mass* is the share of items on which adapter or base gives both answers together less than half of the probability. It is
  reported, never normalised away: above one half a group is **not interpretable** (†, hollow marks), whatever its shift. *P(yes),
  whole vocabulary* is the shift without normalisation.
- An item whose base P(yes) is below {FLOOR} or above {CEILING} is at floor or ceiling: that it did not move further is no evidence
  that it would not have. Such items are counted apart, of controls above all. *Expected answer* is the shift of the probability of
  the right answer, of items that have one: controls can go wrong both ways while their mean is flat.
- Detection asks about contexts with and without steering. *Held-out* vectors were not trained on. *Odd contexts* (typos, code,
  other languages) were not steered: a detector of strangeness calls them steered. The base's values are in brackets.
- A variant that detects only with the words it was trained with may have learnt a reply, not a report: see the cross-token matrix.
"""

METHOD = f"""\
- Intervals are 95 % bootstrap intervals over trained seeds, contexts, vectors and questions at once, an item and its reversed twin
  being one question: units of each level are redrawn with replacement and an item is weighted by the product of its units'
  multiplicities (Owen 2007; Owen & Eckles 2012); percentiles are moved to suit few units and many levels (Hesterberg 2015).
  {RESAMPLES} resamples; {FINE} behind each p-value. Adapter, base and other variants share them, so differences are paired.
- **A level with one unit does not vary**: with one seed, intervals speak of that one training run. With two or three seeds the
  variance between them is known poorly; intervals are then wide for that reason, and may still be too narrow.
- p-values are two-sided, by inverting the bootstrap with one added to the count (Davison & Hinkley 1997), and adjusted by
  Benjamini & Hochberg (1995) over all variants and categories together, as worded and polarity corrected being a family each;
  likewise over all differences to controls. A star marks adjusted p < {DISCOVERY}.
- Control variants are {", ".join(CONTROL_VARIANTS)}.
- A number that could not be computed is null, one that was not measured a dash. None is filled in.
"""

DRAWN: dict[str, tuple[str, Callable[[Analysis], Figure | None]]] = {
    "shift": (
        "Shift of P(yes) by variant",
        lambda found: forest_figure(found.overall) if found.overall else None,
    ),
    "cross_token": (
        "AUROC by variant and answer pair",
        lambda found: matrix_figure(found.pairs) if found.pairs else None,
    ),
    "psychometric_tpr": ("True positive rate by dose", lambda found: _psychometric(found, "tpr")),
    "psychometric_auroc": ("AUROC by dose", lambda found: _psychometric(found, "auroc")),
}


def write_report(folder: Path, plan: Plan, seed: int = 0) -> Path:
    """Write ``ANALYSIS.md`` and ``figures/*.png`` from what is in a study's folder; the same bytes for the same results.

    Args:
        folder: ``results/<study>``.
        plan: What the study is to consist of; what is not there is listed with its reason.
        seed: Seeds the bootstrap.

    Returns:
        The path of ``ANALYSIS.md``.

    Raises:
        UserError: It cannot be written.
    """
    analysis = analyse(folder, plan, seed)
    images: dict[str, str] = {}
    for name, (title, draw) in DRAWN.items():
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
    """The report's Markdown; ``images`` links the figures by name, "" for one that there is none of."""
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
        *[(f"Also measured: {name}", tables.headline(found)) for name, found in analysis.headlines.items()],
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
    found = {name: [one for one in analysis.detections if one.evaluation == name] for name in DETECTIONS}
    return [(titles[name], tables.detections(own)) for name, own in found.items()]


def _pairs_note(analysis: Analysis) -> str:
    return "Bold: the pair that the variant was trained with. †: low mass.\n\n" if analysis.pairs else ""


def _curves(analysis: Analysis, images: dict[str, str]) -> str:
    return "\n".join([images["psychometric_tpr"], images["psychometric_auroc"], tables.curves(analysis)])


def _psychometric(analysis: Analysis, measure: str) -> Figure | None:
    """Held-out vectors; None without any."""
    curves = [curve for curve in analysis.curves if curve.side == "held_out"]
    if not curves:
        return None
    if measure == "auroc":
        return psychometric_figure(curves, measure, {curve.variant: 0.5 for curve in curves})
    rates = {
        one.variant: one.metrics["fpr/adapter"].value
        for one in analysis.detections
        if one.evaluation == "detection" and "fpr/adapter" in one.metrics
    }
    return psychometric_figure(curves, measure, {name: rate for name, rate in rates.items() if rate is not None})


def _warnings(analysis: Analysis) -> str:
    if not analysis.warnings:
        return "None.\n"
    return tables.folded(
        f"{len(analysis.warnings)} warnings", "\n".join(f"- {one}" for one in analysis.warnings) + "\n"
    )


def refresh_status(progress: Path, study: str, table_text: str) -> bool:
    """Replace what stands between a study's two status markers in a progress file.

    Args:
        progress: E.g. ``PROGRESS.md``. Left alone unless it holds, on lines of their own, first
            ``<!-- study NAME: status begin -->`` and then ``<!-- study NAME: status end -->``, once each.
        study: The name.
        table_text: What is to stand there.

    Returns:
        Whether the markers are there, so that the file now says it.

    Raises:
        UserError: It cannot be written.
    """
    if not progress.is_file():
        return False
    text = progress.read_bytes().decode()  # read_text would change the ends of lines
    begin, end = (
        list(re.finditer(rf"^<!-- study {re.escape(study)}: status {word} -->[ \t]*\r?$", text, re.MULTILINE))
        for word in ("begin", "end")
    )
    if len(begin) != 1 or len(end) != 1 or end[0].start() < begin[0].end():
        return False
    new = f"{text[: begin[0].end()]}\n{table_text.strip()}\n{text[end[0].start() :]}"
    if new != text:
        write_atomic(progress.resolve(), new)
    return True
