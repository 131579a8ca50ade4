"""Small data of the task, for the contract of all tasks."""

from pathlib import Path

from afintro.tasks.context_ablation import ContextAblation
from tests.conftest import write_records


def small_data(folder: Path) -> ContextAblation:
    """Write a few records into the folder, and return the data module that reads them."""
    train = write_records(folder / "train.json", 12, seed=1)
    validation = write_records(folder / "validation.json", 6, seed=1, held_out_wording=True)
    return ContextAblation(train_path=str(train), validation_path=str(validation), batch_size=4)
