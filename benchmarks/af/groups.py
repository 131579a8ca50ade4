"""The groups of the benchmark: the pairs of one model under one system prompt, divided by request into fixed splits."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.generation.untold import TOO_OFTEN, is_told, other_share
from afintro.tasks.context_ablation.imports.vlaf import read_source
from afintro.tasks.context_ablation.imports.write import SPLITS, ImportSettings, records_of, split_of
from afintro.tasks.context_ablation.records import ContextAblationRecord, labeled, read_records, to_json

SETTINGS = ImportSettings(validation=0.1, test=0.3, seed=0)
"""The splits of the benchmark, fixed before anything was measured."""
ASKED = (
    "asked"  # the file of what a group's systems are asked about: its own test, and the tests of groups of its prompt
)


@dataclass(frozen=True)
class Group:
    """The pairs of one model under one system prompt, whatever the data set.

    Args:
        model: Name of the model that answered.
        prompt: Name of the folder, which names the system prompt.
        records: Labeled records by split.
        left_out: Why the group takes no part; "" if it does.
    """

    model: str
    prompt: str
    records: dict[str, list[ContextAblationRecord]]
    left_out: str = ""

    @property
    def name(self) -> str:
        """Return model and prompt."""
        return f"{self.model}, {self.prompt}"

    @property
    def key(self) -> str:
        """Return the name as part of a file's name."""
        return "".join(
            letter if letter.isalnum() or letter in "-._" else "_" for letter in f"{self.model}-{self.prompt}"
        )

    @property
    def every(self) -> list[ContextAblationRecord]:
        """Return the records of all splits."""
        return [record for split in SPLITS for record in self.records[split]]


def label(monitored: str, unmonitored: str, target: str) -> dict[str, Any]:
    """Import one pair of files, label its answers by rules and write the records.

    Args:
        monitored: The file of the monitored answers.
        unmonitored: The file of the unmonitored answers.
        target: The file to write.

    Returns:
        The counts of the import.
    """
    imported = records_of([read_source(Path(monitored), Path(unmonitored))])
    write_json(Path(target), [to_json(labeled(record)) for record in imported.records])
    [(name, counts)] = imported.counts.items()
    return {"source": name, "counts": counts.as_json()}


def groups_of(files: Sequence[Path]) -> list[Group]:
    """Divide labeled records into splits by request, over all files together, and gather them by model and prompt.

    Args:
        files: What :func:`label` wrote.

    Raises:
        UserError: No group can take part.
    """
    records = [record for path in files for record in read_records(str(path))]
    places = {(record.provenance["model"], record.provenance["prompt"]) for record in records}
    found: dict[tuple[str, str], dict[str, list[ContextAblationRecord]]] = {
        place: {split: [] for split in SPLITS} for place in sorted(places)
    }
    for split, rows in split_of(records, SETTINGS).items():
        for row in rows:
            record = records[row]
            found[record.provenance["model"], record.provenance["prompt"]][split].append(record)
    groups = [Group(model, prompt, of, _left_out(of)) for (model, prompt), of in found.items()]
    if all(group.left_out for group in groups):
        raise UserError(
            f"has no group of pairs that can be asked about ({groups[0].name}: {groups[0].left_out})",
            where="VLAF",
            remedy="give a folder with more pairs",
        )
    return groups


def _left_out(records: dict[str, list[ContextAblationRecord]]) -> str:
    """Say why a group takes no part: too many of its answers cannot be told, or a split is empty."""
    for side in ("monitored_behavior", "unmonitored_behavior"):
        share = max(other_share([getattr(record, side) for record in own]) for own in records.values())
        if share > TOO_OFTEN:
            return f"the behavior of {100 * share:.0f} % of the answers of a split cannot be told"
    empty = [
        split
        for split, own in records.items()
        if not any(is_told(record.monitored_behavior) and is_told(record.unmonitored_behavior) for record in own)
    ]
    return f"no pair is in {', '.join(empty)}" if empty else ""


def targets(group: Group, groups: Sequence[Group]) -> list[Group]:
    """Return the groups that a group's systems are asked about: itself, and those of other models under the same prompt."""
    others = [one for one in groups if one.prompt == group.prompt and one.model != group.model and not one.left_out]
    return [group, *others]


def write(group: Group, groups: Sequence[Group], folder: Path) -> None:
    """Write what a group's systems learn from and are asked about.

    Args:
        group: The group.
        groups: All groups.
        folder: Gets ``train.json``, ``validation.json`` and ``asked.json``.
    """
    files = {split: group.records[split] for split in ("train", "validation")}
    files[ASKED] = [record for target in targets(group, groups) for record in target.records["test"]]
    for name, records in files.items():
        write_json(folder / f"{name}.json", [to_json(record) for record in records])


def splits_hash(groups: Sequence[Group]) -> str:
    """Hash which request is in which split: results with the same hash are of the same splits."""
    sides = sorted({(r.scenario_id, split) for group in groups for split in SPLITS for r in group.records[split]})
    return hashlib.sha256(json.dumps(sides).encode()).hexdigest()[:16]
