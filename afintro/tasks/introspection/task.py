"""Introspection: were this model's activations steered while it read the context? Examples are drawn as they are read."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from afintro.data.batch import Example
from afintro.errors import UserError
from afintro.evaluation.metrics import Prediction, text_prediction
from afintro.evaluation.statistic import Scores, Statistic
from afintro.ranges import NonNegativeFloat, PositiveInt
from afintro.tasks.base import Systems, TaskData
from afintro.tasks.contract import Control, ExplainerSpec
from afintro.tasks.introspection.examples import PRIMARY, Label, Polarity, Style, TrialExamples, TrialSettings
from afintro.tasks.introspection.material import Kind, Material, Model, Strengths, Unit, contexts_of
from afintro.tasks.introspection.trials import PAIRS, Dialogues
from afintro.tasks.introspection.vectors import SplitName


@dataclass
class Sizes:
    """Number of examples of each split; every example is drawn anew by its index."""

    train: int = 4000
    validation: int = 400
    test: int = 400


class Introspection(TaskData):
    """Data of the introspection task: contexts that are steered or left alone, and a question about the steering.

    The context is read with a vector added to the residual stream at all of its positions, and the question without. This
    is one forward pass with a position mask. By default no gradient flows through the context's keys and values, so that
    the adapter learns to read and not to write.

    ``train_path`` names a file of contexts in the form of the embedded contexts, and None stands for the embedded contexts;
    without a validation file the training contexts are divided by hash. ``limit`` counts examples. ``split_seed`` decides,
    together with the texts, to which split contexts, questions and concepts belong, and seeds vectors and order.

    Args:
        seed: Seed of everything that is drawn for each example; a study repeats a variant with several seeds.
        style: Style of the questions.
        questions: Number of wordings in training; evaluation asks all wordings of its split.
        polarity: ``original`` asks questions as first worded, so that with correct labels the same answer always means steered;
            ``balanced`` asks half of them as their reversed twins, in all splits, so that no answer does.
        pair: The two answers, a name of :data:`afintro.tasks.introspection.trials.PAIRS`.
        label: The answer that is expected: ``correct``; its opposite (``inverted``); the opposite in a random half
            (``half_inverted``); ``coin``; ``always_yes``; ``always_no``.
        vectors: ``random`` unit vectors, ``concept`` vectors, ``swap`` for norm-matched real activations; None steers
            nothing.
        vector_count: Number of random vectors, or of activations, of each split.
        layer_ranges: Ranges of decoder layers that are steered, see :class:`Material`.
        doses: Strengths of each split.
        dose_unit: Unit of the strengths, see :class:`Material`.
        gradient: ``stopped`` at the context's keys and values, or ``full``.
        examples: Number of examples of each split.
        longest_context: Length in characters above which a context is left out; None for no limit.
        question_weights: Weight in the loss; there is one question type, ``detection``.
        batch_size: Number of examples in a step; with ``max_tokens`` only the number of answers generated at once.
        **settings: Settings that all tasks have, see :class:`TaskSettings`, but ``validation_fraction``.
    """

    task = "introspection"
    primary = PRIMARY
    question_types = (PRIMARY,)
    leads = ("exact_match", "auroc_steered")
    systems = ("majority", "untrained", "nothing_steered")

    def __init__(
        self,
        *,
        seed: int = 0,
        style: Style = "suggestive",
        questions: PositiveInt = 4,
        pair: str = "yes_no",
        label: Label = "correct",
        vectors: Kind | None = "random",
        vector_count: PositiveInt = 100,
        layer_ranges: Literal["thirds", "middle"] | list[list[int]] = "thirds",
        doses: Strengths = Strengths(),  # noqa: B008
        dose_unit: Unit = "displacement",
        gradient: Literal["stopped", "full"] = "stopped",
        polarity: Polarity = "original",
        examples: Sizes = Sizes(),  # noqa: B008
        longest_context: PositiveInt | None = None,
        question_weights: dict[str, NonNegativeFloat] = {PRIMARY: 1.0},  # noqa: B006
        batch_size: PositiveInt = 16,
        **settings: Any,
    ) -> None:
        super().__init__(question_weights=question_weights, batch_size=batch_size, validation_fraction=0.2, **settings)
        if pair not in PAIRS:
            raise UserError(
                f"{pair!r} is not a pair of answers", where="data.pair", remedy=f"use one of {', '.join(PAIRS)}"
            )
        if style == "concept" and vectors != "concept":
            what = f"must be 'concept' where questions are about concepts, but is {vectors!r}"
            raise UserError(what, where="data.vectors", remedy="set data.vectors to concept")
        self.trials = TrialSettings(seed, style, questions, PAIRS[pair], label, gradient == "stopped", polarity)
        self.seed, self.style, self.pair = seed, style, PAIRS[pair]
        self.kind, self.vector_count, self.layer_ranges = vectors, vector_count, layer_ranges
        self.strengths, self.unit = doses, dose_unit
        self.sizes, self.longest_context = examples, longest_context
        self._material: Material | None = None

    @property
    def has_test(self) -> bool:
        """Say yes: test examples are made like all others."""
        return True

    def material(self, reader: ExplainerSpec) -> Material:
        """Return texts, vectors, layers and strengths for the model that reads them, made on the first call."""
        if self._material is None:
            contexts = contexts_of(self.paths, self.settings.split_seed, self.longest_context)
            names = [f"context {context.id}" for context in contexts.train]
            keep = self.guarded([context.text for context in contexts.train], names, "contexts")
            contexts = replace(contexts, train=[contexts.train[index] for index in keep])
            model = Model(reader.name, reader.revision, reader.tokenizer)
            self._material = Material(
                model, contexts, self.settings.split_seed, self.kind, self.vector_count, self.layer_ranges, self.strengths,
                self.unit,
            )  # fmt: skip
        return self._material

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """Return the examples of a split, which are made one by one when they are requested."""
        name: SplitName = "train" if split == "train" else "test" if split == "test" else "validation"
        size = getattr(self.sizes, split)
        size = size if self.settings.limit is None else min(size, self.settings.limit)
        return TrialExamples(self.trials, name, Dialogues(reader.tokenizer), self.material(reader), size)

    def training_examples(self) -> Sequence[Example]:
        """Return all training examples: there is one question type."""
        return self.examples["train"]

    def for_another_explainer(self, zero_vectors: bool = False, without_text: bool = False) -> "Introspection":
        """Copy the data module without its material, because vectors belong to a model."""
        other = super().for_another_explainer(zero_vectors, without_text)
        other._material = None
        return other

    def baselines(self, split: str) -> Systems:
        """Answer with the most frequent answer in training."""
        train = self.examples["train"]
        counts = Counter(train[index].answer for index in range(0, len(train), max(1, len(train) // 1000)))
        majority = min(counts, key=lambda answer: (-counts[answer], answer))
        return {"majority": [text_prediction(item, majority, 0.5) for item in self.examples[split]]}

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """Yield the items for the untrained model; and for the trained model without steering, whatever is expected."""
        items = list(self.examples[split])
        yield Control("untrained", items, trained=False)
        if self.kind is not None:
            left_alone = [
                item if item.context is None else replace(item, context=replace(item.context, steering=None))
                for item in items
            ]
            yield Control("nothing_steered", left_alone, trained=True)

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """Compute exact match over the full vocabulary, and how well the odds tell steered contexts from others."""
        ordered = sorted(predictions, key=lambda prediction: prediction.uid)
        uids, clusters = tuple(p.uid for p in ordered), [p.scenario_id for p in ordered]
        exact = np.array([[float(p.exact_match)] for p in ordered])
        scores: Scores = {
            name: (Statistic(name, exact, "mean", uids), clusters) for name in ("exact_match", f"exact_match/{PRIMARY}")
        }
        claims = self._claims()
        told = [p for p in ordered if p.p_changed is not None and p.uid in claims]
        if told:
            rows = np.array([[_probability_of_claim(p, claims[p.uid]), float(claims[p.uid][1])] for p in told])
            statistic = Statistic("auroc_steered", rows, "auroc", tuple(p.uid for p in told))
            scores["auroc_steered"] = statistic, [p.scenario_id for p in told]
        return scores

    def warnings_about(self, systems: Systems, leads: Mapping[str, Any]) -> list[str]:
        """Warn where the same answer means steered in all items, so that saying it under steering passes for detection."""
        told = self._claims().values()
        if len({first for first, _ in told}) != 1 or len({steered for _, steered in told}) != 2:
            return []
        what = "auroc_steered: the same answer means steered in all items, so that a push to that answer passes for detection"
        return [f"{what}; python -m afintro.study asks in both polarities, and data.polarity: balanced trains on both"]

    def _claims(self) -> dict[str, tuple[bool, bool]]:
        """For each item whose answers are about steering: whether the pair's first answer claims it, whether it is so."""
        claims = {}
        for name, examples in self.examples.items():
            for example in examples if name != "train" else ():
                claim = example.notes["says_steered"]
                if claim is not None:
                    claims[example.uid] = claim == self.pair.a, bool(example.notes["steered"])
        return claims


def _probability_of_claim(prediction: Prediction, claim: tuple[bool, bool]) -> float:
    assert prediction.p_changed is not None
    return prediction.p_changed if claim[0] else 1 - prediction.p_changed
