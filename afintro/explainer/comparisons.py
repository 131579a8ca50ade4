"""Answers that the trained explainer is compared with: on changed items, before training, or trained otherwise."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from afintro.data.batch import Example, collate
from afintro.data.files import write_json
from afintro.evaluation.metrics import Prediction
from afintro.explainer.adapters import export_adapter, import_adapter
from afintro.explainer.answering import answer_items
from afintro.explainer.module import ExplainerModule
from afintro.lm.template_inputs import date_of
from afintro.tasks.base import EXPLAINER, TEXT_ONLY, VECTOR_ONLY, Systems, TaskData

log = logging.getLogger(__name__)

TRAINING = "training.json"  # how an explainer was trained, in the folder of its run
FITTED = 300  # training questions that tell how well an explainer fits them


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
    """Train the same explainer otherwise, and put its adapter into the run's folder.

    The comparison has the explainer's settings and follows the explainer's rule: it stops when the configured early stopping
    says so or after ``max_epochs``, and its best checkpoint is kept. A comparison that merely trained as long as the explainer
    did could be behind because it learns more slowly.

    Args:
        name: Name of the comparison; ``text_only`` is trained and asked with zero vectors, ``vector_only`` without the text.
        base: Name of the base model.
        module: The explainer to compare with.
        data: The data module of the explainer.
        trainer_settings: Settings of a trainer that has not run, callbacks included.
        run: Folder of the explainer's run.
    """
    log.info("comparison %s: training the same explainer on %s, by the same rule", name, base)
    other = module.on_base(base)
    checkpoints = run / name / "checkpoints"
    callbacks = trainer_settings["callbacks"] or []
    stopping = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
    best = [callback for callback in callbacks if _chooses(callback)]
    for callback in best:
        callback.dirpath = str(checkpoints)
    bare = {
        "logger": False,
        "callbacks": [*stopping, *best],
        "enable_checkpointing": bool(best),
        "enable_model_summary": False,
    }
    trainer = Trainer(**{**trainer_settings, **bare})
    trainer.fit(other, datamodule=half_blind(data, name))
    if best and best[0].best_model_path:
        stored = torch.load(best[0].best_model_path, map_location="cpu", weights_only=True)
        other.load_state_dict(stored["state_dict"], strict=False)
    if trainer.is_global_zero:
        export_adapter(other.loaded(), run / name, other.injector)
        (run / name / "base.txt").write_text(base)
        date = date_of(other.tokenizer)
        write_json(run / name / TRAINING, training_record(trainer) | ({"prompt_date": date} if date else {}))
    trainer.strategy.barrier()  # the other processes read it next
    if trainer.is_global_zero:
        shutil.rmtree(checkpoints, ignore_errors=True)


def half_blind(data: TaskData, name: str) -> TaskData:
    """Return the data of a comparison: those of the explainer, without vectors or without text if its name says so."""
    blind = name == TEXT_ONLY and data.has_vectors  # a mixture has tasks without
    return data.for_another_explainer(blind, name == VECTOR_ONLY and data.has_text_beside_vectors)


def training_record(trainer: Trainer) -> dict[str, Any]:
    """Return for how many epochs a trainer has trained, and the rule by which it stopped and chose."""
    rules = [f"at most {trainer.max_epochs} epochs"] if (trainer.max_epochs or -1) > 0 else []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping):
            if callback.stopping_threshold is not None:
                rules.append(f"until {callback.monitor} is {callback.stopping_threshold:g}")
            rules.append(f"at most {callback.patience} checks without a better {callback.monitor}")
        elif _chooses(callback):
            rules.append(f"the best {callback.monitor} is kept")
    return {"epochs": trainer.current_epoch, "rule": ", ".join(rules)}


def training_records(run: Path | None) -> dict[str, dict[str, Any]]:
    """Return the training record of the explainer of a run and of its comparisons, by name.

    Args:
        run: Folder of the run; None where there is none.
    """
    if run is None:
        return {}
    paths = {EXPLAINER: run / TRAINING} | {path.parent.name: path for path in sorted(run.glob(f"*/{TRAINING}"))}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def _chooses(callback: Callback) -> TypeGuard[ModelCheckpoint]:
    """Tell whether a callback keeps the checkpoint with the best value of a metric."""
    return isinstance(callback, ModelCheckpoint) and callback.monitor is not None


@dataclass(frozen=True)
class Comparison:
    """Hold what one comparison answered, and how well it fits its training questions.

    Args:
        predictions: Its answers to the split.
        fit: Share of the training questions that it answers exactly.
    """

    predictions: list[Prediction]
    fit: float


def training_fit(module: ExplainerModule, examples: Sequence[Example], batch_size: int) -> float:
    """Return the share of training questions that an explainer answers exactly, by teacher forcing.

    At most :data:`FITTED` questions are asked, evenly spread, in every process alike.

    Args:
        module: The explainer, with its weights loaded.
        examples: Its training examples, at least one.
        batch_size: Number of examples in a forward pass.
    """
    step = -(-len(examples) // FITTED)
    asked = [examples[index] for index in range(0, len(examples), step)]
    with module.evaluating():
        outcomes = [
            outcome
            for start in range(0, len(asked), batch_size)
            for outcome in module.evaluate_batch(collate(asked[start : start + batch_size]).to(module.device))
        ]
    return sum(outcome.exact for outcome in outcomes) / len(outcomes)


def trained_otherwise(module: ExplainerModule, data: TaskData, split: str, run: Path | None) -> dict[str, Comparison]:
    """Answer a split with the comparisons that were trained in a run's folder.

    Args:
        module: The trained explainer.
        data: Its data module; gets the warnings.
        split: ``validation`` or ``test``.
        run: Folder of the run; None where there is none.

    Returns:
        The comparisons by name; empty if none was trained.
    """
    compared = {}
    for path in sorted(run.glob("*/base.txt")) if run is not None else ():
        name = path.parent.name
        if module.device_mesh is not None:
            data.warnings.append(f"{name} is left out of the table: its weights would not be sharded")
            continue
        other = module.on_base(path.read_text(), training_records(run).get(name, {}).get("prompt_date"))
        other.configure_model()
        import_adapter(other.loaded(), path.parent, other.injector)
        other.to(module.device)
        others = half_blind(data, name)
        others.examples = {part: others.evaluated_examples(part, other) for part in ("train", split)}
        fit = training_fit(other, others.training_examples(), data.settings.batch_size)
        compared[name] = Comparison(answer_items(other, others.examples[split], data), fit)
    return compared
