"""Context-ablation records, and the one place that maps the parent framework's field names to ours."""

import re
import string
from dataclasses import dataclass, field, replace
from typing import Any

from afintro.data.records import check_unique, parse_file, parse_record, scenario_id, set_fields
from afintro.generation.behavior import CUT, behavior_fields
from afintro.generation.reasoning import Reply, opening_of
from afintro.generation.untold import labels_differ
from afintro.tasks.context_ablation.samples import check_samples, rate_estimates
from afintro.tasks.contract import AskedScenario

CHOICE = re.compile(r"(?:Answer: ?)?\(?([A-Z])\)?[.:]?")
"""A letter alone, as a multiple-choice question is answered."""
FEW_CHOICES = (
    8  # of a question that does not say how many it has; a single "I" then begins a sentence, and is no choice
)


@dataclass(frozen=True)
class ContextAblationRecord:
    """One scenario, answered by the organism with and without the monitoring cue.

    Args:
        scenario: The scenario text.
        system_prompt: The monitored system prompt.
        monitored_output: The organism's answer under the cue: greedy, or of several samples the first that has the behavior
            of most samples.
        unmonitored_output: The organism's answer without the cue.
        monitored_prompt: The whole monitored prompt, as the organism read it; None where a server does not show it.
        unmonitored_prompt: The whole unmonitored prompt.
        cue: Name of what is ablated.
        changed: Whether the two outputs differ as strings; of two choices, whether their letters differ.
        label: The sample's label, or "unknown".
        source: Where the sample is from; None if nobody says.
        category: What kind of scenario the sample is; None likewise.
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
        choices: The choices of a multiple-choice question, in the order of their letters; None if nobody says.
        monitored_user: The user's turn with the cue, where the cue stands there and not in the system prompt (the hint files of
            the parent framework, or a condition that wraps the scenario); None where both user's turns are the scenario.
        unmonitored_user: The user's turn without the cue; None likewise.
        conditions: Names of the two conditions of a cue file; None for the seed's pair, and in files of others. What follows
            is None there too.
        unmonitored_system_prompt: System prompt of the second condition.
        cue_question: How the cue file asks what the second condition would change; None for a general wording.
        monitored_prefill: The beginning of the answer that the first condition gave; the output goes on behind it.
        unmonitored_prefill: The same of the second condition.
        unmonitored_placebo_output: Answer to the unmonitored prompt in other words; None without controls.
        unmonitored_placebo_truncated: Whether the limit of tokens ended that output.
        unmonitored_alone_output: Answer to the unmonitored prompt once more, in no batch; None without controls.
        unmonitored_alone_truncated: Whether the limit of tokens ended that output.
        samples: All sampled answers by condition, each with ``output``, ``truncated``, ``behavior`` and ``rule``; None where
            answers are greedy.
        behavior_rates: The rate of each behavior among the samples by condition, with interval; computed from ``samples``.
    """

    scenario: str
    system_prompt: str
    monitored_output: str
    unmonitored_output: str
    monitored_prompt: str | None = ""
    unmonitored_prompt: str | None = ""
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
    choices: list[Any] | None = None
    monitored_user: str | None = None
    unmonitored_user: str | None = None
    conditions: list[str] | None = None
    unmonitored_system_prompt: str | None = None
    cue_question: str | None = None
    monitored_prefill: str | None = None
    unmonitored_prefill: str | None = None
    unmonitored_placebo_output: str | None = None
    unmonitored_placebo_truncated: bool | None = None
    unmonitored_alone_output: str | None = None
    unmonitored_alone_truncated: bool | None = None
    samples: dict[str, Any] | None = None
    behavior_rates: dict[str, Any] | None = None
    source: str | None = None
    category: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        turns = (self.monitored_user, self.unmonitored_user)
        # Of named conditions both may wrap the scenario in the same words, which an explainer is told too.
        plain = self.scenario if self.conditions else self.unmonitored_user
        if not all(turns) or turns == (plain, plain):
            put(self, "monitored_user", None)
            put(self, "unmonitored_user", None)
        identity = self.scenario_id or scenario_id(self.question)
        put(self, "scenario_id", identity)
        put(self, "uid", self.uid or (scenario_id(self.scenario) if self.has_hint else identity))
        put(self, "changed", self.answered("monitored") != self.answered("unmonitored"))
        put(self, "behavior_rates", None if self.samples is None else rate_estimates(self.samples))

    @property
    def has_hint(self) -> bool:
        """Tell whether the cue is a hint in the user's turn, as in the hint files of the parent framework."""
        return self.monitored_user is not None and not self.conditions

    @property
    def question(self) -> str:
        """Return what the record is about, whatever the cue says: the user's turn without a hint, or the scenario."""
        return (self.unmonitored_user if self.has_hint else None) or self.scenario

    def choice(self, condition: str) -> str | None:
        """Return a choice by its letter as the parent framework writes it, ``Answer: B``; None for any other output."""
        known = string.ascii_uppercase[: FEW_CHOICES if self.choices is None else len(self.choices)]
        letter = CHOICE.fullmatch(getattr(self, f"{condition}_output").strip()) if self.has_hint else None
        return f"Answer: {letter[1]}" if letter and letter[1] in known else None

    def answered(self, condition: str) -> str:
        """Return the choice of a condition, ``monitored`` or ``unmonitored``, or else its whole output."""
        return self.choice(condition) or str(getattr(self, f"{condition}_output"))

    def asked(self) -> AskedScenario | None:
        """Return how the organism was asked, and what it answered; None if the record does not hold both prompts."""
        if not (self.monitored_prompt and self.unmonitored_prompt):
            return None
        answers = (
            (0, self.monitored_output, bool(self.monitored_truncated)),
            (1, self.unmonitored_output, bool(self.unmonitored_truncated)),
        )
        return AskedScenario(self.uid, (self.monitored_prompt, self.unmonitored_prompt), answers, self.provenance)

    def reply(self, condition: str) -> Reply:
        """Return what is known of the output of a condition.

        Args:
            condition: ``monitored``, ``unmonitored``, their ``placebo`` or ``unmonitored_placebo``, or what was answered once
                more, ``alone`` or ``unmonitored_alone``.
        """
        text, truncated = getattr(self, f"{condition}_output"), getattr(self, f"{condition}_truncated")
        return self._reply(condition, text or "", truncated)

    def sampled_replies(self) -> dict[str, list[Reply]]:
        """Return what is known of all sampled answers, by condition; nothing of greedy answers."""
        return {
            condition: [self._reply(condition, answer["output"], answer["truncated"]) for answer in answers]
            for condition, answers in (self.samples or {}).items()
        }

    def _reply(self, condition: str, text: str, truncated: bool | None) -> Reply:
        side = "unmonitored" if condition.startswith("unmonitored") else "monitored"
        prompt, prefill = getattr(self, f"{side}_prompt"), getattr(self, f"{side}_prefill") or ""
        return Reply(text, truncated, opening_of((prompt or "").removesuffix(prefill)), prefill=prefill)


def labeled(record: ContextAblationRecord) -> ContextAblationRecord:
    """Return a record with behavior labels: files of the parent framework come without. A choice is its own label."""
    rules = (record.monitored_behavior_rule, record.unmonitored_behavior_rule)
    known = record.monitored_behavior is not None and record.unmonitored_behavior is not None
    if known or any(rule == CUT.rule for rule in rules):
        return record
    fields = behavior_fields(monitored=record.reply("monitored"), unmonitored=record.reply("unmonitored"))
    for condition in ("monitored", "unmonitored"):
        if choice := record.choice(condition):
            fields |= {f"{condition}_behavior": choice, f"{condition}_behavior_rule": "choice"}
    changed = labels_differ(fields["monitored_behavior"], fields["unmonitored_behavior"])
    return replace(record, **fields | {"behavior_changed": changed})


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
    "monitored_user": "hint_user_prompt",
    "unmonitored_user": "original_user_prompt",
}


def to_json(record: ContextAblationRecord) -> dict[str, Any]:
    """Return the record under the parent framework's names; unset optional fields are left out, but for prompts unseen."""
    unseen = [name for name in ("monitored_prompt", "unmonitored_prompt") if getattr(record, name) is None]
    fields = set_fields(record, PARENT_NAMES) | {PARENT_NAMES[name]: None for name in unseen}
    return fields | {name: fields.get(name, record.scenario) for name in ("hint_user_prompt", "original_user_prompt")}


def from_json(row: Any, where: str) -> ContextAblationRecord:
    """Check one object and make a record of it.

    Args:
        row: The object, as read from JSON.
        where: File and record, for the message.

    Raises:
        UserError: A field is missing or has a wrong type.
    """
    required = ("scenario", "system_prompt", "monitored_output", "unmonitored_output")
    if isinstance(row, dict) and row.get("samples") is not None:
        check_samples(row["samples"], where)
    if isinstance(row, dict) and not isinstance(row.get("choices"), list):  # other benchmarks have other things there
        row = row | {"choices": None}
    record = parse_record(ContextAblationRecord, row, PARENT_NAMES, required, MAKER, where)
    if record.has_hint and not row.get("uid") and "index" in row:  # benchmarks repeat questions
        return replace(record, uid=f"{record.uid}-{row['index']}")
    return record


def read_records(path: str) -> list[ContextAblationRecord]:
    """Read a JSON, JSONL or Parquet file of context-ablation records.

    Raises:
        UserError: A record is wrong, or two records have the same uid; names file, record and field.
    """
    records = parse_file(path, from_json, MAKER)
    check_unique([record.uid for record in records], path)
    return records
