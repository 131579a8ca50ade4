"""Steer each sample under all its conditions on one shared prefix; read, label and check the outputs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from afintro.data.cue import SEED, hash_of
from afintro.data.cue import Condition as Cue
from afintro.data.samples import Sample
from afintro.data.splits import stable_hash
from afintro.generation.behavior import RuleLabeler, differ
from afintro.generation.inputs import Item, items_of, provenance, unique_ids
from afintro.generation.prompts import Prompts, Request, request_of
from afintro.generation.reasoning import Reply
from afintro.generation.replies import ReplyDecoder
from afintro.generation.run_folder import in_chunks
from afintro.generation.settings import GenerationSettings
from afintro.lm.generate import generate_greedy, generate_steered
from afintro.lm.interventions import Steering
from afintro.lm.load import eos_ids
from afintro.ranks import Ranks
from afintro.tasks.steering.directions import RESIDUAL, Direction
from afintro.tasks.steering.fit_directions import prompt_activations
from afintro.tasks.steering.readings import Reading, read_outputs
from afintro.tasks.steering.records import FORMAT_VERSION, SteeringRecord, from_json, to_json
from afintro.tasks.steering.summary import Guards

CHUNK = 25
CUES = {cue.name: cue for cue in SEED.conditions}
UNMONITORED = SEED.unmonitored.name
RESIDUAL_PROMPTS = 200


@dataclass(frozen=True, kw_only=True)
class SteeringSettings(GenerationSettings):
    """What decides the records, beside the samples and the directions.

    Samples that serve the controls are answered once more, one at a time, for the label-noise floor. The conditions of one
    prompt always run together, whatever the batch size.

    Args:
        layers: 0-based decoder layers after which the vectors are added, one layer at a time.
        alphas: Multiples of the vector that are added.
        alpha_unit: ``raw`` multiplies the vector as saved; ``residual_norm`` multiplies the norm of the residual stream at
            the position, in the vector's direction.
        positions: ``last``, ``decode`` or ``all``, see :class:`afintro.lm.interventions.Steering`; ``decode`` is what a hook
            that runs ``hidden[:, -1, :] += alpha * vector`` at every forward pass of ``generate`` does.
        cues: Names of the conditions under which the prompts are asked: ``monitored``, ``unmonitored``, or names of ``conditions``.
        conditions: The conditions of these names, apart from the seed's pair.
        cells_per_prompt: Number of (layer, alpha) cells drawn for each prompt; None for all cells.
        directions_per_prompt: Number of directions drawn for each prompt, for all its cells; None for all directions.
    """

    layers: tuple[int, ...]
    alphas: tuple[float, ...]
    alpha_unit: Literal["raw", "residual_norm"] = "raw"
    positions: Literal["last", "decode", "all"] = "decode"
    cues: tuple[str, ...] = ("monitored",)
    cells_per_prompt: int | None = None
    batch_size: int = 64
    control_samples: int = 20
    directions_per_prompt: int | None = None
    conditions: tuple[Cue, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; what is newer than old folders is left out where it is not set."""
        values = super().as_json()
        if values["directions_per_prompt"] is None:
            del values["directions_per_prompt"]
        del values["conditions"]
        return values | ({"conditions_sha256": hash_of(*self.conditions)} if self.conditions else {})


def all_cues(settings: SteeringSettings) -> list[Cue]:
    """Return the conditions to steer under, and last the unmonitored one if it is not among them."""
    named = CUES | {cue.name: cue for cue in settings.conditions}
    return [named[name] for name in dict.fromkeys((*settings.cues, UNMONITORED))]


def requests_of(samples: Sequence[Sample], settings: SteeringSettings) -> list[list[Request]]:
    """Return what the organism is asked about each sample, by condition in the order of :func:`all_cues`."""
    return [
        [request_of(uid, cue.name, cue, sample.text) for cue in all_cues(settings)]
        for sample, uid in zip(samples, unique_ids(samples), strict=True)
    ]


@dataclass(frozen=True)
class Condition:
    """One way to steer a prompt.

    Args:
        direction: Name of the vector.
        layer: 0-based decoder layer after which the vector is added.
        strength: Multiple of the vector that is added.
    """

    direction: str
    layer: int
    strength: float


def read_chunks(chunks: Sequence[Path]) -> tuple[list[SteeringRecord], Guards]:
    """Read all records, and add up what the guards found."""
    records: list[SteeringRecord] = []
    guards = Guards()
    for path in chunks:
        chunk = json.loads(path.read_text())
        records += [from_json(row, f"{path}, record {i}") for i, row in enumerate(chunk["records"])]
        guards = guards + Guards(**chunk["guards"])
    return records, guards


class SteeringGenerator:
    """Let the organism answer samples chunk by chunk.

    Args:
        model: The organism.
        prompts: Makes the organism's prompts.
        settings: What to generate with.
        directions: Directions to steer along, controls included.
        directory: Where the organism was loaded from.
        chunk: Number of samples whose records are saved together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Prompts,
        settings: SteeringSettings,
        directions: Sequence[Direction],
        directory: str,
        chunk: int = CHUNK,
    ) -> None:
        self.model, self.prompts, self.settings, self.chunk = model, prompts, settings, chunk
        self.directions = {direction.name: direction for direction in directions}
        self.label = cache(RuleLabeler())
        self.decoder = ReplyDecoder(prompts.tokenizer, settings.max_new_tokens)
        self.prefills: dict[
            tuple[int, ...], tuple[int, str]
        ] = {}  # by prompt: tokens and text of the answer's beginning
        self.eos = eos_ids(model, prompts.tokenizer)
        self.provenance = provenance(settings, model, prompts.tokenizer, directory)

    def make_chunks(
        self,
        samples: Sequence[Sample],
        requests: Sequence[list[Request]],
        output_dir: Path,
        identity: dict[str, Any],
        ranks: Ranks,
    ) -> list[Path]:
        """Make the chunks that are missing, see :func:`afintro.generation.run_folder.in_chunks`.

        Args:
            samples: Input samples.
            requests: What is asked, by sample and condition, see :func:`requests_of`.
            output_dir: The run's folder.
            identity: Everything that decides the content.
            ranks: The processes of this run.

        Returns:
            The files of records and guards, in the order of the samples.
        """
        items = items_of(samples, requests, self.settings.control_samples)
        return in_chunks(output_dir, identity, items, self.chunk, self._chunk, "steering", ranks)

    def conditions(self, uid: str) -> list[Condition]:
        """Return the conditions that the prompt of a sample is steered under."""
        cells = [(layer, strength) for layer in self.settings.layers for strength in self.settings.alphas]
        if self.settings.cells_per_prompt is not None:
            cells.sort(key=lambda cell: stable_hash(f"{self.settings.seed} {uid} {cell}"))
            cells = sorted(cells[: self.settings.cells_per_prompt])
        names = list(self.directions)
        if self.settings.directions_per_prompt is not None:
            drawn = sorted(names, key=lambda name: stable_hash(f"{self.settings.seed} {uid} {name}"))
            kept = set(drawn[: self.settings.directions_per_prompt])
            names = [name for name in names if name in kept]
        return [Condition(name, layer, strength) for layer, strength in cells for name in names]

    def steering(self, condition: Condition) -> Steering:
        """Return the intervention of a condition, with the vector as long as it is added."""
        vector = torch.from_numpy(self.directions[condition.direction].at(condition.layer))
        relative = self.settings.alpha_unit == "residual_norm"
        unit = vector / vector.norm() if relative else vector
        return Steering(
            condition.layer, (condition.strength * unit).to(self.model.device), self.settings.positions, relative
        )

    def ids(self, request: Request) -> list[int]:
        """Return the token ids of a prompt, with the beginning of the answer where the condition gives one."""
        ids, given = self.prompts.ids(request), self.prompts.prefill_ids(request)
        if given:
            self.prefills[(*ids, *given)] = len(given), request.prefill
        return ids + given

    def decode(self, ids: Sequence[int], prompt: Sequence[int]) -> Reply:
        """Make the reply of a continuation of a prompt of :meth:`ids`."""
        given, prefill = self.prefills.get(tuple(prompt), (0, ""))
        return self.decoder(ids, prompt[: len(prompt) - given], prefill)

    def _chunk(self, items: Sequence[Item[list[Request]]]) -> dict[str, Any]:
        asked = [
            (sample, f"{uid}/{request.condition}", request, control)
            for sample, uid, requests, control in items
            for request in requests[: len(self.settings.cues)]
        ]
        prompts = [self.ids(request) for _, _, request, _ in asked]
        conditions = [self.conditions(uid) for _, uid, *_ in asked]
        # In addition to the conditions, each prompt runs without steering and with a vector of length 0.
        steerings = [
            [(), (self.steering(replace(steered[0], strength=0.0)),), *((self.steering(each),) for each in steered)]
            for steered in conditions
        ]
        size, new = self.settings.batch_size, self.settings.max_new_tokens
        outputs = generate_steered(
            self.model, prompts, steerings, max_new_tokens=new, eos_ids=self.eos, batch_size=size
        )
        readings = read_outputs(self.model, prompts, outputs, self.decode, self.label, self.eos[0])
        unwatched = self._unwatched(items)
        controls = [index for index, (*_, control) in enumerate(asked) if control]
        again = dict(zip(controls, self._greedy([prompts[i] for i in controls], 1), strict=True))
        records = []
        systems = {cue.name: cue.system for cue in all_cues(self.settings)}
        for index, ((sample, uid, request, _), steered, own) in enumerate(
            zip(asked, conditions, readings, strict=True)
        ):
            unmonitored, alone = unwatched[request.uid], self._reply(again.get(index), prompts[index])
            shared = {
                "prompt": self.prompts.text(request),
                "prefill": request.prefill or None,
                "scenario": sample.text,
                "scenario_id": sample.scenario_id,
                "system_prompt": systems[request.condition],
                "label": sample.label,
                "source": sample.source,
                "category": sample.category,
                "unmonitored_behavior": self.label(unmonitored).label,
                "unmonitored_output": unmonitored.text,
                "unmonitored_truncated": unmonitored.truncated,
                "alone_output": None if alone is None else alone.text,
                "alone_truncated": None if alone is None else alone.truncated,
            }
            for condition, reading in zip(steered, own[2:], strict=True):
                records.append(to_json(self._record(uid, shared, condition, own[0], reading)))
        guards = self._guards(prompts, outputs, [own[0] for own in readings], again)
        return {"records": records, "guards": asdict(guards)}

    def _unwatched(self, items: Sequence[Item[list[Request]]]) -> dict[str, Reply]:
        """Return the organism's unsteered answer when it is told that nobody watches, by the sample's uid."""
        place = [cue.name for cue in all_cues(self.settings)].index(UNMONITORED)
        prompts = [self.ids(requests[place]) for _, _, requests, _ in items]
        outputs = self._greedy(prompts, self.settings.batch_size)
        replies = [self.decode(ids, prompt) for ids, prompt in zip(outputs, prompts, strict=True)]
        return {uid: reply for (_, uid, _, _), reply in zip(items, replies, strict=True)}

    def _reply(self, ids: Sequence[int] | None, prompt: Sequence[int]) -> Reply | None:
        return None if ids is None else self.decode(ids, prompt)

    def _greedy(self, prompts: Sequence[list[int]], batch_size: int) -> list[list[int]]:
        new = self.settings.max_new_tokens
        return generate_greedy(self.model, prompts, max_new_tokens=new, eos_ids=self.eos, batch_size=batch_size)

    def _guards(
        self,
        prompts: Sequence[list[int]],
        outputs: Sequence[list[list[int]]],
        unsteered: Sequence[Reading],
        again: Mapping[int, list[int]],
    ) -> Guards:
        guards = Guards(
            prompts=len(prompts),
            zero_differs=sum(answers[0] != answers[1] for answers in outputs),
            controls=len(again),
            alone_differs=sum(outputs[i][0] != ids for i, ids in again.items()),
            alone_behaves_otherwise=sum(
                bool(differ(unsteered[i].behavior, self.label(self.decode(ids, prompts[i]))))
                for i, ids in again.items()
            ),
        )
        if self.settings.dtype == "float32" and guards.zero_differs:
            raise RuntimeError(f"a vector of length 0 changed {guards.zero_differs} outputs in float32")
        return guards

    def _record(
        self, uid: str, shared: dict[str, Any], condition: Condition, original: Reading, steered: Reading
    ) -> SteeringRecord:
        """Return the record of one condition; all conditions of the prompt share the fields ``shared``."""
        return SteeringRecord(
            **shared,
            direction=condition.direction,
            layer=condition.layer,
            alpha=condition.strength,
            original_output=original.reply.text,
            steered_output=steered.reply.text,
            alpha_unit=self.settings.alpha_unit,
            positions=self.settings.positions,
            norm=float(np.linalg.norm(self.directions[condition.direction].at(condition.layer))),
            uid=f"{uid}/{condition.direction}/{condition.layer}/{condition.strength:g}",
            original_behavior=original.behavior.label,
            original_behavior_rule=original.behavior.rule,
            steered_behavior=steered.behavior.label,
            steered_behavior_rule=steered.behavior.rule,
            behavior_changed=differ(original.behavior, steered.behavior),
            original_truncated=original.reply.truncated,
            steered_truncated=steered.reply.truncated,
            coherent=steered.coherent,
            perplexity=round(steered.coherence.perplexity, 4),
            repetition=round(steered.coherence.repetition, 4),
            provenance=self.provenance,
            format_version=FORMAT_VERSION,
        )

    def mean_residual(self, samples: Sequence[Sample]) -> Direction:
        """Return the mean residual stream at the last position of prompts, which a probe multiplies vectors with."""
        asked = requests_of(samples[:RESIDUAL_PROMPTS], self.settings)
        prompts = [self.ids(request) for requests in asked for request in requests[: len(self.settings.cues)]]
        activations = prompt_activations(self.model, prompts, self.settings.layers, self.settings.batch_size)
        return Direction(RESIDUAL, {layer: x.mean(0) for layer, x in activations.items()})
