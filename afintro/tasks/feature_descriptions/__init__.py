"""The task of feature descriptions: its data module is named here, so that class paths in configurations stay short and valid."""

from afintro.tasks.feature_descriptions.task import FeatureDescriptions

__all__ = ["FeatureDescriptions"]
