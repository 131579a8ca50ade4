"""The task of steering: its data module is named here, so that class paths in configurations stay short and valid."""

from afintro.tasks.steering.task import SteeringPrediction

__all__ = ["SteeringPrediction"]
