"""Label the outputs of a finished run by another labeler; the organism is not asked again."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from afintro.data.files import write_json
from afintro.evaluation.label_agreement import label_agreement
from afintro.generation.behavior import differ
from afintro.generation.labeling import Labeling, Lookup, opinions, told_by, with_labeler
from afintro.generation.reasoning import Reply
from afintro.generation.untold import OTHER, Labels
from afintro.ranks import Ranks


class Labeled(Protocol):
    """A record of outputs; ``<side>_behavior`` and ``<side>_behavior_rule`` hold the label of a side's output."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def scenario_id(self) -> str:
        """Return the id that all records of the scenario share."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what made the record."""

    def reply(self, condition: str, /) -> Reply:
        """Return what is known of the output of a condition."""


R = TypeVar("R", bound=Labeled)
SMALLEST = 16  # bytes: a file with a record has more


class Relabeling(ABC, Generic[R]):
    """Label the records of a finished run anew; a task says how its records are read, summarized and written.

    Args:
        output_dir: The run's folder.
        splits: Names of the splits.

    Attributes:
        sides: The two outputs whose labels a verdict compares.
        others: Further outputs that are labeled: their labels enter the summary, or fields of the record of these names.
    """

    sides: ClassVar[tuple[str, str]]
    others: ClassVar[tuple[str, ...]]

    def __init__(self, output_dir: Path, splits: Sequence[str]) -> None:
        self.output_dir, self.splits = output_dir, splits

    @abstractmethod
    def read(self, path: str) -> list[R]:
        """Read the records of a file."""

    @abstractmethod
    def summarize(self, records: Sequence[R], summary: Mapping[str, Any], label: Lookup) -> dict[str, Any]:
        """Return what the labels change in a summary.

        Args:
            records: All records, with their new labels.
            summary: The summary so far.
            label: Returns the label of an output.
        """

    @abstractmethod
    def write(self, path: Path, records: Sequence[R]) -> None:
        """Write the records of a file."""

    def illustrate(self, summary: Mapping[str, Any]) -> None:  # few tasks have a figure
        """Write the figures of a summary."""

    def check(self, records: Sequence[R]) -> None:  # most records hold all that is to be labeled
        """Refuse records that do not hold all outputs that are to be labeled."""

    def compared(self, records: Sequence[R]) -> Sequence[R]:
        """Return the records about which a second labeler is asked."""
        return records

    def labeled_by(self, labeling: Labeling, summary: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
        """Return the summary of the run, whose records are labeled as wanted; they are labeled anew where they are not.

        Args:
            labeling: Who labels.
            summary: The run's summary.
            ranks: The processes of the run, the first of which labels.
        """
        before = told_by(summary)
        if before == labeling.as_json():
            return summary
        return ranks.from_first(lambda: self._relabel(labeling, summary, before))

    def _relabel(self, labeling: Labeling, summary: Mapping[str, Any], before: Any) -> dict[str, Any]:
        """Label the records, and write them and their summary; nothing is written before all is labeled."""
        files = {name: self._records(self.output_dir / f"{name}.json") for name in self.splits}
        new, whole = dict(summary), True
        if before is None or before["first"] != labeling.first.name or "whole" in before:
            old = [record for records in files.values() for record in records]
            self.check(old)
            label = Lookup(labeling.first, [reply for record in old for reply in self.replies(record)])
            whole = label.whole
            files = {
                name: [self.relabeled(record, label, labeling.first.name) for record in records]
                for name, records in files.items()
            }
            new |= self.summarize([record for records in files.values() for record in records], summary, label)
        new.pop("label_agreement", None)
        if labeling.second is not None:
            compared = self.compared([record for records in files.values() for record in records])
            second = Lookup(labeling.second, [record.reply(side) for record in compared for side in self.sides])
            new["label_agreement"] = self._agreement(compared, labeling, second)
            whole = whole and second.whole
        place = self.output_dir / "summary.json"
        write_json(place, {**summary, "labeler": None})  # a killed relabeling is done again
        for name, records in files.items():
            self.write(self.output_dir / f"{name}.json", records)
        self.illustrate(new)
        new["labeler"] = labeling.as_json(whole)
        write_json(place, new)
        return new

    def replies(self, record: R) -> list[Reply]:
        """Return the outputs of a record that are labeled."""
        sides = (*self.sides, *self.others)
        return [record.reply(side) for side in sides if getattr(record, f"{side}_output") is not None]

    def relabeled(self, record: R, label: Lookup, name: str) -> R:
        """Return a record with the labels of all outputs for which it has fields."""
        known = {field.name for field in fields(record)}
        labels = {
            side: label(record.reply(side)) for side in (*self.sides, *self.others) if f"{side}_behavior" in known
        }
        changes = {f"{side}_behavior": behavior.label for side, behavior in labels.items()}
        changes |= {
            f"{side}_behavior_rule": behavior.rule
            for side, behavior in labels.items()
            if f"{side}_behavior_rule" in known
        }
        changed = differ(*(labels[side] for side in self.sides))
        return replace(record, **changes, behavior_changed=changed, provenance=with_labeler(record.provenance, name))

    def _records(self, path: Path) -> list[R]:
        """Read the records of a split, which may be empty: without a holdout nothing is kept for the test."""
        empty = path.stat().st_size < SMALLEST and json.loads(path.read_text()) == []
        return [] if empty else self.read(str(path))

    def _agreement(self, records: Sequence[R], labeling: Labeling, second: Lookup) -> dict[str, Any]:
        sides = [(_opinions(records, side), second.opinions([r.reply(side) for r in records])) for side in self.sides]
        return label_agreement(sides, [r.scenario_id for r in records], list(labeling.as_json().values()), OTHER)


def _opinions(records: Sequence[Labeled], side: str) -> Labels:
    return opinions(
        [getattr(r, f"{side}_behavior") for r in records], [getattr(r, f"{side}_behavior_rule") for r in records]
    )
