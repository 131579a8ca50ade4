"""Look into a finished run: load it, select items, show every system's answer side by side, plot the calibration."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from afintro.data.sources import read_rows
from afintro.errors import UserError
from afintro.evaluation import report
from afintro.evaluation.calibration import CALIBRATION_BINS, bins_of
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, estimate, statistics

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
    """Hold one item of a run: the explainer's answer, the prompt as a person reads it, and the answers of the baselines.

    Args:
        prediction: The explainer's answer.
        prompt: The prompt.
        baselines: Answers by system.
        exact: Whether each answer is exact, by system; empty in files that were written before it was recorded.
    """

    prediction: Prediction
    prompt: str
    baselines: dict[str, str | None]
    exact: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Hold the results of a finished run.

    Args:
        path: The run's folder.
        systems: Explainer and baselines: system -> metric -> value with its 95 % interval.
        leads: Differences to the best baseline: ``lead/<metric>`` -> value, interval and ``against``.
        warnings: The warnings of the run.
        items: Items in the order of ``predictions.jsonl``.
        primary: The question type whose answers carry a verdict and whose metric names have no suffix; empty if none does.
        conclusion: The sentence that says what the run showed; None for a task or a run without.
    """

    path: Path
    systems: dict[str, dict[str, Estimate]]
    leads: dict[str, dict[str, Any]]
    warnings: list[str]
    items: list[Item]
    primary: str
    conclusion: str | None = None


def newest_run(task: str) -> Path:
    """Find the newest finished run of a task, in the ``lightning_logs`` nearest above the working directory.

    Args:
        task: Name of the task, e.g. ``context_ablation``.

    Returns:
        The run's folder.

    Raises:
        UserError: The task has no finished run.
    """
    # Notebooks run in their own folder, below the folder that holds lightning_logs.
    folders = [folder / LOGS / task for folder in (Path.cwd(), *Path.cwd().parents)]
    root = next((folder for folder in folders if folder.is_dir()), folders[0])
    finished = [path for path in root.glob("version_*") if all((path / name).is_file() for name in FILES)]
    numbered = {int(path.name[8:]): path for path in finished if path.name[8:].isdecimal()}
    if not numbered:
        raise UserError(f"has no finished run of {task}", where=str(root), remedy=REMEDY)
    return numbered[max(numbered)]


def load_run(path: str | Path) -> Run:
    """Read and check the results of a run.

    Args:
        path: The run's folder.

    Raises:
        UserError: A file is missing or damaged; the error names file, record and field.
    """
    folder = Path(path).resolve()  # so that a message shows what a relative path meant
    for name in FILES:
        if not (folder / name).is_file():
            what = f"has no {name}" if folder.is_dir() else "does not exist"
            raise UserError(what, where=str(folder), remedy=REMEDY)
    summary_path, predictions_path = (folder / name for name in FILES)
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        metrics, warnings, count = summary["metrics"], list(summary["warnings"]), summary["n"]
        names = [name for name in metrics if name.startswith("lead/")]
        leads = {name: {key: metrics[name][key] for key in (*ESTIMATE, "against")} for name in names}
        scores = {"explainer": {name: metrics[name] for name in metrics if name not in names}, **summary["baselines"]}
        systems = {
            system: {name: Estimate(*(value[key] for key in ESTIMATE)) for name, value in values.items()}
            for system, values in scores.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"is not the summary of a run ({type(error).__name__}: {error})"
        raise UserError(what, where=str(summary_path), remedy=REMEDY) from error
    rows = [_checked(row, f"{predictions_path}, record {i}") for i, row in enumerate(read_rows(str(predictions_path)))]
    if len(rows) != count:
        what = f"holds {len(rows)} items, but summary.json counts {count}"
        raise UserError(what, where=str(predictions_path), remedy="evaluate again: the files belong to different runs")
    # Metric names of further question types with verdicts end with the question type.
    kinds = [row["question_type"] for row in rows if row["verdict_expected"] is not None]
    primary = next((kind for kind in kinds if f"has_changed_f1/{kind}" not in metrics), "")
    return Run(folder, systems, leads, warnings, [_item(row) for row in rows], primary, summary.get("conclusion"))


def _checked(row: Any, where: str) -> dict[str, Any]:
    for name, types in FIELDS.items():
        if not isinstance(row, dict) or name not in row or not isinstance(row[name], types):
            what = f"field {name!r} is absent or has a wrong type"
            raise UserError(what, where=where, remedy="evaluate again: the file is damaged, or comes from 'predict'")
    return row


def _item(row: dict[str, Any]) -> Item:
    fields = {name: row[name] for name in ("uid", "question_type", "expected", "predicted", "exact_match", "p_changed")}
    fields |= {name: row[name] for name in ("group", "twins", "scores") if name in row}
    # The results contract does not require the scenario, whose items are resampled together.
    scenario = row.get("scenario_id") or row["uid"].removesuffix(f"/{row['question_type']}")
    return Item(
        Prediction(scenario_id=scenario, **fields),
        row["prompt"],
        row["baselines"],
        row.get("baselines_exact_match", {}),
    )


def select(run: Run, right: bool | None = None, question_type: str | None = None) -> list[Item]:
    """Select items of a run.

    Args:
        run: The run.
        right: True for items that the explainer answered correctly, False for the others, None for all items.
        question_type: Question type of the items; None for all.

    Raises:
        UserError: The run does not have this question type.
    """
    known = sorted({item.prediction.question_type for item in run.items})
    if question_type is not None and question_type not in known:
        what = f"has no question type {question_type!r}"
        raise UserError(what, where=str(run.path), remedy=f"use {', '.join(known)}")
    answers = [(item, item.prediction) for item in run.items]
    return [i for i, p in answers if right in (None, p.exact_match) and question_type in (None, p.question_type)]


def show_summary(run: Run) -> None:
    """Print what the run ended with: explainer beside its baselines with intervals, leads, warnings, conclusion."""
    unknown = [name for name, lead in run.leads.items() if lead["value"] is None]
    leads = {name: lead for name, lead in run.leads.items() if name not in unknown}
    warnings = [*run.warnings, *(f"{name} cannot be computed" for name in unknown)]
    report.print_table(run.systems, leads, warnings, conclusion=run.conclusion)


def side_by_side(items: Sequence[Item]) -> str:
    """Write HTML with one block per item: the prompt on the left; the expected answer and all systems' answers on the right."""
    blocks = "".join(_block(item) for item in items) or "<p>No such item.</p>"
    # The classes keep notebooks from typesetting text between dollar signs as formulas.
    return f'<div class="tex2jax_ignore mathjax_ignore">{blocks}</div>'


def _block(item: Item) -> str:
    answer = item.prediction
    answers = [("expected", answer.expected, None), ("explainer", answer.predicted, answer.exact_match)]
    answers += [(name, text, item.exact.get(name, text == answer.expected)) for name, text in item.baselines.items()]
    rows = "".join(
        f'<tr><th style="{CELL};white-space:nowrap">{escape(name)}</th><td style="{CELL}">{MARKS[right]}</td>'
        f'<td style="{CELL};width:100%">{"<i>none</i>" if text is None else escape(text)}</td></tr>'
        for name, text, right in answers
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
    """Draw the reliability diagram of P(changed): how often the behavior changes among items of similar probability.

    Args:
        items: Items of one question type; items without P(changed) are left out.

    Returns:
        A figure. Above: the share of changed items in each of ten bins of equal width (at the bin's mean probability) with
        its 95 % Wilson interval. Below: the number of items per bin. The title gives the calibration error as
        ``summary.json`` does.
    """
    known = [item.prediction for item in items if item.prediction.p_changed is not None]
    score = statistics(known, known[0].question_type).get("calibration_error") if known else None
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    if score is None:
        figure.suptitle("no item here has a P(changed)")
        return figure
    statistic, units = score
    probability, changed = statistic.values.T  # [n] each
    bins = bins_of(probability)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], linestyle="--", color="grey")
    for index in np.unique(bins):
        inside = changed[bins == index]
        middle, count, share = (index + 0.5) / CALIBRATION_BINS, len(inside), inside.mean()
        interval = binomtest(int(inside.sum()), count).proportion_ci(0.95, method="wilson")
        error = [[share - interval.low], [interval.high - share]]
        upper.errorbar(probability[bins == index].mean(), share, yerr=error, fmt="o", color="C0", capsize=3)
        lower.bar(middle, count, width=0.9 / CALIBRATION_BINS, color="C0")
        lower.annotate(str(count), (middle, count), ha="center", va="bottom")
    upper.set(ylabel="share that changes (95 % interval)", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    lower.set(xlabel="P(changed)", ylabel="items")
    lower.margins(y=0.3)  # room for the counts
    error_of_all = report.cell(estimate(statistic, units))
    figure.suptitle(f"{len(changed)} items, calibration error {error_of_all}\n(dashed: perfectly calibrated)")
    return figure
