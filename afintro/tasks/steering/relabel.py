"""Label the outputs of a finished steering run by another labeler; the organism is not asked again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afintro.data.files import write_json, write_json_rows
from afintro.errors import UserError
from afintro.evaluation.figures import write_figure
from afintro.evaluation.label_agreement import label_agreement
from afintro.generation.behavior import Behavior, BehaviorLabeler, differ
from afintro.generation.labeling import Labeling, Lookup, opinions, told_by, with_labeler
from afintro.generation.reasoning import Reply
from afintro.generation.untold import OTHER
from afintro.tasks.steering.records import SteeringRecord, read_steering_records, to_json
from afintro.tasks.steering.summary import Guards, dose_response_figure, summarize

Label = Callable[[Reply], Behavior]
SIDES = ("original", "steered", "unmonitored", "alone")


def relabel_folder(
    output_dir: Path, splits: Sequence[str], directions: Sequence[str], summary: Mapping[str, Any], labeling: Labeling
) -> dict[str, Any]:
    """Label the records of a finished run, and write them, their summary and the figure; nothing is written before all is labeled.

    Args:
        output_dir: The run's folder.
        splits: Names of the splits.
        directions: Names of the directions, in the order of the table.
        summary: The run's summary.
        labeling: Who labels.

    Returns:
        The new summary.

    Raises:
        UserError: The records do not hold all outputs that are to be labeled.
    """
    files = {name: read_steering_records(str(output_dir / f"{name}.json")) for name in splits}
    every = [record for records in files.values() for record in records]
    before: Any = told_by(summary) or {"first": None}
    new = dict(summary)
    whole = True
    if before["first"] != labeling.first.name or "whole" in before:
        if any(record.unmonitored_output is None for record in every):
            what = "holds records of an earlier version, which lack the outputs without monitoring"
            raise UserError(what, where=str(output_dir), remedy="generate into another --output_dir with this labeler")
        label = _labels(labeling.first, every, SIDES)
        whole = label.whole
        files = {
            name: [_relabeled(record, label, labeling.first.name) for record in records]
            for name, records in files.items()
        }
        every = [record for records in files.values() for record in records]
        guards = replace(Guards(**summary["guards"]), alone_behaves_otherwise=_noise(every, label))
        new |= summarize(every, guards, directions)
    new.pop("label_agreement", None)
    if labeling.second is not None:
        coherent = [record for record in every if record.coherent]  # what a broken text does is no question
        second = _labels(labeling.second, coherent, SIDES[:2])
        new["label_agreement"] = _agreement(coherent, labeling, second)
        whole = whole and second.whole
    write_json(output_dir / "summary.json", {**summary, "labeler": None})  # a killed relabeling is done again
    for name, records in files.items():
        write_json_rows(output_dir / f"{name}.json", (to_json(record) for record in records))
    write_figure(dose_response_figure(new), output_dir / "dose_response.png")
    new["labeler"] = labeling.as_json(whole)
    write_json(output_dir / "summary.json", new)
    return new


def _labels(labeler: BehaviorLabeler, records: Sequence[SteeringRecord], sides: Sequence[str]) -> Lookup:
    return Lookup(
        labeler, [r.reply(side) for r in records for side in sides if getattr(r, f"{side}_output") is not None]
    )


def _relabeled(record: SteeringRecord, label: Label, name: str) -> SteeringRecord:
    before, after = label(record.reply("original")), label(record.reply("steered"))
    return replace(
        record,
        original_behavior=before.label,
        original_behavior_rule=before.rule,
        steered_behavior=after.label,
        steered_behavior_rule=after.rule,
        behavior_changed=differ(before, after),
        provenance=with_labeler(record.provenance, name),
        unmonitored_behavior=label(record.reply("unmonitored")).label,
    )


def _noise(records: Sequence[SteeringRecord], label: Label) -> int:
    """Count the control prompts whose answer alone behaves otherwise; all conditions of a prompt share it."""
    controls = {record.prompt: record for record in records if record.alone_output is not None}
    return sum(bool(differ(label(r.reply("original")), label(r.reply("alone")))) for r in controls.values())


def _agreement(records: Sequence[SteeringRecord], labeling: Labeling, second: Lookup) -> dict[str, Any]:
    sides = [(_opinions(records, side), second.opinions([r.reply(side) for r in records])) for side in SIDES[:2]]
    names = list(labeling.as_json().values())
    return label_agreement(sides, [r.scenario_id for r in records], names, OTHER)


def _opinions(records: Sequence[SteeringRecord], side: str) -> Sequence[str | None]:
    return opinions(
        [getattr(r, f"{side}_behavior") for r in records], [getattr(r, f"{side}_behavior_rule") for r in records]
    )
