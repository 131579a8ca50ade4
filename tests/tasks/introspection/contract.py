"""Small data of the task, for the contract of all tasks."""

from pathlib import Path

from afintro.tasks.introspection import Introspection
from afintro.tasks.introspection.task import Sizes


def small_data(folder: Path) -> Introspection:
    """Return the data module that draws a few examples from the embedded texts; it writes nothing into the folder."""
    return Introspection(examples=Sizes(8, 6, 6), longest_context=300, vector_count=4, batch_size=4)
