"""The task of feature descriptions: its data module is named here, so that class paths in configurations stay short and valid."""

from typing import TYPE_CHECKING

from afintro.tasks import imported_later

if TYPE_CHECKING:
    from afintro.tasks.feature_descriptions.task import FeatureDescriptions

__all__ = ["FeatureDescriptions"]
__getattr__ = imported_later("afintro.tasks.feature_descriptions.task", __all__)
