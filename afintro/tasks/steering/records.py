"""Steering records on disk, in the activation-patching schema of the parent framework."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.records import check_unique, parse_file, parse_record, scenario_id, set_fields
from afintro.errors import UserError
from afintro.generation.behavior import CUT, behavior_fields
from afintro.generation.reasoning import Reply, opening_of
from afintro.generation.untold import labels_differ, other_warnings, refuse_others, unlabeled_warnings
from afintro.tasks.contract import AskedScenario


@dataclass(frozen=True)
class SteeringRecord:
    """One prompt, continued by the organism without and with a vector added to its residual stream.

    Args:
        prompt: The whole prompt, as the organism read it.
        direction: Name of the vector.
        layer: 0-based decoder layer after which the vector was added.
        alpha: Strength: the multiple of the vector that was added.
        original_output: The organism's greedy output without steering.
        steered_output: The organism's greedy output with steering.
        scenario: The user's text in the prompt; the prompt if absent.
        system_prompt: The system prompt in the prompt.
        alpha_unit: ``raw`` times the vector as saved, or ``residual_norm``: times the norm of the residual stream at the
            position, in the vector's direction.
        positions: ``last``, ``decode`` or ``all``: where the vector was added, see :class:`afintro.lm.interventions.Steering`.
            A record of version 1 that does not say it was steered at the last position of the prompt.
        norm: Norm of the vector as saved; None in files of the parent framework.
        changed: Whether the two outputs differ as strings.
        label: The sample's label, or "unknown".
        source: Where the sample is from; None if nobody says.
        category: What kind of scenario the sample is; None likewise.
        uid: Unique in its file.
        scenario_id: Records of one scenario share it.
        original_behavior: Behavior label of the original output; None in files of the parent framework, and for an output
            that was cut inside its reasoning.
        original_behavior_rule: The rule that gave the label, or why there is none.
        steered_behavior: Behavior label of the steered output.
        steered_behavior_rule: The rule that gave the label.
        behavior_changed: Whether the two labels differ; None if one of them is unknown, or ``other``.
        original_truncated: Whether the limit of tokens ended the original output, not the organism; None in other files.
        steered_truncated: The same of the steered output.
        unmonitored_behavior: What the unsteered organism does with the scenario when it is told that nobody watches.
        unmonitored_output: The output that this label is of; None in files of before.
        unmonitored_truncated: Whether the limit of tokens ended that output.
        alone_output: The unsteered output once more, in no batch; None without controls.
        alone_truncated: Whether the limit of tokens ended that output.
        coherent: False where the steered text broke: its label then says nothing.
        perplexity: Of the steered output under the unsteered organism.
        repetition: Share of its 4-grams of tokens that it had before.
        prefill: The beginning of the answer that the condition gave in ``prompt``; the outputs go on behind it. None without one.
        provenance: Model, revision, template hash, batch size, dtype, seed.
        format_version: Version of the record's form; records that do not say it are of version 1.
    """

    prompt: str
    direction: str
    layer: int
    alpha: float
    original_output: str
    steered_output: str
    scenario: str = ""
    system_prompt: str = ""
    alpha_unit: str = "raw"
    positions: str = "last"
    norm: float | None = None
    changed: bool | None = None
    label: str = "unknown"
    uid: str = ""
    scenario_id: str = ""
    original_behavior: str | None = None
    original_behavior_rule: str | None = None
    steered_behavior: str | None = None
    steered_behavior_rule: str | None = None
    behavior_changed: bool | None = None
    original_truncated: bool | None = None
    steered_truncated: bool | None = None
    unmonitored_behavior: str | None = None
    unmonitored_output: str | None = None
    unmonitored_truncated: bool | None = None
    alone_output: str | None = None
    alone_truncated: bool | None = None
    coherent: bool = True
    perplexity: float | None = None
    repetition: float | None = None
    prefill: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = 1
    source: str | None = None
    category: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "scenario", self.scenario or self.prompt)
        put(self, "scenario_id", self.scenario_id or scenario_id(self.scenario))
        put(self, "uid", self.uid or self.condition)
        put(self, "changed", self.original_output != self.steered_output)

    def asked(self) -> AskedScenario | None:
        """Return how the organism was asked under the cue, and would be without; None if the record is of another prompt."""
        if self.system_prompt != MONITORED_SYSTEM or self.prompt.count(MONITORED_SYSTEM) != 1:
            return None
        answers = [(0, self.original_output, bool(self.original_truncated))]
        if self.unmonitored_output is not None:
            answers.append((1, self.unmonitored_output, bool(self.unmonitored_truncated)))
        unmonitored = self.prompt.replace(MONITORED_SYSTEM, UNMONITORED_SYSTEM)
        return AskedScenario(self.uid, (self.prompt, unmonitored), tuple(answers), self.provenance)

    def reply(self, side: str) -> Reply:
        """Return what is known of the output of a side: ``original``, ``steered``, ``unmonitored`` or ``alone``."""
        text, truncated = getattr(self, f"{side}_output"), getattr(self, f"{side}_truncated")
        given = self.prefill or ""
        opening = opening_of(self.prompt.removesuffix(given))
        return Reply(text or "", truncated, opening, prefill="" if side == "unmonitored" else given)

    @property
    def condition(self) -> str:
        """Prompt and condition, in one string."""
        return f"{scenario_id(self.prompt)}/{self.direction}/{self.layer}/{self.alpha:g}"


# Our name -> the parent framework's. A field that is not here has the same name on both sides.
PARENT_NAMES = {
    "original_output": "original_continuation",
    "steered_output": "ablated_continuation",
    "changed": "is_different",
}
REQUIRED = ("prompt", "direction", "layer", "alpha", "original_output", "steered_output")
FORMAT_VERSION = 2
"""Of the records that are written. Records of version 2 say where and in which unit the vector was added."""
STATED = ("positions", "alpha_unit")
VALUES = {"positions": ("last", "decode", "all"), "alpha_unit": ("raw", "residual_norm")}
OTHERS_REMEDY = (
    "label the outputs again with --labeler of the script that made the file (a judge, or classes of your own), steer with "
    "smaller alphas, or give labels of your own in the fields original_behavior and steered_behavior"
)
MAKER = "scripts/generate_af_steering_data.py"


def to_json(record: SteeringRecord) -> dict[str, Any]:
    """Return the record under the parent framework's names, ``layer`` as a list; unset optional fields are left out."""
    return set_fields(record, PARENT_NAMES) | {"layer": [record.layer]}


def from_json(row: Any, where: str) -> SteeringRecord:
    """Check one object and make a record of it.

    Args:
        row: The object, as read from JSON.
        where: File and record, for the message.

    Raises:
        UserError: A missing field, a wrong type or value, several layers, an ``alpha`` that is not finite, or a version that
            is not known.
    """
    if isinstance(row, Mapping) and isinstance(row.get("layer"), list):
        layers = row["layer"]
        if len(layers) != 1:
            raise UserError(
                f"field 'layer' names {len(layers)} layers", where=where, remedy="give one record for each layer"
            )
        row = {**row, "layer": layers[0]}
    if (
        isinstance(row, Mapping) and row.get("format_version") is None
    ):  # of before, also in one table with newer records
        row = {name: value for name, value in row.items() if name != "format_version"}
    version = row.get("format_version", 1) if isinstance(row, Mapping) else 1
    stated = STATED if version != 1 else ()
    record = parse_record(SteeringRecord, row, PARENT_NAMES, (*REQUIRED, *stated), MAKER, where)
    if not 1 <= record.format_version <= FORMAT_VERSION:
        raise UserError(
            f"is of format version {record.format_version}, while versions 1 to {FORMAT_VERSION} are known",
            where=where,
            remedy="install the version of afintro that wrote the record",
        )
    for name, allowed in VALUES.items():
        if getattr(record, name) not in allowed:
            what = f"field {name!r} is {getattr(record, name)!r}, not {' or '.join(allowed)}"
            raise UserError(what, where=where, remedy="mend the field")
    if not math.isfinite(record.alpha):
        raise UserError(f"field 'alpha' must be finite, but is {record.alpha}", where=where, remedy="mend the field")
    return record


def read_steering_records(path: str) -> list[SteeringRecord]:
    """Read a JSON, JSONL or Parquet file of steering records.

    Raises:
        UserError: A record is wrong, or two records have the same uid; names file, record and field.
    """
    records = parse_file(path, from_json, MAKER)
    check_unique([record.uid for record in records], path)
    return records


def places_of(records: Sequence[SteeringRecord]) -> dict[str, set[int]]:
    """Return the layers at which each direction of the records steers, by name."""
    places: dict[str, set[int]] = {}
    for record in records:
        places.setdefault(record.direction, set()).add(record.layer)
    return places


def check_directions(records: Sequence[SteeringRecord], names: Collection[str], path: str) -> None:
    """Refuse records whose direction has no vector.

    Args:
        records: The records of one file.
        names: Names of the directions with vectors.
        path: The file, for the message.

    Raises:
        UserError: A record names another direction.
    """
    for index, record in enumerate(records):
        if record.direction not in names:
            raise UserError(
                f"direction {record.direction!r} is not among the vectors ({', '.join(sorted(names))})",
                where=f"{path}, record {index}",
                remedy="set data.directions to the folder of the vectors that the records name",
            )


def check_layers(records: Sequence[SteeringRecord], layers: Sequence[int], path: str) -> None:
    """Refuse records of layers that training does not have.

    Args:
        records: The records of one file.
        layers: The 0-based layers of the training records.
        path: The file, for the message.

    Raises:
        UserError: A record is of another layer.
    """
    unknown = sorted({record.layer for record in records} - set(layers))
    if unknown:
        raise UserError(
            f"is of layer {', '.join(map(str, unknown))}, while training is of {', '.join(map(str, layers))}",
            where=path,
            remedy="give records of the same layers",
        )


def warnings_of_ways(records: Sequence[SteeringRecord], train: Sequence[SteeringRecord], path: str) -> list[str]:
    """Warn of records whose vectors were added elsewhere, or in another unit, than those of training.

    The explainer is not told of either, so that it would answer another question than it was taught.

    Args:
        records: The records of one file.
        train: The training records.
        path: The file, for the message.
    """
    warnings = []
    for name in STATED:
        known, own = ({str(getattr(record, name)) for record in some} for some in (train, records))
        if not own <= known or len(own) > 1:
            warnings.append(
                f"{path}: {name} is {' or '.join(sorted(own))}, in training {' or '.join(sorted(known))}; the explainer is not "
                "told which"
            )
    return warnings


def labeled(record: SteeringRecord) -> SteeringRecord:
    """Return a record with behavior labels: files of the parent framework come without.

    A record with an output that was cut inside its reasoning has no label there, and ``behavior_changed`` is None.
    """
    if record.original_behavior is not None and record.steered_behavior is not None:
        return replace(record, behavior_changed=labels_differ(record.original_behavior, record.steered_behavior))
    if CUT.rule in (record.original_behavior_rule, record.steered_behavior_rule):
        return replace(record, behavior_changed=None)
    return replace(record, **behavior_fields(original=record.reply("original"), steered=record.reply("steered")))


def labels_of(records: Sequence[SteeringRecord]) -> dict[str, list[str | None]]:
    """Return the labels of the original and of the steered outputs; a broken text has no behavior, and is left out."""
    return {
        "original": [record.original_behavior for record in records],
        "steered": [record.steered_behavior for record in records if record.coherent],
    }


def label_warnings(records: Sequence[SteeringRecord], path: str) -> list[str]:
    """Return warnings of records without a label, and of answers of which nothing can be told.

    Args:
        records: The records of one file, see :func:`labeled`.
        path: The file, for the message.

    Raises:
        UserError: Too many answers of a side have the label ``other``.
    """
    sides, unlabeled = labels_of(records), [None in (r.original_behavior, r.steered_behavior) for r in records]
    refuse_others(sides, path, OTHERS_REMEDY)
    return unlabeled_warnings(sum(unlabeled), len(records), path) + other_warnings(sides, path)
