"""Explainers to compare with: the untrained one, zero-shot and with examples, and a trained one on another base."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer

from afintro.checkpoint import export_adapter, import_adapter
from afintro.data.batch import Example, collate
from afintro.evaluation.metrics import Prediction
from afintro.explainer import ExplainerModule, answer_limit
from afintro.tasks.module import TaskData

log = logging.getLogger(__name__)

OTHER_BASE = "other_base"
SHOTS = 4


def answers(module: ExplainerModule, items: Sequence[Example], batch_size: int) -> list[Prediction]:
    """A module's predictions for items, outside of a trainer's loop."""
    ordered = sorted(items, key=len)
    outcomes = []
    with module.evaluating():
        for start in range(0, len(ordered), batch_size):
            outcomes += module.judge(collate(ordered[start : start + batch_size]).to(module.device))
    return module.predictions(outcomes, batch_size, answer_limit(items))


def untrained(module: ExplainerModule, data: TaskData, items: Sequence[Example]) -> dict[str, list[Prediction]]:
    """The headline items answered with the adapter switched off, zero-shot and after four solved ones."""
    headline = [item for item in items if item.question_type == data.headline]
    limit = module.context_length
    found = {}
    for name, asked in (("zero_shot", headline), ("four_shot", data.few_shot(headline, SHOTS, module.tokenizer))):
        fitting = [item for item in asked if limit is None or len(item) <= limit]
        if len(fitting) < len(asked):
            data.warnings.append(
                f"{name}: {len(asked) - len(fitting)} prompts are longer than the context; left out of the table"
            )
            log.warning(data.warnings[-1])
            continue
        assert module.model is not None
        with module.model.disable_adapter():
            found[name] = answers(module, fitting, data.batch_size)
    return found


def train_other_base(
    name: str, module: ExplainerModule, data: TaskData, trainer_settings: dict[str, Any], run: Path
) -> None:
    """Train the same explainer on another base model with the same data and settings; its adapter goes into the run's folder."""
    log.info("comparison: training the same explainer on %s", name)
    other = module.on_base(name)
    bare = {
        "logger": False,
        "callbacks": [],
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    Trainer(**{**trainer_settings, **bare}).fit(other, datamodule=data.for_another_explainer())
    assert other.model is not None
    export_adapter(other.model, run / OTHER_BASE)
    (run / OTHER_BASE / "base.txt").write_text(name)


def other_base(module: ExplainerModule, data: TaskData, split: str, run: Path | None) -> list[Prediction]:
    """Predictions of the explainer on another base that was trained in ``run``; empty where there is none."""
    if run is None or not (run / OTHER_BASE / "base.txt").is_file():
        return []
    other = module.on_base((run / OTHER_BASE / "base.txt").read_text())
    other.configure_model()
    assert other.model is not None
    import_adapter(other.model, run / OTHER_BASE)
    other.to(module.device)
    items = data.for_another_explainer().read_examples(split, other.tokenizer)
    return answers(other, items, data.batch_size)
