"""Feature descriptions: what does a feature of the organism's activations stand for? The vector is all there is to read."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from afintro.data.batch import Example, Slot
from afintro.data.splits import hold_out, stable_hash
from afintro.data.text import Message, chat, encode_answer, encode_prompt, fill
from afintro.errors import UserError
from afintro.evaluation.judges import ChrF, Judge, RougeL, Tfidf, agreement
from afintro.evaluation.metrics import Prediction, Scores, text_prediction
from afintro.lm.injection import VectorSpace
from afintro.ranges import NonNegativeFloat
from afintro.tasks.base import EXPLAINER, Control, ExplainerSpec, Systems, TaskData
from afintro.tasks.feature_descriptions.activations import Firings, read_firings
from afintro.tasks.feature_descriptions.features import FeatureFile
from afintro.tasks.feature_descriptions.functional import Reading, functional_auroc
from afintro.tasks.feature_descriptions.metrics import (
    FUNCTIONAL,
    category_figure,
    category_sizes,
    description_statistics,
)
from afintro.tasks.feature_descriptions.neighbors import nearest_by_cosine
from afintro.tasks.feature_descriptions.records import Feature, FeatureTable, Indices
from afintro.tasks.feature_descriptions.toy import embedded_features
from afintro.tasks.vectors import SHUFFLED, ZERO, shuffled, slot_position, slot_token, without_vectors

log = logging.getLogger(__name__)

QUESTION = "feature_description"
UNSEEN_CLUSTER, UNSEEN_FEATURE = "unseen_cluster", "unseen_feature"
REFERENCE = "reference"
SELFIE_SCALES = (0.5, 1.0, 2.0, 4.0)
BLOCK = 8192  # vectors of the training split that lie in memory at once for the nearest neighbour


@dataclass
class Wording:
    """How the explainer is asked.

    Args:
        system: System prompt.
        user: One or several wordings with the fields ``{layer}`` and ``{slot}``; which one a feature gets depends on its
            layer and number alone.
    """

    system: str = "You describe features of a language model's activations."
    user: list[str] = field(
        default_factory=lambda: [
            "Layer {layer}, feature {slot}\n\nWhat makes this feature fire?",
            "{slot} is a feature of layer {layer}.\n\nDescribe when it is active.",
            "Which texts make the feature {slot} of layer {layer} fire?",
        ]
    )


class FeatureExamples(Sequence[Example]):
    """Examples of some features, made when they are asked for: only then is a vector read and a text tokenised."""

    def __init__(self, data: "FeatureDescriptions", rows: "Rows", reader: ExplainerSpec) -> None:
        self._data, self._rows, self._reader = data, rows, reader

    def __len__(self) -> int:
        return len(self._rows.indices)

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """See :func:`afintro.data.batch.sizes_of`."""
        return self._data.sizes(self._rows, self._reader)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._data.example(self._rows, index % len(self), self._reader)


@dataclass(frozen=True)
class Rows:
    """A split: some features of a table; ``kinds`` says in which way each was held out, None for training."""

    table: FeatureTable
    indices: Indices
    kinds: tuple[str, ...] | None = None

    def kind(self, index: int) -> str:
        """Question type of an item."""
        return QUESTION if self.kinds is None else self.kinds[index]


class FeatureDescriptions(TaskData):
    """Data of the feature-description task.

    ``train_path`` names descriptions of training features (``descriptions.json``, or rows as JSONL or Parquet), ``limit`` and
    the held-out check count features, and without a validation file ``validation_fraction`` of the features is split off
    twice: once as whole clusters and once as single features.

    Args:
        features: Feature files, one a layer, with the vectors of all features described.
        firings: File of texts and the features that fire on each, for the functional score; None leaves it out.
        validation_items: At most so many features are split off in either way.
        wording: How the explainer is asked.
        judges: Who scores a description against the label; the first decides, the second is compared with it.
        reader: Who predicts from a description on which texts the feature fires.
        texts_per_side: So many firing and so many silent texts a feature, at most.
        question_weights: Weight in the loss of the only question type.
        **settings: Settings that all tasks have, see :class:`TaskSettings`.
    """

    task = "feature_descriptions"
    question_types = (QUESTION,)
    has_vectors = True

    def __init__(
        self,
        *,
        features: list[str] | None = None,
        firings: str | None = None,
        validation_items: int = 500,
        wording: Wording | None = None,
        judges: list[Judge] | None = None,
        reader: Judge | None = None,
        texts_per_side: int = 10,
        question_weights: dict[str, NonNegativeFloat] = {QUESTION: 1.0},  # noqa: B006
        **settings: Any,
    ) -> None:
        super().__init__(question_weights=question_weights, **settings)
        if self.settings.train_path is not None and not features:
            raise UserError("is absent", where="data.features", remedy="give the files that hold the vectors")
        self.feature_paths, self.firings_path = features or [], firings
        self.validation_items, self.texts_per_side = validation_items, texts_per_side
        self.wording = wording or Wording()
        self.judges = judges or [RougeL(), ChrF()]
        self.reader = reader or Tfidf()
        first = f"judge/{self.judges[0].name}"
        self.leads = (first, f"{first}/{UNSEEN_FEATURE}", "functional_auroc", f"functional_auroc/{UNSEEN_FEATURE}")
        self._files: list[FeatureFile] = []
        self._rows: dict[str, Rows] = {}
        self._firings: Firings | None = None

    def prepare_data(self) -> None:
        """Without a training file: find and label features of the toy organism, once."""
        if self.paths["train"] is None:
            folder = embedded_features()
            self.paths = {split: str(folder / f"{split}.json") for split in self.paths}
            self.feature_paths = sorted(str(path) for path in (folder / "features").glob("*.safetensors"))
            self.firings_path = str(folder / "firings.json")

    @property
    def files(self) -> list[FeatureFile]:
        """The feature files, opened.

        Raises:
            UserError: Not such a file; two of one layer; vectors of different width.
        """
        if not self._files:
            files = [FeatureFile(path) for path in self.feature_paths]
            for file in files:
                if file.width != files[0].width:
                    raise UserError(
                        f"vectors of width {file.width} in {file.path.name}, {files[0].width} in {files[0].path.name}",
                        where="data.features",
                        remedy="give files of one model",
                    )
            if len({file.layer for file in files}) < len(files):
                raise UserError("two files of one layer", where="data.features", remedy="give one file a layer")
            self._files = files
            self.space = VectorSpace(files[0].width, tuple(sorted(file.layer for file in files)))
        return self._files

    @property
    def primary(self) -> str:  # type: ignore[override]
        """Held-out clusters, where the split has any; else held-out features."""
        evaluated = next((split for split in ("test", "validation") if split in self.examples), "validation")
        kinds = self._rows[evaluated].kinds if evaluated in self._rows else None
        return UNSEEN_CLUSTER if not kinds or UNSEEN_CLUSTER in kinds else UNSEEN_FEATURE

    def rows(self, split: str) -> Rows:
        """The features of a split.

        Raises:
            UserError: A bad file, a held-out text in training, or no file for this split.
        """
        if "train" not in self._rows:
            self._read_training()
        if split not in self._rows:
            path = self.paths[split]
            if path is None:
                raise UserError("is absent", where=f"data.{split}_path", remedy=f"give the file of {split} features")
            table = self._open(path)
            self._warn_of_shared(table, path)
            indices = np.arange(len(table))
            self._rows[split] = self._limited(Rows(table, indices, self._kinds(table, indices)))
        return self._rows[split]

    def _open(self, path: str) -> FeatureTable:
        table = FeatureTable(path, self.files)
        count, first = table.without_vector
        if count:
            self.warnings.append(f"{count} features of {path} have no vector ({', '.join(first)}, ...): left out")
            log.warning(self.warnings[-1])
        return table

    def _warn_of_shared(self, table: FeatureTable, path: str) -> None:
        train = self._rows["train"]
        shared = np.isin(table.keys(np.arange(len(table))), train.table.keys(train.indices))
        if shared.any():
            self.warnings.append(f"{int(shared.sum())} features of {path} are in the training file too")
            log.warning(self.warnings[-1])

    def _kinds(self, table: FeatureTable, indices: Indices) -> tuple[str, ...]:
        """In which way each feature is held out: with its cluster, or alone."""
        train = self._rows["train"]
        trained = {train.table.cluster_names[code] for code in np.unique(train.table.clusters[train.indices])}
        names = (table.cluster_names[code] for code in table.clusters[indices])
        return tuple(UNSEEN_FEATURE if name in trained else UNSEEN_CLUSTER for name in names)

    def _read_training(self) -> None:
        path = self.paths["train"]
        assert path is not None
        table = self._open(path)
        indices: NDArray[np.int64] = np.arange(len(table))
        if self.heldout:
            names = [f"{path}, feature {table.feature(index).uid}" for index in indices]
            labels = [table.feature(index).label for index in indices]
            keep = self.guarded(labels, names, "features")
            indices = np.array(keep, dtype=np.int64)
        if self.paths["validation"] is None:
            kept, by_cluster, by_feature = hold_out(
                table.keys(indices), table.clusters[indices], table.cluster_names,
                self.settings.validation_fraction, self.validation_items, self.settings.split_seed,
            )  # fmt: skip
            held = np.concatenate([indices[by_cluster], indices[by_feature]])
            if not len(held):
                raise UserError(
                    f"{len(indices)} features leave none for validation", where=path, remedy="give data.validation_path"
                )
            indices = indices[kept]
        if not len(indices):
            raise UserError("no training feature is left", where=path, remedy="check the held-out files and the split")
        self._rows["train"] = self._limited(Rows(table, indices.astype(np.int32)))
        if self.paths["validation"] is None:
            self._rows["validation"] = self._limited(Rows(table, held, self._kinds(table, held)))

    def _limited(self, rows: Rows) -> Rows:
        """At most ``limit`` features, evenly spread, so that both kinds stay in."""
        if self.settings.limit is None or len(rows.indices) <= self.settings.limit:
            return rows
        chosen = np.linspace(0, len(rows.indices) - 1, self.settings.limit).astype(np.int64)
        kinds = None if rows.kinds is None else tuple(rows.kinds[i] for i in chosen)
        return Rows(rows.table, rows.indices[chosen], kinds)

    # Examples.

    def render(self, feature: Feature, slot_token: str) -> tuple[list[Message], str]:
        """Prompt and answer for a feature; pure."""
        wording = self.wording.user[stable_hash(feature.uid) % len(self.wording.user)]
        user = fill(wording, {"layer": str(feature.layer), "slot": slot_token})
        return chat(self.wording.system, user), feature.label

    def example(self, rows: Rows, index: int, reader: ExplainerSpec) -> Example:
        """One feature as an example.

        Raises:
            UserError: No slot token is configured, or a wording does not hold it once.
        """
        row = rows.indices[index]
        feature = rows.table.feature(row)
        vector = rows.table.vectors(row[None])[0]
        messages, answer = self.render(feature, slot_token(reader))
        prompt_ids = encode_prompt(reader.tokenizer, messages)
        position = slot_position(prompt_ids, reader, f"prompt of feature {feature.uid}", "data.wording.user")
        return Example(
            uid=feature.uid,
            # Features of one label are resampled together. (records.scenario_id would fold white space, and labels hold it.)
            scenario_id=hashlib.sha256(answer.encode()).hexdigest()[:16],
            question_type=rows.kind(index),
            prompt=messages[-1]["content"],
            answer=answer,
            prompt_ids=tuple(prompt_ids),
            answer_ids=tuple(encode_answer(reader.tokenizer, answer)),
            weight=self.settings.question_weights.get(QUESTION, 1.0),
            slot=Slot(position, feature.layer, np.zeros_like(vector) if self.zero_vectors else vector),
            group=feature.category,
        )

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """One example a feature: made on the way for training, at once for the few that are evaluated."""
        examples = FeatureExamples(self, self.rows(split), reader)
        return examples if split == "train" else list(examples)

    def sizes(self, rows: Rows, reader: ExplainerSpec) -> NDArray[np.int32]:
        """Tokens of each feature's prompt and answer ``[n, 2]``: no prompt of a layer and no label is tokenised twice."""
        prompts: dict[tuple[int, int], int] = {}
        found = np.empty((len(rows.indices), 2), np.int32)
        for place, key in enumerate(rows.table.keys(rows.indices).tolist()):
            layer, number = key >> 40, key & (1 << 40) - 1
            kind = (layer, stable_hash(f"{layer}/{number}") % len(self.wording.user))
            if kind not in prompts:
                messages, _ = self.render(rows.table.feature(rows.indices[place]), slot_token(reader))
                prompts[kind] = len(encode_prompt(reader.tokenizer, messages))
            found[place, 0] = prompts[kind]
        codes, labels = rows.table.labels(rows.indices)
        found[:, 1] = np.array([len(encode_answer(reader.tokenizer, label)) for label in labels])[codes]
        return found

    def longest(self, split: str, count: int) -> list[Example]:
        """By the length of the label in characters: tokenising millions to find the longest would take minutes."""
        rows = self.rows(split)
        chosen = rows.table.longest(rows.indices, count)
        return [self.examples[split][int(np.flatnonzero(rows.indices == index)[0])] for index in chosen]

    def training_examples(self) -> Sequence[Example]:
        """All: there is one question type."""
        return self.examples["train"]

    # Evaluation.

    def baselines(self, split: str) -> Systems:
        """The label itself (what a perfect explainer would say), the commonest label, nearest neighbours by cosine."""
        train, rows, items = self.rows("train"), self.rows(split), self.examples[split]
        counts = train.table.label_counts(train.indices)
        commonest = min(counts, key=lambda label: (-counts[label], label))
        anywhere = self._nearest(train, train.indices, rows, rows.indices)
        within = np.full(len(rows.indices), -1, dtype=np.int64)
        for file in self.files:
            here = rows.table.layer(rows.indices) == file.layer
            if here.any():
                own = train.indices[train.table.layer(train.indices) == file.layer]
                within[here] = self._nearest(train, own, rows, rows.indices[here])
        answers = {REFERENCE: [item.answer for item in items], "majority": [commonest] * len(items)}
        for name, found in (("nearest", anywhere), ("nearest_in_layer", within)):
            answers[name] = [train.table.feature(index).label if index >= 0 else commonest for index in found]
        return {name: _answered(items, said) for name, said in answers.items()}

    def _nearest(self, train: Rows, among: Indices, rows: Rows, wanted: Indices) -> NDArray[np.int64]:
        blocks = (among[start : start + BLOCK].astype(np.int64) for start in range(0, len(among), BLOCK))
        return nearest_by_cosine(rows.table.vectors(wanted), ((block, train.table.vectors(block)) for block in blocks))

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Zero and shuffled vectors for the explainer; the true ones for the untrained model (SelfIE, arXiv:2403.10949)."""
        items = list(self.examples[split])
        yield Control(ZERO, without_vectors(items), trained=True)
        yield Control(SHUFFLED, shuffled(items, self.settings.split_seed, lambda item: item.answer), trained=True)
        for scale in SELFIE_SCALES:
            scaled = [replace(item, slot=replace(item.slot, scale=scale)) for item in items if item.slot is not None]
            yield Control(f"selfie/{scale:g}", scaled, trained=False)

    def graded(self, systems: Systems) -> Systems:
        """Every answer scored by every judge, and by the reader on texts where the feature fires and is silent."""
        everything = [prediction for answers in systems.values() for prediction in answers]
        scores: list[dict[str, float | None]] = [{} for _ in everything]
        pairs = [(prediction.expected, prediction.predicted or "") for prediction in everything]
        for judge in self.judges:
            for found, value in zip(scores, judge.score(pairs), strict=True):
                found[judge.name] = value
        if self.firings_path is not None:
            for found, value in zip(scores, functional_auroc(self._readings(everything), self.reader), strict=True):
                found[FUNCTIONAL] = value
        graded = iter(replace(p, scores=found) for p, found in zip(everything, scores, strict=True))
        return {name: [next(graded) for _ in answers] for name, answers in systems.items()}

    def _readings(self, predictions: Sequence[Prediction]) -> list[Reading]:
        if self._firings is None:
            assert self.firings_path is not None
            self._firings = read_firings(self.firings_path)
        texts = {}
        for uid in {prediction.uid for prediction in predictions}:
            key = uid if uid in self._firings.fired or len(self.files) > 1 else uid.partition("/")[2]
            texts[uid] = self._firings.sample(key, self.texts_per_side, self.settings.split_seed)
        return [Reading(p.predicted or "", *texts[p.uid]) for p in predictions]

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """See :func:`description_statistics`."""
        return description_statistics(predictions, self.primary)

    def best_of(self, baselines: Sequence[str]) -> list[str]:
        """What could explain the score away without a trained reader of vectors."""
        return [
            name
            for name in baselines
            if name.partition("/")[0] in ("majority", "nearest", "nearest_in_layer", "selfie")
        ]

    def compared_with(self, baselines: Sequence[str]) -> list[str]:
        """All but the labels themselves."""
        return [name for name in baselines if name != REFERENCE]

    def warnings_about(self, systems: Systems, leads: Mapping[str, Any]) -> list[str]:
        """Whether the explainer reads its vectors, and what could not be scored."""
        found = []
        for metric in self.leads[:2]:
            cost = leads.get(f"lead/{metric}/{SHUFFLED}")
            if cost is not None and (cost["ci_low"] is None or cost["ci_low"] <= 0):
                found.append(
                    f"{metric}: shuffling the vectors costs less than the interval: the explainer is not reading them"
                )
        for name in [judge.name for judge in self.judges] + ([FUNCTIONAL] if self.firings_path else []):
            unknown = sum(prediction.scores.get(name) is None for prediction in systems[EXPLAINER])
            if unknown:
                found.append(
                    f"{name}: {unknown} of {len(systems[EXPLAINER])} answers have no score; left out of its means"
                )
        return found

    def details(self, systems: Systems) -> dict[str, Any]:
        """Items a category, and how far the two judges agree over all systems' answers."""
        found: dict[str, Any] = {"categories": category_sizes(systems[EXPLAINER])}
        if len(self.judges) > 1:
            first, second = self.judges[0].name, self.judges[1].name
            answers = [p for name, system in systems.items() if name != REFERENCE for p in system]
            estimates = agreement(
                [p.scores[first] for p in answers],
                [p.scores[second] for p in answers],
                [p.scenario_id for p in answers],
            )
            found["judges"] = {
                "first": first, "second": second, **{name: value.as_json() for name, value in estimates.items()},
            }  # fmt: skip
        return found

    def figures(self, predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Scores by category."""
        return {"categories": category_figure(predictions, self.judges[0].name)}

    def describe(self, split: str) -> dict[str, Any]:
        """As for every task, and where the vectors are from."""
        sources = [{"path": str(file.path), **file.metadata} for file in self.files]
        firings = self.firings_path if self.firings_path and Path(self.firings_path).is_file() else None
        return {**super().describe(split), "features": sources, "firings": firings}


def _answered(items: Sequence[Example], answers: Sequence[str]) -> list[Prediction]:
    return [text_prediction(item, answer) for item, answer in zip(items, answers, strict=True)]
