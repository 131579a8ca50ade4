"""Steering prediction: how would the organism's behavior change if a vector were added to its residual stream?"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from afintro.data.batch import Example, Slot
from afintro.data.example_store import Ids
from afintro.data.records import facets_of
from afintro.data.text import Draft, Message, encode_answer
from afintro.errors import UserError
from afintro.evaluation import answers
from afintro.evaluation.answers import Verdict, branch_stems, two_branch
from afintro.evaluation.baselines import READERS
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, collapse_warning
from afintro.evaluation.report import confusion_figure
from afintro.evaluation.statistic import Scores
from afintro.generation import behavior, forms, languages, marks, reasoning, statements, untold
from afintro.generation.behavior import LABELS
from afintro.generation.labeling import labeler_warnings
from afintro.lm.injection import VectorSpace
from afintro.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt
from afintro.tasks.base import EXPLAINER, Systems
from afintro.tasks.contract import Control, ExplainerSpec
from afintro.tasks.settings import renamed
from afintro.tasks.steering import claims, patches, records, rivals, spans, twins, wording
from afintro.tasks.steering.direction_files import read_directions
from afintro.tasks.steering.directions import RESIDUAL, Direction
from afintro.tasks.steering.patches import PatchedRecord, RecordVectors, read_any_records
from afintro.tasks.steering.records import (
    SteeringRecord,
    check_directions,
    check_layers,
    label_warnings,
    labeled,
    places_of,
    warnings_of_ways,
)
from afintro.tasks.steering.toy import UNSEEN_FAMILIES, build_embedded, embedded_directory
from afintro.tasks.steering.twins import AskedRecord, choose_records, limited
from afintro.tasks.steering.wording import SteeringWording, patch_wording_of, render
from afintro.tasks.stored import RecordTask, example_of
from afintro.tasks.vectors import SHUFFLED, ZERO, shuffled, slot_position, slot_token, without_vectors

UNSEEN_SCENARIO, UNSEEN_DIRECTION = "unseen_scenario", "unseen_direction"
TRAINING = "steering_prediction"


class SteeringPrediction(RecordTask):
    """Data of the steering task.

    ``limit`` counts the records that are asked about, and twins stay together.

    Args:
        directions: Folder of the vectors; None for ``directions`` beside the training file.
        unseen_fraction: Share of the directions that are never trained on; they are drawn so that most of each lies outside of
            the span of the training directions.
        unseen_directions: Names of the directions that are never trained on instead, or patterns such as ``rotated/*``.
        twin_pairs_per_cell: Largest number of pairs of twins of one prompt, layer and alpha in training.
        evaluation_twin_pairs_per_cell: Largest number of such pairs in validation and test.
        wording: How the explainer is asked; about patches in the parent framework's own words, unless ``{tokens}`` is a field.
        pairs: The old name of ``twin_pairs_per_cell``.
        evaluation_pairs: The old name of ``evaluation_twin_pairs_per_cell``.
        question_weights: Weight in the loss of the only question type.
        **settings: Settings that all tasks have, see :class:`TaskSettings`.
    """

    task = "steering"
    local_files = ("directions",)
    shaped_by = (
        answers, behavior, forms, languages, marks, reasoning, statements, untold, patches, records, spans, twins,
        wording,
    )  # fmt: skip
    primary = UNSEEN_SCENARIO
    question_types = (TRAINING,)
    verdict_types = (UNSEEN_SCENARIO, UNSEEN_DIRECTION)
    systems = (
        "cell_majority", "direction_majority", "always_unchanged", "copy_original", "vector_probe", "nearest_vector",
        "direction_x_text", "ridge", "boosting", "tfidf_nearest", *READERS, ZERO, SHUFFLED, claims.SHUFFLED_PROMPT, "untrained",
    )  # fmt: skip
    leads = tuple(
        f"{metric}{suffix}"
        for suffix in ("", f"/{UNSEEN_DIRECTION}")
        for metric in ("has_changed_f1", "twin_accuracy", "content_match")
    )
    solved = tuple(f"twin_accuracy{suffix}" for suffix in ("", f"/{UNSEEN_DIRECTION}"))
    has_vectors = has_text_beside_vectors = True

    def __init__(
        self,
        *,
        directions: str | None = None,
        unseen_fraction: ClosedUnitInterval = 0.2,
        unseen_directions: list[str] | None = None,
        twin_pairs_per_cell: NonNegativeInt = 2,
        evaluation_twin_pairs_per_cell: NonNegativeInt = 2,
        wording: SteeringWording | None = None,
        pairs: NonNegativeInt | None = None,
        evaluation_pairs: NonNegativeInt | None = None,
        question_weights: dict[str, NonNegativeFloat] = {TRAINING: 1.0},  # noqa: B006
        **settings: Any,
    ) -> None:
        super().__init__(question_weights=question_weights, **settings)
        self.directions_path = directions
        self.unseen_fraction, self.unseen_directions = unseen_fraction, unseen_directions
        self.twin_pairs_per_cell = renamed("twin_pairs_per_cell", twin_pairs_per_cell, "pairs", pairs)
        self.evaluation_twin_pairs_per_cell = renamed(
            "evaluation_twin_pairs_per_cell", evaluation_twin_pairs_per_cell, "evaluation_pairs", evaluation_pairs
        )
        self.wording = wording or SteeringWording()
        self.patch_wording = patch_wording_of(self.wording)
        self._own = RecordVectors()
        self._directions: dict[str, Direction] = {}
        self.residuals: dict[str, float] = {}  # of the directions that training never saw

    @property
    def unseen(self) -> frozenset[str]:
        """Return the directions of which most lies outside of the span of the training directions."""
        return frozenset(name for name, residual in self.residuals.items() if residual > spans.UNSEEN)

    def build_embedded(self) -> None:
        """Steer the toy organism along directions of its own, unless the cache holds the records."""
        build_embedded()

    def use_embedded(self) -> None:
        """Use the records of the toy organism."""
        self.paths = {split: str(embedded_directory() / f"{split}.json") for split in self.paths}
        if self.unseen_directions is None:
            self.unseen_directions = list(UNSEEN_FAMILIES)

    def load_directions(self) -> dict[str, Direction]:
        """Return the directions by name; the first call reads them. Records of activation patching carry their own.

        Raises:
            UserError: The folder holds no direction file, or directions that do not go together.
        """
        train = self.paths["train"]
        assert train is not None
        if self._own.holds(train):
            return self._own.of(self.paths.values())
        if not self._directions:
            folder = Path(self.directions_path) if self.directions_path else Path(train).parent / "directions"
            self._directions = read_directions(folder)
        return self._directions

    def records(self, split: str) -> list[SteeringRecord]:
        """Return the records of a split; training records are free of held-out texts and of unseen directions.

        Raises:
            UserError: A file is wrong, a held-out text is in training, a record has no vector, or the split has no file.
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
            self.warnings += warnings_of_ways(records, train, path)
            if not self._own.directions:
                found = spans.measured(self.load_directions(), places_of(train), places_of(records), self.residuals)
                self.residuals |= found
            self.keep(split, records, range(len(records)))
            self.compare_with_seen(split)
            self.warnings += labeler_warnings((r.provenance for r in train), (r.provenance for r in records), path)
        if split != "train":
            assert self.space is not None
            check_layers(self._records[split], self.space.layers, str(self.file_of(split)))
        return self._records[split]

    def _read(self, path: str) -> list[SteeringRecord]:
        records = [labeled(record) for record in read_any_records(path)]
        self._own.take(path, records)
        self.count_cut([cut for r in records for cut in (r.original_truncated, r.steered_truncated)], path)
        self.warnings += label_warnings(records, path)
        check_directions(records, self.load_directions(), path)
        return records

    def _read_training(self) -> None:
        path = self.paths["train"]
        assert path is not None
        records = self._read(path)
        numbers = self.guarded([r.scenario for r in records], [f"{path}, record {i}" for i in range(len(records))])
        kept = [records[number] for number in numbers]
        self._hold_out(kept)
        held = set(self.residuals)
        if self.paths["validation"] is None:
            left, right = self.split_off_validation([r.scenario_id for r in kept], [r.scenario for r in kept], path)
            self.keep("validation", records, [numbers[i] for i in right])
            numbers = [numbers[i] for i in left]
        self.keep("train", records, [number for number in numbers if records[number].direction not in held])
        train = self._records["train"]
        self.warnings += warnings_of_ways(train, train, path)
        if not train:
            raise UserError("no training record is left", where=path, remedy="check the held-out files and the split")
        layers = tuple(sorted({record.layer for record in train}))
        self.space = VectorSpace(len(self.load_directions()[train[0].direction].at(train[0].layer)), layers)

    def _hold_out(self, records: Sequence[SteeringRecord]) -> None:
        """Keep directions of the training file out of training; of patches, each of which has its own vector, none."""
        if self._own.directions and self.unseen_directions is None:
            return
        directions, places = self.load_directions(), places_of(records)
        if self.unseen_directions is not None:
            self.residuals = spans.named_unseen(directions, places, self.unseen_directions)
        else:
            self.residuals, warnings = spans.drawn_unseen(
                directions, places, self.unseen_fraction, self.settings.split_seed
            )
            self.warnings += warnings
        spans.report(self.residuals)

    # Examples.

    def asked_records(self, split: str) -> list[AskedRecord]:
        """Return the records that are asked about, balanced within known and unseen directions.

        Raises:
            UserError: No cell has records of both verdicts.
        """
        records, seed = self.records(split), self.settings.split_seed
        if split == "train":
            asked = choose_records(records, self.twin_pairs_per_cell, seed, TRAINING)
        else:
            asked = [
                record
                for question_type, unseen in ((UNSEEN_SCENARIO, False), (UNSEEN_DIRECTION, True))
                for record in choose_records(
                    [record for record in records if (record.direction in self.unseen) == unseen],
                    self.evaluation_twin_pairs_per_cell,
                    seed,
                    question_type,
                )
            ]
        if all(item.question_type == UNSEEN_DIRECTION for item in asked):
            raise UserError(
                f"no cell of layer and alpha has both changed and unchanged behaviors among {len(records)} records",
                where=f"{self.file_of(split)} ({split})",
                remedy="steer with other alphas, at other layers, or along other directions",
            )
        return limited(asked, self.settings.limit, seed)

    def render(self, record: SteeringRecord, slot: str) -> tuple[list[Message], str]:
        """Return prompt and answer for a record, see :func:`afintro.tasks.steering.wording.render`."""
        words = self.patch_wording if isinstance(record, PatchedRecord) else self.wording
        return render(words, record, slot, self.without_text)

    def drafts(self, split: str, reader: ExplainerSpec) -> Iterable[Draft]:
        """Return one draft for each record that is asked about."""
        asked, slot = self.asked_records(split), slot_token(reader)
        return (self._draft(item, slot) for item in asked)

    def _draft(self, asked: AskedRecord, slot: str) -> Draft:
        record = asked.record
        (system, user), answer = self.render(record, slot)
        return Draft(
            uid=record.uid,
            scenario_id=record.scenario_id,
            question_type=asked.question_type,
            system=system["content"],
            prompt=user["content"],
            answer=answer,
            copy_answer=two_branch(Verdict(False, record.original_behavior or "other")),
            twins=asked.twins,
            notes={"direction": record.direction, "layer": record.layer, "alpha": record.alpha},
            facets=facets_of(record),
        )

    def check(self, reader: ExplainerSpec) -> Callable[[Draft, Ids], None]:
        """Return the check that the slot stands in every prompt once."""

        def check_slot(draft: Draft, prompt_ids: Ids) -> None:
            self._position(draft, prompt_ids, reader)

        return check_slot

    @staticmethod
    def _position(draft: Draft, prompt_ids: Ids, reader: ExplainerSpec) -> int:
        return slot_position(prompt_ids, reader, f"prompt of {draft.uid}", "data.wording.user, and never in a scenario")

    def finisher(self, reader: ExplainerSpec) -> Callable[[Draft, Ids, Ids], Example]:
        """Return the function that adds weight, vector, and the tokens that the branches of the answer begin with."""
        directions = self.load_directions()
        branches = branch_stems(LABELS, lambda answer: encode_answer(reader.tokenizer, answer))

        def finish(draft: Draft, prompt_ids: Ids, answer_ids: Ids) -> Example:
            layer = draft.notes["layer"]
            vector = directions[draft.notes["direction"]].at(layer)
            position = self._position(draft, prompt_ids, reader)
            shown = np.zeros_like(vector) if self.zero_vectors else vector
            slot = Slot(position, layer, shown, space=self.space_name)
            weight, group = self.weight_of(draft.question_type), directions[draft.notes["direction"]].group
            example = example_of(draft, prompt_ids, answer_ids)
            return replace(example, weight=weight, branches=branches, slot=slot, group=group)

        return finish

    def weight_of(self, question_type: str) -> float:
        """Return the weight in the loss, which all question types share."""
        return self.settings.question_weights.get(TRAINING, 1.0)

    def draft_settings(self) -> dict[str, Any]:
        """Return how records are chosen and asked about."""
        return {
            "directions": sorted(self.load_directions()),
            "unseen_fraction": self.unseen_fraction,
            "unseen_directions": self.unseen_directions,
            "without_text": self.without_text,
            "pairs": self.twin_pairs_per_cell,
            "evaluation_pairs": self.evaluation_twin_pairs_per_cell,
            "wording": [asdict(self.wording), asdict(self.patch_wording)],
        }

    def facts(self, split: str) -> dict[str, Any]:
        """Return the layers, the directions kept out, and the direction and layer whose vector tells the width."""
        if split != "train":
            return {"residuals": self.residuals}
        assert self.space is not None
        record = self._records["train"][0]
        first = (record.direction, record.layer)
        return {"layers": self.space.layers, "residuals": self.residuals, "first": first}

    def recall(self, split: str, facts: dict[str, Any]) -> None:
        """Set the residuals and the space of the vectors, as reading the records does."""
        self.residuals |= facts["residuals"]
        if split == "train":
            direction, layer = facts["first"]
            self.space = VectorSpace(len(self.load_directions()[direction].at(layer)), tuple(facts["layers"]))

    # Evaluation.

    def baselines(self, split: str) -> Systems:
        """Return the tables over strengths, the readers of vectors, the readers of the text, and those of both."""
        return rivals.every_baseline(self.taught(), self.examples[split], self.load_directions())

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Yield zero and shuffled vectors and shuffled prompts for the explainer, and true items for the untrained model."""
        items, seed = list(self.examples[split]), self.settings.split_seed
        yield Control(ZERO, without_vectors(items), trained=True)
        yield Control(SHUFFLED, shuffled(items, seed, lambda item: item.notes["direction"]), trained=True)
        yield Control(claims.SHUFFLED_PROMPT, claims.with_other_prompts(items, seed), trained=True)
        yield Control("untrained", items, trained=False)

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """Return all metrics of one system, whose items share scenarios and directions."""
        return claims.over_directions(super().statistics(predictions), predictions)

    def best_of(self, baselines: Sequence[str]) -> list[str]:
        """Return the systems that could explain the score without a language model that reads vector and prompt together."""
        return [name for name in baselines if name not in claims.CONTROLS]

    def without_weights(self, systems: Sequence[str]) -> list[str]:
        """Return the readers of the text alone: all others see a vector of the organism."""
        return [name for name in systems if name in claims.TEXT_ALONE]

    def warnings_about(self, systems: Systems, leads: Mapping[str, Any]) -> list[str]:
        """Warn if the explainer does not read vector or prompt, is not ahead, or gives one verdict nearly always."""
        collapsed = collapse_warning(systems[EXPLAINER], self.primary)
        warnings = [] if collapsed is None else [collapsed]
        warnings += claims.reading_warnings(leads) + claims.rival_warnings(leads, UNSEEN_DIRECTION)
        if RESIDUAL not in self.load_directions():
            warnings.append(f"no {RESIDUAL} among the directions: vector_probe sees alpha and layer alone")
        return warnings

    def conclusion(
        self,
        table: Mapping[str, Mapping[str, Estimate]],
        leads: Mapping[str, Any],
        compared: Collection[str],
        base: str | None = None,
    ) -> str | None:
        """Return the sentence that says whether the explainer is ahead of every rival on twins of unseen directions."""
        items = self.examples.get("test") or self.examples["validation"]
        asked = {item.group for item in items if item.question_type == UNSEEN_DIRECTION and item.twins}
        return claims.conclusion_of(table[EXPLAINER], leads, UNSEEN_DIRECTION, len(asked))

    def details(self, systems: Systems) -> dict[str, Any]:
        """Return twin accuracy by direction: items, the share that is right, and the residual of an unseen direction."""
        return {"directions": claims.by_direction(systems[EXPLAINER], self.residuals)}

    def figures(self, predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return the table of expected against predicted verdicts."""
        return {"verdicts": confusion_figure(predictions, self.primary, "Does the behavior change when steered?")}

    def describe(self, split: str) -> dict[str, Any]:
        """Return what every task describes, and the directions that training never saw, with their residuals."""
        counts = {
            kind: sum(e.question_type == kind for e in self.examples[split])
            for kind in (UNSEEN_SCENARIO, UNSEEN_DIRECTION)
        }
        residuals = {name: round(residual, 4) for name, residual in sorted(self.residuals.items())}
        of_directions = {"unseen_directions": sorted(self.unseen), "residuals": residuals}
        return {**super().describe(split), **counts, **of_directions}
