"""The task of steering: its data module is named here, so that class paths in configurations stay short and valid."""

from typing import TYPE_CHECKING

from afintro.tasks import imported_later

if TYPE_CHECKING:
    from afintro.tasks.steering.task import SteeringPrediction

__all__ = ["SteeringPrediction"]
__getattr__ = imported_later("afintro.tasks.steering.task", __all__)
