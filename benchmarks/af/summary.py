"""The tables of the benchmark: groups, systems within a group, and systems that are asked about another model."""

from collections.abc import Mapping, Sequence
from typing import Any

from afintro.evaluation.intervals import Clusters
from afintro.evaluation.metrics import Prediction, score, statistics
from afintro.tasks.context_ablation.imports.write import SPLITS
from afintro.tasks.context_ablation.task import PRIMARY
from benchmarks.af.answering import predictions
from benchmarks.af.chance import noise_of
from benchmarks.af.groups import Group, targets

METRICS = {
    "exact_match": "exact match",
    "has_changed_f1": "macro-F1 of the verdict",
    "auroc_changed": "AUROC of the verdict",
}
READS_THE_ORGANISM = "copy_monitored"  # it learns nothing, and is shown what the asked model did under the cue
Row = dict[str, Any]


def group_row(group: Group) -> Row:
    """Return sizes, rates and noise of a group."""
    clusters = Clusters([record.scenario_id for record in group.every])
    changed = [record.behavior_changed for record in group.every]
    return {
        "group": group.name,
        "model": group.model,
        "prompt": group.prompt,
        "left_out": group.left_out,
        "data_sets": sorted({record.provenance["data_set"] for record in group.every}),
        "pairs": len(group.every),
        "requests": len({record.scenario_id for record in group.every}),
        **{split: len(group.records[split]) for split in SPLITS},
        "changed": clusters.share(
            [bool(value) for value in changed], [value is not None for value in changed]
        ).as_json(),
        "noise": noise_of(group),
    }


def rows_of(groups: Sequence[Group], results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Score every system of every group on everything that it was asked about.

    Args:
        groups: The groups that take part.
        results: What the systems of each group answered, by the group's name, as
            :func:`benchmarks.af.answering.as_json` writes it.

    Returns:
        A row for each system, group that it learned from and group that it was asked about. Rows about another model have
        ``own_minus_this``: the paired difference, on the same items, of the same system that learned from that model.
    """
    answers = {group.name: _answers(results[group.name]) for group in groups}
    rows = []
    for group in groups:
        for target in targets(group, groups):
            asked = {f"{record.uid}/{PRIMARY}" for record in target.records["test"]}
            for system, (taught, said) in answers[group.name].items():
                if target is not group and system == READS_THE_ORGANISM:
                    continue
                of_target = [prediction for prediction in said if prediction.uid in asked]
                row = _row(of_target) | {
                    "trained_on": group.name,
                    "asked_about": target.name,
                    "system": system,
                    "taught": taught,
                }
                own = answers[target.name].get(system)
                if target is not group and own is not None:
                    row["own_minus_this"] = _difference([p for p in own[1] if p.uid in asked], of_target)
                rows.append(row)
    return rows


def _answers(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, list[Prediction]]]:
    """Return what each system was taught and said."""
    return {
        system: (result["taught"], predictions(dict(result), system))
        for result in results
        for system in result["systems"]
    }


def _row(said: Sequence[Prediction]) -> Row:
    scores = score(statistics(said, PRIMARY))
    return {"items": len(said), "metrics": {name: scores[name].as_json() for name in METRICS if name in scores}}


def _difference(own: Sequence[Prediction], other: Sequence[Prediction]) -> dict[str, Any]:
    """Return how much better a system is that learned from the model which it is asked about, by metric."""
    first, second = statistics(own, PRIMARY), statistics(other, PRIMARY)
    found = {}
    for name in METRICS:
        if name in first and name in second:
            statistic, units = first[name]
            assert isinstance(units, list)
            found[name] = statistic.lead(second[name][0], Clusters(units)).as_json()
    return found


def markdown(tables: Mapping[str, Any]) -> str:
    """Write the tables.

    Args:
        tables: ``groups``, ``rows`` and ``compared``, as the command writes them.
    """
    return "\n\n".join(
        "\n".join(lines)
        for lines in (_groups(tables), _within(tables["rows"]), _between(tables["rows"]), _chance(tables))
        if lines
    )


def _groups(tables: Mapping[str, Any]) -> list[str]:
    lines = [
        "| group | data | pairs | requests | train, validation, test | behavior changes | second answer differs (chance) |",
        "|---|---|--:|--:|---|---|---|",
    ]
    for row in tables["groups"]:
        noise = row["noise"]
        chance = (
            "unknown"
            if noise["said"] != "measured"
            else (f"{_cell(noise['sampling_noise_monitored'])}, {_cell(noise['sampling_noise_unmonitored'])}")
        )
        sizes = ", ".join(str(row[split]) for split in SPLITS)
        out = f" (left out: {row['left_out']})" if row["left_out"] else ""
        lines.append(
            f"| {row['group']}{out} | {', '.join(row['data_sets'])} | {row['pairs']} | {row['requests']} | {sizes} "
            f"| {_cell(row['changed'])} | {chance} |"
        )
    return lines


def _within(rows: Sequence[Row]) -> list[str]:
    lines = [f"| group | system | items | {' | '.join(METRICS.values())} |", f"|---|---|--:|{'---|' * len(METRICS)}"]
    return lines + [
        f"| {row['asked_about']} | `{row['system']}` | {row['items']} | {_cells(row['metrics'])} |"
        for row in rows
        if row["trained_on"] == row["asked_about"]
    ]


def _between(rows: Sequence[Row]) -> list[str]:
    moved = [row for row in rows if row["trained_on"] != row["asked_about"]]
    lines = [
        f"| learned from | asked about | system | items | {' | '.join(METRICS.values())} | exact match: own minus this |",
        f"|---|---|---|--:|{'---|' * (len(METRICS) + 1)}",
    ]
    for row in moved:
        lines.append(
            f"| {row['trained_on']} | {row['asked_about']} | `{row['system']}` | {row['items']} | {_cells(row['metrics'])} "
            f"| {_cell(row.get('own_minus_this', {}).get('exact_match'), '+')} |"
        )
    return lines if moved else []


def _chance(tables: Mapping[str, Any]) -> list[str]:
    heads = (
        "one", "other", "requests", "monitored behaviors differ", "unmonitored behaviors differ",
        "behavior changes in one, in the other", "kappa of the change",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|---|--:|---|---|---|---|"]
    for row in tables["compared"]:
        changed = f"{_cell(row['changed_one'])}, {_cell(row['changed_other'])}"
        cells = (
            row["one"],
            row["other"],
            row["requests"],
            _cell(row["monitored_differs"]),
            _cell(row["unmonitored_differs"]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} | {changed} | {_cell(row['kappa_changed'])} |")
    return lines if tables["compared"] else []


def _cells(metrics: Mapping[str, Any]) -> str:
    return " | ".join(_cell(metrics.get(name)) for name in METRICS)


def _cell(value: Mapping[str, Any] | None, sign: str = "") -> str:
    """Write an estimate with its interval; "null" where there is none. ``sign`` is + to write the sign of a difference."""
    if value is None or value["value"] is None:
        return "null"
    said = f"{value['value']:{sign}.3f}"
    if value["ci_low"] is None:
        return said
    return f"{said} [{value['ci_low']:{sign}.2f}, {value['ci_high']:{sign}.2f}]"
