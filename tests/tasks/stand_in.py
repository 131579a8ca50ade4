"""A stand-in for the trainer, of which a data module asks the explainer, the processes and the limits on batches."""

from types import SimpleNamespace
from typing import Any


def trainer_of(explainer: Any) -> Any:
    """Return what a data module asks of the trainer of an explainer in one process, without limits."""
    return SimpleNamespace(
        global_rank=0, world_size=1, lightning_module=explainer, limit_val_batches=1.0, limit_test_batches=1.0
    )
