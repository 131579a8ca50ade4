"""Ask a trained explainer about vectors whose effect on the organism's behavior nobody knows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from afintro.data.batch import Example, Slot
from afintro.data.cue import MONITORED_SYSTEM
from afintro.data.records import FACETS, facets_of, scenario_id
from afintro.data.samples import text_of
from afintro.data.text import Draft, encode_answer
from afintro.errors import UserError
from afintro.evaluation.answers import branch_stems
from afintro.generation.behavior import LABELS
from afintro.lm.injection import VectorSpace
from afintro.tasks.contract import ExplainerSpec
from afintro.tasks.steering.direction_files import read_direction, read_directions
from afintro.tasks.steering.directions import Direction, Vector
from afintro.tasks.steering.patches import PatchedRecord, is_patched, patched_record
from afintro.tasks.steering.records import PARENT_NAMES, SteeringRecord, from_json
from afintro.tasks.steering.task import SteeringPrediction
from afintro.tasks.unlabeled import Inputs, RecordQuestions, at_least_one, fields_of, ground_truth, unanswered
from afintro.tasks.vectors import check_space, slot_position, slot_token, space_of

OUTPUTS = ("original_output", "steered_output")
GROUND_TRUTH = ground_truth(
    SteeringRecord, PARENT_NAMES, ("changed", "behavior_changed", "coherent", "perplexity", "repetition", "provenance")
)
KNOWN = frozenset(PARENT_NAMES.get(name, name) for name in SteeringRecord.__dataclass_fields__) - GROUND_TRUTH
CONDITION = ("direction", "layer", "alpha")
UNKNOWN = "other"  # the label in place of those that nobody knows; no prompt shows it


@dataclass(frozen=True)
class Asked:
    """A record that is asked about, with its vector.

    Args:
        record: The record, without outputs.
        vector: float32 ``[width]``.
        group: Name under which the direction counts.
    """

    record: SteeringRecord
    vector: Vector
    group: str

    def __repr__(self) -> str:
        """Return the record and every number of the vector, so that no two questions look alike."""
        return f"Asked({self.record!r}, {self.vector.tobytes().hex()}, {self.group!r})"


class Directions:
    """The directions that questions may name: given files, or the folder of the data, opened when a record first needs it.

    Args:
        data: The data module.
        inputs: What is asked about.

    Raises:
        UserError: A given file is wrong, or two directions have the same name.
    """

    def __init__(self, data: SteeringPrediction, inputs: Inputs) -> None:
        self._data, self._inputs = data, inputs
        given = [read_direction(path) for path in inputs.directions]
        self._known: dict[str, Direction] = {direction.name: direction for direction in given}
        if len(self._known) < len(given):
            names = [direction.name for direction in given]
            double = next(name for name in names if names.count(name) > 1)
            raise UserError(f"names two directions {double!r}", where="--direction", remedy="rename or remove one")
        self.names = tuple(self._known)

    def named(self, name: str, where: str) -> Direction:
        """Return the direction of a name.

        Raises:
            UserError: There is none.
        """
        if not self._known:
            self._known = read_directions(self._folder(where))
        if name not in self._known:
            what = f"direction {name!r} is not among the vectors ({', '.join(sorted(self._known))})"
            raise UserError(what, where=where, remedy="give its file with --direction, or set data.directions")
        return self._known[name]

    def _folder(self, where: str) -> Path:
        """Return the folder of the task's directions: as the configuration says, or beside the training file or the input."""
        data = self._data
        if data.directions_path:
            return Path(data.directions_path)
        for path in (data.settings.train_path, self._inputs.source):
            if path and (folder := Path(path).parent / "directions").is_dir():
                return folder
        if data.settings.train_path is None:
            data.build_embedded()
            data.use_embedded()
            return Path(str(data.paths["train"])).parent / "directions"
        remedy = "give the file of the vector with --direction, or set data.directions to the folder of the vectors"
        raise UserError("names a direction, and there are no vectors", where=where, remedy=remedy)


def questions(data: SteeringPrediction, inputs: Inputs, space: VectorSpace | None) -> RecordQuestions[Asked]:
    """Ask about texts and vectors: one question for each text, direction, layer and alpha.

    A row is a steering record, of which no output is looked at; a record of activation patching; or a sample as
    :func:`afintro.data.samples.read_samples` reads it, perhaps with ``direction``, ``layer`` and ``alpha``. What a row does not
    say is taken from the inputs. Without a system prompt a sample is asked about under the shipped monitored system prompt.

    Args:
        data: The data module, which says how the question is worded, and where the vectors of named directions are.
        inputs: The rows, and directions, layers and alphas of rows that do not say them. Without layers a direction is asked
            about at all of its layers that the explainer knows.
        space: The width and the layers of the vectors that the explainer reads.

    Raises:
        UserError: A row is wrong, a direction, layer or alpha is not given, or the explainer does not read such vectors.
    """
    known, directions = space_of(space), Directions(data, inputs)
    asked = [
        item
        for number, row in enumerate(inputs.read())
        for item in _asked(row, directions, inputs, known, f"{inputs.source}, record {number}")
    ]
    return RecordQuestions(at_least_one(asked, inputs), lambda reader: _asker(data, reader))


def _asker(data: SteeringPrediction, reader: ExplainerSpec) -> Callable[[Asked], Example]:
    branches = branch_stems(LABELS, lambda answer: encode_answer(reader.tokenizer, answer))
    token = slot_token(reader)

    def ask(asked: Asked) -> Example:
        record = asked.record
        (system, user), _ = data.render(record, token)
        notes = {name: getattr(record, name) for name in CONDITION}
        draft = Draft(record.uid, record.scenario_id, data.primary, system["content"], user["content"], "", notes=notes)
        example = unanswered(draft, reader)
        wording = "data.wording.user, and never in a scenario"
        position = slot_position(example.prompt_ids, reader, f"prompt of {record.uid}", wording)
        vector = np.zeros_like(asked.vector) if data.zero_vectors else asked.vector
        slot = Slot(position, record.layer, vector, space=data.space_name)
        return replace(example, branches=branches, slot=slot, group=asked.group, facets=facets_of(record))

    return ask


def _asked(row: Any, directions: Directions, inputs: Inputs, space: VectorSpace, where: str) -> Iterator[Asked]:
    """Yield what a row asks about."""
    if is_patched(row):
        for name in ("directions", "layers", "alphas"):
            if getattr(inputs, name):
                what = f"holds its own vector, but --{name.removesuffix('s')} is given"
                raise UserError(what, where=where, remedy="leave the flag out")
        patch = _patch(row, where)
        check_space(space, len(patch.vector), patch.layer, where)
        yield Asked(patch, patch.vector, patch.direction)
        return
    fields = _fields(row, where)
    for name, layer, alpha in _conditions(fields, directions, inputs, space, where):
        direction = directions.named(name, where)
        vector = direction.at(layer)
        check_space(space, len(vector), layer, f"{where}, direction {name!r}")
        own = {name for name in CONDITION if name in fields}
        condition = {"direction": name, "layer": layer, "alpha": alpha}
        if "uid" in fields and len(own) < len(CONDITION):
            condition["uid"] = f"{fields['uid']}/{name}/{layer}/{alpha:g}"
        yield Asked(_record(fields | condition, where), vector, direction.group)


def _fields(row: Any, where: str) -> dict[str, Any]:
    """Return the fields of a row that a record has, with the text as ``prompt`` and ``scenario``."""
    fields = {name: value for name, value in fields_of(row, GROUND_TRUTH).items() if name in KNOWN}
    if set(CONDITION) <= set(fields) and isinstance(fields.get("prompt"), str):
        return fields  # a steering record, whose prompt is the whole prompt of the organism
    if not (isinstance(fields.get("prompt"), str) and isinstance(fields.get("scenario"), str)):
        text = text_of(row, where)[0]
        fields |= {"prompt": text, "scenario": text}
    for name in [name for name in FACETS if not isinstance(fields.get(name), str)]:
        fields.pop(name, None)  # a label may be a number that nobody needs here
    fields.setdefault("system_prompt", MONITORED_SYSTEM)
    fields.setdefault("scenario_id", scenario_id(fields["scenario"]))
    return {name: value for name, value in fields.items() if name != "format_version"}


def _conditions(
    fields: Mapping[str, Any], directions: Directions, inputs: Inputs, space: VectorSpace, where: str
) -> Iterator[tuple[str, int, float]]:
    """Yield names of directions, layers and alphas that a row is asked about: its own, else those of the inputs."""
    for name in ("layer", "alpha"):
        if name in fields and getattr(inputs, f"{name}s"):
            what = f"has its own {name}, but --{name} is given"
            raise UserError(what, where=where, remedy=f"leave --{name} out, or the field {name!r}")
    names = [fields["direction"]] if "direction" in fields else directions.names
    if not names:
        raise UserError("names no direction", where=where, remedy="give the file of a vector with --direction")
    alphas = [_number(fields["alpha"], "alpha", (int, float), where)] if "alpha" in fields else inputs.alphas
    if not alphas:
        remedy = "give --alpha: the multiples of the vector that would be added, e.g. 1 2 5"
        raise UserError("names no alpha", where=where, remedy=remedy)
    for name in names:
        layers = _layers(fields, directions.named(str(name), where), inputs, space, where)
        yield from product([str(name)], layers, map(float, alphas))


def _layers(
    fields: Mapping[str, Any], direction: Direction, inputs: Inputs, space: VectorSpace, where: str
) -> Sequence[int]:
    """Return the layers at which a row is asked about a direction."""
    if "layer" in fields:
        value = fields["layer"]
        layers = value if isinstance(value, list) else [value]
        return [_number(layer, "layer", (int,), where) for layer in layers]
    if inputs.layers:
        return inputs.layers
    if direction.everywhere is None:
        own = sorted(set(direction.vectors) & set(space.layers))
        return own or sorted(direction.vectors)  # of which the first is refused by name
    known = ", ".join(map(str, space.layers))
    what = f"is asked about direction {direction.name!r}, which names no layer"
    raise UserError(what, where=where, remedy=f"give --layer, of the layers that the explainer knows: {known}")


def _number(value: Any, name: str, kinds: tuple[type, ...], where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise UserError(f"field {name!r} is {value!r}, not a number", where=where, remedy="mend the field")
    return value


def _record(fields: Mapping[str, Any], where: str) -> SteeringRecord:
    """Make a record without outputs."""
    blank = {PARENT_NAMES[name]: "" for name in OUTPUTS}
    record = from_json({**fields, **blank}, where)
    return replace(record, original_behavior=UNKNOWN, steered_behavior=UNKNOWN, behavior_changed=False)


def _patch(row: Mapping[str, Any], where: str) -> PatchedRecord:
    """Make a record of a patch without continuations."""
    blank = {PARENT_NAMES[name]: [""] for name in OUTPUTS}
    return patched_record({**row, **blank}, where)
