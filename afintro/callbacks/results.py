"""The results contract: predictions.jsonl, summary.json, the table on screen, and what TensorBoard shows."""

import logging
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from afintro import __version__
from afintro.data.batch import Example
from afintro.data.files import write_json, write_jsonl
from afintro.evaluation import report
from afintro.evaluation.answers import parse_two_branch
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, Scores, lead, score
from afintro.evaluation.outcomes import answer_limit
from afintro.explainer.comparisons import on_changed_items, trained_otherwise
from afintro.explainer.module import ExplainerModule
from afintro.ranks import present
from afintro.tasks.base import EXPLAINER, OTHER_BASE, Systems, TaskData

log = logging.getLogger(__name__)

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "scikit-learn", "numpy")


class Results(Callback):
    """After ``validate``, ``test`` and ``predict`` (and the validation that ends ``fit``) writes what the run leaves.

    Args:
        seed: Seeds the bootstrap.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.summary_path: Path | None = None
        self._started = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only after ``validate``: within ``fit`` the module logs what is quick."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for validation."""
        self._write(trainer, pl_module, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """``predict`` scores nothing: it writes the answers."""
        batches: Any = trainer.predict_loop.predictions
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        kept = ("uid", "question_type", "predicted", "p_changed")
        rows = present().gathered([{name: row[name] for name in kept} for batch in batches for row in batch])
        found = {row["uid"]: row for row in rows}
        path = self._folder(trainer) / "predictions.jsonl"
        if trainer.is_global_zero:
            write_jsonl(path, [found[item.uid] for item in data.examples["test"] if item.uid in found])
            log.info("predictions: %s", path)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.log_dir or trainer.default_root_dir)

    def _write(self, trainer: Trainer, pl_module: Any, split: str) -> None:
        assert isinstance(pl_module, ExplainerModule)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        items, folder = data.examples[split], self._folder(trainer)
        answered = pl_module.predictions(
            pl_module.outcomes, data.settings.batch_size, answer_limit(items), pl_module.sharing
        )
        compared = {
            **on_changed_items(pl_module, data, split),
            **trained_otherwise(pl_module, data, split, self._run_of(trainer)),
        }
        if trainer.is_global_zero:
            systems = {EXPLAINER: answered, **data.baselines(split), **compared}
            self._report(trainer, pl_module, split, folder, data.graded(systems))
        trainer.strategy.barrier()

    def _report(self, trainer: Trainer, pl_module: ExplainerModule, split: str, folder: Path, systems: Systems) -> None:
        """Score all systems and write what was found; the first process alone does."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        items = data.examples[split]
        scores = {name: data.statistics(answers) for name, answers in systems.items()}
        table = {name: score(found, self.seed) for name, found in scores.items()}
        leads = self._leads(scores, data)
        metrics = table.pop(EXPLAINER)
        warnings = [*data.warnings, *data.warnings_about(systems, leads)]
        if OTHER_BASE not in systems:
            warnings.append(
                "no explainer on another base was trained in this run (other_base), so that comparison is missing"
            )
        for name, estimate in metrics.items():
            if estimate.value is None:
                warnings.append(f"{name} cannot be computed on these {estimate.n} items")
        write_jsonl(folder / "predictions.jsonl", prediction_rows(systems, items))
        summary = {
            "task": data.task,
            "split": split,
            "n": len(items),
            "seconds": round(time.monotonic() - self._started, 1),
            "metrics": {**{name: estimate.as_json() for name, estimate in metrics.items()}, **leads},
            "baselines": {name: {m: e.as_json() for m, e in found.items()} for name, found in table.items()},
            "warnings": warnings,
            **data.details(systems),
            "model": {**pl_module.identity, "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None},
            "data": data.describe(split),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        write_json(folder / "summary.json", summary)
        self.summary_path = folder / "summary.json"
        report.print_table({EXPLAINER: metrics, **table}, leads, warnings)
        self._log(trainer, {EXPLAINER: metrics, **table}, systems[EXPLAINER], items, data)

    @staticmethod
    def _run_of(trainer: Trainer) -> Path | None:
        """The folder of the run that the checkpoint is from."""
        return Path(trainer.ckpt_path).parent.parent if trainer.ckpt_path else None

    def _leads(self, scores: dict[str, Scores], data: TaskData) -> dict[str, Any]:
        """Paired differences: to the best of the rivals, and to some baselines on their own."""
        own = scores[EXPLAINER]
        baselines = [name for name in scores if name != EXPLAINER]
        against = {"": data.best_of(baselines), **{f"/{name}": [name] for name in data.compared_with(baselines)}}
        found: dict[str, Any] = {}
        for metric in data.leads:
            for suffix, names in against.items():
                result = lead(own, {name: scores[name] for name in names}, metric, self.seed)
                if result is not None:
                    found[f"lead/{metric}{suffix}"] = {**result[0].as_json(), "against": result[1]}
        return found

    def _log(
        self,
        trainer: Trainer,
        table: dict[str, dict[str, Estimate]],
        predictions: list[Prediction],
        items: Sequence[Example],
        data: TaskData,
    ) -> None:
        prompts = {item.uid: item.prompt for item in items}
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            writer, step = logger.experiment, trainer.global_step
            for system, found in table.items():
                for name, estimate in found.items():
                    if estimate.value is not None:
                        writer.add_scalar(f"{name}/{system}", estimate.value, step)
            writer.add_text("predictions", report.sample_table(predictions, prompts, data.primary), step)
            for name, figure in data.figures(predictions).items():
                writer.add_figure(name, figure, step)
            writer.flush()


def prediction_rows(systems: Systems, items: Sequence[Example]) -> list[dict[str, Any]]:
    """One object an item, as in the results contract."""
    prompts = {item.uid: item.prompt for item in items}
    by_item: dict[str, dict[str, str | None]] = {}
    for name, answers in systems.items():
        for answer in answers if name != EXPLAINER else ():
            by_item.setdefault(answer.uid, {})[name] = answer.predicted
    rows = []
    for prediction in sorted(systems[EXPLAINER], key=lambda p: p.uid):
        true, said = parse_two_branch(prediction.expected), parse_two_branch(prediction.predicted or "")
        rows.append(
            {
                "uid": prediction.uid,
                "scenario_id": prediction.scenario_id,
                "question_type": prediction.question_type,
                "prompt": prompts[prediction.uid],
                "expected": prediction.expected,
                "predicted": prediction.predicted,
                "exact_match": prediction.exact_match,
                "verdict_expected": report.verdict_name(true),
                "verdict_predicted": report.verdict_name(said),
                "p_changed": prediction.p_changed,
                "parsed": said is not None if true is not None else None,
                "baselines": by_item.get(prediction.uid, {}),
                **({"group": prediction.group} if prediction.group else {}),
                **({"twins": prediction.twins} if prediction.twins else {}),
                **({"scores": dict(prediction.scores)} if prediction.scores else {}),
            }
        )
    return rows


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    return {"afintro": __version__, **{name: version(name) for name in PACKAGES}, "cuda": str(torch.version.cuda)}


def git_commit() -> str | None:
    """Commit of the source tree, with ``+`` where it has changes; None outside of one."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if dirty.strip() else "")
