"""The last checkpoint, where training ends between two moments at which Lightning would write it."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(Callback):
    """Writes the checkpoints that no metric chooses once more when training ends, unless they are of the last step.

    Lightning writes them when validation ends, if validation does not run after every epoch.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them; all processes call this at once."""
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.monitor is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
                continue
            fixed = callback.filename is not None and "{" not in callback.filename
            if fixed and callback.save_top_k != 0 and callback._last_global_step_saved != trainer.global_step:
                callback.best_model_path = str(Path(str(callback.dirpath)) / f"{callback.filename}.ckpt")
                trainer.save_checkpoint(callback.best_model_path, weights_only=False)
