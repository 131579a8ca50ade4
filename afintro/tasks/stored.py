"""Tasks whose examples come from files of records: tokenised once, and where the files are large, kept on disk."""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from afintro.data import encoding, records, samples, splits, text
from afintro.data.batch import Example
from afintro.data.cache import cache_directory
from afintro.data.encoding import Draft, token_ids, tokenizer_hash
from afintro.data.example_store import Ids, StoredExamples, open_store, source_hash
from afintro.data.files import file_sha256
from afintro.tasks.base import ExplainerSpec, TaskData

log = logging.getLogger(__name__)

LARGE = 2 << 20  # bytes of a record file from which on its examples are kept on disk
TAUGHT = 30_000  # examples of a large training split that the text baselines learn from


class RecordTask(TaskData):
    """Base of the tasks that read records.

    A task says which :class:`Draft` its records give and how an example is finished. With a large file the examples are
    tokenised once and read from ``AFINTRO_CACHE/examples`` afterwards: then no record is read, and none is in memory.

    Attributes:
        shaped_by: Modules whose code shapes the drafts, besides the class itself; those of base classes count too. A change
            of any of these files makes the stored examples anew.
    """

    shaped_by: ClassVar[tuple[ModuleType, ...]] = (encoding, records, samples, splits, text)

    def drafts(self, split: str, reader: ExplainerSpec) -> Iterable[Draft]:
        """All questions of a split; for training without held-out records."""
        raise NotImplementedError

    def finisher(self, reader: ExplainerSpec) -> Callable[[Draft, Ids, Ids], Example]:
        """Makes an example of a draft and the token ids of its prompt and its answer."""
        raise NotImplementedError

    def check(self, reader: ExplainerSpec) -> Callable[[Draft, Ids], None] | None:
        """Looks at a draft and the ids of its prompt before any training; None where there is nothing to see."""
        return None

    def draft_settings(self) -> dict[str, Any]:
        """What shapes drafts, as JSON values, besides the files and the settings that all tasks have."""
        raise NotImplementedError

    def facts(self, split: str) -> dict[str, Any]:
        """JSON values that the task has from the records of a split and needs again without them."""
        return {}

    def recall(self, split: str, facts: dict[str, Any]) -> None:
        """Take over what :meth:`facts` gave when the store was made."""

    def forget(self) -> None:
        """Drop the records."""

    def weight_of(self, question_type: str) -> float:
        """Weight in the loss."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """As for every task; records that are on disk as examples need not stay."""
        super().setup(stage)
        if any(isinstance(examples, StoredExamples) for examples in self.examples.values()):
            self.forget()

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """All of a small file; of a large one a view of the store."""
        finish = self.finisher(reader)
        if not self._is_large(split):
            return [finish(draft, *token_ids(reader.tokenizer, draft)) for draft in self.drafts(split, reader)]
        known = len(self.warnings)

        def facts() -> dict[str, Any]:
            return {"task": self.facts(split), "warnings": self.warnings[known:]}

        folder = cache_directory() / "examples" / self.task / f"{split}-{self._key(split, reader)}"
        store = open_store(folder, reader.tokenizer, lambda: self.drafts(split, reader), facts, self.check(reader))
        self.recall(split, store.facts["task"])
        # Records that were read for this split may have said again what the store of another split remembers.
        self.warnings = list(dict.fromkeys([*self.warnings, *store.facts["warnings"]]))
        log.info("%s: %d examples in %s", split, len(store), folder)
        return StoredExamples(store, finish)

    def _is_large(self, split: str) -> bool:
        """Whether the examples are worth keeping: also those of a small file, which is compared with the training file.

        Datasets that are no file have no hash to know them by.
        """
        sources = {self.file_of(split), self.paths["train"]}
        if not all(path and Path(path).is_file() for path in (*sources, *self.heldout)):
            return False
        return max(Path(str(path)).stat().st_size for path in sources) >= LARGE

    def _key(self, split: str, reader: ExplainerSpec) -> str:
        """A hash of everything that decides the drafts of a split and their ids."""
        about = {
            "files": [_hash(str(path)) for path in (self.file_of(split), self.paths["train"], *self.heldout)],
            "heldout_action": self.settings.heldout_action,
            "limit": self.settings.limit,
            "split_seed": self.settings.split_seed,
            "split_off": self.settings.validation_fraction if self.paths["validation"] is None else None,
            "settings": self.draft_settings(),
            "tokenizer": tokenizer_hash(reader.tokenizer),
            "slot": reader.slot_token,
            "code": source_hash(*self._code()),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]

    @classmethod
    def _code(cls) -> list[str]:
        """Files of all code that shapes drafts: the class, its base classes, and the modules that they name."""
        files = set()
        for owner in cls.__mro__:
            if owner.__module__.split(".")[0] == "afintro" or issubclass(owner, RecordTask):
                files |= {
                    inspect.getfile(owner),
                    *(str(module.__file__) for module in vars(owner).get("shaped_by", ())),
                }
        return sorted(files)

    def training_examples(self) -> Sequence[Example]:
        """Those that the question weights leave in."""
        examples = self.examples["train"]
        if isinstance(examples, StoredExamples):
            return examples.of_kinds(lambda kind: self.weight_of(kind) > 0)
        return super().training_examples()

    def primary_examples(self, split: str) -> Sequence[Example]:
        """Those of the headline question."""
        examples = self.examples[split]
        if isinstance(examples, StoredExamples):
            return examples.of_kinds(lambda kind: kind == self.primary)
        return super().primary_examples(split)

    def taught(self) -> Sequence[Example]:
        """The training examples that text baselines learn from: of a large split an even draw, and a warning says so."""
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
    """What an example has of its draft, whatever the task."""
    return Example(
        draft.uid, draft.scenario_id, draft.question_type, draft.prompt, draft.answer, prompt_ids, answer_ids,
        copy_answer=draft.copy_answer, twins=draft.twins, notes=draft.notes,
    )  # fmt: skip


def _hash(path: str) -> str:
    about = Path(path).stat()
    return _hash_of(path, about.st_size, about.st_mtime_ns)


@cache
def _hash_of(path: str, size: int, changed: int) -> str:
    """Once a process for a file as it stands: the training file counts for every split."""
    return file_sha256(path)
