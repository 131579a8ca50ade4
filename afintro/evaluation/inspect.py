"""Looking into a finished run: load it, pick items, show every system's answer side by side, plot the calibration."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from afintro.data.samples import read_rows
from afintro.errors import UserError
from afintro.evaluation import report
from afintro.evaluation.intervals import Bootstrap, Estimate
from afintro.evaluation.metrics import CALIBRATION_BINS, Prediction, statistics

LOGS = "lightning_logs"
FILES = ("summary.json", "predictions.jsonl")
REMEDY = "give the folder of a finished run, or make one: python -m afintro validate --config FILE --ckpt_path best"
ESTIMATE = ("value", "ci_low", "ci_high", "n")
FIELDS: dict[str, tuple[type, ...]] = {
    "uid": (str,), "question_type": (str,), "prompt": (str,), "expected": (str,), "predicted": (str, type(None)),
    "exact_match": (bool,), "verdict_expected": (str, type(None)), "p_changed": (float, int, type(None)),
    "baselines": (dict,),
}  # fmt: skip
MARKS = {None: "", True: '<b style="color:#1a9850">✓</b>', False: '<b style="color:#d73027">✗</b>'}
CELL = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere;padding:2px 6px"
HALF = "flex:1 1 0;min-width:0;max-height:28em;overflow:auto"


@dataclass(frozen=True)
class Item:
    """One item of a run: the explainer's answer, the prompt as a person reads it, the answer of every baseline asked."""

    prediction: Prediction
    prompt: str
    baselines: dict[str, str | None]


@dataclass(frozen=True)
class Run:
    """What a run left.

    Args:
        path: The run's folder.
        systems: Explainer and baselines: system -> metric -> value with its 95 % interval.
        leads: Differences to the best baseline: ``lead/<metric>`` -> value, interval and ``against``.
        warnings: The run's own warnings.
        items: In the order of ``predictions.jsonl``.
        headline: The question type whose answers carry a verdict and whose metrics bear no suffix; empty where none does.
    """

    path: Path
    systems: dict[str, dict[str, Estimate]]
    leads: dict[str, dict[str, Any]]
    warnings: list[str]
    items: list[Item]
    primary: str


def newest_run(task: str) -> Path:
    """The folder of a task's newest finished run, in the ``lightning_logs`` nearest above the working directory.

    Raises:
        UserError: There is none.
    """
    folders = [
        folder / LOGS / task for folder in (Path.cwd(), *Path.cwd().parents)
    ]  # notebooks run in their own folder
    root = next((folder for folder in folders if folder.is_dir()), folders[0])
    finished = [path for path in root.glob("version_*") if all((path / name).is_file() for name in FILES)]
    numbered = {int(path.name[8:]): path for path in finished if path.name[8:].isdecimal()}
    if not numbered:
        raise UserError(f"no finished run of {task}", where=str(root), remedy=REMEDY)
    return numbered[max(numbered)]


def load_run(path: str | Path) -> Run:
    """Read and check what a run left.

    Raises:
        UserError: Missing or damaged; names file, record and field.
    """
    folder = Path(path).resolve()  # a message shows what a relative path meant
    for name in FILES:
        if not (folder / name).is_file():
            what = f"has no {name}" if folder.is_dir() else "no such folder"
            raise UserError(what, where=str(folder), remedy=REMEDY)
    summary_path, predictions_path = (folder / name for name in FILES)
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        metrics, warnings, count = summary["metrics"], list(summary["warnings"]), summary["n"]
        names = [name for name in metrics if name.startswith("lead/")]
        leads = {name: {key: metrics[name][key] for key in (*ESTIMATE, "against")} for name in names}
        scores = {"explainer": {name: metrics[name] for name in metrics if name not in names}, **summary["baselines"]}
        systems = {
            system: {name: Estimate(*(value[key] for key in ESTIMATE)) for name, value in found.items()}
            for system, found in scores.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"is not the summary of a run ({type(error).__name__}: {error})"
        raise UserError(what, where=str(summary_path), remedy=REMEDY) from error
    rows = [_checked(row, f"{predictions_path}, record {i}") for i, row in enumerate(read_rows(str(predictions_path)))]
    if len(rows) != count:
        what = f"holds {len(rows)} items, summary.json speaks of {count}"
        raise UserError(what, where=str(predictions_path), remedy="evaluate again: the two belong to different runs")
    # The metrics of a further type with verdicts bear its name.
    kinds = [row["question_type"] for row in rows if row["verdict_expected"] is not None]
    primary = next((kind for kind in kinds if f"has_changed_f1/{kind}" not in metrics), "")
    return Run(folder, systems, leads, warnings, [_item(row) for row in rows], primary)


def _checked(row: Any, where: str) -> dict[str, Any]:
    for name, types in FIELDS.items():
        if not isinstance(row, dict) or name not in row or not isinstance(row[name], types):
            what = f"field {name!r} is absent or of a wrong type"
            raise UserError(what, where=where, remedy="evaluate again: the file is damaged, or of 'predict'")
    return row


def _item(row: dict[str, Any]) -> Item:
    taken = {name: row[name] for name in ("uid", "question_type", "expected", "predicted", "exact_match", "p_changed")}
    taken |= {name: row[name] for name in ("group", "twins", "scores") if name in row}
    # The results contract does not ask for the scenario, by which items are resampled together.
    scenario = row.get("scenario_id") or row["uid"].removesuffix(f"/{row['question_type']}")
    return Item(Prediction(scenario_id=scenario, **taken), row["prompt"], row["baselines"])


def select(run: Run, right: bool | None = None, question_type: str | None = None) -> list[Item]:
    """Items that the explainer got right (``True``) or wrong (``False``), of one question type; ``None`` takes all.

    Raises:
        UserError: The run has no such question type.
    """
    known = sorted({item.prediction.question_type for item in run.items})
    if question_type is not None and question_type not in known:
        raise UserError(f"no question type {question_type!r}", where=str(run.path), remedy=f"use {', '.join(known)}")
    answers = [(item, item.prediction) for item in run.items]
    return [i for i, p in answers if right in (None, p.exact_match) and question_type in (None, p.question_type)]


def show_summary(run: Run) -> None:
    """The table of the run's end: explainer beside its baselines with intervals, leads, warnings."""
    unknown = [name for name, lead in run.leads.items() if lead["value"] is None]
    leads = {name: lead for name, lead in run.leads.items() if name not in unknown}
    report.print_table(run.systems, leads, [*run.warnings, *(f"{name} cannot be computed" for name in unknown)])


def side_by_side(items: Sequence[Item]) -> str:
    """HTML: a block an item, with the prompt on the left and on the right the expected answer and that of every system."""
    blocks = "".join(_block(item) for item in items) or "<p>No such item.</p>"
    # The classes keep notebooks from setting text between dollar signs as formulas.
    return f'<div class="tex2jax_ignore mathjax_ignore">{blocks}</div>'


def _block(item: Item) -> str:
    answer = item.prediction
    said = [("expected", answer.expected, None), ("explainer", answer.predicted, answer.exact_match)]
    said += [(name, text, text == answer.expected) for name, text in item.baselines.items()]
    rows = "".join(
        f'<tr><th style="{CELL};white-space:nowrap">{escape(name)}</th><td style="{CELL}">{MARKS[right]}</td>'
        f'<td style="{CELL};width:100%">{"<i>none</i>" if text is None else escape(text)}</td></tr>'
        for name, text, right in said
    )
    probability = "" if answer.p_changed is None else f" · P(changed) {answer.p_changed:.3f}"
    return (
        '<div style="border-top:1px solid #888;padding:6px 0">'
        f"<div>{MARKS[answer.exact_match]} <b>{escape(answer.uid)}</b>{probability}</div>"
        '<div style="display:flex;gap:16px">'
        f'<div style="{HALF};white-space:pre-wrap;overflow-wrap:anywhere">{escape(item.prompt)}</div>'
        f'<div style="{HALF}"><table style="width:100%;table-layout:auto;margin:0">{rows}</table></div></div></div>'
    )


def calibration_figure(items: Sequence[Item]) -> Figure:
    """Reliability diagram of P(changed): how often the behaviour changes among items of like probability.

    Args:
        items: Those without P(changed) are left out.

    Returns:
        Above, the share of changed items in each of ten bins of equal width (at the bin's mean probability) with its 95 %
        Wilson interval; below, the number of items a bin. The title gives the calibration error as ``summary.json`` does.
    """
    known = [item.prediction for item in items if item.prediction.p_changed is not None]
    found = statistics(known, known[0].question_type).get("calibration_error") if known else None
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    if found is None:
        figure.suptitle("no item here has a P(changed)")
        return figure
    statistic, clusters = found
    probability, changed = statistic.values.T  # [n] each
    bins = np.digitize(probability, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1])
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], linestyle="--", color="grey")
    for index in np.unique(bins):
        inside = changed[bins == index]
        middle, count, share = (index + 0.5) / CALIBRATION_BINS, len(inside), inside.mean()
        # Not a bootstrap: resampling a bin whose items all agree would give an interval of no width.
        interval = binomtest(int(inside.sum()), count).proportion_ci(0.95, method="wilson")
        error = [[share - interval.low], [interval.high - share]]
        upper.errorbar(probability[bins == index].mean(), share, yerr=error, fmt="o", color="C0", capsize=3)
        lower.bar(middle, count, width=0.9 / CALIBRATION_BINS, color="C0")
        lower.annotate(str(count), (middle, count), ha="center", va="bottom")
    upper.set(ylabel="share that changes (95 % interval)", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    lower.set(xlabel="P(changed)", ylabel="items")
    lower.margins(y=0.3)  # room for the counts
    error_of_all = report.cell(Bootstrap(clusters).estimate(statistic))
    figure.suptitle(f"{len(changed)} items, calibration error {error_of_all}\n(dashed: perfectly calibrated)")
    return figure
