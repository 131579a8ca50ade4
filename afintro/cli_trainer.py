"""The trainer's own switches: what is refused before any work, and which callbacks and loggers a run has."""

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from afintro.cli_layers import CALLBACKS, as_list, class_of, monitor_of
from afintro.errors import UserError

log = logging.getLogger(__name__)

LOGS = Path("lightning_logs")
MEASURED = "val/"  # what the names of validation's metrics begin with


class SwitchedTrainer(Trainer):
    """Lightning's trainer, whose limits are whole numbers of batches where they are written as whole numbers.

    Lightning writes ``Optional[Union[int, float]]``. Python remembers such types, and takes ``float`` before ``int`` where another
    library wrote them the other way round first, as transformers does: 1 batch then becomes 1.0, all batches.
    """

    def __init__(
        self,
        *,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        val_check_interval: int | float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            val_check_interval=val_check_interval,
            **settings,
        )


class RunFolder(CSVLogger):
    """Names the run's folder and logs nothing, for ``trainer.logger: false``."""

    def log_metrics(self, *_: Any, **__: Any) -> None:
        """Log nothing."""

    log_hyperparams = save = log_metrics

    def finalize(self, status: str) -> None:
        """Write nothing."""


def runs_folder(settings: Any) -> Path:
    """Return the folder of all runs: ``lightning_logs`` in ``trainer.default_root_dir``, or in the working directory.

    Args:
        settings: The parsed settings of a subcommand.
    """
    return Path(settings.trainer.get("default_root_dir") or "").expanduser() / LOGS


def loggers_of(given: Any, folder: Path, task: str) -> list[Logger]:
    """Return the run's loggers, of which the first names the run's folder.

    Args:
        given: ``trainer.logger``: loggers, whether there are any, or None.
        folder: The folder of all runs.
        task: Name of the task.

    Returns:
        TensorBoard and CSV in ``<folder>/<task>/version_k``, and the loggers that are given; these alone if one of them is of
        those two kinds, which have a folder.
    """
    if given is False or given == []:
        return [RunFolder(folder, name=task)]
    theirs: list[Logger] = [] if given in (None, True) else given if isinstance(given, list) else [given]
    if any(has_folder(logger) for logger in theirs):
        ordered = sorted(theirs, key=lambda logger: not has_folder(logger))
        log.info(
            "the run's folder is %s, as trainer.logger says: --ckpt_path best does not look there", ordered[0].log_dir
        )
        return ordered
    tensorboard = TensorBoardLogger(folder, name=task)
    table = CSVLogger(folder, name=task, version=tensorboard.version)
    # The folder is new: config.yaml was written just before. In a folder that a user names, logs may really be deleted.
    warnings.filterwarnings("ignore", message=f"Experiment logs directory {re.escape(table.log_dir)} exists")
    return [tensorboard, table, *theirs]


def has_folder(logger: Logger) -> bool:
    """Tell whether a logger has a folder for each run."""
    return isinstance(logger, TensorBoardLogger | CSVLogger)


def check_switches(trainer: Any, subcommand: str) -> None:
    """Refuse switches with which a command would do nothing, or not what they say.

    Args:
        trainer: The parsed settings of the trainer.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: A switch is refused; the error names it.
    """
    if trainer.get("barebones"):
        raise UserError(
            "logs nothing and keeps no checkpoint, so that a run would leave no result",
            where="trainer.barebones",
            remedy="leave it out; --trainer.logger false --trainer.enable_progress_bar false makes a run quiet",
        )
    if trainer.get("overfit_batches"):
        raise UserError(
            "does not hold here, where every epoch mixes the training items into other batches",
            where="trainer.overfit_batches",
            remedy="--data.limit 8 takes the same few records in every epoch",
        )
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if subcommand == "fit" and trainer.get(name) == 0:
            raise UserError(
                "is 0, so that nothing would be trained",
                where=f"trainer.{name}",
                remedy="give 1 or more; validate and test evaluate a checkpoint without training",
            )


def adapt_callbacks(settings: Any) -> None:
    """Leave out the callbacks that the trainer's switches leave nothing to do, with a line that says so.

    What is checked by a metric of validation is checked when validation ends, which an epoch need not have.

    Args:
        settings: The parsed settings of ``fit``, which are changed.
    """
    callbacks, trainer = as_list(settings.get(CALLBACKS)), settings.trainer
    if trainer.get("enable_checkpointing") is False:
        callbacks = _without(callbacks, lambda callback: issubclass(class_of(callback), Checkpoint))
        log.warning(
            "trainer.enable_checkpointing is false: nothing can be resumed, and only the last weights are reported"
        )
    if trainer.get("limit_val_batches") == 0:
        callbacks = _without(callbacks, _waits_for_validation)
        log.warning(
            "trainer.limit_val_batches is 0: no checkpoint is chosen, nothing stops early, the last weights are reported"
        )
    elif trainer.get("enable_checkpointing") is not False and not any(
        issubclass(class_of(callback), Checkpoint) for callback in callbacks
    ):
        log.warning("trainer.callbacks has no checkpoint: none is chosen by a metric, the last weights are reported")
    for callback in callbacks:
        stops = issubclass(class_of(callback), EarlyStopping) and _waits_for_validation(callback)
        if stops and callback.init_args.get("check_on_train_epoch_end") is None:
            callback.init_args.check_on_train_epoch_end = False
    if settings.get(CALLBACKS) is not None:
        settings[CALLBACKS] = callbacks


def _without(callbacks: Sequence[Any], left_out: Callable[[Any], bool]) -> list[Any]:
    return [callback for callback in callbacks if not left_out(callback)]


def _waits_for_validation(callback: Any) -> bool:
    known = issubclass(class_of(callback), EarlyStopping | ModelCheckpoint)
    return known and (monitor_of(callback) or "").startswith(MEASURED)


def best_checkpoint(trainer: Trainer) -> str | None:
    """Return the path of the checkpoint to report: the best one, or the last one where no metric chose; None without any."""
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    chosen = sorted(kept, key=lambda callback: callback.monitor is None)
    return next((callback.best_model_path for callback in chosen if callback.best_model_path), None)


def unchosen_warnings(trainer: Trainer) -> list[str]:
    """Return a warning for ``summary.json`` if training ended before a metric could choose a checkpoint."""
    choosing = [
        c.monitor for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and not c.best_model_path
    ]
    return [
        f"no checkpoint was chosen by {name}, which was never measured: the last one is reported"
        for name in choosing
        if name
    ]
