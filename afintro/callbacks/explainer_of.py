"""The explainer that a callback is called with."""

from lightning import LightningModule

from afintro.explainer.module import ExplainerModule


def explainer_of(pl_module: LightningModule) -> ExplainerModule:
    """Return the module that Lightning passes to a callback, typed as the explainer that it is.

    Raises:
        TypeError: The callback runs with another module.
    """
    if not isinstance(pl_module, ExplainerModule):
        raise TypeError(f"the callback runs with ExplainerModule, not with {type(pl_module).__name__}")
    return pl_module
