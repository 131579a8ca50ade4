"""Real tokens per second: answer and prompt tokens of the examples, never padding."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from afintro.data.batch import PackedBatch


class Throughput(Callback):
    """Logs ``train/tokens_per_second`` every ``log_every_n_steps``, and the learning rate at every step."""

    def __init__(self) -> None:
        self._tokens, self._since = 0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count anew, so that validation between epochs is not counted."""
        self._tokens, self._since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Count the tokens of a batch, and log at the trainer's interval."""
        self._tokens += len(batch.input_ids)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            now = time.monotonic()
            pl_module.log("train/tokens_per_second", self._tokens / max(now - self._since, 1e-9))
            self._tokens, self._since = 0, now
        pl_module.log("train/learning_rate", trainer.optimizers[0].param_groups[0]["lr"])
