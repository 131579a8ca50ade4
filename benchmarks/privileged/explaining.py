"""Measure one cell: train an explainer by the demo's recipe, or let a reader learn from the text; and ask after the flip."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file, save_file

from afintro.data.files import write_json
from afintro.evaluation.baselines import READERS
from afintro.evaluation.metrics import Prediction, text_prediction
from afintro.evaluation.text_readers.training import teach
from afintro.explainer.answering import answer_items
from afintro.explainer.checkpoint import check_state, trainable_state
from afintro.explainer.module import ExplainerModule
from afintro.lm.lora import Lora
from afintro.shipped import shipped_config
from afintro.tasks.context_ablation import ContextAblation
from afintro.tasks.context_ablation.records import ContextAblationRecord, to_json
from afintro.tasks.context_ablation.task import PRIMARY
from benchmarks.privileged.plan import BATCH, TEXT_READERS, Cell, Plan

Splits = Mapping[str, Sequence[ContextAblationRecord]]
DEMO = yaml.safe_load(Path(shipped_config("configs/context_ablation.yaml")).read_text())
FIT = "val/selection"  # exact match in the validation file, which has labeled names alone, in wordings that no training used


def explainer(base: Path | str, learning_rate: float | None = None) -> ExplainerModule:
    """Make an untrained explainer with the settings of ``configs/context_ablation.yaml``.

    Args:
        base: Directory of the base model.
        learning_rate: Learning rate; None for the demo's.
    """
    changed = {} if learning_rate is None else {"learning_rate": learning_rate}
    return ExplainerModule(**{**DEMO["model"], **changed, "name": str(base), "lora": Lora(**DEMO["model"]["lora"])})


def data_of(splits: Splits, folder: Path, seed: int, batch_size: int = BATCH) -> ContextAblation:
    """Write records into files, and return the data module that asks about them as the demo does.

    Args:
        splits: The records of ``train``, ``validation`` and ``test``.
        folder: Gets the files.
        seed: Seed of the order of training.
        batch_size: Questions of a training step.
    """
    for split, records in splits.items():
        write_json(folder / f"{split}.json", [to_json(record) for record in records])
    paths: dict[str, Any] = {f"{split}_path": str(folder / f"{split}.json") for split in splits}
    return ContextAblation(**{**DEMO["data"]["init_args"], "batch_size": batch_size}, split_seed=seed, **paths)


def trainer_of(plan: Plan, names: int, folder: Path) -> Trainer:
    """Make the trainer of a cell: it stops at the plan's fit to the labeled names, and keeps the best checkpoint.

    Unlike the demo's trainer it never stops for want of progress, so that no explainer is stopped while it is still learning.

    Args:
        plan: The size of the measurement.
        names: Number of labeled names.
        folder: Gets checkpoints.
    """
    epochs, between = plan.epochs(names)
    stopping = EarlyStopping(FIT, mode="max", patience=epochs, stopping_threshold=plan.fitted)
    best = ModelCheckpoint(folder / "checkpoints", monitor=FIT, mode="max")
    alone = plan.device == "cpu"
    return Trainer(
        accelerator="cpu" if alone else "auto", precision="32-true" if alone else "bf16-mixed", devices=1,
        max_epochs=epochs, check_val_every_n_epoch=between, gradient_clip_val=1.0, callbacks=[stopping, best], logger=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip


def measure(cell: Cell, plan: Plan, base: Path | str, splits: Splits, adapter: Path | None = None) -> dict[str, Any]:
    """Train the system of a cell and ask it about the test.

    Args:
        cell: The cell.
        plan: The size of the measurement.
        base: Directory of the explainer's base; of a reader of the text, the model whose tokenizer makes the items.
        splits: The records that the cell trains on and is asked about.
        adapter: Gets the trained adapter; None if nobody asks for it later.

    Returns:
        The hits of the test as 0 or 1, and their names, by ``new`` and ``labeled``; for an explainer also ``steps``, ``fit``
        (best exact match in the validation) and whether it ``reached`` the fit at which training stops.
    """
    seed_everything(cell.seed, verbose=False)
    with tempfile.TemporaryDirectory() as name:
        folder, module = Path(name), explainer(base, plan.learning_rate)
        data, labeled = (
            data_of(splits, folder, cell.seed, plan.batch_size),
            {record.scenario_id for record in splits["train"]},
        )
        if cell.system in TEXT_READERS:
            return hits(_read(cell.system, module, data), labeled)
        trainer = trainer_of(plan, cell.names, folder)
        trainer.fit(module, data)
        steps, fit = trainer.global_step, float(trainer.checkpoint_callback.best_model_score)  # type: ignore[union-attr]
        trainer.test(module, data, ckpt_path="best", verbose=False, weights_only=True)
        if adapter is not None:
            adapter.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in trainable_state(module).items()}, adapter)
        exact = [outcome.prediction(None) for outcome in module.outcomes]
        return {**hits(exact, labeled), "steps": steps, "fit": fit, "reached": fit >= plan.fitted}


def _read(reader: str, module: ExplainerModule, data: ContextAblation) -> list[Prediction]:
    """Let a reader of the text learn from the training prompts and answer the test."""
    taught, items = (data.read_examples(split, module) for split in ("train", "test"))
    learned = teach(taught)
    best = READERS[reader](learned, items).argmax(1) if learned.kinds > 1 else [0] * len(items)
    answers = (learned.answers[kind] for kind in best)
    return [text_prediction(item, answer) for item, answer in zip(items, answers, strict=True)]


def hits(predictions: Sequence[Prediction], labeled: set[str]) -> dict[str, Any]:
    """Sort answers by uid, and divide them into those about labeled and those about new names.

    Args:
        predictions: Answers to the items of the test.
        labeled: The names whose labels were in training.

    Returns:
        Hits as 0 or 1, and their names, by ``labeled`` and ``new``.
    """
    own = sorted(predictions, key=lambda p: p.uid)
    sides = {
        "new": [p for p in own if p.scenario_id not in labeled],
        "labeled": [p for p in own if p.scenario_id in labeled],
    }
    return {
        side: {"hits": [int(p.exact_match) for p in answers], "names": [p.scenario_id for p in answers]}
        for side, answers in sides.items()
    }


def measure_flip(plan: Plan, bases: Mapping[str, Path], records: Mapping[str, Splits], adapter: Path) -> dict[str, Any]:
    """Ask the adapter that was trained on A about the new names, in the changed organism and in A itself.

    Args:
        plan: The size of the measurement.
        bases: Directories of ``after`` (the changed organism) and ``before`` (A).
        records: What either answers; ``before`` has all splits, ``after`` the test of the new names.
        adapter: The adapter, as :func:`measure` wrote it.

    Returns:
        For ``after`` and ``before`` as the base of the adapter: of the names whose bit changed, whether each answer is the
        ``new`` behavior, the ``old`` behavior or ``neither``; of the names that kept their bit, whether each answer is ``right``.
        Scenarios of changed names in which both organisms behave alike are left out and counted as ``alike``.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = data_of({**records["before"], "test": records["after"]["test"]}, Path(folder), 0)
        truth = {side: _expected(data, records[side]["test"]) for side in bases}
        return {side: _after_flip(plan, base, data, truth, adapter) for side, base in bases.items()}


def _expected(data: ContextAblation, records: Sequence[ContextAblationRecord]) -> dict[str, str]:
    """Return the right answer about each scenario, by the scenario's text."""
    return {record.scenario: data.render(record, PRIMARY)[1] for record in records}


def _after_flip(
    plan: Plan, base: Path, data: ContextAblation, truth: Mapping[str, Mapping[str, str]], adapter: Path
) -> dict[str, Any]:
    module = explainer(base)
    module.configure_model()
    module.to(plan.device)
    state = load_file(adapter)
    check_state(state, module, str(adapter))
    module.load_state_dict(state, strict=False)
    scenarios = {f"{record.uid}/{PRIMARY}": record.scenario for record in data.records("test")}
    answers = sorted(answer_items(module, data.read_examples("test", module), data), key=lambda p: p.uid)
    said = [(answer.scenario_id, scenarios[answer.uid], answer.predicted) for answer in answers]
    return compare(said, truth, plan.flipped_names)


def compare(
    said: Sequence[tuple[str, str, str | None]], truth: Mapping[str, Mapping[str, str]], flipped: Collection[str]
) -> dict[str, Any]:
    """Compare what an adapter says with what the organism does and did, see :func:`measure_flip`.

    Args:
        said: Name, scenario and the adapter's answer.
        truth: The right answer about each scenario, ``after`` and ``before`` the change.
        flipped: The names whose bit was changed.
    """
    rows: dict[str, list[Any]] = {name: [] for name in ("names", "new", "old", "neither", "kept_names", "right")}
    alike = 0
    for name, scenario, predicted in said:
        new, old = truth["after"][scenario], truth["before"][scenario]
        if name not in flipped:
            rows["kept_names"].append(name)
            rows["right"].append(int(predicted == new))
        elif new == old:
            alike += 1
        else:
            rows["names"].append(name)
            rows["new"].append(int(predicted == new))
            rows["old"].append(int(predicted == old))
            rows["neither"].append(int(predicted not in (new, old)))
    return {**rows, "alike": alike}
