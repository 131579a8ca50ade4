"""A mixture: one explainer trained on several tasks together, and evaluated on each with a table of its own."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Self

from afintro.data.batch import Example
from afintro.errors import UserError
from afintro.evaluation.metrics import Prediction
from afintro.evaluation.outcomes import Outcome
from afintro.evaluation.statistic import Scores
from afintro.lm.injection import VectorSpaces
from afintro.ranges import PositiveFloat
from afintro.tasks.base import EXPLAINER, HALF_BLIND, OTHER_BASE, Systems, TaskData
from afintro.tasks.contract import Control, ExplainerSpec
from afintro.tasks.mixture.joined import JoinedExamples, Part, joined_uid, mixed
from afintro.tasks.settings import ROLES, TaskSettings

NAME = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = (EXPLAINER, OTHER_BASE, *HALF_BLIND, "checkpoints")  # folders of a run
OF_EACH = (*(f"{role}_{kind}" for role in ROLES for kind in ("path", "split")), "test_paths", "question_weights")
OF_ALL = ("batch_size", "max_tokens")  # a batch holds examples of all tasks
PASSED_ON = ("heldout", "heldout_action", "limit", "split_seed", "validation_fraction", "explained")


@dataclass
class Attached:
    """What a task asks of the trainer: the place of this process and the explainer. The mixture limits the items itself."""

    lightning_module: Any
    global_rank: int
    world_size: int
    limit_val_batches: float = 1.0
    limit_test_batches: float = 1.0


class Mixture(TaskData):
    """Data of several tasks for one explainer.

    Files and question weights are settings of each task (``--data.tasks.NAME.train_path``). ``batch_size`` and ``max_tokens``
    are those of the mixture, and ``heldout``, ``heldout_action``, ``limit``, ``split_seed``, ``validation_fraction`` and
    ``explained`` hold for every task that does not set them itself.

    Args:
        tasks: The data module of each task, by the name that its table gets.
        weights: Weight of each task, above 0, by name: its share of the loss is its weight divided by the sum of all. A task
            that is not named has weight 1.
        **settings: Settings that all tasks have, see :class:`TaskSettings`.

    Raises:
        UserError: There is no task, a task occurs twice, a name cannot be a folder's, a weight is that of no task or is not
            above 0, or a setting is one of each task or of the mixture alone.
    """

    task = "mixture"
    leads = ()
    has_vectors = has_text_beside_vectors = True

    def __init__(
        self,
        *,
        tasks: dict[str, TaskData] | None = None,
        weights: dict[str, PositiveFloat] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.tasks, self.weights = dict(tasks or {}), dict.fromkeys(tasks or {}, 1.0) | (weights or {})
        _refuse_of_each(self.settings)
        _check_tasks(self.tasks)
        _check_weights(self.tasks, weights or {})
        for name, task in self.tasks.items():
            _hand_on(self.settings, name, task)
        self.systems = tuple(
            dict.fromkeys([*self.tasks, *(one for task in self.tasks.values() for one in task.systems)])
        )
        self.question_types = tuple(dict.fromkeys(one for task in self.tasks.values() for one in task.question_types))

    # What is read.

    def prepare_data(self) -> None:
        """Build the embedded default of every task without a training file."""
        for task in self.tasks.values():
            task.prepare_data()

    def setup(self, stage: str) -> None:
        """Read what the stage needs of every task.

        Raises:
            UserError: A task's files are wrong; the error names the task.
        """
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("a data module is set up by a Trainer")
        for name, task in self.tasks.items():
            attached = Attached(trainer.lightning_module, trainer.global_rank, trainer.world_size)
            task.trainer, task.space_name = attached, name  # type: ignore[assignment]
            with _naming(name):
                task.setup(stage)
                if not len(task.training_examples()):
                    raise UserError(
                        "leaves no training example", where="data.question_weights", remedy="give a weight above 0"
                    )
        spaces = {name: task.space for name, task in self.tasks.items() if task.space is not None}
        self.space = VectorSpaces(spaces) if spaces else None  # type: ignore[assignment]
        for split in ROLES:
            if split not in self.examples and all(split in task.examples for task in self.tasks.values()):
                self.examples[split] = self._joined(split)
        for split, limit in (("validation", "limit_val_batches"), ("test", "limit_test_batches")):
            self.warnings += self.limit_items(split, limit) if split in self.examples else []

    def _joined(self, split: str) -> JoinedExamples:
        return JoinedExamples({name: Part(task.examples[split]) for name, task in self.tasks.items()})

    @property
    def has_test(self) -> bool:
        """Whether every task has test items, or half of its validation items for them."""
        return all(task.has_test or task.halved for task in self.tasks.values())

    def keep_items(self, split: str, places: Sequence[int]) -> None:
        """Keep the items of a split at some places, and at least one of every task."""
        whole = self.examples[split]
        assert isinstance(whole, JoinedExamples)
        for name, own in whole.places_of(places).items():
            self.tasks[name].keep_items(split, own or [0])
        self.examples[split] = self._joined(split)
        self._kept[split] = frozenset(example.uid for example in self.examples[split])

    def training_examples(self) -> Sequence[Example]:
        """Return the training examples of all tasks, see :func:`mixed`."""
        return mixed({name: task.training_examples() for name, task in self.tasks.items()}, self.weights)

    def predicted_examples(self) -> Sequence[Example]:
        """Return the test items of every task that ``predict`` answers."""
        return JoinedExamples({name: Part(task.predicted_examples()) for name, task in self.tasks.items()})

    def longest(self, split: str, count: int) -> list[Example]:
        """Return the longest ``count`` examples of a split, the longest last."""
        found = [
            replace(example, uid=joined_uid(name, example.uid))
            for name, task in self.tasks.items()
            for example in task.longest(split, count)
        ]
        return sorted(found, key=len)[-count:]

    @property
    def answer_limit(self) -> int:
        """Return the largest number of tokens of an answer of any task, where no expected answer is known."""
        return max(task.answer_limit for task in self.tasks.values())

    def describe(self, split: str) -> dict[str, Any]:
        """Describe the split of every task, and say which share of the loss the task has."""
        total = sum(self.weights.values())
        described = {
            name: {**task.describe(split), "share": self.weights[name] / total} for name, task in self.tasks.items()
        }
        return {"path": None, "sha256": None, "n": len(self.examples[split]), "tasks": described}

    def for_another_explainer(self, zero_vectors: bool = False, without_text: bool = False) -> Self:
        """Return the same records for another explainer; a task without vectors, or without text beside them, is unchanged.

        Args:
            zero_vectors: Replace all vectors by zeros.
            without_text: Leave the text beside the vectors out.
        """
        other = super().for_another_explainer(zero_vectors, without_text)
        other.tasks = {
            name: task.for_another_explainer(
                zero_vectors and task.has_vectors, without_text and task.has_text_beside_vectors
            )
            for name, task in self.tasks.items()
        }
        return other

    # Evaluation.

    def tables(self, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, TaskData, Sequence[Outcome]]]:
        """Yield the table of every task, with the outcomes of its items under their own uids."""
        for name, task in self.tasks.items():
            own = [outcome for outcome in outcomes if _is_of(name, outcome.example.uid)]
            examples = [replace(one.example, uid=_own_uid(name, one.example.uid)) for one in own]
            yield name, task, [replace(one, example=example) for one, example in zip(own, examples, strict=True)]

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """Return all metrics of every task, as ``<task>/<metric>``."""
        return {
            f"{name}/{metric}": statistic
            for name, task in self.tasks.items()
            for metric, statistic in task.statistics(
                [replace(one, uid=_own_uid(name, one.uid)) for one in predictions if _is_of(name, one.uid)]
            ).items()
        }

    def selection(self, scores: Scores) -> float:
        """Return the mean over tasks of the value by which each task alone would choose."""
        chosen = [
            task.selection({metric.removeprefix(f"{name}/"): s for metric, s in scores.items() if _is_of(name, metric)})
            for name, task in self.tasks.items()
        ]
        return sum(chosen) / len(chosen)

    # What only the tasks have.

    @property
    def primary(self) -> str:  # type: ignore[override]
        """The primary question type of the first task."""
        return next(iter(self.tasks.values())).primary

    def baselines(self, split: str) -> Systems:
        """Return nothing: the baselines of every task stand in its own table."""
        return {}

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Yield nothing: the controls of every task stand in its own table."""
        yield from ()

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """Return the examples of every task, one task after the other."""
        return JoinedExamples({name: Part(task.read_examples(split, reader)) for name, task in self.tasks.items()})


def _is_of(name: str, joined: str) -> bool:
    return joined.startswith(f"{name}/")


def _own_uid(name: str, uid: str) -> str:
    return uid.removeprefix(f"{name}/")


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the task where one of its settings is refused inside of the block."""
    try:
        yield
    except UserError as error:
        where, setting = error.where, error.where.removeprefix("data.")
        where = f"data.tasks.{name}.{setting}" if setting != where else f"{name}: {where}"
        raise UserError(error.what, where=where, remedy=error.remedy) from error


def _refuse_of_each(settings: TaskSettings) -> None:
    """Refuse settings of the mixture that each task has for itself."""
    for name in OF_EACH:
        if getattr(settings, name):
            raise UserError(
                "is a setting of each task of a mixture", where=f"data.{name}", remedy=f"give data.tasks.NAME.{name}"
            )


def _check_tasks(tasks: Mapping[str, TaskData]) -> None:
    if not tasks:
        raise UserError("names no task", where="data.tasks", remedy="give the data module of each task by a name")
    for name, task in tasks.items():
        where = f"data.tasks.{name}"
        if isinstance(task, Mixture):
            raise UserError("is a mixture", where=where, remedy="name its tasks instead")
        if not NAME.fullmatch(name) or name in TAKEN:
            what = "cannot be the name of a task, whose folder in the run is called so"
            raise UserError(what, where=where, remedy="use small letters, digits and _, and no name that a run uses")
        if task.settings.test_paths:
            what = "are several test sets, of which a mixture has one for each task"
            raise UserError(what, where=f"{where}.test_paths", remedy="give test_path, or test the sets one by one")
        twin = next((o for o in tasks if o != name and type(tasks[o]) is type(task) and _same(tasks[o], task)), None)
        if twin is not None:
            raise UserError(
                f"is the same task with the same data as {twin}",
                where=where,
                remedy="leave one out, and weigh the other",
            )


def _same(one: TaskData, other: TaskData) -> bool:
    return one.paths == other.paths


def _check_weights(tasks: Collection[str], weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if name not in tasks:
            raise UserError(f"names the unknown task {name}", where="data.weights", remedy=f"use {', '.join(tasks)}")
        if not 0 < weight < float("inf"):
            raise UserError(
                f"must be above 0, but is {weight}", where=f"data.weights.{name}", remedy="leave the task out instead"
            )


def _hand_on(settings: TaskSettings, name: str, task: TaskData) -> None:
    """Let the mixture's settings hold for a task, unless it sets them itself."""
    for setting in OF_ALL:
        if getattr(task.settings, setting) not in (_default(setting), getattr(settings, setting)):
            raise UserError(
                "is a setting of the whole mixture, whose batches hold examples of all tasks",
                where=f"data.tasks.{name}.{setting}",
                remedy=f"give data.{setting}",
            )
        setattr(task.settings, setting, getattr(settings, setting))
    for setting in PASSED_ON:
        if getattr(task.settings, setting) == _default(setting):
            setattr(task.settings, setting, getattr(settings, setting))
    task.heldout = task.settings.heldout or []


def _default(setting: str) -> Any:
    [field] = [field for field in fields(TaskSettings) if field.name == setting]
    assert field.default is not MISSING
    return field.default
