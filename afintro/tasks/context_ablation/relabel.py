"""Label the outputs of a finished run by another labeler; the organism is not asked again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from afintro.data.files import write_json
from afintro.evaluation.label_agreement import label_agreement
from afintro.generation.behavior import Behavior, BehaviorLabeler, differ
from afintro.generation.labeling import Labeling, Lookup, opinions, told_by, with_labeler
from afintro.generation.reasoning import Reply
from afintro.generation.untold import OTHER
from afintro.tasks.context_ablation.records import ContextAblationRecord, read_records, to_json
from afintro.tasks.context_ablation.summary import Noise, summarize

SIDES = ("monitored", "unmonitored")


def relabel_folder(
    output_dir: Path,
    splits: Sequence[str],
    summary: Mapping[str, Any],
    labeling: Labeling,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Label the records of a finished run, and write them and their summary; nothing is written before all is labeled.

    Args:
        output_dir: The run's folder.
        splits: Names of the splits.
        summary: The run's summary.
        labeling: Who labels.
        tokenizer: The organism's tokenizer.

    Returns:
        The new summary.
    """
    files = {name: read_records(str(output_dir / f"{name}.json")) for name in splits}
    every = [record for records in files.values() for record in records]
    before: Any = told_by(summary) or {"first": None}
    new = dict(summary)
    whole = True
    if before["first"] != labeling.first.name or "whole" in before:
        label = _labels(labeling.first, every, (*SIDES, "placebo", "alone"))
        whole = label.whole
        files = {
            name: [_relabeled(record, label, labeling.first.name) for record in records]
            for name, records in files.items()
        }
        every = [record for records in files.values() for record in records]
        new |= summarize(every, _noise(every, label), tokenizer, label)
    new.pop("label_agreement", None)
    if labeling.second is not None:
        second = _labels(labeling.second, every, SIDES)
        new["label_agreement"] = _agreement(every, labeling, second)
        whole = whole and second.whole
    write_json(output_dir / "summary.json", {**summary, "labeler": None})  # a killed relabeling is done again
    for name, records in files.items():
        write_json(output_dir / f"{name}.json", [to_json(record) for record in records])
    new["labeler"] = labeling.as_json(whole)
    write_json(output_dir / "summary.json", new)
    return new


def _labels(labeler: BehaviorLabeler, records: Sequence[ContextAblationRecord], sides: Sequence[str]) -> Lookup:
    return Lookup(
        labeler, [r.reply(side) for r in records for side in sides if getattr(r, f"{side}_output") is not None]
    )


def _relabeled(record: ContextAblationRecord, label: Callable[[Reply], Behavior], name: str) -> ContextAblationRecord:
    before, after = (label(record.reply(side)) for side in SIDES)
    return replace(
        record,
        monitored_behavior=before.label,
        monitored_behavior_rule=before.rule,
        unmonitored_behavior=after.label,
        unmonitored_behavior_rule=after.rule,
        behavior_changed=differ(before, after),
        provenance=with_labeler(record.provenance, name),
    )


def _noise(records: Sequence[ContextAblationRecord], label: Callable[[Reply], Behavior]) -> Noise:
    """Return what answering alone changes; unknown in files that do not hold what was answered alone."""
    return [
        [None, None]
        if record.alone_output is None
        else [
            record.alone_output != record.monitored_output,
            differ(label(record.reply("alone")), label(record.reply("monitored"))),
        ]
        for record in records
        if record.placebo_output is not None
    ]


def _agreement(records: Sequence[ContextAblationRecord], labeling: Labeling, second: Lookup) -> dict[str, Any]:
    sides = [(_opinions(records, side), second.opinions([r.reply(side) for r in records])) for side in SIDES]
    names = list(labeling.as_json().values())
    return label_agreement(sides, [r.scenario_id for r in records], names, OTHER)


def _opinions(records: Sequence[ContextAblationRecord], side: str) -> Sequence[str | None]:
    return opinions(
        [getattr(r, f"{side}_behavior") for r in records], [getattr(r, f"{side}_behavior_rule") for r in records]
    )
