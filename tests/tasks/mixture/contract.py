"""Small data of three tasks together, for the contract of all tasks."""

from pathlib import Path

from afintro.tasks.base import TaskData
from afintro.tasks.mixture import Mixture
from tests.tasks.context_ablation import contract as context_ablation
from tests.tasks.feature_descriptions import contract as feature_descriptions
from tests.tasks.steering import contract as steering


def small_tasks(folder: Path) -> dict[str, TaskData]:
    """Write a few records of every task into the folder, and return the data modules that read them."""
    parts = {
        "context_ablation": context_ablation,
        "feature_descriptions": feature_descriptions,
        "steering": steering,
    }
    tasks = {}
    for name, part in parts.items():
        (folder / name).mkdir()
        tasks[name] = part.small_data(folder / name)
    return tasks


def small_data(folder: Path) -> Mixture:
    """Return the mixture of all tasks."""
    return Mixture(tasks=small_tasks(folder), weights={"steering": 2.0}, batch_size=4)
