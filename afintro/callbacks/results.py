"""The results contract: predictions.jsonl, summary.json, the table on screen, and what TensorBoard shows."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from afintro.callbacks.explainer_of import explainer_of
from afintro.callbacks.joined_summary import joined_summary
from afintro.callbacks.versions import git_commit, versions
from afintro.data.batch import Example
from afintro.data.chat_template import WITHOUT_TEMPLATE
from afintro.data.files import write_json, write_jsonl
from afintro.evaluation import report
from afintro.evaluation.answers import parse_two_branch
from afintro.evaluation.baselines import solved_from_text
from afintro.evaluation.group_table import print_groups
from afintro.evaluation.groups import by_group
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, few_clusters_warning, lead, score
from afintro.evaluation.outcomes import Outcome, answer_limit
from afintro.evaluation.statistic import Scores
from afintro.evaluation.test_sets import TestSet
from afintro.explainer.answering import predict_outcomes
from afintro.explainer.checkpoint import run_of
from afintro.explainer.comparisons import on_changed_items, trained_otherwise, training_fit, training_records
from afintro.explainer.explained import change_of_explained
from afintro.explainer.module import ExplainerModule
from afintro.generation.untold import cut_share, cut_warnings
from afintro.tasks.base import EXPLAINER, HALF_BLIND, Systems, TaskData

log = logging.getLogger(__name__)

SELECTED_ON = "validation"  # the split whose metrics checkpoints and early stopping go by
CHOSEN = (
    "the checkpoint was chosen on these items, so that the explainer and its comparisons look better than they are; "
    "`test` reports items that chose nothing"
)
UNDERFIT = 0.05  # a comparison that fits less well than the explainer by more proves nothing


class Results(Callback):
    """Writes what a run leaves after ``validate``, ``test`` and ``predict`` (and the test that ends ``fit``).

    Attributes:
        summary_path: The ``summary.json`` that was written last; None before one was.
        reported: What was reported of each of several test sets, by name, in the first process.
    """

    def __init__(self) -> None:
        self.summary_path: Path | None = None
        self.reported: dict[str, TestSet] = {}
        self._started = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of ``validate``; within ``fit`` the module logs the metrics that are quick to compute."""
        if trainer.state.fn == "validate":
            self._evaluate(trainer, explainer_of(pl_module), "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of ``test``."""
        self._evaluate(trainer, explainer_of(pl_module), "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the answers of ``predict``, which scores nothing."""
        module = explainer_of(pl_module)
        items = module.data.examples["test"]
        batch_size, limit = module.data.settings.batch_size, module.answer_limit
        written = predict_outcomes(module, module.outcomes, batch_size, limit, module.sharing, as_written=True)
        answers = {answer.uid: answer for answer in written}
        path = _folder(trainer) / "predictions.jsonl"
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rows = [
                {
                    "uid": item.uid,
                    "question_type": item.question_type,
                    "predicted": answers[item.uid].predicted,
                    "p_changed": answers[item.uid].p_changed,
                }
                for item in items
                if item.uid in answers
            ]
            write_jsonl(path, rows)
            log.info("predictions: %s", path)

    @staticmethod
    def _answers(module: ExplainerModule, items: Sequence[Example], outcomes: Sequence[Outcome]) -> list[Prediction]:
        """Return the written answers to the items that the epoch evaluated."""
        return predict_outcomes(module, outcomes, module.data.settings.batch_size, answer_limit(items), module.sharing)

    def _evaluate(self, trainer: Trainer, module: ExplainerModule, split: str) -> None:
        """Let all systems answer a split, in all processes; the first process alone scores and writes."""
        folder = _folder(trainer) / module.data.test_set
        run = (
            run_of(Path(trainer.ckpt_path)) if trainer.ckpt_path else folder
        )  # without a checkpoint, training just ended
        written = {
            name: self._evaluate_table(trainer, module, data, split, outcomes, folder / name, run)
            for name, data, outcomes in module.data.tables(module.outcomes)
        }
        if trainer.is_global_zero and "" not in written:
            summary = joined_summary(module.data, split, written, self._seconds())  # type: ignore[arg-type]
            self._write(trainer, folder, summary)
        trainer.strategy.barrier()

    def _evaluate_table(
        self,
        trainer: Trainer,
        module: ExplainerModule,
        data: TaskData,
        split: str,
        outcomes: Sequence[Outcome],
        folder: Path,
        run: Path,
    ) -> dict[str, Any] | None:
        """Let all systems answer the items of one table; return its summary in the first process."""
        answered = self._answers(module, data.examples[split], outcomes)
        controls, compared = on_changed_items(module, data, split), trained_otherwise(module, data, split, run)
        explained = change_of_explained(module, data, split)
        fits, trained = {name: comparison.fit for name, comparison in compared.items()}, training_records(run)
        if fits:
            fits = {EXPLAINER: training_fit(module, data.training_examples(), data.settings.batch_size), **fits}
        if trainer.is_global_zero:
            others = {name: comparison.predictions for name, comparison in compared.items()}
            systems = data.graded({EXPLAINER: answered, **data.baselines(split), **controls, **others})
            return self._report(trainer, module, data, split, folder, systems, fits, trained, explained)
        return None

    def _report(
        self,
        trainer: Trainer,
        module: ExplainerModule,
        data: TaskData,
        split: str,
        folder: Path,
        systems: Systems,
        fits: Mapping[str, float],
        trained: Mapping[str, Mapping[str, Any]],
        explained: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Score all systems, write the scores, print them and log them; return the summary."""
        items = data.examples[split]
        scores = {name: data.statistics(answers) for name, answers in systems.items()}
        table = {name: score(system_scores) for name, system_scores in scores.items()}
        known, of = fits_known(table, fits, data)
        underfit = underfit_of(known, of)
        leads = self._leads(scores, data, [name for name in fits if name != EXPLAINER], underfit)
        few = few_clusters_warning(scores[EXPLAINER])
        truncated = [answer.truncated for answer in systems[EXPLAINER]]
        warnings = [
            *data.warnings,
            *data.warnings_about(systems, leads),
            *_missing(fits, table[EXPLAINER]),
            *([few] if few else []),
            *cut_warnings(truncated, "explainer's answers", ""),
            *([f"the base model {WITHOUT_TEMPLATE}"] if module.tokenizer.chat_template is None else []),
            *([CHOSEN] if split == SELECTED_ON else []),
            *underfit.values(),
            # Also those that are underfit: whoever reaches the explainer without the weights shows that nobody needs them.
            *solved_from_text(table, EXPLAINER, data.without_weights(list(table)), data.solved),
        ]
        equal = [name for name in fits if name not in (EXPLAINER, *HALF_BLIND, *underfit)]
        base = module.identity["fingerprint"]
        best = {name.removeprefix("lead/"): value["against"] for name, value in leads.items()}
        groups = by_group(scores, EXPLAINER, systems[EXPLAINER], data.leads, best, data.settings.split_seed)
        conclusion = None if split == SELECTED_ON else data.conclusion(table, leads, equal, base)
        metrics, baselines = _as_json(table[EXPLAINER]), {name: _as_json(table[name]) for name in table}
        del baselines[EXPLAINER]
        summary = {
            "task": data.task,
            **({"set": data.test_set} if data.test_set else {}),
            "split": split,
            "selected_on": data.called(SELECTED_ON),
            "reported_on": data.called(split),
            "n": len(items),
            "seconds": self._seconds(),
            "metrics": {**metrics, **leads},
            "baselines": baselines,
            "warnings": warnings,
            "truncated_answers": cut_share(truncated),
            **({"conclusion": conclusion} if conclusion else {}),
            **({"training": dict(trained)} if trained else {}),
            **({"training_fit": dict(fits)} if fits else {}),
            **({"underfit": sorted(underfit)} if len(known) > 1 else {}),
            **data.details(systems),
            **({"explained": explained} if explained else {}),
            **({"groups": groups} if groups else {}),
            "model": {**module.identity, "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None},
            "data": data.describe(split),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        self._write(trainer, folder, summary, prediction_rows(systems, items))
        if data.test_set:
            self.reported[data.test_set] = TestSet(scores, table, best, data.examples[split], data.describe(split))
        if module.data is not data:
            log.info("the table of %s:", folder.name)
        report.print_table(table, leads, warnings, report.Trained(trained, known, of, sorted(underfit)), conclusion)
        print_groups(groups)
        prefix = f"{data.test_set or folder.name}/" if data.test_set or module.data is not data else ""
        self._log(trainer, table, systems[EXPLAINER], items, data, prefix)
        return summary

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 1)

    def _write(
        self, trainer: Trainer, folder: Path, summary: dict[str, Any], rows: list[dict[str, Any]] | None = None
    ) -> None:
        """Write a summary, and the predictions that it is of, unless the run is a development run."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder.mkdir(parents=True, exist_ok=True)
        if rows is not None:
            write_jsonl(folder / "predictions.jsonl", rows)
        write_json(folder / "summary.json", summary)
        self.summary_path = folder / "summary.json"

    def _leads(
        self, scores: dict[str, Scores], data: TaskData, compared: Sequence[str], underfit: Collection[str]
    ) -> dict[str, Any]:
        """Return paired differences of the explainer to the best baseline, and to some baselines each on its own.

        A comparison that does not fit its training questions proves nothing, and is not among the baselines.
        """
        baselines = [name for name in scores if name != EXPLAINER and name not in underfit]
        single = dict.fromkeys([*data.compared_with(baselines), *(name for name in compared if name in baselines)])
        against = {"": data.best_of(baselines), **{f"/{name}": [name] for name in single}}
        leads: dict[str, Any] = {}
        for metric in data.leads:
            for suffix, names in against.items():
                result = lead(scores[EXPLAINER], {name: scores[name] for name in names}, metric)
                if result is not None:
                    estimate, best = result
                    leads[f"lead/{metric}{suffix}"] = {**estimate.as_json(), "against": best}
        return leads

    def _log(
        self,
        trainer: Trainer,
        table: dict[str, dict[str, Estimate]],
        predictions: list[Prediction],
        items: Sequence[Example],
        data: TaskData,
        prefix: str,
    ) -> None:
        """Show the metrics, a sample of the predictions and the task's figures in TensorBoard."""
        prompts = {item.uid: item.prompt for item in items}
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            writer, step = logger.experiment, trainer.global_step
            for system, estimates in table.items():
                for name, estimate in estimates.items():
                    if estimate.value is not None:
                        writer.add_scalar(f"{prefix}{name}/{system}", estimate.value, step)
            writer.add_text(f"{prefix}predictions", report.sample_table(predictions, prompts, data.primary), step)
            for name, figure in data.figures(predictions).items():
                writer.add_figure(f"{prefix}{name}", figure, step)
            writer.flush()


def fits_known(
    table: Mapping[str, Mapping[str, Estimate]], fits: Mapping[str, float], data: TaskData
) -> tuple[dict[str, float], str]:
    """Return how well each trained system fits, and what of: what the task says, else training questions.

    Args:
        table: Estimates by system and metric.
        fits: Share of its training questions that each trained explainer answers exactly; empty without comparisons.
        data: The data module.
    """
    metric, of = data.fit_metric or ("", "")
    if metric not in table[EXPLAINER]:
        return dict(fits), "training questions"
    names = dict.fromkeys((EXPLAINER, *fits, *data.learners))
    values = {name: table[name][metric].value for name in names if metric in table.get(name, {})}
    return {name: value for name, value in values.items() if value is not None}, of


def underfit_of(fits: Mapping[str, float], of: str = "training questions") -> dict[str, str]:
    """Return the comparisons that fit less well than the explainer does, each with a warning.

    ``text_only`` and ``vector_only`` are none of them: without vector or text nobody can fit questions whose answers depend on
    both, and that such a comparison does not is its result.

    Args:
        fits: Share of items that each trained system answers exactly; empty without comparisons.
        of: What the items are.
    """
    return {
        name: f"{name}: underfit, proves nothing: it answers {fit:.3f} of {of} exactly, the explainer "
        f"{fits[EXPLAINER]:.3f}"
        for name, fit in fits.items()
        if name not in HALF_BLIND and fit < fits[EXPLAINER] - UNDERFIT
    }


def _folder(trainer: Trainer) -> Path:
    """Return the run's folder; all processes call this at once, because ``log_dir`` makes them agree on it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def _as_json(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.as_json() for name, estimate in estimates.items()}


def _missing(fits: Mapping[str, float], metrics: dict[str, Estimate]) -> list[str]:
    """Return warnings about a comparison that was not trained and about metrics that cannot be computed."""
    warnings = []
    if not {*fits} - {EXPLAINER, *HALF_BLIND}:
        warnings.append(
            "no explainer on another base was trained in this run (other_base), so that comparison is missing"
        )
    for name, estimate in metrics.items():
        if estimate.value is None:
            warnings.append(f"{name} cannot be computed on these {estimate.n} items")
    return warnings


def prediction_rows(systems: Systems, items: Sequence[Example]) -> list[dict[str, Any]]:
    """Return the rows of ``predictions.jsonl``: one object an item, sorted by uid, as the results contract says.

    The rows hold all that the table is computed from, for every system.

    Args:
        systems: Predictions by system; those of the explainer make the rows, the others stand in ``baselines`` (the answers)
            and in ``baselines_exact_match``, ``baselines_p_changed`` and ``baselines_scores``.
        items: The items that were answered.
    """
    prompts = {item.uid: item.prompt for item in items}
    by_item: dict[str, dict[str, Prediction]] = {prediction.uid: {} for prediction in systems[EXPLAINER]}
    for name, answers in systems.items():
        for answer in answers if name != EXPLAINER else ():
            by_item[answer.uid][name] = answer
    rows = []
    for prediction in sorted(systems[EXPLAINER], key=lambda p: p.uid):
        cut = prediction.cut
        expected, predicted = (
            parse_two_branch(answer, cut) for answer in (prediction.expected, prediction.predicted or "")
        )
        others = by_item[prediction.uid]
        scores = {name: dict(answer.scores) for name, answer in others.items() if answer.scores}
        rows.append(
            {
                "uid": prediction.uid,
                "scenario_id": prediction.scenario_id,
                "question_type": prediction.question_type,
                "prompt": prompts[prediction.uid],
                "expected": prediction.expected,
                "predicted": prediction.predicted,
                "exact_match": prediction.exact_match,
                **({"expected_cut": True} if cut else {}),
                "truncated": prediction.truncated,
                "verdict_expected": report.verdict_name(expected),
                "verdict_predicted": report.verdict_name(predicted),
                "p_changed": prediction.p_changed,
                "parsed": predicted is not None if expected is not None else None,
                "baselines": {name: answer.predicted for name, answer in others.items()},
                "baselines_exact_match": {name: answer.exact_match for name, answer in others.items()},
                "baselines_p_changed": {
                    name: answer.p_changed for name, answer in others.items() if answer.p_changed is not None
                },
                **({"baselines_scores": scores} if scores else {}),
                **prediction.facets,
                **({"group": prediction.group} if prediction.group else {}),
                **({"twins": prediction.twins} if prediction.twins else {}),
                **({"scores": dict(prediction.scores)} if prediction.scores else {}),
            }
        )
    return rows
