"""Steering prediction: how would the organism's behaviour change if a vector were added to its residual stream?"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from afintro.data.batch import Example, Slot
from afintro.data.encoding import Draft
from afintro.data.example_store import Ids
from afintro.data.splits import stable_hash
from afintro.data.text import Message, chat, encode_answer, fill
from afintro.errors import UserError
from afintro.evaluation import answers
from afintro.evaluation.answers import Verdict, branch_stems, two_branch
from afintro.evaluation.baselines import text_baselines
from afintro.evaluation.metrics import Prediction, Scores, collapse_warning, statistics
from afintro.evaluation.report import confusion_figure
from afintro.generation import behavior
from afintro.generation.behavior import LABELS, behavior_fields
from afintro.lm.injection import VectorSpace
from afintro.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt
from afintro.tasks.base import EXPLAINER, OTHER_BASE, TEXT_ONLY, Control, ExplainerSpec, Systems
from afintro.tasks.steering import records, twins
from afintro.tasks.steering.baselines import Dose, steering_baselines
from afintro.tasks.steering.directions import Direction, read_direction
from afintro.tasks.steering.generator import RESIDUAL
from afintro.tasks.steering.records import SteeringRecord, read_steering_records
from afintro.tasks.steering.toy import embedded_steering
from afintro.tasks.steering.twins import Chosen, choose, unseen_directions
from afintro.tasks.stored import RecordTask, example_of
from afintro.tasks.vectors import SHUFFLED, ZERO, shuffled, slot_position, slot_token, without_vectors

UNSEEN_SCENARIO, UNSEEN_DIRECTION = "unseen_scenario", "unseen_direction"
TRAINING = "steering_prediction"


@dataclass
class SteeringWording:
    """How the explainer is asked.

    Args:
        system: System prompt, with any of the fields below but the slot.
        user: One or several wordings with the fields ``{system_prompt}``, ``{user_prompt}``, ``{layer}``, ``{alpha}`` and
            ``{slot}``, the last one once; which one a prompt gets depends on the prompt alone.
    """

    system: str = "You predict how steering changes the behavior of a language model."
    user: list[str] = field(
        default_factory=lambda: [
            "{system_prompt}\n\n{user_prompt}\n\n"
            "If {alpha} times the vector {slot} were added at layer {layer}, how would the model's response change?"
        ]
    )


class SteeringPrediction(RecordTask):
    """Data of the steering task.

    Args:
        directions: Folder of the vectors; None for ``directions`` beside the training file.
        unseen_fraction: Share of the directions that are never trained on.
        pairs: At most so many pairs of twins of one prompt, layer and alpha in training.
        evaluation_pairs: Likewise in validation and test.
        wording: How the explainer is asked.
        question_weights: Weight in the loss of the only question type.
        **settings: Settings that all tasks have, see :class:`TaskSettings`.
    """

    task = "steering"
    shaped_by = (answers, behavior, records, twins)
    primary = UNSEEN_SCENARIO
    question_types = (TRAINING,)
    leads = tuple(
        f"{metric}{suffix}"
        for suffix in ("", f"/{UNSEEN_DIRECTION}")
        for metric in ("has_changed_f1", "twin_accuracy", "content_match")
    )
    has_vectors = True

    def __init__(
        self,
        *,
        directions: str | None = None,
        unseen_fraction: ClosedUnitInterval = 0.2,
        pairs: NonNegativeInt = 2,
        evaluation_pairs: NonNegativeInt = 2,
        wording: SteeringWording | None = None,
        question_weights: dict[str, NonNegativeFloat] = {TRAINING: 1.0},  # noqa: B006
        **settings: Any,
    ) -> None:
        super().__init__(question_weights=question_weights, **settings)
        self.directions_path = directions
        self.unseen_fraction, self.pairs, self.evaluation_pairs = unseen_fraction, pairs, evaluation_pairs
        self.wording = wording or SteeringWording()
        self._directions: dict[str, Direction] = {}
        self._records: dict[str, list[SteeringRecord]] = {}
        self.unseen: frozenset[str] = frozenset()

    def prepare_data(self) -> None:
        """Without a training file: steer the toy organism along directions of its own, once."""
        if self.paths["train"] is None:
            folder = embedded_steering()
            self.paths = {split: str(folder / f"{split}.json") for split in self.paths}

    @property
    def directions(self) -> dict[str, Direction]:
        """The vectors, by name.

        Raises:
            UserError: No folder of direction files.
        """
        if not self._directions:
            train = self.paths["train"]
            assert train is not None
            folder = Path(self.directions_path) if self.directions_path else Path(train).parent / "directions"
            paths = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".npy", ".pt"))
            if not paths:
                raise UserError(
                    "holds no direction", where=str(folder), remedy="set data.directions to the folder of the vectors"
                )
            found = [read_direction(str(path)) for path in paths]
            names = [direction.name for direction in found]
            double = [str(path) for path, name in zip(paths, names, strict=True) if names.count(name) > 1]
            if double:
                raise UserError("name the same direction", where=" and ".join(double), remedy="rename or remove one")
            widths = {len(v): d.name for d in found for v in (*d.vectors.values(), d.everywhere) if v is not None}
            if len(widths) > 1:
                raise UserError(
                    "vectors of width " + " and ".join(f"{width} ({name})" for width, name in sorted(widths.items())),
                    where=str(folder),
                    remedy="give vectors of one model",
                )
            self._directions = dict(zip(names, found, strict=True))
        return self._directions

    def records(self, split: str) -> list[SteeringRecord]:
        """The records of a split, after the contamination check; training is without the unseen directions.

        Raises:
            UserError: A bad file, a held-out text in training, a record without a vector, or no file for this split.
        """
        if "train" not in self._records:
            self._read_training()
        if split not in self._records:
            path = self.paths[split]
            if path is None:
                raise UserError("is absent", where=f"data.{split}_path", remedy=f"give the file of {split} records")
            records = self._read(path)
            train = self._records["train"]
            self.warn_of_shared((r.scenario_id for r in records), (r.scenario_id for r in train), path)
            self._records[split] = records
        if split != "train":
            self._check_layers(self._records[split], self.paths[split] or self.paths["train"])
        return self._records[split]

    def _read(self, path: str) -> list[SteeringRecord]:
        records = [labelled(record) for record in read_steering_records(path)]
        for index, record in enumerate(records):
            if record.direction not in self.directions:
                raise UserError(
                    f"direction {record.direction!r} is not among the vectors ({', '.join(sorted(self.directions))})",
                    where=f"{path}, record {index}",
                    remedy="set data.directions to the folder of the vectors that the records name",
                )
        return records

    def _check_layers(self, records: Sequence[SteeringRecord], path: str | None) -> None:
        assert self.space is not None
        unknown = sorted({record.layer for record in records} - set(self.space.layers))
        if unknown:
            raise UserError(
                f"layer {', '.join(map(str, unknown))}, while training is of {', '.join(map(str, self.space.layers))}",
                where=str(path),
                remedy="give records of the same layers",
            )

    def _read_training(self) -> None:
        path = self.paths["train"]
        assert path is not None
        records = self._read(path)
        kept = self.guarded([r.scenario for r in records], [f"{path}, record {i}" for i in range(len(records))])
        records = [records[index] for index in kept]
        self.unseen = unseen_directions([r.direction for r in records], self.unseen_fraction, self.settings.split_seed)
        if self.paths["validation"] is None:
            left, right = self.split_off_validation([r.scenario_id for r in records], path)
            self._records["validation"] = [records[i] for i in right]
            records = [records[i] for i in left]
        records = [record for record in records if record.direction not in self.unseen]
        if not records:
            raise UserError("no training record is left", where=path, remedy="check the held-out files and the split")
        self._records["train"] = records
        layers = tuple(sorted({record.layer for record in records}))
        self.space = VectorSpace(len(self.directions[records[0].direction].at(records[0].layer)), layers)

    # Examples.

    def chosen(self, split: str) -> list[tuple[str, Chosen]]:
        """The records that are asked about, each with its question type: balanced within known and unseen directions."""
        records = self.records(split)
        if split == "train":
            found = [(TRAINING, one) for one in choose(records, self.pairs, self.settings.split_seed)]
        else:
            known = [record for record in records if record.direction not in self.unseen]
            other = [record for record in records if record.direction in self.unseen]
            found = [
                (kind, one)
                for kind, own in ((UNSEEN_SCENARIO, known), (UNSEEN_DIRECTION, other))
                for one in choose(own, self.evaluation_pairs, self.settings.split_seed)
            ]
        if not any(kind != UNSEEN_DIRECTION for kind, _ in found):
            raise UserError(
                f"no cell of layer and alpha has both changed and unchanged behaviours among {len(records)} records",
                where=f"{self.paths[split] or self.paths['train']} ({split})",
                remedy="steer with other alphas, at other layers, or along other directions",
            )
        return self._limited(found)

    def _limited(self, found: list[tuple[str, Chosen]]) -> list[tuple[str, Chosen]]:
        """At most ``limit``, in pairs of both verdicts, drawn from all cells and alike from known and unseen directions."""
        if self.settings.limit is None or len(found) <= self.settings.limit:
            return found
        pairs: dict[tuple[str, str], list[tuple[str, Chosen]]] = {}
        seen: Counter[tuple[str, int, float, bool | None]] = Counter()
        for kind, one in found:
            record = one.record
            place = (kind, record.layer, record.alpha, record.behavior_changed)
            pairs.setdefault((kind, one.twins or f"{record.layer}/{record.alpha:g}/{seen[place]}"), []).append(
                (kind, one)
            )
            seen[place] += 1
        drawn = sorted(pairs, key=lambda pair: stable_hash(f"{self.settings.split_seed} {pair[1]}"))
        kinds = list(dict.fromkeys(kind for kind, _ in found))
        by_kind = [[pair for pair in drawn if pair[0] == kind] for kind in kinds]
        turns = [pair for turn in zip_longest(*by_kind) for pair in turn if pair is not None]
        kept = set(turns[: max(1, self.settings.limit // 2)])
        return [each for pair in pairs if pair in kept for each in pairs[pair]][: self.settings.limit]

    def verdict(self, record: SteeringRecord) -> Verdict:
        """What the answer says of a record."""
        assert record.steered_behavior is not None
        return Verdict(bool(record.behavior_changed), record.steered_behavior)

    def render(self, record: SteeringRecord, slot: str) -> tuple[list[Message], str]:
        """Prompt and answer for a record; pure. Twins get the same prompt."""
        wording = self.wording.user[stable_hash(record.prompt) % len(self.wording.user)]
        fields = {
            "system_prompt": record.system_prompt,
            "user_prompt": record.scenario,
            "layer": str(record.layer),
            "alpha": f"{record.alpha:g}",
            "slot": slot,
        }
        return chat(fill(self.wording.system, fields), fill(wording, fields)), two_branch(self.verdict(record))

    def drafts(self, split: str, reader: ExplainerSpec) -> Iterable[Draft]:
        """One a chosen record."""
        found, slot = self.chosen(split), slot_token(reader)
        return (self._draft(kind, one, slot) for kind, one in found)

    def _draft(self, kind: str, one: Chosen, slot: str) -> Draft:
        record = one.record
        (system, user), answer = self.render(record, slot)
        return Draft(
            uid=record.uid,
            scenario_id=record.scenario_id,
            question_type=kind,
            system=system["content"],
            prompt=user["content"],
            answer=answer,
            copy_answer=two_branch(Verdict(False, record.original_behavior or "other")),
            twins=one.twins,
            notes={"direction": record.direction, "layer": record.layer, "alpha": record.alpha},
        )

    def check(self, reader: ExplainerSpec) -> Callable[[Draft, Ids], None]:
        """The slot stands in every prompt once."""

        def look(draft: Draft, prompt_ids: Ids) -> None:
            self._position(draft, prompt_ids, reader)

        return look

    @staticmethod
    def _position(draft: Draft, prompt_ids: Ids, reader: ExplainerSpec) -> int:
        where = f"prompt of {draft.uid}"
        return slot_position(prompt_ids, reader, where, "data.wording.user, and never in a scenario")

    def finisher(self, reader: ExplainerSpec) -> Callable[[Draft, Ids, Ids], Example]:
        """Weight, vector, and what the branches of the answer begin with."""
        branches = branch_stems(LABELS, lambda answer: encode_answer(reader.tokenizer, answer))

        def finish(draft: Draft, prompt_ids: Ids, answer_ids: Ids) -> Example:
            layer = draft.notes["layer"]
            vector = self.directions[draft.notes["direction"]].at(layer)
            position = self._position(draft, prompt_ids, reader)
            slot = Slot(position, layer, np.zeros_like(vector) if self.zero_vectors else vector)
            weight = self.weight_of(draft.question_type)
            return replace(example_of(draft, prompt_ids, answer_ids), weight=weight, branches=branches, slot=slot)

        return finish

    def weight_of(self, question_type: str) -> float:
        """The same for all."""
        return self.settings.question_weights.get(TRAINING, 1.0)

    def draft_settings(self) -> dict[str, Any]:
        """How records are chosen and asked about."""
        return {
            "directions": sorted(self.directions), "unseen_fraction": self.unseen_fraction, "pairs": self.pairs,
            "evaluation_pairs": self.evaluation_pairs, "wording": asdict(self.wording),
        }  # fmt: skip

    def facts(self, split: str) -> dict[str, Any]:
        """The layers, the directions kept out, and whose vector tells the width."""
        if split != "train":
            return {}
        assert self.space is not None
        record = self._records["train"][0]
        return {
            "layers": self.space.layers, "unseen": sorted(self.unseen), "first": (record.direction, record.layer),
        }  # fmt: skip

    def recall(self, split: str, facts: dict[str, Any]) -> None:
        """As :meth:`_read_training` sets them."""
        if split == "train":
            direction, layer = facts["first"]
            self.unseen = frozenset(facts["unseen"])
            self.space = VectorSpace(len(self.directions[direction].at(layer)), tuple(facts["layers"]))

    def forget(self) -> None:
        """Drop the records."""
        self._records = {}

    # Evaluation.

    def baselines(self, split: str) -> Systems:
        """Tables over doses, the probe of the vector, and the systems that see the text alone."""
        train, items = self.taught(), self.examples[split]
        found = steering_baselines(self._asked(train), self._asked(items))
        as_headline = [[replace(item, question_type=UNSEEN_SCENARIO) for item in own] for own in (train, items)]
        texts = text_baselines(as_headline[0], as_headline[1], UNSEEN_SCENARIO)
        kinds = {item.uid: item.question_type for item in items}
        for name in ("tfidf_nearest", "tfidf_probe"):
            found[name] = [replace(p, question_type=kinds[p.uid]) for p in texts[name]]
        return found

    def _asked(self, examples: Sequence[Example]) -> list[tuple[Example, Dose]]:
        mean = self.directions.get(RESIDUAL)
        found = []
        for example in examples:
            direction, layer, alpha = (example.notes[name] for name in ("direction", "layer", "alpha"))
            vector, projection = self.directions[direction].at(layer), 0.0
            if mean is not None:
                residual = mean.at(layer)
                projection = float(vector @ residual / np.linalg.norm(vector) / np.linalg.norm(residual))
            found.append((example, Dose(direction, layer, alpha, projection)))
        return found

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Zero and shuffled vectors for the explainer; the true ones for the untrained model."""
        items = list(self.examples[split])
        yield Control(ZERO, without_vectors(items), trained=True)
        yield Control(
            SHUFFLED, shuffled(items, self.settings.split_seed, lambda item: item.notes["direction"]), trained=True
        )
        yield Control("untrained", items, trained=False)

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """The metrics of verdicts, for unseen directions under names of their own."""
        return statistics(predictions, self.primary, (UNSEEN_DIRECTION,))

    def best_of(self, baselines: Sequence[str]) -> list[str]:
        """What could explain the score away without reading the vector and the prompt together."""
        trained = (OTHER_BASE, TEXT_ONLY, ZERO, SHUFFLED)
        return [name for name in baselines if name not in trained]

    def warnings_about(self, systems: Systems, leads: Mapping[str, Any]) -> list[str]:
        """Whether the explainer reads its vectors, and whether it says one verdict nearly always."""
        collapsed = collapse_warning(systems[EXPLAINER], self.primary)
        found = [] if collapsed is None else [collapsed]
        cost = leads.get(f"lead/twin_accuracy/{SHUFFLED}")
        if cost is not None and (cost["ci_low"] is None or cost["ci_low"] <= 0):
            found.append("shuffling the vectors costs less than the interval: the explainer is not reading them")
        if RESIDUAL not in self.directions:
            found.append(f"no {RESIDUAL} among the directions: vector_probe sees alpha and layer alone")
        return found

    def figures(self, predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Expected against predicted verdicts."""
        return {"verdicts": confusion_figure(predictions, self.primary, "Does the behaviour change when steered?")}

    def describe(self, split: str) -> dict[str, Any]:
        """As for every task, and the directions that training never saw."""
        counts = {
            kind: sum(e.question_type == kind for e in self.examples[split])
            for kind in (UNSEEN_SCENARIO, UNSEEN_DIRECTION)
        }
        return {**super().describe(split), **counts, "unseen_directions": sorted(self.unseen)}


def labelled(record: SteeringRecord) -> SteeringRecord:
    """Files of the parent framework come without behaviour labels."""
    if record.original_behavior is not None and record.steered_behavior is not None:
        return replace(record, behavior_changed=record.original_behavior != record.steered_behavior)
    return replace(record, **behavior_fields(original=record.original_output, steered=record.steered_output))
