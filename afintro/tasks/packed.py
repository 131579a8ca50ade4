"""Data modules whose batches are packed rows of examples."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from afintro.data.batch import Example, PackedBatch, collate, sizes_of
from afintro.data.loader import EpochRows, PackedRows, RankRows, ResumableLoader, by_number, in_turn, row_loader
from afintro.errors import UserError
from afintro.evaluation.outcomes import Outcome, answer_limit
from afintro.tasks.contract import AskedScenario
from afintro.tasks.limits import fair_draw, limited_count
from afintro.tasks.settings import TaskSettings

log = logging.getLogger(__name__)


class PackedData(LightningDataModule):
    """Loaders over the examples of each split, packed into rows.

    Args:
        **settings: Fields of :class:`afintro.tasks.settings.TaskSettings`.

    Attributes:
        settings: The settings that every task has.
        examples: Examples of each split that was read.
        primary: The question type whose metric names have no suffix.
    """

    primary = ""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = TaskSettings(**settings)
        self.examples: dict[str, Sequence[Example]] = {}
        self._kept: dict[str, frozenset[str]] = {}  # uids of the items that the trainer's limits leave, by split
        self._train_loader: ResumableLoader | None = None
        self._train_state: dict[str, int] | None = None

    def tables(self, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Any, Sequence[Outcome]]]:
        """Yield each table that a run writes: its name ("" for the only one), its data module and its outcomes.

        Args:
            outcomes: What the explainer answered to all items of the evaluated split.
        """
        yield "", self, outcomes

    def asked_scenarios(self, split: str) -> Sequence[AskedScenario]:
        """Return scenarios of a split as the organism was asked about them; none where records do not say."""
        return []

    def training_examples(self) -> Sequence[Example]:
        """Return the training examples whose question types have a weight above 0."""
        return [example for example in self.examples["train"] if example.weight > 0]

    def primary_examples(self, split: str) -> Sequence[Example]:
        """Return the examples of the primary question type."""
        return self.of_types(split, lambda question_type: question_type == self.primary)

    def of_types(self, split: str, wanted: Callable[[str], bool]) -> Sequence[Example]:
        """Return the examples of a split whose question type ``wanted`` accepts."""
        return [example for example in self.examples[split] if wanted(example.question_type)]

    def take(self, examples: Sequence[Example], places: Sequence[int]) -> Sequence[Example]:
        """Return the items at some places."""
        return [examples[place] for place in places]

    def limit_items(self, split: str, switch: str) -> list[str]:
        """Keep as many items of an evaluated split as the trainer's limit on batches leaves, fairly drawn, for all systems.

        Args:
            split: ``validation`` or ``test``.
            switch: Name of the trainer's limit; it does not hold any more afterwards.

        Returns:
            A warning if items are left out.
        """
        assert self.trainer is not None
        examples, limit = self.examples[split], getattr(self.trainer, switch, None)
        if limit is None or (isinstance(limit, float) and limit == 1.0):
            return []
        count = limited_count(limit, len(examples), self.settings.batch_size * self.trainer.world_size)
        if count is None:
            return []
        setattr(self.trainer, switch, 1.0)  # of the items that are left
        if split in self._kept:  # by the trainer of the explainer that this one is compared with
            return []
        self.keep_items(split, fair_draw(examples, count, self.primary, self.settings.split_seed))
        kept = len(self.examples[split])
        log.warning("trainer.%s is %s: %d of %d %s items are evaluated", switch, limit, kept, len(examples), split)
        return [f"trainer.{switch} is {limit}: {kept} of {len(examples)} {split} items are evaluated"]

    def keep_items(self, split: str, places: Sequence[int]) -> None:
        """Keep the items of a split at some places."""
        self.examples[split] = self.take(self.examples[split], places)
        self._kept[split] = frozenset(example.uid for example in self.examples[split])

    def predicted_examples(self) -> Sequence[Example]:
        """Return the test items that ``predict`` answers: those of the primary question type."""
        return self.primary_examples("test")

    @property
    def answer_limit(self) -> int:
        """Return the number of tokens to generate for an answer of which nothing is known: a little more than in training."""
        return answer_limit(self.examples["train"])

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """Return this process's share of the training rows, shuffled by seed and epoch.

        Raises:
            UserError: There are fewer examples than processes.
        """
        rank, processes = self._place
        examples, max_tokens = self.training_examples(), self.settings.max_tokens
        if len(examples) < processes:
            raise UserError(
                f"{len(examples)} examples for {processes} processes",
                where="training data",
                remedy="give more records, or a question type a weight above 0",
            )
        rows = EpochRows(examples, self.settings.batch_size, max_tokens, self.settings.split_seed, processes)
        if max_tokens is not None:
            log.info("%d examples in %d rows of %d tokens at most", len(examples), len(rows), max_tokens)
        self._train_loader = ResumableLoader(rows, batch_size=None, sampler=RankRows(rows, rank, processes))
        if self._train_state is not None:
            self._train_loader.load_state_dict(self._train_state)
        return self._train_loader

    def val_dataloader(self) -> DataLoader[PackedBatch]:
        """Return this process's share of the validation rows."""
        return row_loader(self.evaluation_rows(self.examples["validation"]), *self._place)

    def test_dataloader(self) -> DataLoader[PackedBatch]:
        """Return this process's share of the test rows."""
        return row_loader(self.evaluation_rows(self.examples["test"]), *self._place)

    def predict_dataloader(self) -> DataLoader[PackedBatch]:
        """Return this process's share of the test items that ``predict`` answers, in the order of the file."""
        return row_loader(self.evaluation_rows(self.predicted_examples(), sort=False), *self._place)

    @property
    def _place(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def evaluation_rows(self, examples: Sequence[Example], sort: bool = True) -> PackedRows:
        """Pack examples into rows for evaluation.

        Args:
            examples: What to pack.
            sort: Sort by length, so that examples of similar length share a row.
        """
        lengths = _lengths(examples)
        order = (np.argsort(lengths, kind="stable") if sort else np.arange(len(examples))).astype(np.int32)
        if self.settings.max_tokens is None:
            return PackedRows(examples, by_number(order, self.settings.batch_size))
        return PackedRows(examples, in_turn(order, lengths, self.settings.max_tokens))

    def longest(self, split: str, count: int) -> list[Example]:
        """Return the longest ``count`` examples of a split, the longest last."""
        examples = self.examples[split]
        return [examples[int(index)] for index in np.argsort(_lengths(examples), kind="stable")[-count:]]

    def longest_batch(self) -> PackedBatch:
        """Return the training batch that takes most memory: the longest examples, or the row that training begins with."""
        if self.settings.max_tokens is None:
            return collate(self.longest("train", self.settings.batch_size), self.settings.batch_size)
        rows = (self._train_loader or self.train_dataloader()).dataset
        assert isinstance(rows, EpochRows)
        return rows.heaviest(self._place[0])

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands within its epoch.

        Lightning saves a resumable loader's state too, but has made the loader before it restores that state.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the training loader is made."""
        self._train_state = state_dict or None

    def check_lengths(self, context_length: int | None) -> None:
        """Refuse examples that fit neither the explainer's context nor a row.

        Args:
            context_length: Longest sequence that the explainer reads, in tokens; None if it is unknown.

        Raises:
            UserError: An example is too long.
        """
        for split, examples in self.examples.items():
            longest = self.longest(split, 1)[-1]
            if context_length is not None and len(longest) > context_length:
                raise UserError(
                    f"prompt and answer take {len(longest)} tokens, the explainer's context is {context_length}",
                    where=f"{split} item {longest.uid}",
                    remedy="shorten the text, or use an explainer with a longer context",
                )
            if self.settings.max_tokens is not None:
                batched = self.training_examples() if split == "train" else examples
                _check_budget(split, batched, self.settings.max_tokens)


def _check_budget(split: str, examples: Sequence[Example], max_tokens: int) -> None:
    lengths = _lengths(examples)
    if len(lengths) and lengths.max() > max_tokens:
        raise UserError(
            f"prompt and answer take {lengths.max()} tokens, a row holds data.max_tokens: {max_tokens}",
            where=f"{split} item {examples[int(lengths.argmax())].uid}",
            remedy=f"set data.max_tokens to {lengths.max()} or more, or shorten the text",
        )


def _lengths(examples: Sequence[Example]) -> NDArray[np.int32]:
    return sizes_of(examples).sum(1, dtype=np.int32)
