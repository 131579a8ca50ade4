"""Tasks whose examples come from files of records: tokenized once, and kept on disk if the files are large."""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from afintro.data import conversations, formats, near_duplicates, records, samples, sources, splits, text, words
from afintro.data.batch import Example
from afintro.data.cache import cache_directory
from afintro.data.example_store import Ids, StoredExamples, open_store, source_hash
from afintro.data.files import file_sha256
from afintro.data.near_duplicates import join_scenarios
from afintro.data.sources import split_source
from afintro.data.splits import stable_hash
from afintro.data.text import Draft, token_ids, tokenizer_hash
from afintro.generation.untold import cut_share, cut_warnings
from afintro.tasks.base import Named, TaskData
from afintro.tasks.contract import AskedScenario, ExplainerSpec
from afintro.tasks.settings import ASKED

log = logging.getLogger(__name__)

LARGE = 2 << 20  # size in bytes of a record file whose examples are kept on disk
TAUGHT = 30_000  # number of examples of a large training split that the text baselines learn from


class RecordTask(TaskData):
    """Base of the tasks that read records.

    A task says which :class:`Draft` its records give and how an example is finished. The examples of a large file are
    tokenized once and read from ``AFINTRO_CACHE/examples`` afterwards; then no record is read, and none is in memory.

    Attributes:
        shaped_by: Modules whose code shapes the drafts, besides the class itself; the modules that base classes name, and
            the files of the base classes, count too. A change to any of these files makes the stored examples anew.
    """

    shaped_by: ClassVar[tuple[ModuleType, ...]] = (
        conversations,
        formats,
        near_duplicates,
        records,
        samples,
        sources,
        splits,
        text,
        words,
    )

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._records: dict[str, list[Any]] = {}  # by split, as :meth:`records` returns them
        self._numbers: dict[str, list[int]] = {}  # of each record in its file
        self._truncated: dict[str | None, float | None] = {}  # by file, the share of outputs that were cut
        self._asked: dict[str, list[AskedScenario]] = {}  # by evaluated split

    def records(self, split: str) -> Sequence[Any]:
        """Return the records of a split, each with a ``scenario``; the first call reads and keeps them."""
        raise NotImplementedError

    def drafts(self, split: str, reader: ExplainerSpec) -> Iterable[Draft]:
        """Return all questions of a split; for training, without held-out records."""
        raise NotImplementedError

    def finisher(self, reader: ExplainerSpec) -> Callable[[Draft, Ids, Ids], Example]:
        """Return the function that makes an example of a draft and the token ids of its prompt and its answer."""
        raise NotImplementedError

    def check(self, reader: ExplainerSpec) -> Callable[[Draft, Ids], None] | None:
        """Return a check of a draft and its prompt's token ids that runs before any training; None if nothing is checked."""
        return None

    def draft_settings(self) -> dict[str, Any]:
        """Return what shapes drafts, as JSON values, besides the files and the settings that all tasks have."""
        raise NotImplementedError

    def facts(self, split: str) -> dict[str, Any]:
        """Return JSON values that the task learns from the records of a split and needs again when it reads only the store."""
        return {}

    def recall(self, split: str, facts: dict[str, Any]) -> None:
        """Take over what :meth:`facts` returned when the store was made."""

    def keep(self, split: str, records: Sequence[Any], numbers: Sequence[int]) -> None:
        """Keep some records of a file as those of a split.

        Args:
            split: ``train``, ``validation`` or ``test``.
            records: All records of the file.
            numbers: Which of them the split has, in order.
        """
        self._numbers[split] = list(numbers)
        self._records[split] = [records[number] for number in numbers]

    def forget(self) -> None:
        """Drop the records."""
        self._records = {}

    def texts(self, split: str) -> list[Named]:
        """Return the scenario of each record of a split, with its file and record."""
        records, path = self.records(split), self.file_of(split)
        return [(r.scenario, f"{path}, record {n}") for r, n in zip(records, self._numbers[split], strict=True)]

    def count_cut(self, truncated: Sequence[bool | None], path: str) -> None:
        """Remember which share of a file's outputs was cut at the limit of tokens, and warn if it is large.

        Args:
            truncated: Whether each output was cut; None for an output of which it is not known.
            path: The file.
        """
        if path not in self._truncated:
            self._truncated[path] = cut_share(truncated)
            raising = "--max_new_tokens of the script that made the file"
            self.warnings += cut_warnings(truncated, f"outputs in {path}", raising)

    def describe(self, split: str) -> dict[str, Any]:
        """Return what every task describes, and the share of the file's outputs that were cut, if it is known."""
        share = self._truncated.get(self.file_of(split))
        return super().describe(split) | ({} if share is None else {"truncated_outputs": share})

    def asked_scenarios(self, split: str) -> Sequence[AskedScenario]:
        """Return at most :data:`ASKED` scenarios of a split, drawn by scenario, each as one of its records has it."""
        split = "validation" if self.halved else split
        if split not in self._asked:
            drawn = sorted(self.records(split), key=lambda record: stable_hash(f"asked {record.uid}"))
            asked = {r.scenario_id: known for r in reversed(drawn) if (known := r.asked()) is not None}
            self._asked[split] = list(reversed(asked.values()))[:ASKED]
        return self._asked[split]

    def seen_before(self, split: str) -> list[str]:
        """Return the splits whose texts an evaluated split must not repeat: of a test also validation, which chooses."""
        validation = self.file_of("validation")
        known = split == "test" and validation is not None and Path(split_source(validation)[0]).exists()
        return ["train", "validation"] if known else ["train"]

    def compare_with_seen(self, split: str) -> None:
        """Count the near-duplicates of an evaluated split, whose records are read, among the texts seen before."""
        earlier = len(self.warnings)
        seen = [text for name in self.seen_before(split) for text in self.texts(name)]
        del self.warnings[earlier:]  # about splits that are not evaluated
        self.count_near_duplicates(split, self.texts(split), seen)

    def is_asked(self, question_type: str) -> bool:
        """Tell whether items of a question type are asked; the store holds items of all types."""
        return True

    def take(self, examples: Sequence[Example], places: Sequence[int]) -> Sequence[Example]:
        """Return the items at some places; stored items stay in the store."""
        if isinstance(examples, StoredExamples):
            return examples.take(np.array(places, np.int32))
        return super().take(examples, places)

    def halving_groups(self, examples: Sequence[Example]) -> list[str]:
        """Return the scenario of each item, one name for scenarios with near-duplicate prompts."""
        return join_scenarios([example.scenario_id for example in examples], [example.prompt for example in examples])

    def weight_of(self, question_type: str) -> float:
        """Return the weight of a question type in the loss."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read what the stage needs, and drop records whose examples are on disk."""
        super().setup(stage)
        if any(isinstance(examples, StoredExamples) for examples in self.examples.values()):
            self.forget()

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """Return the examples of a split: a list for a small file, a view of the store for a large file."""
        finish = self.finisher(reader)
        if not self._is_large(split):
            asked = (draft for draft in self.drafts(split, reader) if self.is_asked(draft.question_type))
            return [finish(draft, *token_ids(reader.tokenizer, draft, reader.slot_token)) for draft in asked]
        earlier = len(self.warnings)

        def facts() -> dict[str, Any]:
            return {
                "task": self.facts(split),
                "warnings": self.warnings[earlier:],
                "near_duplicates": self.near_duplicates.get(split),
                "truncated": self._truncated.get(self.file_of(split)),
                "asked": [] if split == "train" else [asdict(scenario) for scenario in self.asked_scenarios(split)],
            }

        folder = cache_directory() / "examples" / self.task / f"{split}-{self._key(split, reader)}"
        store = open_store(
            folder,
            reader.tokenizer,
            lambda: self.drafts(split, reader),
            facts,
            self.check(reader),
            slot=reader.slot_token,
        )
        self.recall(split, store.facts["task"])
        self._asked.setdefault(split, [_asked_of(scenario) for scenario in store.facts["asked"]])
        self._truncated.setdefault(self.file_of(split), store.facts["truncated"])
        if store.facts["near_duplicates"] is not None:
            self.near_duplicates[split] = store.facts["near_duplicates"]
        # Reading the records of this split may have repeated warnings that the store of another split remembers.
        self.warnings = list(dict.fromkeys([*self.warnings, *store.facts["warnings"]]))
        log.info("%s: %d examples in %s", split, len(store), folder)
        return StoredExamples(store, finish).of_kinds(self.is_asked)

    def _is_large(self, split: str) -> bool:
        """Whether to keep the examples on disk: also those of a small file, since it is compared with the training file.

        A dataset that is not a file has no hash to identify it by.
        """
        sources = {self.file_of(split), self.paths["train"]}
        if not all(path and Path(path).is_file() for path in (*sources, *self.heldout)):
            return False
        return max(Path(str(path)).stat().st_size for path in sources) >= LARGE

    def _key(self, split: str, reader: ExplainerSpec) -> str:
        """Hash everything that decides the drafts of a split and their token ids."""
        files = [self.file_of(split), self.paths["train"], *self.heldout]
        files += [self.file_of(name) for name in self.seen_before(split)[1:]]
        decides = {
            "files": [_hash(str(path)) for path in files],
            "heldout_action": self.settings.heldout_action,
            "limit": self.settings.limit,
            "split_seed": self.settings.split_seed,
            "split_off": self.settings.validation_fraction if self.paths["validation"] is None else None,
            "settings": self.draft_settings(),
            "tokenizer": tokenizer_hash(reader.tokenizer),
            "slot": reader.slot_token,
            "code": source_hash(*self._code()),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]

    @classmethod
    def _code(cls) -> list[str]:
        """Return the files of all code that shapes drafts: the class, its base classes, and the modules that they name."""
        files = set()
        for owner in cls.__mro__:
            if owner.__module__.split(".")[0] == "afintro" or issubclass(owner, RecordTask):
                files |= {
                    inspect.getfile(owner),
                    *(str(module.__file__) for module in vars(owner).get("shaped_by", ())),
                }
        return sorted(files)

    def training_examples(self) -> Sequence[Example]:
        """Return the training examples whose question types have a weight above 0."""
        examples = self.examples["train"]
        if isinstance(examples, StoredExamples):
            return examples.of_kinds(lambda kind: self.weight_of(kind) > 0)
        return super().training_examples()

    def of_types(self, split: str, wanted: Callable[[str], bool]) -> Sequence[Example]:
        """Return the examples of a split whose question type ``wanted`` accepts; stored examples stay in the store."""
        examples = self.examples[split]
        return examples.of_kinds(wanted) if isinstance(examples, StoredExamples) else super().of_types(split, wanted)

    def taught(self) -> Sequence[Example]:
        """Return the training examples that text baselines learn from: a random draw of a large split, with a warning."""
        examples = self.examples["train"]
        if not isinstance(examples, StoredExamples) or len(examples) <= TAUGHT:
            return examples
        drawn = np.random.default_rng(self.settings.split_seed).choice(len(examples), TAUGHT, replace=False)
        line = f"the text baselines learn from {TAUGHT} of {len(examples)} training items, drawn at random"
        if line not in self.warnings:
            self.warnings.append(line)
            log.warning(line)
        return list(examples.take(np.sort(drawn).astype(np.int32)))


def example_of(draft: Draft, prompt_ids: Ids, answer_ids: Ids) -> Example:
    """Make an example with what it takes from its draft, whatever the task.

    Args:
        draft: Texts and names of the example.
        prompt_ids: Token ids of the prompt.
        answer_ids: Token ids of the answer.
    """
    return Example(
        draft.uid, draft.scenario_id, draft.question_type, draft.prompt, draft.answer, prompt_ids, answer_ids,
        copy_answer=draft.copy_answer, twins=draft.twins, notes=draft.notes, cut=draft.cut, facets=draft.facets,
    )  # fmt: skip


def _asked_of(stored: dict[str, Any]) -> AskedScenario:
    """Make a scenario of its JSON values."""
    answers = tuple((at, text, cut) for at, text, cut in stored["answers"])
    return AskedScenario(stored["uid"], tuple(stored["prompts"]), answers, stored["organism"])


def _hash(path: str) -> str:
    status = Path(path).stat()
    return _hash_of(path, status.st_size, status.st_mtime_ns)


@cache
def _hash_of(path: str, size: int, changed: int) -> str:
    """Hash a file once per process as long as it does not change: the training file counts for every split."""
    return file_sha256(path)
