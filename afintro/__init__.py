"""afintro: explainer language models that say how and why an alignment-faking model behaves as it does."""

__all__ = ["__version__"]

__version__ = "0.1.0"
