"""Small data of the task, for the contract of all tasks."""

from pathlib import Path

from afintro.tasks.feature_descriptions import FeatureDescriptions
from tests.conftest import write_described_features


def small_data(folder: Path) -> FeatureDescriptions:
    """Write a few features into the folder, and return the data module that reads them."""
    write_described_features(folder)
    return FeatureDescriptions(
        train_path=str(folder / "descriptions.json"),
        features=[str(folder / "L3.safetensors")],
        validation_fraction=0.3,
        batch_size=4,
    )
