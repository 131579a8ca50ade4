"""What explainers say that are compared with the trained one: on changed items, untrained, or trained otherwise."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer

from afintro.data.batch import Example
from afintro.evaluation.metrics import Prediction
from afintro.evaluation.outcomes import answer_limit, gathered
from afintro.explainer.checkpoint import export_adapter, import_adapter
from afintro.explainer.module import ExplainerModule
from afintro.tasks.base import OTHER_BASE, TEXT_ONLY, Systems, TaskData

log = logging.getLogger(__name__)


def answers(module: ExplainerModule, items: Sequence[Example], data: TaskData) -> list[Prediction]:
    """A module's predictions for items, outside of a trainer's loop; processes share the work and all have the result."""
    rows, ranks = data.evaluation_rows(items), module.sharing
    outcomes = []
    with module.evaluating():
        for row in range(ranks.rank, len(rows), ranks.size):
            outcomes += module.judge(rows[row].to(module.device))
    outcomes = gathered(outcomes, items, ranks)
    return module.predictions(outcomes, data.settings.batch_size, answer_limit(items), ranks)


def on_changed_items(module: ExplainerModule, data: TaskData, split: str) -> Systems:
    """Answers to every control of the task; one with prompts beyond the context is left out with a warning."""
    limit = module.context_length
    found = {}
    for control in data.controls(split, module):
        beyond = sum(limit is not None and len(item) > limit for item in control.items)
        if beyond:
            data.warnings.append(f"{control.name}: {beyond} prompts are longer than the context; left out of the table")
            log.warning(data.warnings[-1])
            continue
        if control.trained:
            found[control.name] = answers(module, control.items, data)
        else:
            with module.untrained():
                found[control.name] = answers(module, control.items, data)
    return found


def train_comparison(
    name: str, base: str, module: ExplainerModule, data: TaskData, trainer_settings: dict[str, Any], run: Path
) -> None:
    """Train the same explainer otherwise with the same settings; its adapter goes into the run's folder.

    Args:
        name: ``other_base``, or ``text_only`` (trained and asked with zero vectors).
        base: The base model.
        module: The explainer to compare with.
        data: Its data.
        trainer_settings: Those of its trainer.
        run: Its folder.
    """
    log.info("comparison %s: training the same explainer on %s", name, base)
    other = module.on_base(base)
    bare = {
        "logger": False,
        "callbacks": [],
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    trainer = Trainer(**{**trainer_settings, **bare})
    trainer.fit(other, datamodule=data.for_another_explainer(zero_vectors=name == TEXT_ONLY))
    assert other.model is not None
    if trainer.is_global_zero:
        export_adapter(other.model, run / name, other.injector)
        (run / name / "base.txt").write_text(base)
    trainer.strategy.barrier()  # the others read it next


def trained_otherwise(module: ExplainerModule, data: TaskData, split: str, run: Path | None) -> Systems:
    """Predictions of the comparisons that were trained in ``run``; empty where there are none."""
    found = {}
    for name in (OTHER_BASE, TEXT_ONLY):
        if run is None or not (run / name / "base.txt").is_file():
            continue
        if module.device_mesh is not None:
            data.warnings.append(f"{name} is left out of the table: its weights would not be sharded")
            continue
        other = module.on_base((run / name / "base.txt").read_text())
        other.configure_model()
        assert other.model is not None
        import_adapter(other.model, run / name, other.injector)
        other.to(module.device)
        items = data.for_another_explainer(zero_vectors=name == TEXT_ONLY).read_examples(split, other)
        found[name] = answers(other, items, data)
    return found
