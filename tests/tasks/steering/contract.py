"""Small data of the task, for the contract of all tasks."""

from pathlib import Path

from afintro.tasks.steering import SteeringPrediction
from tests.conftest import write_steering_records


def small_data(folder: Path) -> SteeringPrediction:
    """Write a few records into the folder, and return the data module that reads them."""
    write_steering_records(folder, counts=(6, 3))
    return SteeringPrediction(
        train_path=str(folder / "train.json"),
        validation_path=str(folder / "validation.json"),
        unseen_fraction=0.4,
        batch_size=4,
    )
