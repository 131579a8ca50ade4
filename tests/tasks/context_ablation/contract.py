"""Small data of the task, for the contract of all tasks."""

import json
from pathlib import Path

from afintro.data.files import write_json
from afintro.tasks.context_ablation import ContextAblation
from tests.conftest import write_records


def small_data(folder: Path) -> ContextAblation:
    """Write a few records into the folder, and return the data module that reads them; half of those evaluated have names."""
    train = write_records(folder / "train.json", 12, seed=1)
    validation = write_records(folder / "validation.json", 6, seed=1, held_out_wording=True)
    for path in (train, validation):
        rows = json.loads(path.read_text())
        named = [{**row, "scenario_id": f"name {number}"} for number, row in enumerate(rows[:3])]
        write_json(path, [*named, *rows[3:]])
    paths = {"train_path": str(train), "validation_path": str(validation), "test_path": str(validation)}
    return ContextAblation(**paths, batch_size=4)
