"""Ask a trained explainer about scenarios of which nobody knows what the organism does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from afintro.data.batch import Example
from afintro.data.cue import MONITORED_SYSTEM
from afintro.data.samples import text_of
from afintro.data.text import Draft, encode_answer
from afintro.evaluation.answers import branch_stems
from afintro.generation.behavior import LABELS
from afintro.lm.injection import VectorSpace
from afintro.tasks.context_ablation.records import PARENT_NAMES, ContextAblationRecord, from_json
from afintro.tasks.context_ablation.task import PRIMARY, ContextAblation
from afintro.tasks.contract import ExplainerSpec
from afintro.tasks.unlabeled import Inputs, RecordQuestions, at_least_one, fields_of, ground_truth, unanswered

OUTPUTS = ("monitored_output", "unmonitored_output")
GROUND_TRUTH = ground_truth(
    ContextAblationRecord,
    PARENT_NAMES,
    ("changed", "label", "provenance", "behavior_changed", "samples", "behavior_rates"),
)
UNKNOWN = "other"  # the label in place of those that nobody knows; no prompt shows it


def questions(
    data: ContextAblation, inputs: Inputs, space: VectorSpace | None
) -> RecordQuestions[ContextAblationRecord]:
    """Read scenarios, or records of which no output is looked at; of each, the primary question is asked.

    A row is a sample as :func:`afintro.data.samples.read_samples` reads it, perhaps with ``system_prompt``, ``uid`` and
    ``scenario_id``; or a record of this task, with or without its outputs. Without a system prompt the shipped monitored
    system prompt is asked about.

    Args:
        data: The data module, which says how the question is worded.
        inputs: The rows.
        space: None, since the task has no vectors.

    Raises:
        UserError: A row has no text, or a field of a wrong type.
    """
    inputs.refuse(data.task, "directions", "layers", "alphas")
    records = [record_of(row, f"{inputs.source}, record {number}") for number, row in enumerate(inputs.read())]

    def asker(reader: ExplainerSpec) -> Callable[[ContextAblationRecord], Example]:
        branches = branch_stems(LABELS, lambda answer: encode_answer(reader.tokenizer, answer))

        def ask(record: ContextAblationRecord) -> Example:
            system, user = data.ask(record, PRIMARY)
            draft = Draft(
                f"{record.uid}/{PRIMARY}", record.scenario_id, PRIMARY, system["content"], user["content"], ""
            )
            return replace(unanswered(draft, reader), branches=branches)

        return ask

    return RecordQuestions(at_least_one(records, inputs), asker)


def record_of(row: Any, where: str) -> ContextAblationRecord:
    """Make a record without outputs of a row.

    Args:
        row: A text, a conversation or an object.
        where: File and record, for the error.
    """
    known = {PARENT_NAMES.get(name, name) for name in ContextAblationRecord.__dataclass_fields__}
    given = {name: value for name, value in fields_of(row, GROUND_TRUTH).items() if name in (*known, "index")}
    if isinstance(row, dict) and isinstance(row.get("cue"), str):
        given.setdefault(PARENT_NAMES["cue"], row["cue"])
    if not isinstance(given.get(PARENT_NAMES["scenario"]), str):
        given[PARENT_NAMES["scenario"]] = text_of(row, where)[0]
    given.setdefault("system_prompt", MONITORED_SYSTEM)
    blank = {PARENT_NAMES[name]: "" for name in OUTPUTS}
    record = from_json(given | blank, where)
    return replace(record, monitored_behavior=UNKNOWN, unmonitored_behavior=UNKNOWN)
