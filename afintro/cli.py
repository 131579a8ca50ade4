"""The command line: the only place where everything meets."""

import errno
import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from afintro.callbacks import LastCheckpoint, Preflight, Results, Throughput
from afintro.callbacks.test_sets import test_on_sets
from afintro.cli_errors import explain, trainer_refusal
from afintro.cli_layers import (
    LayeredConfig,
    layer_command_line,
    real_layers,
    settings_of,
    value_of,
    with_added_callbacks,
    with_real_layers,
    with_shipped_configs,
)
from afintro.cli_paths import check_files, check_judges, check_models
from afintro.cli_settings import configured_task, settings_help, task_classes
from afintro.cli_trainer import LOGS as LOGS
from afintro.cli_trainer import (
    SwitchedTrainer,
    adapt_callbacks,
    best_checkpoint,
    check_switches,
    loggers_of,
    runs_folder,
    unchosen_warnings,
)
from afintro.command import quiet_libraries
from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.explainer.checkpoint import prompt_date, resolve_checkpoint, run_of
from afintro.explainer.comparisons import TRAINING, train_comparison, training_record
from afintro.explainer.module import ExplainerModule
from afintro.explainer.sharding import Sharded
from afintro.tasks.base import EXPLAINER, HALF_BLIND, OTHER_BASE, TaskData
from afintro.toys.embedded import is_toy

log = logging.getLogger(__name__)

SUBCOMMANDS = ("fit", "validate", "test", "predict")
COMPARISON = re.compile(r"[a-z][a-z0-9_]*")


class ExplainerCLI(LightningCLI):
    """LightningCLI with a fixed model class, one data module class a task, and the results contract."""

    def __init__(self, args: Sequence[str]) -> None:
        self.results = Results()
        task_classes()  # imported, they can be named without their module: --data ContextAblation
        super().__init__(
            ExplainerModule,
            TaskData,
            trainer_class=SwitchedTrainer,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [self.results, Throughput(), Preflight(), LastCheckpoint()]},
            parser_kwargs={
                "prog": program_name(),
                "epilog": "explain, with flags of its own (explain --help), asks a trained explainer without ground truth.",
                "exit_on_error": False,
                "allow_abbrev": False,
                **{name: {"exit_on_error": False, "allow_abbrev": False} for name in SUBCOMMANDS},
            },
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return fit, validate, test and predict, each with the arguments that the configuration gives it instead."""
        return {
            name: {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
            for name in SUBCOMMANDS
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the comparison explainers that are trained after ``fit``: on another base, without vectors, and without text."""
        parser.add_argument(
            "--other_base",
            type=str | dict[str, str] | None,
            default=None,
            help="after fit, train the same explainer on this base model too, as a comparison (hub id, directory or toy name); "
            "or several as name: model, which the table then calls by these names",
        )
        parser.add_argument(
            "--text_only",
            type=bool,
            default=False,
            help="after fit, train the same explainer with zero vectors too, as a comparison (tasks with vectors)",
        )
        parser.add_argument(
            "--vector_only",
            type=bool,
            default=False,
            help="after fit, train the same explainer without the text beside the vector too, as a comparison (steering)",
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser whose configurations are laid over each other."""
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument("-c", "--config", action=LayeredConfig, help="Path of a YAML file; later ones win.")
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults(
                {"verbose": False}
            )  # another table, of what the process logged, below that of the results
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, with what the configurations set for a real model where the model is one."""
        arguments = with_added_callbacks(with_shipped_configs(args))
        self.config = parser.parse_args(arguments)
        settings, layers = self.config[self.config.subcommand], real_layers(arguments)
        if layers and not is_toy(settings.model.name):
            self.config = parser.parse_args(with_real_layers(arguments))
            settings = self.config[self.config.subcommand]
            chosen = ", ".join(f"{name} {value_of(settings, name)}" for name in settings_of(layers))
            log.info(
                "%s is not a toy, so these settings are not the toy's unless they are given: %s",
                settings.model.name,
                chosen,
            )
        layer_command_line(settings)

    def before_instantiate_classes(self) -> None:
        """Name the run's folder after its task, and find the checkpoint that ``best`` and ``last`` mean."""
        settings = self.config[self.subcommand]
        task = self._data_class(settings).task
        check_switches(settings.trainer, str(self.subcommand))
        if settings.get("text_only") and not self._data_class(settings).has_vectors:
            raise UserError(f"needs vectors, and {task} has none", where="--text_only", remedy="leave it out")
        if settings.get("vector_only") and not self._data_class(settings).has_text_beside_vectors:
            what = f"needs a text beside each vector, and {task} has none"
            raise UserError(what, where="--vector_only", remedy="leave it out")
        checkpoint = settings.get("ckpt_path")
        if checkpoint:
            settings.ckpt_path = str(resolve_checkpoint(checkpoint, runs_folder(settings), task))
            settings.model.prompt_date = settings.model.get("prompt_date") or prompt_date(Path(settings.ckpt_path))
        elif self.subcommand != "fit":
            raise UserError(
                "is absent", where="--ckpt_path", remedy="give a .ckpt file, or 'best' for that of the newest run"
            )
        if self.subcommand != "test" and (settings.data.get("init_args") or {}).get("test_paths"):
            what = "are read by `test` alone"
            raise UserError(what, where="data.test_paths", remedy="leave them out here, and give them to `test`")
        if self.subcommand == "fit":
            adapt_callbacks(settings)

    @staticmethod
    def _data_class(settings: Any) -> type[TaskData]:
        module, name = settings.data.class_path.rsplit(".", 1)
        data_class = getattr(sys.modules[module], name)
        assert issubclass(data_class, TaskData)
        return data_class

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log into the run's folder, ``lightning_logs/<task>/version_k`` unless the configuration names another."""
        given = self._get(self.config_init, "trainer.logger")
        kwargs["logger"] = loggers_of(given, runs_folder(self.config[self.subcommand]), self.datamodule.task)
        return super().instantiate_trainer(**kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # A checkpoint is read as tensors and plain values; nothing in it can run.
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand, and end the processes that this one started if it fails: they would wait for it."""
        self._look_for_what_is_named()
        try:
            if subcommand == "test" and self.datamodule.test_sets:
                checkpoint = str(self.config[subcommand].ckpt_path)
                test_on_sets(self.trainer, self.model, self.datamodule, self.results, checkpoint)
            else:
                super()._run_subcommand(subcommand)
        except BaseException:
            launcher = self.trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGKILL)
            raise

    def _look_for_what_is_named(self) -> None:
        """Refuse files and models that are not there, before a toy is trained or a long training ends with them."""
        settings = self.config[self.subcommand].data.get("init_args") or {}
        check_files(settings, type(self.datamodule))
        bases = self._comparisons().values() if self.subcommand == "fit" else ()
        check_models(
            [(self.model.name, self.model.revision), *((base, None) for base in bases if base != self.model.name)]
        )
        for _, data, _ in self.datamodule.tables([]):
            check_judges([*getattr(data, "judges", ()), getattr(data, "scorer", None)])

    def _comparisons(self) -> dict[str, str]:
        """Return the base model of each comparison that is trained after ``fit``, by name.

        Raises:
            UserError: A name cannot be the name of a comparison.
        """
        settings = self.config[self.subcommand]
        bases = settings.get("other_base") or {}
        bases = {OTHER_BASE: bases} if isinstance(bases, str) else dict(bases)
        for name in bases:
            used = (EXPLAINER, *HALF_BLIND, "checkpoints", *self.datamodule.systems)
            if not COMPARISON.fullmatch(name) or name in used:
                raise UserError(
                    f"names a comparison {name!r}",
                    where="--other_base",
                    remedy="use small letters, digits and _, and no name that the run uses itself",
                )
        return bases | {name: self.model.name for name in HALF_BLIND if settings.get(name)}

    def before_fit(self) -> None:
        """Refuse comparisons where weights are sharded: an evaluation would hold those of two bases in every process."""
        wanted = list(self._comparisons())
        if wanted and isinstance(self.trainer.strategy, Sharded):
            raise UserError(
                f"shards the weights, and {' and '.join(wanted)} cannot be trained so",
                where="trainer.strategy",
                remedy="lay configs/fsdp.yaml over the others last, or use ddp",
            )

    def after_fit(self) -> None:
        """Train the comparisons, then report the best checkpoint on items that chose nothing, as ``test`` does."""
        if self.trainer.interrupted:
            return
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("trainer.fast_dev_run: everything ran, and nothing was kept")
            return
        best = best_checkpoint(self.trainer)
        self.datamodule.warnings += unchosen_warnings(self.trainer)
        # The comparisons lie with the checkpoint that they are compared with: that of a resumed run may be of an earlier run.
        run = run_of(Path(best)) if best else Path(str(self.trainer.log_dir))
        if self.trainer.is_global_zero:
            write_json(run / TRAINING, training_record(self.trainer))
        for name, base in self._comparisons().items():
            # A strategy serves one trainer, and a stopping rule remembers what it saw, so each comparison gets its own.
            fresh = self._get(self.parser.instantiate_classes(self.config), "trainer").as_dict()
            train_comparison(name, base, self.model, self.datamodule, fresh, run)
        report = self.trainer.test if self.datamodule.has_test or self.datamodule.halved else self.trainer.validate
        report(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True)


class _Parsed(ExplainerCLI):
    """A command line that is parsed, and makes nothing."""

    def _set_seed(self) -> None:
        pass

    before_instantiate_classes = instantiate_classes = _set_seed

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a subcommand as its arguments give them, and run nothing.

    Args:
        arguments: The arguments, the subcommand first.

    Raises:
        ArgumentError: The arguments cannot be parsed.
    """
    settings: dict[str, Any] = _Parsed(arguments).config[arguments[0]].as_dict()
    return settings


@dataclass(frozen=True)
class Ended:
    """How a run of the command line ended.

    Args:
        code: The exit code.
        message: What is wrong, where, and the remedy, if the run was refused or stopped; None otherwise.
        summary: Path of the ``summary.json`` that the run left; None if it left none.
    """

    code: int
    message: str | None = None
    summary: Path | None = None


def run(args: Sequence[str] | None = None) -> Ended:
    """Run the command line, and print nothing of how it ended.

    Args:
        args: The arguments; None for those that the program was called with.
    """
    _quiet()
    arguments = sys.argv[1:] if args is None else list(args)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return Ended(0, summary=ExplainerCLI(arguments).results.summary_path)
    except SIGTERMException:  # a SystemExit too, so that it comes first
        message = "stopped by SIGTERM\n  remedy: --ckpt_path last goes on from where it stopped"
        return Ended(128 + signal.SIGTERM, message)
    except SystemExit:
        if arguments[:1] and arguments[0] in SUBCOMMANDS and {"--help", "-h"} & set(arguments):
            print(settings_help(configured_task(arguments)))
        raise
    except UserError as error:
        return _refused(str(error), error)
    except ArgumentError as error:
        return _refused(explain(str(error), configured_task(arguments)), error)
    except (ValueError, RuntimeError, ModuleNotFoundError, MisconfigurationException) as error:
        # jsonargparse tries every type that a setting may have, and wraps what a constructor refused.
        refusal = str(error.__cause__) if isinstance(error.__cause__, UserError) else trainer_refusal(error)
        if refusal is None:
            raise
        return _refused(refusal, error)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refused(
                f"{error.filename or 'the disk'}: has no space left\n  remedy: free some room and run again", error
            )
        raise
    finally:
        # Lightning's own would stay, and swallow the signal, where its last checkpoint cannot be written either.
        if signal.getsignal(signal.SIGTERM) is not handler:
            signal.signal(signal.SIGTERM, handler)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line, print how it ended, and return the exit code."""
    gc.freeze()  # what was imported stays, and looking for garbage in it would take a second of every command
    ended = run(args)
    if ended.message is not None:
        print(f"afintro: {'error: ' if ended.code == 2 else ''}{ended.message}", file=sys.stderr)
    if ended.summary is not None:
        print(f"summary: {ended.summary}")
    return ended.code


def program_name() -> str:
    """Return what a user types to call this program: ``afintro`` or ``python -m afintro``."""
    return "afintro" if Path(sys.argv[0]).stem == "afintro" else "python -m afintro"


def _refused(message: str, error: Exception) -> Ended:
    if os.environ.get("AFINTRO_TRACEBACK") == "1":
        raise error
    return Ended(2, message)


def _quiet() -> None:
    first = getattr(rank_zero_only, "rank", 0) == 0
    level = logging.INFO if first else logging.WARNING  # all processes log the same, which is read once
    logging.basicConfig(level=level, format="%(message)s", force=True)
    for name in ("fsspec", "filelock", "transformers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    quiet_libraries()
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    lightning.addFilter(lambda record: "Tip: " not in record.getMessage())  # advertisements
