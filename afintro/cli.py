"""The command line: the only place where everything meets."""

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from afintro.callbacks import Preflight, Results, Throughput
from afintro.cli_errors import explain
from afintro.errors import UserError
from afintro.explainer.checkpoint import resolve_checkpoint
from afintro.explainer.comparisons import train_comparison
from afintro.explainer.module import ExplainerModule
from afintro.explainer.sharding import Sharded
from afintro.tasks.base import OTHER_BASE, TEXT_ONLY, TaskData

LOGS = Path("lightning_logs")
SUBCOMMANDS = ("fit", "validate", "test", "predict")


class ExplainerCLI(LightningCLI):
    """LightningCLI with a fixed model class, one data module class a task, and the results contract."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self.results = Results()
        super().__init__(
            ExplainerModule,
            TaskData,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [self.results, Throughput(), Preflight()]},
            parser_kwargs={
                "exit_on_error": False,
                "allow_abbrev": False,
                **{name: {"exit_on_error": False, "allow_abbrev": False} for name in SUBCOMMANDS},
            },
            args=None if args is None else list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """fit, validate, test and predict; what they take besides comes from the configuration."""
        return {
            name: {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
            for name in SUBCOMMANDS
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Comparison explainers that are trained after ``fit``: on another base, and without vectors."""
        parser.add_argument(
            "--other_base",
            type=str | None,
            default=None,
            help="after fit, train the same explainer on this base model too, as a comparison (hub id, directory or toy name)",
        )
        parser.add_argument(
            "--text_only",
            type=bool,
            default=False,
            help="after fit, train the same explainer with zero vectors too, as a comparison (tasks with vectors)",
        )

    def before_instantiate_classes(self) -> None:
        """Name the run's folder after its task, and find the checkpoint that ``best`` and ``last`` mean."""
        settings = self.config[self.subcommand]
        task = self._data_class(settings).task
        if settings.get("text_only") and not self._data_class(settings).has_vectors:
            raise UserError(f"{task} has no vectors", where="--text_only", remedy="leave it out")
        checkpoint = settings.get("ckpt_path")
        if checkpoint:
            settings.ckpt_path = str(resolve_checkpoint(checkpoint, LOGS, task))
        elif self.subcommand != "fit":
            raise UserError(
                "is absent", where="--ckpt_path", remedy="give a .ckpt file, or 'best' for that of the newest run"
            )

    @staticmethod
    def _data_class(settings: Any) -> type[TaskData]:
        module, name = settings.data.class_path.rsplit(".", 1)
        found = getattr(sys.modules[module], name)
        assert issubclass(found, TaskData)
        return found

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """TensorBoard and CSV in ``lightning_logs/<task>/version_k``, unless the configuration names loggers."""
        if self._get(self.config, "trainer.logger") in (None, True):
            tensorboard = TensorBoardLogger(LOGS, name=self.datamodule.task)
            kwargs["logger"] = [tensorboard, CSVLogger(LOGS, name=tensorboard.name, version=tensorboard.version)]
        return super().instantiate_trainer(**kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # A checkpoint is read as tensors and plain values; nothing in it can run.
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        """Processes that this one started do not outlive it: they would wait for it."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            launcher = self.trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGKILL)
            raise

    def before_fit(self) -> None:
        """Refuse comparisons where weights are sharded: an evaluation would hold those of two bases in every process."""
        settings = self.config[self.subcommand]
        wanted = [name for name in (OTHER_BASE, TEXT_ONLY) if settings.get(name)]
        if wanted and isinstance(self.trainer.strategy, Sharded):
            what = f"{' and '.join(wanted)} cannot be trained with sharded weights"
            raise UserError(
                what, where="trainer.strategy", remedy="lay configs/fsdp.yaml over the others last, or use ddp"
            )

    def after_fit(self) -> None:
        """Train the comparison, then evaluate the best checkpoint with everything that ``validate`` does."""
        if self.trainer.interrupted or not self.trainer.checkpoint_callback:
            return
        best = self.trainer.checkpoint_callback.best_model_path  # type: ignore[attr-defined]
        settings = self.config[self.subcommand]
        wanted = {OTHER_BASE: settings.get("other_base"), TEXT_ONLY: settings.get("text_only") and self.model.name}
        for name, base in wanted.items():
            if base:
                # As many epochs as the explainer took: early stopping may have cut it short.
                # A strategy serves one trainer: this one gets its own.
                fresh = self._get(self.parser.instantiate_classes(self.config), "trainer").as_dict()
                own = fresh | {"max_epochs": self.trainer.current_epoch}
                train_comparison(name, base, self.model, self.datamodule, own, Path(str(self.trainer.log_dir)))
        self.trainer.validate(
            self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False, weights_only=True
        )


@dataclass(frozen=True)
class Ended:
    """How a run of the command line ended.

    Args:
        code: The exit code.
        message: What and where, and the remedy, where it was refused or stopped; None otherwise.
        summary: The summary that it left; None where it left none.
    """

    code: int
    message: str | None = None
    summary: Path | None = None


def run(args: Sequence[str] | None = None) -> Ended:
    """Run the command line, and print nothing of how it ended."""
    _quiet()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return Ended(0, summary=ExplainerCLI(args).results.summary_path)
    except UserError as error:
        return _refused(str(error), error)
    except ArgumentError as error:
        return _refused(explain(str(error)), error)
    except ValueError as error:
        # jsonargparse tries every type that a setting may have, and wraps what a constructor refused.
        if not isinstance(error.__cause__, UserError):
            raise
        return _refused(str(error.__cause__), error)
    except SIGTERMException:
        message = "stopped by SIGTERM\n  remedy: --ckpt_path last goes on from where it stopped"
        return Ended(128 + signal.SIGTERM, message)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refused(
                f"{error.filename or 'the disk'}: no space left\n  remedy: free some room and run again", error
            )
        raise
    finally:
        # Lightning's own would stay, and swallow the signal, where its last checkpoint cannot be written either.
        if signal.getsignal(signal.SIGTERM) is not handler:
            signal.signal(signal.SIGTERM, handler)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    ended = run(args)
    if ended.message is not None:
        print(f"afintro: {'error: ' if ended.code == 2 else ''}{ended.message}", file=sys.stderr)
    if ended.summary is not None:
        print(f"summary: {ended.summary}")
    return ended.code


def _refused(message: str, error: Exception) -> Ended:
    if os.environ.get("AFINTRO_TRACEBACK") == "1":
        raise error
    return Ended(2, message)


def _quiet() -> None:
    first = getattr(rank_zero_only, "rank", 0) == 0
    level = logging.INFO if first else logging.WARNING  # what all processes say is read once
    logging.basicConfig(level=level, format="%(message)s", force=True)
    for name in ("httpx", "fsspec", "filelock", "transformers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
