"""Keep the class path ``afintro.sharding.Sharded``, which stands in saved configurations."""

from afintro.explainer.sharding import Sharded

__all__ = ["Sharded"]
