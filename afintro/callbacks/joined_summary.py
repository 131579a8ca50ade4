"""The summary over all tasks of a mixture, each of which has a table and a summary of its own."""

from collections.abc import Mapping
from typing import Any

from afintro.tasks.base import TaskData

SHARED = ("split", "model", "versions", "git_commit")  # of which every summary says the same


def joined_summary(
    data: TaskData, split: str, summaries: Mapping[str, Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """Return the ``summary.json`` of a run with several tables: the explainer's metrics by ``<task>/<metric>``.

    Args:
        data: The data module of all tasks.
        split: ``validation`` or ``test``.
        summaries: The summary of each task, by name.
        seconds: Time that the whole evaluation took.
    """
    first = next(iter(summaries.values()))
    reported = sorted({str(summary["reported_on"]) for summary in summaries.values()})
    return {
        "task": data.task,
        **{name: first[name] for name in SHARED},
        "reported_on": ", ".join(reported),
        "n": sum(summary["n"] for summary in summaries.values()),
        "seconds": seconds,
        "metrics": _joined(summaries, "metrics"),
        "baselines": {
            system: _of_system(summaries, system)
            for system in dict.fromkeys(system for summary in summaries.values() for system in summary["baselines"])
        },
        "warnings": [f"{name}: {line}" for name, summary in summaries.items() for line in summary["warnings"]],
        "conclusions": {name: summary["conclusion"] for name, summary in summaries.items() if "conclusion" in summary},
        "tasks": {name: f"{name}/summary.json" for name in summaries},
        "data": data.describe(split),
    }


def _joined(summaries: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, Any]:
    return {f"{name}/{metric}": value for name, summary in summaries.items() for metric, value in summary[part].items()}


def _of_system(summaries: Mapping[str, Mapping[str, Any]], system: str) -> dict[str, Any]:
    return {
        f"{name}/{metric}": value
        for name, summary in summaries.items()
        for metric, value in summary["baselines"].get(system, {}).items()
    }
