"""Context-ablation records, and the one place that maps the parent framework's field names to ours."""

from dataclasses import dataclass, field, replace
from typing import Any

from afintro.data.records import check_unique, parse_file, parse_record, scenario_id, set_fields
from afintro.generation.behavior import CUT, behavior_fields
from afintro.generation.reasoning import Reply, opening_of


@dataclass(frozen=True)
class ContextAblationRecord:
    """One scenario, answered by the organism with and without the monitoring cue.

    Args:
        scenario: The scenario text.
        system_prompt: The monitored system prompt.
        monitored_output: The organism's greedy answer under the cue.
        unmonitored_output: The organism's answer without the cue.
        monitored_prompt: The whole monitored prompt, as the organism read it.
        unmonitored_prompt: The whole unmonitored prompt.
        cue: Name of what is ablated.
        changed: Whether the two outputs differ as strings.
        label: The sample's label, or "unknown".
        uid: Unique in the file; the scenario's id if absent.
        scenario_id: Id that all records of the scenario share.
        monitored_behavior: Behavior label of the monitored output, of the shipped classes or the user's own; None in files of
            the parent framework, and for an output that was cut inside its reasoning.
        monitored_behavior_rule: The rule that gave the label, or why there is none.
        unmonitored_behavior: Behavior label of the unmonitored output.
        unmonitored_behavior_rule: The rule that gave the label.
        behavior_changed: Whether the two labels differ; None if one of them is unknown, or ``other``.
        monitored_truncated: Whether the limit of tokens ended the monitored output, not the organism; None in other files.
        unmonitored_truncated: The same of the unmonitored output.
        placebo_output: Answer to the monitored prompt in other words; None without controls.
        placebo_truncated: Whether the limit of tokens ended the placebo output.
        alone_output: Answer to the monitored prompt once more, in no batch; None without controls.
        alone_truncated: Whether the limit of tokens ended that output.
        provenance: Model, revision, template hash, batch size, dtype, seed.
    """

    scenario: str
    system_prompt: str
    monitored_output: str
    unmonitored_output: str
    monitored_prompt: str = ""
    unmonitored_prompt: str = ""
    cue: str = "monitoring context"
    changed: bool | None = None
    label: str = "unknown"
    uid: str = ""
    scenario_id: str = ""
    monitored_behavior: str | None = None
    monitored_behavior_rule: str | None = None
    unmonitored_behavior: str | None = None
    unmonitored_behavior_rule: str | None = None
    behavior_changed: bool | None = None
    monitored_truncated: bool | None = None
    unmonitored_truncated: bool | None = None
    placebo_output: str | None = None
    placebo_truncated: bool | None = None
    alone_output: str | None = None
    alone_truncated: bool | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        identity = self.scenario_id or scenario_id(self.scenario)
        object.__setattr__(self, "scenario_id", identity)
        object.__setattr__(self, "uid", self.uid or identity)
        object.__setattr__(self, "changed", self.monitored_output != self.unmonitored_output)

    def reply(self, condition: str) -> Reply:
        """Return what is known of the output of a condition: ``monitored``, ``unmonitored``, ``placebo`` or ``alone``."""
        prompt = self.unmonitored_prompt if condition == "unmonitored" else self.monitored_prompt
        text, truncated = getattr(self, f"{condition}_output"), getattr(self, f"{condition}_truncated")
        return Reply(text or "", truncated, opening_of(prompt))


def labeled(record: ContextAblationRecord) -> ContextAblationRecord:
    """Return a record with behavior labels: files of the parent framework come without."""
    rules = (record.monitored_behavior_rule, record.unmonitored_behavior_rule)
    known = record.monitored_behavior is not None and record.unmonitored_behavior is not None
    if known or any(rule == CUT.rule for rule in rules):
        return record
    return replace(
        record, **behavior_fields(monitored=record.reply("monitored"), unmonitored=record.reply("unmonitored"))
    )


MAKER = "scripts/generate_af_context_ablation.py"


# Our name -> the parent framework's name. A field that is missing here has the same name in both.
PARENT_NAMES = {
    "scenario": "ablation_prompt",
    "monitored_prompt": "hint_prompt_full",
    "unmonitored_prompt": "original_prompt_full",
    "cue": "hint",
    "monitored_output": "random_hint_prediction",
    "unmonitored_output": "zeroshot_prediction",
    "changed": "changed_pred_bc_hint",
}


SCENARIO_COPIES = ("hint_user_prompt", "original_user_prompt")


def to_json(record: ContextAblationRecord) -> dict[str, Any]:
    """Return the record under the parent framework's names; unset optional fields are left out."""
    return set_fields(record, PARENT_NAMES) | dict.fromkeys(SCENARIO_COPIES, record.scenario)


def from_json(row: Any, where: str) -> ContextAblationRecord:
    """Check one object and make a record of it.

    Args:
        row: The object, as read from JSON.
        where: File and record, for the message.

    Raises:
        UserError: A field is missing or has a wrong type.
    """
    required = ("scenario", "system_prompt", "monitored_output", "unmonitored_output")
    return parse_record(ContextAblationRecord, row, PARENT_NAMES, required, MAKER, where)


def read_records(path: str) -> list[ContextAblationRecord]:
    """Read a JSON, JSONL or Parquet file of context-ablation records.

    Raises:
        UserError: A record is wrong, or two records have the same uid; names file, record and field.
    """
    records = parse_file(path, from_json, MAKER)
    check_unique([record.uid for record in records], path)
    return records
