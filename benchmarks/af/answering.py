"""Let the systems of one group learn from its training pairs and answer what the group is asked about."""

import math
import re
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from afintro.data.batch import Example
from afintro.evaluation.baselines import text_baselines
from afintro.evaluation.metrics import Prediction, text_prediction
from afintro.evaluation.outcomes import answer_limit
from afintro.explainer.answering import predict_outcomes
from afintro.explainer.module import ExplainerModule
from afintro.lm.lora import Lora
from afintro.tasks.context_ablation import ContextAblation
from afintro.tasks.context_ablation.task import PRIMARY
from afintro.tasks.stored import example_of
from benchmarks.af.groups import ASKED

QUESTIONS = {PRIMARY: 1.0, "orig_match": 0.0, "change_match": 0.0}
TOKENS = re.compile(r"[^\W\d]+|\d|\s|[^\w\s]")


@dataclass(frozen=True)
class Explainer:
    """How an explainer is trained; nothing here was chosen by looking at the test.

    Args:
        model: Hub id, directory or name of an embedded model.
        device: ``cpu`` or ``cuda``.
        steps: Optimizer steps at most; the best epoch on the validation split is kept.
        batch_size: Questions of a step.
        learning_rate: Peak learning rate.
        seed: Seed of the order of training and of the adapter.
    """

    model: str
    device: str = "cpu"
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 2e-4
    seed: int = 0


def data_of(folder: Path, batch_size: int = 16) -> ContextAblation:
    """Return the data module over the files of a group, which asks the primary question alone."""
    return ContextAblation(
        train_path=str(folder / "train.json"),
        validation_path=str(folder / "validation.json"),
        test_path=str(folder / f"{ASKED}.json"),
        question_weights=QUESTIONS,
        batch_size=batch_size,
    )


def text_examples(data: ContextAblation, split: str) -> list[Example]:
    """Return the primary questions of a split for readers of the text: their tokens are words, digits, marks and white space.

    Args:
        data: The data module.
        split: ``train`` or ``test``.
    """
    drafts = data.drafts(split, None)  # type: ignore[arg-type]  # no model reads them
    return [
        example_of(draft, tuple(zlib.crc32(token.encode()) for token in TOKENS.findall(draft.prompt)), (1,))
        for draft in drafts
        if draft.question_type == PRIMARY
    ]


def read_texts(folder: str) -> dict[str, Any]:
    """Let every text baseline learn from a group's training pairs and answer.

    Args:
        folder: The folder of the group.

    Returns:
        The items and the answers by system, as JSON values.
    """
    data = data_of(Path(folder))
    train, items = text_examples(data, "train"), text_examples(data, "test")
    return {"taught": len(train), **as_json(items, text_baselines(train, items, PRIMARY))}


def explain(folder: str, settings: Explainer) -> dict[str, Any]:
    """Train an explainer on a group's training pairs, keep its best epoch on the validation split, and let it answer.

    Args:
        folder: The folder of the group.
        settings: How the explainer is trained.

    Returns:
        As :func:`read_texts`, with ``steps`` and ``validation`` (exact match of the epoch that was kept).
    """
    seed_everything(settings.seed, verbose=False)
    data = data_of(Path(folder), settings.batch_size)
    lora = Lora(r=16, alpha=32, target_modules=["all-linear"])
    module = ExplainerModule(name=settings.model, lora=lora, learning_rate=settings.learning_rate, dtype="auto")
    taught = sum(draft.question_type == PRIMARY for draft in data.drafts("train", module))
    epoch = min(settings.steps, math.ceil(taught / settings.batch_size))
    on_cpu = settings.device == "cpu"
    with tempfile.TemporaryDirectory() as checkpoints:
        best = ModelCheckpoint(checkpoints, monitor="val/selection", mode="max")
        trainer = Trainer(
            accelerator="cpu" if on_cpu else "gpu", precision="32-true" if on_cpu else "bf16-mixed", devices=1,
            max_epochs=max(1, settings.steps // epoch), limit_train_batches=epoch, gradient_clip_val=1.0, callbacks=[best],
            logger=False, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=checkpoints,
        )  # fmt: skip
        trainer.fit(module, data)
        steps, validation = trainer.global_step, float(best.best_model_score or 0.0)
        trainer.test(module, data, ckpt_path="best", verbose=False, weights_only=True)
        outcomes = module.outcomes
        items = [outcome.example for outcome in outcomes]
        module.to("cpu" if on_cpu else settings.device)
        answers = predict_outcomes(module, outcomes, settings.batch_size, answer_limit(items))
    return {"taught": taught, "steps": steps, "validation": validation, **as_json(items, {"explainer": answers})}


def as_json(items: Sequence[Example], systems: dict[str, list[Prediction]]) -> dict[str, Any]:
    """Return items and answers as JSON values, both by uid."""
    return {
        "items": {item.uid: [item.scenario_id, item.answer] for item in items},
        "systems": {name: {p.uid: [p.predicted, p.p_changed] for p in answers} for name, answers in systems.items()},
    }


def predictions(result: dict[str, Any], system: str) -> list[Prediction]:
    """Return the answers of a system from what :func:`as_json` wrote."""
    items = {
        uid: Example(uid, scenario, PRIMARY, "", answer, (), ()) for uid, (scenario, answer) in result["items"].items()
    }
    answers = result["systems"][system].items()
    return [text_prediction(items[uid], predicted or "", p_changed) for uid, (predicted, p_changed) in answers]
