"""What every task's data module shares: where the files are, the contamination check, loaders over packed batches."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from lightning import LightningDataModule
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from afintro.data.batch import Example, PackedBatch, collate, sizes_of
from afintro.data.files import file_sha256
from afintro.data.loader import (
    EpochRows,
    PackedRows,
    RankRows,
    ResumableLoader,
    by_number,
    in_turn,
    row_loader,
)
from afintro.data.splits import check_contamination, split_by_scenario
from afintro.errors import UserError
from afintro.evaluation.metrics import Prediction, Scores, statistics
from afintro.lm.injection import VectorSpace
from afintro.ranges import NonNegativeFloat, OpenUnitInterval, PositiveInt, check_ranges

log = logging.getLogger(__name__)

EXPLAINER = "explainer"
OTHER_BASE = "other_base"
TEXT_ONLY = "text_only"
Systems = dict[str, list[Prediction]]


class ExplainerSpec(Protocol):
    """What a task asks of the model that its prompts are for."""

    name: str
    slot_token: str | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Makes token ids of prompts and answers."""

    @property
    def context_length(self) -> int | None:
        """Longest sequence, in tokens."""


@dataclass(frozen=True)
class Control:
    """Items changed in a way that tells where a score comes from.

    Args:
        name: What the answers are called in the table.
        items: One for each item that is evaluated, of the same uid.
        trained: Answered by the trained explainer; otherwise by the model before training.
    """

    name: str
    items: list[Example]
    trained: bool


@dataclass
class TaskSettings:
    """The settings that every task's data module has.

    Args:
        train_path: File of training records; None for the embedded default.
        validation_path: File of validation records; None splits ``validation_fraction`` of the scenarios off training.
        test_path: File of test records.
        heldout: Files whose texts must never be trained on.
        heldout_action: ``error`` stops the run at a hit, ``drop`` removes the training records.
        limit: Largest number of records in a split; None for all.
        split_seed: Seed of the split and of the order of training.
        question_weights: Weight in the loss of each question type; 0 leaves the question type out of training.
        batch_size: Number of examples in a step; with ``max_tokens`` only the number of answers generated at once.
        max_tokens: Number of tokens in a step: a step takes as many examples as fit, prompts and answers together, into one
            packed row; None for ``batch_size`` examples.
        validation_fraction: Share of the scenarios that is split off where there is no validation file.

    Raises:
        UserError: A number is outside of its range, or another path is given without ``train_path``.
    """

    train_path: str | None = None
    validation_path: str | None = None
    test_path: str | None = None
    heldout: list[str] | None = None
    heldout_action: Literal["error", "drop"] = "error"
    limit: PositiveInt | None = None
    split_seed: int = 0
    question_weights: dict[str, NonNegativeFloat] = field(default_factory=dict)
    batch_size: PositiveInt = 32
    max_tokens: PositiveInt | None = None
    validation_fraction: OpenUnitInterval = 0.1

    def __post_init__(self) -> None:
        if self.train_path is None and (self.validation_path or self.test_path):
            raise UserError(
                "is absent while another path is given", where="data.train_path", remedy="give it too, or none of them"
            )
        check_ranges(self, "data")


class TaskData(LightningDataModule):
    """Base of the tasks' data modules.

    A task says how to read its records, which text of a record must not be held out, and which examples a record gives.

    Args:
        **settings: Fields of :class:`TaskSettings`. The command line finds them through this signature, so a task names in
            its own signature only its own settings and those whose default differs, and passes the others on.

    Attributes:
        settings: The settings that every task has.
        heldout: Files whose texts must never be trained on; empty without any.
        paths: Path of each split; ``prepare_data`` sets the paths of the embedded default.
    """

    task = ""
    primary = ""
    question_types: tuple[str, ...] = ()
    leads: tuple[str, ...] = ("exact_match",)
    has_vectors = False
    space: VectorSpace | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = TaskSettings(**settings)
        self.paths: dict[str, str | None] = {
            "train": self.settings.train_path,
            "validation": self.settings.validation_path,
            "test": self.settings.test_path,
        }
        self.heldout = self.settings.heldout or []
        self.zero_vectors = False
        self.examples: dict[str, Sequence[Example]] = {}
        self.warnings: list[str] = []
        self._train_loader: ResumableLoader | None = None
        self._train_state: dict[str, int] | None = None

    # What a task says of itself.

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """All examples of a split; for training without held-out records."""
        raise NotImplementedError

    def baselines(self, split: str) -> Systems:
        """Answers to a split's items by systems that are no language model."""
        raise NotImplementedError

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Changed items for the explainer, trained or not, to answer."""
        raise NotImplementedError

    def graded(self, systems: Systems) -> Systems:
        """All systems' predictions with the scores that judges give them; a task without judges returns them as they are."""
        return systems

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """All metrics of one system."""
        return statistics(predictions, self.primary)

    def best_of(self, baselines: Sequence[str]) -> list[str]:
        """The baselines that ``lead/<metric>`` compares with the best of."""
        return list(baselines)

    def compared_with(self, baselines: Sequence[str]) -> list[str]:
        """The baselines that get a ``lead/<metric>/<baseline>`` of their own."""
        return list(baselines)

    def warnings_about(self, systems: Systems, leads: Mapping[str, Any]) -> list[str]:
        """Warnings that only the finished table allows."""
        return []

    def details(self, systems: Systems) -> dict[str, Any]:
        """What ``summary.json`` holds besides the contract."""
        return {}

    def figures(self, predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """What TensorBoard shows, by name."""
        return {}

    def for_another_explainer(self, zero_vectors: bool = False) -> Self:
        """The same records, to be tokenised anew and trained on from the first batch, also where this run was resumed.

        Args:
            zero_vectors: All vectors are zero: the explainer sees the text alone.
        """
        if zero_vectors and not self.has_vectors:
            raise ValueError(f"{self.task} has no vectors")
        other = copy.copy(self)
        other.examples = {}
        other.warnings = []
        other.zero_vectors = zero_vectors
        other._train_loader = other._train_state = None
        return other

    def guarded(self, texts: Sequence[str], names: Sequence[str], what: str = "records") -> list[int]:
        """Indices of the training texts that the held-out files leave.

        Args:
            texts: Training texts.
            names: What a message calls each.
            what: What it calls all of them.

        Raises:
            UserError: A hit under ``heldout_action: error``.
        """
        if not self.heldout:  # comparing with nothing would still cost a hash of every eight words
            return list(range(len(texts)))
        keep, dropped = check_contamination(texts, names, self.heldout, self.settings.heldout_action)
        for line in dropped:
            log.warning("contamination check: dropped %s", line)
        log.info("contamination check: %d files compared, %d %s dropped", len(self.heldout), len(dropped), what)
        if dropped:
            self.warnings.append(f"{len(dropped)} training {what} dropped by the contamination check")
        return keep

    def split_off_validation(self, scenarios: Sequence[str], path: str) -> tuple[list[int], list[int]]:
        """Indices of the training records and of those split off for validation, no scenario on both sides.

        Raises:
            UserError: None is left for validation.
        """
        left, right = split_by_scenario(scenarios, self.settings.validation_fraction, self.settings.split_seed)
        if not right:
            raise UserError(
                f"{len(scenarios)} records leave none for validation", where=path, remedy="give data.validation_path"
            )
        return left, right

    def warn_of_shared(self, scenarios: Iterable[str], train: Iterable[str], path: str) -> None:
        """Say how many scenarios of an evaluation file are trained on."""
        shared = set(scenarios) & set(train)
        if shared:
            self.warnings.append(f"{len(shared)} scenarios of {path} are in the training file too")
            log.warning(self.warnings[-1])

    def setup(self, stage: str) -> None:
        """Read what the stage needs. The training split is read for every stage: the text baselines learn from it."""
        if self.trainer is None:
            raise RuntimeError("a data module is set up by a Trainer")
        module: Any = self.trainer.lightning_module
        splits = {"fit": ("train", "validation"), "validate": ("train", "validation")}.get(stage, ("train", "test"))
        for split in splits:
            if split not in self.examples:
                self.examples[split] = self.read_examples(split, module)
        unknown = sorted(set(self.settings.question_weights) - set(self.question_types))
        if unknown:
            raise UserError(
                f"no question type {', '.join(unknown)}",
                where="data.question_weights",
                remedy=f"use {', '.join(sorted(self.question_types))}",
            )
        self._check_length(module.context_length)

    def longest(self, split: str, count: int) -> list[Example]:
        """The longest ``count`` examples of a split, the longest last."""
        examples = self.examples[split]
        return [examples[int(index)] for index in np.argsort(_lengths(examples), kind="stable")[-count:]]

    def _check_length(self, limit: int | None) -> None:
        for split, examples in self.examples.items():
            longest = self.longest(split, 1)[-1]
            if limit is not None and len(longest) > limit:
                raise UserError(
                    f"prompt and answer take {len(longest)} tokens, the explainer's context is {limit}",
                    where=f"{split} item {longest.uid}",
                    remedy="shorten the text, or use an explainer with a longer context",
                )
            if self.settings.max_tokens is not None:
                self._check_budget(split, self.training_examples() if split == "train" else examples)

    def _check_budget(self, split: str, examples: Sequence[Example]) -> None:
        assert self.settings.max_tokens is not None
        lengths = _lengths(examples)
        if len(lengths) and lengths.max() > self.settings.max_tokens:
            raise UserError(
                f"prompt and answer take {lengths.max()} tokens, a row holds data.max_tokens: {self.settings.max_tokens}",
                where=f"{split} item {examples[int(lengths.argmax())].uid}",
                remedy=f"set data.max_tokens to {lengths.max()} or more, or shorten the text",
            )

    def describe(self, split: str) -> dict[str, Any]:
        """Path, hash (of a file; a dataset has none) and size of a split, for ``summary.json``."""
        path = self.paths[split] or (self.paths["train"] if split == "validation" else None)
        return {
            "path": path,
            "sha256": file_sha256(path) if path and Path(path).is_file() else None,
            "n": len(self.examples[split]),
        }

    def training_examples(self) -> Sequence[Example]:
        """Those that the question weights leave in."""
        return [example for example in self.examples["train"] if example.weight > 0]

    def primary_examples(self, split: str) -> Sequence[Example]:
        """Those of the headline question."""
        return [example for example in self.examples[split] if example.question_type == self.primary]

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """Shuffled by seed and epoch; every process gets its share.

        Raises:
            UserError: Fewer examples than processes, or none at all.
        """
        rank, processes = self._place
        examples = self.training_examples()
        if len(examples) < processes:
            raise UserError(
                f"{len(examples)} examples for {processes} processes",
                where="training data",
                remedy="give more records, or a question type a weight above 0",
            )
        rows = EpochRows(
            examples, self.settings.batch_size, self.settings.max_tokens, self.settings.split_seed, processes
        )
        if self.settings.max_tokens is not None:
            log.info("%d examples in %d rows of %d tokens at most", len(examples), len(rows), self.settings.max_tokens)
        self._train_loader = ResumableLoader(rows, batch_size=None, sampler=RankRows(rows, rank, processes))
        if self._train_state is not None:
            self._train_loader.load_state_dict(self._train_state)
        return self._train_loader

    @property
    def _place(self) -> tuple[int, int]:
        """Rank of this process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def longest_batch(self) -> PackedBatch:
        """The training batch that takes most memory: the longest examples, or the row that training begins with."""
        if self.settings.max_tokens is None:
            return collate(self.longest("train", self.settings.batch_size), self.settings.batch_size)
        rows = (self._train_loader or self.train_dataloader()).dataset
        assert isinstance(rows, EpochRows)
        return rows.heaviest(self._place[0])

    def state_dict(self) -> dict[str, Any]:
        """Where training stands within its epoch.

        Lightning saves a resumable loader's state too, but has made the loader before it restores that state.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the training loader is made."""
        self._train_state = state_dict or None

    def evaluation_rows(self, examples: Sequence[Example], sort: bool = True) -> PackedRows:
        """Examples in rows for evaluation, sorted by length, so that like sequences stand together."""
        lengths = _lengths(examples)
        order = (np.argsort(lengths, kind="stable") if sort else np.arange(len(examples))).astype(np.int32)
        rows = (
            by_number(order, self.settings.batch_size)
            if self.settings.max_tokens is None
            else in_turn(order, lengths, self.settings.max_tokens)
        )
        return PackedRows(examples, rows)

    def val_dataloader(self) -> DataLoader[PackedBatch]:
        """See :meth:`evaluation_rows`."""
        return row_loader(self.evaluation_rows(self.examples["validation"]), *self._place)

    def test_dataloader(self) -> DataLoader[PackedBatch]:
        """As for validation."""
        return row_loader(self.evaluation_rows(self.examples["test"]), *self._place)

    def predict_dataloader(self) -> DataLoader[PackedBatch]:
        """Items of the headline question of the test split, in the order of the file."""
        return row_loader(self.evaluation_rows(self.primary_examples("test"), sort=False), *self._place)


def _lengths(examples: Sequence[Example]) -> NDArray[np.int32]:
    return sizes_of(examples).sum(1, dtype=np.int32)
