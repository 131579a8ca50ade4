"""Test one checkpoint on several sets: every set is read before the weights load, then each is reported, then all together."""

import logging
from pathlib import Path

from lightning import Trainer
from rich.console import Console

from afintro.callbacks.results import Results
from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.evaluation.test_sets import compared_sets, print_sets
from afintro.explainer.module import ExplainerModule
from afintro.tasks.base import TaskData
from afintro.tasks.feature_descriptions.task import FeatureDescriptions
from afintro.tasks.stored import RecordTask

log = logging.getLogger(__name__)

SETS = "sets.json"
"""The table over all sets, in the folder of the run; beside it each set has a folder with ``summary.json``."""


def read_sets(trainer: Trainer, module: ExplainerModule, data: TaskData) -> dict[str, TaskData]:
    """Read and check the items of every set; the weights are not loaded.

    Args:
        trainer: The trainer that will run the tests. Its limit on test batches holds for each set.
        module: The explainer, whose tokenizer is loaded.
        data: The data module that names the sets.

    Returns:
        A data module for each set by name; they share the training items.

    Raises:
        UserError: A file is wrong, or the task has no test files.
    """
    if not isinstance(data, RecordTask | FeatureDescriptions):
        raise UserError(
            f"names files, and {data.task} reads none for a test of its own",
            where="data.test_paths",
            remedy="leave them out",
        )
    trainer.strategy.connect(module)
    data.trainer = trainer
    data.prepare_data()
    if data.settings.train_path is None:
        data.use_embedded()
    data.examples["train"] = data.evaluated_examples("train", module)
    limit = trainer.limit_test_batches
    sets: dict[str, TaskData] = {}
    for name in data.test_sets:
        trainer.limit_test_batches = limit
        sets[name] = data.for_test_set(name)
        sets[name].setup("test")
        log.info("set %s: %d items of %s, checked", name, len(sets[name].examples["test"]), sets[name].file_of("test"))
    trainer.limit_test_batches = 1.0  # of the items that are left of each set
    return sets


def test_on_sets(trainer: Trainer, module: ExplainerModule, data: TaskData, results: Results, checkpoint: str) -> None:
    """Report a checkpoint on every set, and the sets beside each other.

    Args:
        trainer: The trainer.
        module: The explainer.
        data: The data module that names the sets.
        results: The callback that reports a set.
        checkpoint: Path of the checkpoint.

    Raises:
        UserError: A file is wrong.
    """
    for name, of_set in read_sets(trainer, module, data).items():
        if trainer.is_global_zero:
            Console(width=None if Console().is_terminal else 120).rule(f"test set {name}")
        trainer.test(module, datamodule=of_set, ckpt_path=checkpoint, verbose=False, weights_only=True)
    if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        path = Path(trainer.log_dir or trainer.default_root_dir) / SETS
        table = {"task": data.task, **compared_sets(results.reported, data.leads)}
        write_json(path, table)
        results.summary_path = path
        print_sets(table)


test_on_sets.__test__ = False  # type: ignore[attr-defined]  # no test of pytest, whatever its name begins with
