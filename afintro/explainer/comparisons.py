"""Answers that the trained explainer is compared with: on changed items, before training, or trained otherwise."""

import logging
from pathlib import Path
from typing import Any

from lightning import Trainer

from afintro.explainer.adapters import export_adapter, import_adapter
from afintro.explainer.answering import answer_items
from afintro.explainer.module import ExplainerModule
from afintro.tasks.base import OTHER_BASE, TEXT_ONLY, Systems, TaskData

log = logging.getLogger(__name__)


def on_changed_items(module: ExplainerModule, data: TaskData, split: str) -> Systems:
    """Answer every control of the task; a control with prompts beyond the context is left out with a warning.

    Args:
        module: The trained explainer.
        data: Its data module; gets the warnings.
        split: ``validation`` or ``test``.

    Returns:
        Predictions by the name of the control.
    """
    limit = module.context_length
    systems = {}
    for control in data.controls(split, module):
        beyond = sum(limit is not None and len(item) > limit for item in control.items)
        if beyond:
            data.warnings.append(f"{control.name}: {beyond} prompts are longer than the context; left out of the table")
            log.warning(data.warnings[-1])
            continue
        if control.trained:
            systems[control.name] = answer_items(module, control.items, data)
        else:
            with module.untrained():
                systems[control.name] = answer_items(module, control.items, data)
    return systems


def train_comparison(
    name: str, base: str, module: ExplainerModule, data: TaskData, trainer_settings: dict[str, Any], run: Path
) -> None:
    """Train the same explainer otherwise with the same settings, and put its adapter into the run's folder.

    Args:
        name: ``other_base``, or ``text_only`` (trained and asked with zero vectors).
        base: Name of the base model.
        module: The explainer to compare with.
        data: The data module of the explainer.
        trainer_settings: Settings of the explainer's trainer.
        run: Folder of the explainer's run.
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
    if trainer.is_global_zero:
        export_adapter(other.loaded(), run / name, other.injector)
        (run / name / "base.txt").write_text(base)
    trainer.strategy.barrier()  # the other processes read it next


def trained_otherwise(module: ExplainerModule, data: TaskData, split: str, run: Path | None) -> Systems:
    """Answer a split with the comparisons that were trained in a run's folder.

    Args:
        module: The trained explainer.
        data: Its data module; gets the warnings.
        split: ``validation`` or ``test``.
        run: Folder of the run; None where there is none.

    Returns:
        Predictions by the name of the comparison; empty if none was trained.
    """
    systems = {}
    for name in (OTHER_BASE, TEXT_ONLY):
        if run is None or not (run / name / "base.txt").is_file():
            continue
        if module.device_mesh is not None:
            data.warnings.append(f"{name} is left out of the table: its weights would not be sharded")
            continue
        other = module.on_base((run / name / "base.txt").read_text())
        other.configure_model()
        import_adapter(other.loaded(), run / name, other.injector)
        other.to(module.device)
        items = data.for_another_explainer(zero_vectors=name == TEXT_ONLY).read_examples(split, other)
        systems[name] = answer_items(other, items, data)
    return systems
