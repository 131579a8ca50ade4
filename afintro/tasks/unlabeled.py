"""Questions without ground truth: what a trained explainer is asked about, read from the rows that a user has.

Each task's folder has a module ``unlabeled`` whose ``questions(data, inputs, space)`` makes :class:`Questions` of
:class:`Inputs`.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

from afintro.data.batch import Example
from afintro.data.sources import read_rows
from afintro.data.text import Draft, chat, encode_prompt
from afintro.errors import UserError
from afintro.tasks.contract import ExplainerSpec

Record = TypeVar("Record")
Encoded = Callable[[int, int], list[Example]]


@dataclass(frozen=True)
class Inputs:
    """What an explainer is asked about, without ground truth.

    Args:
        source: File, folder, dataset directory or hub id; of rows that are given, what messages call them.
        rows: The rows themselves, texts or objects, instead of the source's.
        directions: Files of steering vectors that every text is asked about, each perhaps with ``::NAME`` behind it.
        layers: 0-based layers at which the vectors are added, or which the vectors of a file belong to; empty where the source
            says them.
        alphas: Multiples of the vectors that are added.
    """

    source: str
    rows: Sequence[Any] | None = None
    directions: Sequence[str] = ()
    layers: Sequence[int] = ()
    alphas: Sequence[float] = ()

    def read(self) -> Iterable[Any]:
        """Return the rows.

        Raises:
            UserError: The source cannot be read.
        """
        return read_rows(self.source) if self.rows is None else self.rows

    def refuse(self, task: str, *names: str) -> None:
        """Refuse settings that say nothing to a task.

        Args:
            task: Name of the task.
            *names: Names of the fields: ``directions``, ``layers`` or ``alphas``.

        Raises:
            UserError: One of the fields is set.
        """
        for name in names:
            if getattr(self, name):
                what = f"says nothing to {task}, whose questions have none"
                raise UserError(what, where=f"--{name.removesuffix('s')}", remedy="leave it out")


class Questions(Protocol):
    """Questions in their order, of which a few at a time become examples.

    Attributes:
        key: Hash of everything that the questions are read from.
    """

    key: str

    def __len__(self) -> int:
        """Return the number of questions."""

    def check(self) -> None:
        """Read whatever was not read yet, for its faults to be known before any model is loaded."""

    def encoded(self, reader: ExplainerSpec) -> Encoded:
        """Return the function that makes the examples from one number up to another, for an explainer."""


@dataclass(frozen=True)
class RecordQuestions(Generic[Record]):
    """Questions about records that are in memory, whose prompts are made when they are asked for.

    Args:
        records: The records, one a question.
        asker: Returns, for an explainer, the function that makes an example of a record.
    """

    records: Sequence[Record]
    asker: Callable[[ExplainerSpec], Callable[[Record], Example]]

    @property
    def key(self) -> str:
        """Return the hash of all records."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(repr(record).encode(errors="surrogatepass") + b"\0")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def check(self) -> None:
        """Do nothing: records are checked when they are read."""

    def encoded(self, reader: ExplainerSpec) -> Encoded:
        """Return the function that makes the examples from one number up to another, for an explainer."""
        ask = self.asker(reader)
        return lambda start, stop: [ask(record) for record in self.records[start:stop]]


def ended(reader: ExplainerSpec) -> tuple[int, ...]:
    """Return the token ids of an empty answer, which stands for an answer that nobody knows."""
    end = reader.tokenizer.eos_token_id
    assert isinstance(end, int)
    return (end,)


def unanswered(draft: Draft, reader: ExplainerSpec) -> Example:
    """Make the example of a question that has no expected answer.

    Args:
        draft: The question; its answer is empty.
        reader: The explainer that is asked.
    """
    prompt = encode_prompt(reader.tokenizer, chat(draft.system, draft.prompt), reader.slot_token)
    return Example(
        draft.uid, draft.scenario_id, draft.question_type, draft.prompt, "", tuple(prompt), ended(reader), notes=draft.notes
    )  # fmt: skip


def fields_of(row: Any, left_out: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a row under their names in lower case, without empty ones and those that are left out.

    Args:
        row: A text, a conversation or an object.
        left_out: Names in lower case of the fields that carry ground truth, or nothing that a question needs.
    """
    if not isinstance(row, Mapping):
        return {}
    named = {str(name).strip().lower(): value for name, value in row.items()} | dict(row)
    return {name: value for name, value in named.items() if value is not None and name not in set(left_out)}


def ground_truth(record: type, names: Mapping[str, str], also: Collection[str]) -> frozenset[str]:
    """Return the names, as files have them, of a record's fields that say what the organism did or how that was found out.

    Args:
        record: The dataclass of the record.
        names: The names in files that differ from the fields' own.
        also: Fields beside outputs, behaviors, rules and whether an output was cut.
    """
    told = ("_output", "_behavior", "_rule", "_truncated")
    return frozenset(names.get(f.name, f.name) for f in fields(record) if f.name in also or f.name.endswith(told))


def at_least_one(records: Sequence[Record], inputs: Inputs) -> Sequence[Record]:
    """Return the records.

    Raises:
        UserError: There is none.
    """
    if not records:
        raise UserError("holds no question", where=inputs.source, remedy="give at least one text or record")
    return records


def content_key(content: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
