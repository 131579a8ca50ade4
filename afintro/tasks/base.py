"""What every task's data module shares: where its files are, the contamination check, and what a task says of itself."""

import copy
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from matplotlib.figure import Figure

from afintro.data.batch import Example
from afintro.data.files import file_sha256
from afintro.data.near_duplicates import join_scenarios, nearest_seen
from afintro.data.splits import check_contamination, halve_by_scenario, split_by_scenario
from afintro.errors import UserError
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, statistics
from afintro.evaluation.statistic import Scores
from afintro.lm.injection import VectorSpace
from afintro.tasks.contract import Control, ExplainerSpec
from afintro.tasks.packed import PackedData

log = logging.getLogger(__name__)

EXPLAINER = "explainer"
OTHER_BASE = "other_base"
TEXT_ONLY = "text_only"
VECTOR_ONLY = "vector_only"
HALF_BLIND = (TEXT_ONLY, VECTOR_ONLY)
"""Comparisons that see a part of each item: that they cannot fit questions about the whole is their result."""
Named = tuple[str, str]  # a text, and its file and record
EXAMPLES = 3  # pairs of near-duplicates that a warning names
Systems = dict[str, list[Prediction]]


class TaskData(PackedData):
    """Base of the tasks' data modules.

    A task says how to read its records, which text of a record must not be held out, and which examples a record gives.

    Args:
        **settings: Fields of :class:`afintro.tasks.settings.TaskSettings`. The command line finds them through this
            signature, so a task names in its own signature only its own settings and those whose default differs, and
            passes the others on.

    Attributes:
        task: Name of the task, in the folder of a run and in its summary.
        question_types: Names that ``question_weights`` may use.
        verdict_types: Question types, of training or evaluation, whose answers carry a verdict.
        leads: Metrics whose differences to the best baseline are reported.
        solved: Metrics on which the run warns if a system without the organism's weights reaches the explainer.
        has_vectors: Whether prompts hold vectors.
        has_text_beside_vectors: Whether prompts hold a text beside the vector, so that an explainer can be asked without it.
        space: Width and layers of the vectors, known once training records are read; None without vectors.
        space_name: Name of the space, where an explainer reads the vectors of several tasks.
        paths: Source of each split, perhaps with ``::SPLIT`` behind it; None for a split without a file.
        heldout: Files whose texts must never be trained on; empty without any.
        zero_vectors: Whether every vector is replaced by zeros, so that the explainer sees the text alone.
        without_text: Whether the text beside the vector is left out, so that the explainer sees the vector alone.
        test_set: Name of the set that the test items are of, where there are several; "" otherwise.
        warnings: Warnings for ``summary.json``.
        near_duplicates: For each evaluated split, how many of its texts nearly equal a text that was seen before.
        systems: Names that the table gives to systems other than explainers on other bases.
        learners: Baselines that learn from the training items until they fit them.
        local_files: Settings of the task's own that name files or folders of this machine.
        fit_metric: The metric that tells how well a trained system fits, and what it is of; None for training questions.
    """

    task = ""
    question_types: tuple[str, ...] = ()
    verdict_types: tuple[str, ...] = ()
    leads: tuple[str, ...] = ("exact_match",)
    solved: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    local_files: tuple[str, ...] = ()
    fit_metric: tuple[str, str] | None = None
    has_vectors = False
    has_text_beside_vectors = False
    space: VectorSpace | None = None
    space_name = ""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.paths: dict[str, str | None] = self.settings.sources()
        self.heldout = self.settings.heldout or []
        self.zero_vectors = self.without_text = False
        self.test_set = ""
        self.warnings: list[str] = []
        self.near_duplicates: dict[str, int] = {}
        self._choosing: frozenset[str] | None = None  # uids of the half of validation that chooses

    # What a task says of itself.

    def build_embedded(self) -> None:
        """Make the files of the embedded default unless the cache holds them; this may train a toy.

        A task whose embedded default needs no file does nothing.
        """

    def use_embedded(self) -> None:
        """Set :attr:`paths`, and whatever else names files, to the embedded default; makes nothing."""

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """Return all examples of a split; for training, without held-out records."""
        raise NotImplementedError

    def baselines(self, split: str) -> Systems:
        """Return the answers to a split's items by systems other than language models."""
        raise NotImplementedError

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Yield changed items for the explainer, trained or not, to answer."""
        raise NotImplementedError

    def graded(self, systems: Systems) -> Systems:
        """Return all systems' predictions with the scores that judges give them; unchanged for a task without judges."""
        return systems

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """Return all metrics of one system."""
        verdicts = self.verdict_types
        return statistics(predictions, self.primary, verdicts, primary_verdict=self.primary in verdicts)

    def selection(self, scores: Scores) -> float:
        """Return the value that is logged as ``val/selection``, by which a configuration chooses checkpoints and stops.

        Args:
            scores: Metrics of the validation items, as :meth:`statistics` returns them.
        """
        return scores["exact_match"][0].value

    def best_of(self, baselines: Sequence[str]) -> list[str]:
        """Return the baselines among which ``lead/<metric>`` compares with the best."""
        return list(baselines)

    def compared_with(self, baselines: Sequence[str]) -> list[str]:
        """Return the baselines that get a ``lead/<metric>/<baseline>`` of their own."""
        return list(baselines)

    def without_weights(self, systems: Sequence[str]) -> list[str]:
        """Return the systems that hold neither the organism's weights nor a vector of it; none where a task does not say."""
        return []

    def warnings_about(self, systems: Systems, leads: Mapping[str, Any]) -> list[str]:
        """Return warnings that only the finished table allows."""
        return []

    def conclusion(
        self,
        table: Mapping[str, Mapping[str, Estimate]],
        leads: Mapping[str, Any],
        compared: Collection[str],
        base: str | None = None,
    ) -> str | None:
        """Return one plain sentence that says what the run showed and what it did not; None where a task says nothing.

        Args:
            table: Estimates by system and metric.
            leads: Differences as ``summary.json`` holds them.
            compared: Explainers on other bases that fit as well as the explainer does.
            base: Fingerprint of the weights of the explainer's base; None if unknown.
        """
        return None

    def details(self, systems: Systems) -> dict[str, Any]:
        """Return what ``summary.json`` holds in addition to the contract of results."""
        return {}

    def figures(self, predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return what TensorBoard shows, by name."""
        return {}

    # What every task does.

    def prepare_data(self) -> None:
        """Build the embedded default where no training file is configured. One process of a machine does this."""
        if self.settings.train_path is None:
            self.build_embedded()

    def setup(self, stage: str) -> None:
        """Read what the stage needs. The training split is read for every stage: the text baselines learn from it.

        Raises:
            UserError: A file is wrong, an example is too long, or a question type is unknown.
        """
        if self.trainer is None:
            raise RuntimeError("a data module is set up by a Trainer")
        if self.settings.train_path is None:
            self.use_embedded()  # in every process, since only one of them prepared the data
        self.paths = {**self.paths, "test": self.test_sets.get(self.test_set) or self.paths["test"]}
        module = cast(ExplainerSpec, self.trainer.lightning_module)  # Lightning knows it as a module alone
        # Training ends with the test items, which are checked before it begins.
        evaluated = {"fit": ["validation", *(["test"] if self.has_test else [])], "validate": ["validation"]}
        for split in ("train", *evaluated.get(stage, ["test"])):
            if split not in self.examples:
                self.examples[split] = self.evaluated_examples(split, module)
        if stage == "fit" and not self.has_test and not self.halved:
            self._halve()
        for split, limit in (("validation", "limit_val_batches"), ("test", "limit_test_batches")):
            self.warnings += self.limit_items(split, limit) if split in self.examples else []
        unknown = sorted(set(self.settings.question_weights) - set(self.question_types))
        if unknown:
            raise UserError(
                f"names the unknown question type {', '.join(unknown)}",
                where="data.question_weights",
                remedy=f"use {', '.join(sorted(self.question_types))}",
            )
        self.check_lengths(module.context_length)

    @property
    def has_test(self) -> bool:
        """Whether there are test items, which chose nothing, for ``fit`` to report."""
        return self.paths["test"] is not None

    @property
    def test_sets(self) -> dict[str, str | None]:
        """Return the source of each of several test sets by name; None for the source of ``test_path``."""
        return {**self.settings.test_sources()}

    def for_test_set(self, name: str) -> Self:
        """Return the same data with the test items of one of several sets; whatever was read of other splits is shared.

        Args:
            name: Name of the set.
        """
        other = copy.copy(self)
        for attribute, value in vars(self).items():  # what is known by split, and warnings: each set adds its own
            if isinstance(value, dict | list):
                setattr(other, attribute, copy.copy(value))
        other.test_set = name
        return other

    @property
    def halved(self) -> bool:
        """Whether ``validation`` and ``test`` are the two halves of validation, as in a ``fit`` without test items."""
        return self._choosing is not None

    def _halve(self) -> None:
        """Keep half of the validation items for the report, where no test items are.

        Too few items stay undivided: each half must have every question type.
        """
        whole = self.examples["validation"]
        halves = self.halves(whole)
        if all({e.question_type for e in half} == {e.question_type for e in whole} for half in halves):
            choosing, reported = halves
            self.examples |= {"validation": choosing, "test": reported}
            self._choosing = frozenset(example.uid for example in choosing)
            log.info("no test items: half of validation (%d) chooses, the other half is reported", len(choosing))

    def halves(self, examples: Sequence[Example]) -> tuple[Sequence[Example], Sequence[Example]]:
        """Divide validation items in two, so that no scenario is in both halves.

        Args:
            examples: All validation items.

        Returns:
            The half that chooses, and the half that is reported.
        """
        places = halve_by_scenario(self.halving_groups(examples), self.settings.split_seed)
        choosing, reported = (self.take(examples, half) for half in places)
        return choosing, reported

    def halving_groups(self, examples: Sequence[Example]) -> list[str]:
        """Return for each validation item the group that stays in one half: its scenario."""
        return [example.scenario_id for example in examples]

    def evaluated_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """Return the examples of a split, or of the half of validation that stands for the split."""
        halved = self._choosing is not None and split != "train"
        examples, chooses = self.read_examples("validation" if halved else split, reader), split == "validation"
        if self._choosing is not None and halved:
            examples = self.take(
                examples, [at for at, e in enumerate(examples) if (e.uid in self._choosing) == chooses]
            )
        kept = self._kept.get(split)
        return examples if kept is None else self.take(examples, [at for at, e in enumerate(examples) if e.uid in kept])

    def called(self, split: str) -> str:
        """Return what ``summary.json`` calls a split."""
        halves = {"validation": "half of validation", "test": "the other half of validation"}
        return halves.get(split, split) if self.halved else split

    def describe(self, split: str) -> dict[str, Any]:
        """Return path, hash (of a file; a dataset has none) and size of a split, for ``summary.json``."""
        path, counted = self.file_of(split), "validation" if self.halved else split
        return {
            "path": path,
            "sha256": file_sha256(path) if path and Path(path).is_file() else None,
            "n": len(self.examples[split]),
            **({"near_duplicates": self.near_duplicates[counted]} if counted in self.near_duplicates else {}),
        }

    def file_of(self, split: str) -> str | None:
        """Return the file whose records a split holds: validation may be split off training."""
        if split == "test" and self.halved:
            split = "validation"
        return self.paths[split] or (self.paths["train"] if split == "validation" else None)

    def for_another_explainer(self, zero_vectors: bool = False, without_text: bool = False) -> Self:
        """Return the same records, to be tokenized anew and trained on from the first batch, also where this run was resumed.

        Args:
            zero_vectors: Replace all vectors by zeros, so that the explainer sees the text alone.
            without_text: Leave the text beside the vector out, so that the explainer sees the vector alone.
        """
        if zero_vectors and not self.has_vectors:
            raise ValueError(f"{self.task} has no vectors")
        if without_text and not self.has_text_beside_vectors:
            raise ValueError(f"{self.task} has no text beside its vectors")
        other = copy.copy(self)
        other.examples = {}
        other.warnings = []
        other.zero_vectors, other.without_text = zero_vectors, without_text
        other._train_loader = other._train_state = None
        return other

    def guarded(self, texts: Sequence[str], names: Sequence[str], what: str = "records") -> list[int]:
        """Return the indices of the training texts that are in no held-out file.

        Args:
            texts: Training texts.
            names: What a message calls each text.
            what: What a message calls all of them.

        Raises:
            UserError: A text is held out and ``heldout_action`` is ``error``.
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

    def split_off_validation(
        self, scenarios: Sequence[str], texts: Sequence[str], path: str
    ) -> tuple[list[int], list[int]]:
        """Split validation records off the training records, so that no scenario and no near-duplicates are in both.

        Args:
            scenarios: The scenario of each training record.
            texts: The text of each training record.
            path: The training file, for the message.

        Returns:
            Indices of the records that stay in training, and of those split off for validation.

        Raises:
            UserError: No record is left for validation.
        """
        joined = join_scenarios(scenarios, texts)
        fewer = len(set(scenarios)) - len(set(joined))
        if fewer:
            log.info("%s: near-duplicates join %d scenarios with others, which stay on one side", path, fewer)
        left, right = split_by_scenario(joined, self.settings.validation_fraction, self.settings.split_seed)
        if not right:
            raise UserError(
                f"{len(scenarios)} records leave none for validation", where=path, remedy="give data.validation_path"
            )
        self.near_duplicates["validation"] = 0
        return left, right

    def count_near_duplicates(self, split: str, texts: Iterable[Named], seen: Iterable[Named]) -> None:
        """Count the texts of an evaluated split that nearly equal a text seen before, and warn of them.

        Args:
            split: ``validation`` or ``test``.
            texts: The texts of the split, each with the name of its file and record.
            seen: The texts that the split must not repeat, named likewise.
        """
        (asked, names), (known, known_names) = (tuple(zip(*named, strict=True)) or ((), ()) for named in (texts, seen))
        nearest = nearest_seen(asked, known)
        pairs = [f"{name} like {known_names[at]}" for name, at in zip(names, nearest, strict=True) if at is not None]
        self.near_duplicates[split] = len(pairs)
        if pairs:
            examples = "; ".join(pairs[:EXAMPLES]) + ("; ..." if len(pairs) > EXAMPLES else "")
            self.warnings.append(
                f"{len(pairs)} of {len(names)} {split} texts nearly equal a text seen before: {examples}"
            )
            log.warning(self.warnings[-1])

    def warn_of_shared(self, scenarios: Iterable[str], train: Iterable[str], path: str) -> None:
        """Warn of scenarios of an evaluation file that are trained on.

        Args:
            scenarios: Scenarios of the evaluation file.
            train: Scenarios of the training file.
            path: The evaluation file, for the message.
        """
        shared = set(scenarios) & set(train)
        if shared:
            self.warnings.append(f"{len(shared)} scenarios of {path} are in the training file too")
            log.warning(self.warnings[-1])
