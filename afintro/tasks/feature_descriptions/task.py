"""Feature descriptions: what does a feature of the organism's activations stand for? The explainer reads the vector alone."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from afintro.data.batch import Example
from afintro.data.text import Message
from afintro.errors import UserError
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.judges import ChrF, Judge, RougeL, Tfidf
from afintro.evaluation.metrics import Prediction, text_prediction
from afintro.evaluation.outcomes import answer_limit
from afintro.evaluation.statistic import Scores
from afintro.lm.injection import VectorSpace
from afintro.ranges import NonNegativeFloat, PositiveInt
from afintro.tasks.base import EXPLAINER, TEXT_ONLY, Systems, TaskData
from afintro.tasks.contract import Control, ExplainerSpec
from afintro.tasks.feature_descriptions import findings
from afintro.tasks.feature_descriptions.activations import Activations, read_activations
from afintro.tasks.feature_descriptions.examples import FeatureEncoder, FeatureExamples, Wording
from afintro.tasks.feature_descriptions.features import FeatureFile, open_features
from afintro.tasks.feature_descriptions.findings import NEGATED, REFERENCE
from afintro.tasks.feature_descriptions.metrics import (
    FUNCTIONAL,
    category_figure,
    category_sizes,
    description_statistics,
    judge_agreement,
)
from afintro.tasks.feature_descriptions.neighbors import baseline_labels, near_duplicates
from afintro.tasks.feature_descriptions.readers import LAYER, VECTOR, reader_labels
from afintro.tasks.feature_descriptions.records import Feature, FeatureTable
from afintro.tasks.feature_descriptions.scorer import Detection, functional_auroc
from afintro.tasks.feature_descriptions.splits import (
    QUESTION,
    UNSEEN_CLUSTER,
    UNSEEN_FEATURE,
    FeatureSplit,
    split_off,
)
from afintro.tasks.feature_descriptions.toy import embedded_features
from afintro.tasks.settings import check_set_names, renamed
from afintro.tasks.vectors import SHUFFLED, ZERO, shuffled, vector_of, with_vector, without_vectors

log = logging.getLogger(__name__)

WITHOUT_VECTOR = ("majority", LAYER, TEXT_ONLY)
RIVALS = ("majority", "nearest", "nearest_in_layer", "nearest_by_sign", VECTOR, LAYER)
LONGEST = 100  # training labels that are tokenized to know how long an answer may be
SELFIE_SCALES = (0.5, 1.0, 2.0, 4.0)


class FeatureDescriptions(TaskData):
    """Data of the feature-description task.

    ``train_path`` names descriptions of training features (``descriptions.json``, or rows as JSONL or Parquet), ``limit`` and
    the held-out check count features, and without a validation file ``validation_fraction`` of the features is split off
    twice: once as whole clusters and once as single features.

    Args:
        features: Feature files, one a layer, with the vectors of all features described.
        activations: File of texts and the features that each text activates, for the functional score; None leaves the
            functional score out. Several files by name are test sets: ``test`` reports each, other commands use the first.
        validation_items: Largest number of features that are split off in either way.
        wording: How the explainer is asked.
        judges: Judges that score a description against the label. The first judge decides, the second is compared with
            the first.
        scorer: Judge that predicts from a description which texts activate the feature.
        texts_per_side: Largest number of activating and of non-activating texts for each feature.
        question_weights: Weight in the loss of the only question type.
        firings: The old name of ``activations``.
        reader: The old name of ``scorer``.
        **settings: Settings that all tasks have, see :class:`TaskSettings`.
    """

    task = "feature_descriptions"
    local_files = ("features", "activations", "firings")
    question_types = (QUESTION,)
    systems = (REFERENCE, *RIVALS, ZERO, SHUFFLED, NEGATED)
    has_vectors = True

    def __init__(
        self,
        *,
        features: list[str] | None = None,
        activations: str | dict[str, str] | None = None,
        validation_items: PositiveInt = 500,
        wording: Wording | None = None,
        judges: list[Judge] | None = None,
        scorer: Judge | None = None,
        texts_per_side: PositiveInt = 10,
        question_weights: dict[str, NonNegativeFloat] = {QUESTION: 1.0},  # noqa: B006
        firings: str | None = None,
        reader: Judge | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(question_weights=question_weights, **settings)
        if self.settings.train_path is not None and not features:
            raise UserError("is absent", where="data.features", remedy="give the files that hold the vectors")
        self.feature_paths = features or []
        named = renamed("activations", activations, "firings", firings)
        self.activation_sets = named if isinstance(named, dict) else {}
        self.activations_path = next(iter(named.values()), None) if isinstance(named, dict) else named
        check_set_names(self.activation_sets, "data.activations")
        self.validation_items, self.texts_per_side = validation_items, texts_per_side
        self.wording = wording or Wording()
        self.judges = judges or [RougeL(), ChrF()]
        self.scorer = renamed("scorer", scorer, "reader", reader) or Tfidf()
        first = f"judge/{self.judges[0].name}"
        kinds = (first, f"{first}/{UNSEEN_FEATURE}")
        self.leads = (*kinds, "functional_auroc", f"functional_auroc/{UNSEEN_FEATURE}", f"{first}/macro")
        self.solved = kinds
        self.files: list[FeatureFile] = []
        self._splits: dict[str, FeatureSplit] = {}
        self._activations: Activations | None = None
        self._near: dict[str, float] = {}

    def build_embedded(self) -> None:
        """Find and label features of the toy organism, unless the cache holds them."""
        embedded_features()

    def use_embedded(self) -> None:
        """Use the features of the toy organism."""
        folder = embedded_features()
        self.paths = {split: str(folder / f"{split}.json") for split in self.paths}
        self.feature_paths = sorted(str(path) for path in (folder / "features").glob("*.safetensors"))
        if not self.activation_sets:
            self.activations_path = str(folder / "firings.json")

    @property
    def test_sets(self) -> dict[str, str | None]:
        """Return the test sets that descriptions or activations name; activations of several sets may share descriptions."""
        return super().test_sets or dict.fromkeys(self.activation_sets)

    def for_test_set(self, name: str) -> Self:
        """Return the same data with the test items and the activations of one of several sets.

        Raises:
            UserError: Activations are given by set, and none are of this set.
        """
        other = super().for_test_set(name)
        if self.activation_sets:
            if name not in self.activation_sets:
                raise UserError(f"lacks the set {name}", where="data.activations", remedy="name the sets of test_paths")
            other.activations_path, other._activations = self.activation_sets[name], None
        if other.activations_path is not None:
            other._activations = read_activations(other.activations_path)
        return other

    @property
    def primary(self) -> str:  # type: ignore[override]
        """The question type of held-out clusters where the evaluated split has any, else of held-out features."""
        evaluated = next((split for split in ("test", "validation") if split in self._splits), "validation")
        kinds = self._splits[evaluated].kinds if evaluated in self._splits else None
        return UNSEEN_CLUSTER if not kinds or UNSEEN_CLUSTER in kinds else UNSEEN_FEATURE

    # Which features there are.

    def feature_split(self, split: str) -> FeatureSplit:
        """Return the features of a split. The first call opens the feature files and reads the training features.

        Raises:
            UserError: A file is wrong, a held-out text is in training, or the split has no file.
        """
        if "train" not in self._splits:
            self.files = open_features(self.feature_paths)
            self.space = VectorSpace(self.files[0].width, tuple(sorted(file.layer for file in self.files)))
            self._read_training()
        if split not in self._splits:
            path = self.paths[split]
            if path is None:
                raise UserError("is absent", where=f"data.{split}_path", remedy=f"give the file of {split} features")
            table, train = self._read_table(path), self._splits["train"]
            shared = train.count_shared(table)
            if shared:
                self._warn(f"{shared} features of {path} are in the training file too")
            self._splits[split] = self._held_out(table, np.arange(len(table)))
        return self._splits[split]

    def _warn(self, warning: str) -> None:
        self.warnings.append(warning)
        log.warning(warning)

    def _read_table(self, path: str) -> FeatureTable:
        table = FeatureTable(path, self.files)
        count, first = table.without_vector
        if count:
            self._warn(f"{count} features of {path} have no vector ({', '.join(first)}, ...): left out")
        return table

    def _read_training(self) -> None:
        """Read the training features, and split validation off them where validation has no file."""
        path = self.paths["train"]
        assert path is not None
        table = self._read_table(path)
        indices: NDArray[np.int64] = np.arange(len(table))
        if self.heldout:
            names = [f"{path}, feature {table.feature(index).uid}" for index in indices]
            labels = [table.feature(index).label for index in indices]
            indices = np.array(self.guarded(labels, names, "features"), dtype=np.int64)
        held: NDArray[np.int64] | None = None
        if self.paths["validation"] is None:
            count = len(indices)
            indices, held = split_off(
                table, indices, self.settings.validation_fraction, self.validation_items, self.settings.split_seed
            )
            if not len(held):
                what = f"{count} features leave none for validation"
                raise UserError(what, where=path, remedy="give data.validation_path")
        if not len(indices):
            raise UserError("no training feature is left", where=path, remedy="check the held-out files and the split")
        train = FeatureSplit(table, indices.astype(np.int32)).limited(self.settings.limit)
        self._splits["train"] = train
        if held is not None:
            self._splits["validation"] = self._held_out(table, held)

    def _held_out(self, table: FeatureTable, indices: NDArray[np.int64]) -> FeatureSplit:
        """Return an evaluation split, and warn where a label of a cluster that training lacks is known from another cluster."""
        train = self._splits["train"]
        held = train.held_out(table, indices).limited(self.settings.limit)
        copied = train.copied(held)
        if copied:
            self._warn(
                f"{copied} features of {table.path} are of clusters that training lacks, but it has their label in another "
                f"cluster: they count as {UNSEEN_FEATURE}"
            )
        return held

    # Examples.

    def render(self, feature: Feature, slot_token: str) -> tuple[list[Message], str]:
        """Return the prompt's messages and the answer for a feature; pure."""
        return self.wording.render(feature, slot_token)

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """Return one example a feature: made when asked for in training, made at once where they are evaluated."""
        weight = self.settings.question_weights.get(QUESTION, 1.0)
        encoder = FeatureEncoder(self.wording, reader, weight, self.zero_vectors, self.space_name)
        features = self.feature_split(split)
        examples = FeatureExamples(features, encoder)
        if split == "train":
            return examples
        return [replace(item, scenario_id=name) for item, name in zip(examples, features.scenarios(), strict=True)]

    def evaluated_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """Return the examples of a split, whose features are halved already where validation is."""
        return self.read_examples(split, reader)

    def _halve(self) -> None:
        """Divide validation items in two, and their features too."""
        places = {example.uid: place for place, example in enumerate(self.examples["validation"])}
        super()._halve()
        if self.halved:
            whole = self._splits["validation"]
            for name in ("validation", "test"):
                self._splits[name] = whole.at(np.array([places[example.uid] for example in self.examples[name]]))

    def keep_items(self, split: str, places: Sequence[int]) -> None:
        """Keep the items of a split at some places, and their features."""
        super().keep_items(split, places)
        self._splits[split] = self._splits[split].at(np.array(places))

    def longest(self, split: str, count: int) -> list[Example]:
        """Return the examples with the longest labels in characters, because tokenizing millions would take minutes."""
        features = self.feature_split(split)
        chosen = features.table.longest(features.indices, count)
        return [self.examples[split][int(np.flatnonzero(features.indices == index)[0])] for index in chosen]

    @property
    def answer_limit(self) -> int:
        """Return the number of tokens to generate for a description, by the training labels that are longest in characters."""
        return answer_limit(self.longest("train", LONGEST))

    def training_examples(self) -> Sequence[Example]:
        """Return all training examples: there is one question type."""
        return self.examples["train"]

    # Evaluation.

    def baselines(self, split: str) -> Systems:
        """Answer with the label itself (what a perfect explainer would say), and as all rivals do."""
        items, train, asked = self.examples[split], self.feature_split("train"), self.feature_split(split)
        answers = {
            REFERENCE: [item.answer for item in items],
            **baseline_labels(train, asked),
            **reader_labels(train, asked, self.wording, self.settings.split_seed),
        }
        self._near = near_duplicates(train, asked)
        return {
            name: [text_prediction(item, label) for item, label in zip(items, labels, strict=True)]
            for name, labels in answers.items()
        }

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Yield zero, shuffled and negated vectors for the explainer, and true ones for the untrained model (arXiv:2403.10949)."""
        items = list(self.examples[split])
        yield Control(ZERO, without_vectors(items), trained=True)
        yield Control(SHUFFLED, shuffled(items, self.settings.split_seed, lambda item: item.answer), trained=True)
        yield Control(NEGATED, [with_vector(item, -vector_of(item)) for item in items], trained=True)
        for scale in SELFIE_SCALES:
            scaled = [replace(item, slot=replace(item.slot, scale=scale)) for item in items if item.slot is not None]
            yield Control(f"selfie/{scale:g}", scaled, trained=False)

    def graded(self, systems: Systems) -> Systems:
        """Score every answer by every judge, and by the scorer on activating and non-activating texts."""
        everything = [prediction for answers in systems.values() for prediction in answers]
        pairs = [(prediction.expected, prediction.predicted or "") for prediction in everything]
        columns = {judge.name: judge.score(pairs) for judge in self.judges}
        if self.activations_path is not None:
            columns[FUNCTIONAL] = functional_auroc(self._detections(everything), self.scorer)
        rows = [dict(zip(columns, scores, strict=True)) for scores in zip(*columns.values(), strict=True)]
        graded, start = {}, 0
        for name, answers in systems.items():
            own = rows[start : start + len(answers)]
            graded[name] = [replace(answer, scores=scores) for answer, scores in zip(answers, own, strict=True)]
            start += len(answers)
        return graded

    def _detections(self, predictions: Sequence[Prediction]) -> list[Detection]:
        if self._activations is None:
            assert self.activations_path is not None
            self._activations = read_activations(self.activations_path)
        texts = {}
        for uid in {prediction.uid for prediction in predictions}:
            key = uid if uid in self._activations.activating or len(self.files) > 1 else uid.partition("/")[2]
            texts[uid] = self._activations.sample(key, self.texts_per_side, self.settings.split_seed)
        return [Detection(p.predicted or "", *texts[p.uid]) for p in predictions]

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """Compute all metrics of one system, see :func:`description_statistics`.

        Validation may lack the question type that is primary in the test items, which ``fit`` reads before training.
        """
        asked = {prediction.question_type for prediction in predictions}
        return description_statistics(predictions, UNSEEN_CLUSTER if UNSEEN_CLUSTER in asked else UNSEEN_FEATURE)

    def best_of(self, baselines: Sequence[str]) -> list[str]:
        """Name the systems that could explain the score without an explainer that was trained to read vectors."""
        return [name for name in baselines if name.partition("/")[0] in (*RIVALS, "selfie", TEXT_ONLY)]

    def without_weights(self, systems: Sequence[str]) -> list[str]:
        """Name the systems that see no vector: what these say of a feature, the prompt's layer alone says."""
        return [name for name in systems if name in WITHOUT_VECTOR]

    def warnings_about(self, systems: Systems, leads: Mapping[str, Any]) -> list[str]:
        """Warn of all that would mislead a reader of the table, see :func:`findings.warnings`."""
        scored = [judge.name for judge in self.judges] + ([FUNCTIONAL] if self.activations_path else [])
        return findings.warnings(systems[EXPLAINER], leads, self.leads[:2], scored, self._near)

    def conclusion(
        self,
        table: Mapping[str, Mapping[str, Estimate]],
        leads: Mapping[str, Any],
        compared: Collection[str],
        base: str | None = None,
    ) -> str | None:
        """Return what the run showed, see :func:`findings.conclusion`."""
        return findings.conclusion(table, leads, self.leads[0], self.primary)

    def details(self, systems: Systems) -> dict[str, Any]:
        """Count items by category and near-duplicates, and measure how far two judges agree over all systems' answers."""
        details: dict[str, Any] = {
            "categories": category_sizes(systems[EXPLAINER]),
            "near_duplicate_vectors": self._near,
        }
        if len(self.judges) > 1:
            answers = [p for name, system in systems.items() if name != REFERENCE for p in system]
            details["judges"] = judge_agreement(answers, self.judges[0].name, self.judges[1].name)
        return details

    def figures(self, predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Draw the scores by category."""
        return {"categories": category_figure(predictions, self.judges[0].name)}

    def describe(self, split: str) -> dict[str, Any]:
        """Describe the data as every task does, and say where the vectors are from."""
        sources = [{"path": str(file.path), **file.metadata} for file in self.files]
        activations = self.activations_path if self.activations_path and Path(self.activations_path).is_file() else None
        return {**super().describe(split), "features": sources, "firings": activations}
