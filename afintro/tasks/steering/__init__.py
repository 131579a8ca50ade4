"""The task of steering: its data module is named here, so that class paths in configurations stay short and valid."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afintro.tasks.steering.task import SteeringPrediction

__all__ = ["SteeringPrediction"]


def __getattr__(name: str) -> Any:
    """Import the data module once it is asked for: commands that train nothing need neither it nor what it imports."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from afintro.tasks.steering import task

    return getattr(task, name)
