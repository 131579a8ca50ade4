"""What a person looks at: the table on the screen, the table of sample predictions, the confusion matrix."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from afintro.evaluation.answers import Verdict, parse_two_branch
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction

LABELS = {
    "exact_match": "exact match", "has_changed_f1": "changed F1", "twin_accuracy": "twins", "content_match": "content",
    "auroc_changed": "AUROC", "parse_rate": "parsed", "calibration_error": "calibration error",
    "exact_match/orig_match": "exact orig", "exact_match/change_match": "exact change",
}  # fmt: skip
CATEGORY = "/category/"
CATEGORY_SYSTEMS = ("explainer", "ridge_parts", "nearest", "layer_tfidf")  # more columns are wider than a terminal
TITLES = {"labelled_name": "Labelled names in new wordings"}
COLUMNS = 4  # more columns, with their intervals, are wider than a terminal
VERDICTS = ("unchanged", "changed", "unparsed")


def verdict_name(verdict: Verdict | None) -> str | None:
    """Return ``changed`` or ``unchanged``; None for an answer without a verdict."""
    return None if verdict is None else VERDICTS[int(verdict.changed)]


def cell(estimate: Estimate | None, digits: int = 3) -> str:
    """Format an estimate as ``0.930 [0.90, 0.96]``.

    Args:
        estimate: The estimate. One without a value is ``null``, one without an interval stands alone; None, where the metric does
            not apply, is a dash.
        digits: Number of decimal places of the value.
    """
    if estimate is None:
        return "-"
    if estimate.value is None:
        return "null"
    if estimate.ci_low is None or estimate.ci_high is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.ci_low:.2f}, {estimate.ci_high:.2f}]"


@dataclass(frozen=True)
class Trained:
    """Hold how the trained systems of a table were trained, and how well they fit.

    Args:
        records: Epochs and stopping rule by system.
        fits: Share of items of a kind that each trained system answers exactly.
        of: What these items are.
        underfit: The systems that fit too badly for a comparison.
    """

    records: Mapping[str, Mapping[str, Any]]
    fits: Mapping[str, float]
    of: str
    underfit: Sequence[str]


def print_table(
    systems: dict[str, dict[str, Estimate]],
    leads: dict[str, Any],
    warnings: Sequence[str],
    trained: Trained | None = None,
    conclusion: str | None = None,
) -> None:
    """Print systems as rows and metrics as columns with 95 % intervals, then training, leads, warnings and the conclusion.

    Args:
        systems: System -> metric -> estimate.
        leads: Differences as ``summary.json`` holds them, by name.
        warnings: The warnings of the run.
        trained: How the trained systems were trained.
        conclusion: One sentence that says what the run showed, printed last.
    """
    console = Console(width=None if Console().is_terminal else 120)
    metrics = {name for scores in systems.values() for name in scores}
    columns = _columns(metrics, systems)
    new = ", new names" if "exact_match/labelled_name" in metrics else ""
    for start in range(0, len(columns), COLUMNS):
        title = f"Explainer beside its baselines{new}, {'further metrics' if start else '95 % intervals'}"
        _print_systems(console, title, {n: LABELS.get(n, n) for n in columns[start : start + COLUMNS]}, systems)
    for kind in sorted(name.partition("/")[2] for name in metrics if name.startswith("has_changed_f1/")):
        shown = {f"{name}/{kind}": label for name, label in LABELS.items() if f"{name}/{kind}" in metrics}
        _print_systems(console, TITLES.get(kind, kind), dict(list(shown.items())[:COLUMNS]), systems)
    _print_categories(console, systems)
    if trained is not None:
        _print_training(console, trained)
    _print_leads(console, leads)
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False)
    if conclusion is not None:
        console.print(conclusion, style="bold", highlight=False, markup=False)


def _print_training(console: Console, trained: Trained) -> None:
    """Print epochs and fit of the trained systems, and the rule by which each of them stopped."""
    if len(trained.fits) < 2:
        return
    rules = {name: str(record["rule"]) for name, record in trained.records.items() if record.get("rule")}
    same = len(set(rules.values())) == 1
    table = Table("system", title=f"Training, and exact match on {trained.of}")
    for heading in ("epochs", "fit", "", *([] if same or not rules else ["rule"])):
        table.add_column(heading, justify="right" if heading in ("epochs", "fit") else "left")
    for name, fit in trained.fits.items():
        epochs = trained.records.get(name, {}).get("epochs")
        mark = "underfit: proves nothing" if name in trained.underfit else ""
        cells = [name, "-" if epochs is None else str(epochs), f"{fit:.3f}", mark]
        table.add_row(*cells, *([] if same or not rules else [rules.get(name, "")]))
    console.print(table)
    if same:
        console.print(f"each explainer by the same rule: {next(iter(rules.values()))}", highlight=False, markup=False)


def _print_systems(
    console: Console, title: str, columns: dict[str, str], systems: dict[str, dict[str, Estimate]]
) -> None:
    """Print one table; ``columns`` maps a metric to the heading of its column."""
    table = Table("system", title=title)
    for label in columns.values():
        table.add_column(label, justify="right")
    for system, scores in systems.items():
        style = "bold" if system == "explainer" else None
        table.add_row(system, *[cell(scores.get(name)) for name in columns], style=style)
    console.print(table)


def _print_categories(console: Console, systems: dict[str, dict[str, Estimate]]) -> None:
    """Print one row per category, because a mean over items mostly describes the largest category."""
    names = [name for name in systems.get("explainer", {}) if CATEGORY in name]
    if not names:
        return
    shown = [name for name in CATEGORY_SYSTEMS if name in systems]
    table = Table("category", "items", *shown, title=f"{names[0].partition(CATEGORY)[0]} by category")
    for name in names:
        count = systems["explainer"][name].n
        cells = [cell(systems[system].get(name)) for system in shown]
        table.add_row(name.partition(CATEGORY)[2], str(count), *cells)
    console.print(table)


def _print_leads(console: Console, leads: dict[str, Any]) -> None:
    """Print leads over the best rival as lines, and leads over single baselines as a table if there are several."""
    single: dict[str, dict[str, Any]] = {}
    for name, value in leads.items():
        metric = name.removeprefix("lead/")
        paired = metric.endswith(f"/{value['against']}")
        if paired:
            single.setdefault(value["against"], {})[metric.removesuffix(f"/{value['against']}")] = value
        else:
            console.print(f"{name}: {difference(value)} against {value['against']}", highlight=False, markup=False)
    if len(single) == 1:
        for against, values in single.items():
            for metric, value in values.items():
                text = f"lead/{metric}/{against}: {difference(value)} against {against}"
                console.print(text, highlight=False, markup=False)
    elif single:
        metrics = list(dict.fromkeys(metric for values in single.values() for metric in values))
        for start in range(0, len(metrics), COLUMNS):
            shown = metrics[start : start + COLUMNS]
            table = Table("explainer minus", title="and" if start else "Paired differences (95 % intervals)")
            for metric in shown:
                table.add_column(metric, overflow="fold", justify="right")
            for against, values in single.items():
                cells = [difference(values[metric], 2) if metric in values else "-" for metric in shown]
                table.add_row(against, *cells)
            console.print(table)


def difference(value: dict[str, Any], digits: int = 3) -> str:
    """Format a difference as ``+0.123 [+0.051, +0.190]``.

    Args:
        value: A difference as ``summary.json`` holds it. One without a value is ``null``, one without an interval stands alone.
        digits: Number of decimal places.
    """
    if value["value"] is None:
        return "null"
    if value["ci_low"] is None or value["ci_high"] is None:
        return f"{value['value']:+.{digits}f}"
    return f"{value['value']:+.{digits}f} [{value['ci_low']:+.{digits}f}, {value['ci_high']:+.{digits}f}]"


def _columns(metrics: set[str], systems: dict[str, dict[str, Estimate]]) -> list[str]:
    """Order the metrics: the usual order for a task with verdicts, the explainer's order without categories otherwise."""
    if "has_changed_f1" in metrics:
        return [name for name in LABELS if name in metrics]
    return [name for name in systems.get("explainer", {}) if CATEGORY not in name]


def sample_table(predictions: Sequence[Prediction], prompts: dict[str, str], primary: str, rows: int = 20) -> str:
    """Write a Markdown table of predictions of the primary question type, wrong predictions first.

    Args:
        predictions: Predictions of one system.
        prompts: Prompts by uid.
        primary: The primary question type.
        rows: Maximum number of rows.
    """
    shown = sorted((p for p in predictions if p.question_type == primary), key=lambda p: (p.exact_match, p.uid))[:rows]
    lines = ["| right | prompt | expected | predicted | P(changed) |", "|---|---|---|---|---|"]
    for item in shown:
        probability = "" if item.p_changed is None else f"{item.p_changed:.2f}"
        cells = [prompts[item.uid], item.expected, item.predicted or ""]
        text = " | ".join(_markdown_cell(value) for value in cells)
        lines.append(f"| {'yes' if item.exact_match else 'no'} | {text} | {probability} |")
    return "\n".join(lines)


def _markdown_cell(text: str) -> str:
    """Write text as one line without markup: characters that Markdown would interpret become entities."""
    line = html.escape(" ".join(text.split()))
    for character in "\\`|*_[]":
        line = line.replace(character, f"&#{ord(character)};")
    return line


def confusion_figure(
    predictions: Sequence[Prediction], primary: str, title: str = "Does the behavior change?"
) -> Figure:
    """Draw the counts of expected against predicted verdicts.

    Args:
        predictions: Predictions of one system.
        primary: The question type to draw.
        title: Title of the figure.
    """
    counts = np.zeros((2, 3), dtype=int)
    for item in predictions:
        true = parse_two_branch(item.expected, item.cut)
        if item.question_type == primary and true is not None:
            parsed = parse_two_branch(item.predicted or "", item.cut)
            counts[int(true.changed), 2 if parsed is None else int(parsed.changed)] += 1
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(counts, cmap="Blues", vmin=0)
    for row in range(2):
        for column in range(3):
            dark = counts[row, column] > counts.max() / 2
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", color="white" if dark else "black"
            )
    axes.set_xticks(range(3), VERDICTS)
    axes.set_yticks(range(2), VERDICTS[:2])
    axes.set_xlabel("predicted")
    axes.set_ylabel("expected")
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, label="items", shrink=0.75)
    return figure


def print_pairs(summary: dict[str, Any]) -> None:
    """Print what pair generation measured: rates with intervals, behaviors under both conditions, warnings."""
    tokens = summary["mean_response_tokens"]  # unknown of the answers of other people's models
    table = Table(
        title=f"{summary['samples']} pairs of answers"
        if tokens is None
        else f"{summary['samples']} scenarios, answers of {tokens:.1f} tokens on average"
    )
    table.add_column("rate")
    table.add_column("value [95 % interval]", justify="right")
    table.add_column("n", justify="right")
    for name, rate in summary["rates"].items():
        table.add_row(name, cell(Estimate(**rate)), str(rate["n"]))
    console = Console()
    console.print(table)
    for condition, counts in summary["behaviors"].items():
        listed = ", ".join(f"{label} {count}" for label, count in counts.items())
        console.print(f"{condition}: {listed}", highlight=False)
    for condition, rates in summary.get("behavior_rates", {}).items():  # of sampled answers
        listed = ", ".join(f"{label} {cell(Estimate(**rate))}" for label, rate in rates.items())
        console.print(f"P(behavior) {condition}: {listed}", highlight=False, markup=False)
    _print_agreement(console, summary)
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="bold red", highlight=False, markup=False)


def _print_agreement(console: Console, summary: dict[str, Any]) -> None:
    """Print how well two labelers agree, and which exact match that allows, where a second labeler was asked."""
    agreement = summary.get("label_agreement")
    if agreement is not None:
        kappa, ceiling = Estimate(**agreement["kappa"]), Estimate(**agreement["ceiling_exact_match"])
        unanswered = f"; no opinion on {agreement['unanswered']} answers" if agreement["unanswered"] else ""
        console.print(
            f"labels: {' against '.join(agreement['labelers'])}: kappa {cell(kappa)} over {kappa.n} answers{unanswered}; whoever "
            f"knew the second's verdicts would score exact match {cell(ceiling)} ({ceiling.n} records)",
            highlight=False,
            markup=False,
        )


def print_steering(summary: dict[str, Any]) -> None:
    """Print what steering measured: a row per direction and layer, a column per alpha; guards and warnings below."""
    conditions = summary["doses"]
    alphas = sorted({condition["alpha"] for condition in conditions})
    table = Table(
        "direction", "layer", *[f"alpha {alpha:g}" for alpha in alphas],
        title=f"{summary['samples']} scenarios: behavior changed [95 % interval] (share of broken texts)",
    )  # fmt: skip
    rows: dict[tuple[str, int], dict[float, str]] = {}
    for condition in conditions:
        changed, broken = Estimate(**condition["behavior_changed"]), condition["broken"]["value"]
        text = cell(changed) + (f" ({broken:.2f})" if broken else "")
        rows.setdefault((condition["direction"], condition["layer"]), {})[condition["alpha"]] = text
    for (direction, layer), cells in rows.items():
        table.add_row(escape(direction), str(layer), *[cells.get(alpha, "-") for alpha in alphas])
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    best = summary.get("best_dose")  # absent from summaries of before
    if best is not None:
        control = f", its random control {cell(Estimate(**best['random']))}" if "random" in best else ""
        changed = Estimate(**best["behavior_changed"])
        known = best.get("beyond_random", True)
        said = "steers best" if known else "is not seen to steer more than chance; most"
        console.print(
            f"{best['direction']} {said} at layer {best['layer']}, alpha {best['alpha']:g}: behavior changed in "
            f"{cell(changed)} of {changed.n} prompts{control} (chosen on these prompts)",
            highlight=False,
            markup=False,
        )
    guards = summary["guards"]
    console.print(
        f"guards: alpha 0 changes {guards['zero_differs']} of {guards['prompts']} prompts; generated alone, "
        f"{guards['alone_differs']} of {guards['controls']} differ (behavior: {guards['alone_behaves_otherwise']})",
        highlight=False,
    )
    rates = {name: rate["value"] for name, rate in summary.get("rates", {}).items() if rate["value"] is not None}
    if rates:
        listed = ", ".join(f"{name.replace('_', ' ')} {100 * rate:.1f} %" for name, rate in rates.items())
        console.print(f"outputs: {listed}", highlight=False)
    _print_agreement(console, summary)
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="bold red", highlight=False, markup=False)
