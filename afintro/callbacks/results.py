"""The results contract: predictions.jsonl, summary.json, the table on screen, and what TensorBoard shows."""

import logging
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from afintro import __version__
from afintro.controls import OTHER_BASE, other_base, untrained
from afintro.data.records import write_json, write_jsonl
from afintro.evaluation import report
from afintro.evaluation.answers import parse_two_branch
from afintro.evaluation.baselines import text_baselines
from afintro.evaluation.metrics import Prediction, collapse_warning, lead, score
from afintro.evaluation.statistics import Estimate
from afintro.explainer import ExplainerModule, answer_limit

log = logging.getLogger(__name__)

LEADS = ("exact_match", "has_changed_f1", "content_match")
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
        kept = ("uid", "question_type", "predicted", "p_changed")
        rows = [{name: row[name] for name in kept} for batch in batches for row in batch]
        path = self._folder(trainer) / "predictions.jsonl"
        write_jsonl(path, rows)
        log.info("predictions: %s", path)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.log_dir or trainer.default_root_dir)

    def _write(self, trainer: Trainer, pl_module: Any, split: str) -> None:
        assert isinstance(pl_module, ExplainerModule)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        items, headline = data.examples[split], data.headline
        warnings: list[str] = []
        predictions = pl_module.predictions(pl_module.outcomes, data.batch_size, answer_limit(items))
        baselines = text_baselines(data.examples["train"], items, headline)
        baselines |= untrained(pl_module, data, items)
        run = Path(trainer.ckpt_path).parent.parent if trainer.ckpt_path else None
        other = other_base(pl_module, data, split, run)
        if other:
            baselines[OTHER_BASE] = other
        else:
            warnings.append(
                "no explainer on another base was trained in this run (other_base), so that comparison is missing"
            )
        collapsed = collapse_warning(predictions, headline)
        warnings += [*data.warnings, *([collapsed] if collapsed else [])]

        metrics = score(predictions, headline, self.seed)
        table = {name: score(answers, headline, self.seed) for name, answers in baselines.items()}
        for name, estimate in metrics.items():
            if estimate.value is None:
                warnings.append(f"{name} cannot be computed on these {estimate.n} items")
        leads = self._leads(predictions, baselines, headline)
        folder = self._folder(trainer)
        write_jsonl(folder / "predictions.jsonl", prediction_rows(predictions, baselines, items))
        summary = {
            "task": data.task,
            "split": split,
            "n": len(items),
            "seconds": round(time.monotonic() - self._started, 1),
            "metrics": {**{name: estimate.as_json() for name, estimate in metrics.items()}, **leads},
            "baselines": {name: {m: e.as_json() for m, e in scores.items()} for name, scores in table.items()},
            "warnings": warnings,
            "model": {**pl_module.identity, "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None},
            "data": data.describe(split),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        write_json(folder / "summary.json", summary)
        self.summary_path = folder / "summary.json"
        self._show(trainer, metrics, table, leads, warnings, predictions, items, headline)

    def _leads(
        self, predictions: list[Prediction], baselines: dict[str, list[Prediction]], headline: str
    ) -> dict[str, Any]:
        """Paired difference to the best text baseline; the explainer on another base is a comparison of its own."""
        text_only = {name: answers for name, answers in baselines.items() if name != OTHER_BASE}
        found: dict[str, Any] = {}
        for metric in LEADS:
            for suffix, against in (("", text_only), (f"/{OTHER_BASE}", {OTHER_BASE: baselines.get(OTHER_BASE, [])})):
                result = lead(predictions, against, headline, metric, self.seed)  # type: ignore[arg-type]
                if result is not None:
                    found[f"lead/{metric}{suffix}"] = {**result[0].as_json(), "against": result[1]}
        return found

    def _show(
        self,
        trainer: Trainer,
        metrics: dict[str, Estimate],
        table: dict[str, dict[str, Estimate]],
        leads: dict[str, Any],
        warnings: list[str],
        predictions: list[Prediction],
        items: list[Any],
        headline: str,
    ) -> None:
        report.print_table({"explainer": metrics, **table}, leads, warnings)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            writer, step = logger.experiment, trainer.global_step
            for system, scores in {"explainer": metrics, **table}.items():
                for name, estimate in scores.items():
                    if estimate.value is not None:
                        writer.add_scalar(f"{name}/{system}", estimate.value, step)
            writer.add_text(
                "predictions",
                report.sample_table(predictions, {item.uid: item.prompt for item in items}, headline),
                step,
            )
            writer.add_figure("verdicts", report.confusion_figure(predictions, headline), step)
            writer.flush()


def prediction_rows(
    predictions: list[Prediction], baselines: dict[str, list[Prediction]], items: list[Any]
) -> list[dict[str, Any]]:
    """One object an item, as in the results contract."""
    prompts = {item.uid: item.prompt for item in items}
    by_item: dict[str, dict[str, str | None]] = {}
    for name, answers in baselines.items():
        for answer in answers:
            by_item.setdefault(answer.uid, {})[name] = answer.predicted
    rows = []
    for prediction in sorted(predictions, key=lambda p: p.uid):
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
