"""Introspection: were this model's activations steered while it read the context? Examples are drawn as they are read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from afintro.data.batch import Context as Steered
from afintro.data.batch import Example
from afintro.data.introspection_texts.items import Context, Question
from afintro.data.splits import stable_hash
from afintro.errors import UserError
from afintro.evaluation.metrics import Prediction, Scores, Statistic, text_prediction
from afintro.ranges import NonNegativeFloat, PositiveInt
from afintro.tasks.base import Control, ExplainerSpec, Systems, TaskData
from afintro.tasks.introspection.material import Doses, Kind, Material, Model, Unit, contexts_of
from afintro.tasks.introspection.trials import PAIRS, Dialogues, Pair, worded
from afintro.tasks.introspection.vectors import SplitName

PRIMARY = "detection"
Label = Literal["correct", "inverted", "half_inverted", "coin", "always_yes", "always_no"]
Style = Literal["suggestive", "vague", "food", "neutral", "concept", "self_report"]


@dataclass
class Sizes:
    """Examples a split; as long as they differ by index, drawn anew for each."""

    train: int = 4000
    validation: int = 400
    test: int = 400


@dataclass(frozen=True)
class Trial:
    """What one example asks, before it becomes token ids.

    Args:
        context: None for a question without one.
        question: Its id, and how it is worded here.
        pair: The two answers.
        answer: The one that is expected.
        steered: Whether the context is steered.
        vector: Name of the vector; "" without steering.
        layers: First and one past last; None without steering.
        dose: Strength; None without steering.
        says_steered: The answer that claims steering; None where none does.
    """

    context: Context | None
    question: tuple[str, str]
    pair: Pair
    answer: str
    steered: bool = False
    vector: str = ""
    layers: tuple[int, int] | None = None
    dose: float | None = None
    says_steered: str | None = None


class Introspection(TaskData):
    """Data of the introspection task: contexts that are steered and then left alone, and a question about that.

    The context is read with a vector added to the residual stream at all of its positions, the question without. That is
    one forward pass with a position mask. By default no gradient flows through the context's keys and values: the adapter
    learns to read, not to write.

    ``train_path`` names a file of contexts in the form of the embedded ones, and None stands for the embedded ones; without
    a validation file the training contexts are divided by hash. ``limit`` counts examples. ``split_seed`` decides, together
    with the texts, to which split contexts, questions and concepts belong, and seeds vectors and order.

    Args:
        seed: Of what is drawn for each example; a study repeats a variant with several.
        style: Of the questions.
        questions: Wordings that are trained on; evaluation asks all of its split.
        pair: The two answers, a name of :data:`afintro.tasks.introspection.trials.PAIRS`.
        label: The answer that is expected: ``correct``; its opposite (``inverted``); the opposite in a random half
            (``half_inverted``); ``coin``; ``always_yes``; ``always_no``.
        vectors: ``random`` unit vectors, ``concept`` vectors, ``swap`` for norm-matched real activations; None steers
            nothing.
        vector_count: Random vectors, or activations, a split.
        layer_ranges: See :class:`Material`.
        doses: Strengths by split.
        dose_unit: See :class:`Material`.
        gradient: ``stopped`` at the context's keys and values, or ``full``.
        examples: How many are drawn a split.
        longest_context: Leaves out longer contexts, in characters; None for no limit.
        question_weights: Weight in the loss; there is one question type, ``detection``.
        batch_size: Number of examples in a step; with ``max_tokens`` only the number of answers generated at once.
        **settings: Settings that all tasks have, see :class:`TaskSettings`, but ``validation_fraction``.
    """

    task = "introspection"
    primary = PRIMARY
    question_types = (PRIMARY,)
    leads = ("exact_match", "auroc_steered")

    def __init__(
        self,
        *,
        seed: int = 0,
        style: Style = "suggestive",
        questions: int = 4,
        pair: str = "yes_no",
        label: Label = "correct",
        vectors: Kind | None = "random",
        vector_count: int = 100,
        layer_ranges: Literal["thirds", "middle"] | list[list[int]] = "thirds",
        doses: Doses = Doses(),  # noqa: B008
        dose_unit: Unit = "displacement",
        gradient: Literal["stopped", "full"] = "stopped",
        examples: Sizes = Sizes(),  # noqa: B008
        longest_context: int | None = None,
        question_weights: dict[str, NonNegativeFloat] = {PRIMARY: 1.0},  # noqa: B006
        batch_size: PositiveInt = 16,
        **settings: Any,
    ) -> None:
        super().__init__(question_weights=question_weights, batch_size=batch_size, validation_fraction=0.2, **settings)
        if pair not in PAIRS:
            raise UserError(f"is {pair!r}", where="data.pair", remedy=f"use one of {', '.join(PAIRS)}")
        if style == "concept" and vectors != "concept":
            raise UserError(f"is {vectors!r}", where="data.vectors", remedy="questions about concepts need concept")
        self.seed, self.style, self.question_count, self.pair, self.label = seed, style, questions, PAIRS[pair], label
        self.kind, self.vector_count, self.layer_ranges = vectors, vector_count, layer_ranges
        self.doses, self.dose_unit, self.gradient = doses, dose_unit, gradient
        self.sizes, self.longest_context = examples, longest_context
        self._material: Material | None = None

    def material(self, reader: ExplainerSpec) -> Material:
        """Texts, vectors, layers and doses, for the model that reads them."""
        if self._material is None:
            contexts = contexts_of(self.paths, self.settings.split_seed, self.longest_context)
            names = [f"context {context.id}" for context in contexts.train]
            keep = self.guarded([context.text for context in contexts.train], names, "contexts")
            contexts = replace(contexts, train=[contexts.train[index] for index in keep])
            model = Model(reader.name, getattr(reader, "revision", None))
            self._material = Material(
                model, contexts, self.settings.split_seed, self.kind, self.vector_count, self.layer_ranges, self.doses,
                self.dose_unit,
            )  # fmt: skip
        return self._material

    def read_examples(self, split: str, reader: ExplainerSpec) -> Sequence[Example]:
        """As many as are wanted, made one by one as they are asked for."""
        name: SplitName = "train" if split == "train" else "test" if split == "test" else "validation"
        size = getattr(self.sizes, split)
        size = size if self.settings.limit is None else min(size, self.settings.limit)
        return Drawn(self, name, Dialogues(reader.tokenizer), self.material(reader), size)

    def training_examples(self) -> Sequence[Example]:
        """All of them."""
        return self.examples["train"]

    def for_another_explainer(self, zero_vectors: bool = False) -> "Introspection":
        """Vectors belong to a model: another has its own."""
        other = super().for_another_explainer(zero_vectors)
        other._material = None
        return other

    def baselines(self, split: str) -> Systems:
        """The commonest answer in training."""
        train = self.examples["train"]
        counts = Counter(train[index].answer for index in range(0, len(train), max(1, len(train) // 1000)))
        commonest = min(counts, key=lambda answer: (-counts[answer], answer))
        return {"majority": [text_prediction(item, commonest, 0.5) for item in self.examples[split]]}

    def controls(self, split: str, reader: ExplainerSpec) -> Iterator[Control]:
        """The model before training; and the trained one where nothing is steered, whatever the expected answer."""
        items = list(self.examples[split])
        yield Control("untrained", items, trained=False)
        if self.kind is not None:
            left_alone = [
                item if item.context is None else replace(item, context=replace(item.context, steering=None))
                for item in items
            ]
            yield Control("nothing_steered", left_alone, trained=True)

    def statistics(self, predictions: Sequence[Prediction]) -> Scores:
        """Exact match over the full vocabulary, and how well the odds tell steered contexts from others."""
        ordered = sorted(predictions, key=lambda prediction: prediction.uid)
        uids, clusters = tuple(p.uid for p in ordered), [p.scenario_id for p in ordered]
        exact = np.array([[float(p.exact_match)] for p in ordered])
        found = {
            name: (Statistic(name, exact, "mean", uids), clusters) for name in ("exact_match", f"exact_match/{PRIMARY}")
        }
        claims = self._claims
        told = [p for p in ordered if p.p_changed is not None and p.uid in claims]
        if told:
            rows = np.array([[_of_claim(p, claims[p.uid]), float(claims[p.uid][1])] for p in told])
            statistic = Statistic("auroc_steered", rows, "auroc", tuple(p.uid for p in told))
            found["auroc_steered"] = statistic, [p.scenario_id for p in told]
        return found

    @cached_property
    def _claims(self) -> dict[str, tuple[bool, bool]]:
        """Of each item whose answers say something of steering: whether the pair's first answer claims it, whether it is so."""
        found = {}
        for name, examples in self.examples.items():
            for example in examples if name != "train" else ():
                claim = example.notes["says_steered"]
                if claim is not None:
                    found[example.uid] = claim == self.pair.a, bool(example.notes["steered"])
        return found


def _of_claim(prediction: Prediction, claim: tuple[bool, bool]) -> float:
    assert prediction.p_changed is not None
    return prediction.p_changed if claim[0] else 1 - prediction.p_changed


class Drawn(Sequence[Example]):
    """Examples that are drawn by their index: the same for the same seed, whoever asks in whatever order.

    Args:
        data: The task, with its settings.
        split: Of texts, vectors and doses.
        dialogues: Text to token ids.
        material: What is drawn from.
        size: How many there are.
    """

    def __init__(
        self, data: Introspection, split: SplitName, dialogues: Dialogues, material: Material, size: int
    ) -> None:
        self.data, self.split, self.dialogues, self.material, self.size = data, split, dialogues, material, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self.size))]
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self._example(index, self.trial(index))

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """Tokens of each prompt and answer ``[n, 2]``."""
        return np.array([(len(e.prompt_ids), len(e.answer_ids)) for e in self], np.int32).reshape(-1, 2)

    def trial(self, index: int) -> Trial:
        """What the example asks. Every second one is steered, so neither answer is commoner."""
        data, steered = self.data, self.data.kind is not None and (index % 2 == 0 or self.data.style == "concept")
        if data.style == "self_report":
            reports = getattr(self.material.reports, self.split)
            report = self._pick(reports, index, "question")
            return self._labelled(index, Trial(None, (report.id, report.text), data.pair, data.pair.a))
        context = self._pick(getattr(self.material.contexts, self.split), index, "context")
        question = self._pick(self._questions, index, "question")
        vector, layers, dose = "", None, None
        if steered:
            vector = self._pick(self.material.vectors(self.split).names, index, "vector")
            layers = self._pick(self.material.ranges, index, "layers")
            dose = self._pick(getattr(self.material.doses, self.split), index, "dose")
        pair, swapped = data.pair, self._bit(index, "order")
        if data.style == "concept":
            pair = self._concepts(vector)
        text = worded(question.text, pair, swapped)
        trial = Trial(
            context, (question.id, text), pair, "", steered, vector, layers, dose, says_steered(question, pair)
        )
        return self._labelled(index, replace(trial, answer=self._correct(trial, question)))

    @cached_property
    def _questions(self) -> list[Question]:
        """In training the first few; otherwise all of the split. Twins of reversed polarity are left to evaluation."""
        all_of_split = getattr(self.material.questions[self.data.style], self.split)
        plain = [question for question in all_of_split if question.reversed_of is None]
        return plain[: self.data.question_count] if self.split == "train" else plain

    def _concepts(self, vector: str) -> Pair:
        """The pair that a concept belongs to."""
        one, other = self.material.vectors(self.split).partner(vector)
        return Pair(f"{one}_{other}", one, other)

    def _correct(self, trial: Trial, question: Question) -> str:
        if self.data.style == "concept":
            present = self.material.vectors(self.split).concept(trial.vector)
            absent = trial.pair.b if present == trial.pair.a else trial.pair.a
            return present if question.yes_means == "present" else absent
        if self.data.style == "food":
            assert trial.context is not None
            return trial.pair.a if trial.context.food == (question.yes_means == "food") else trial.pair.b
        claim = trial.says_steered
        return claim if trial.steered and claim is not None else _other(trial.pair, claim)

    def _labelled(self, index: int, trial: Trial) -> Trial:
        pair, label = trial.pair, self.data.label
        if label in ("always_yes", "always_no"):
            return replace(trial, answer=pair.a if label == "always_yes" else pair.b)
        if label == "coin":
            return replace(trial, answer=pair.a if self._bit(index, "coin") else pair.b)
        if label == "inverted" or (label == "half_inverted" and self._bit(index, "flip")):
            return replace(trial, answer=_other(pair, trial.answer))
        return trial

    def _pick(self, options: Sequence[Any], index: int, what: str) -> Any:
        return options[stable_hash(f"{self.data.seed} {self.split} {index} {what}") % len(options)]

    def _bit(self, index: int, what: str) -> bool:
        return bool(stable_hash(f"{self.data.seed} {self.split} {index} {what}") % 2)

    def _example(self, index: int, trial: Trial) -> Example:
        asked = self.dialogues.asked(trial.context, trial.question[1])
        a, b = self.dialogues.answers(trial.pair)
        steering = None
        if trial.steered:
            assert trial.layers is not None
            assert trial.dose is not None
            vector = self.material.vectors(self.split).of(trial.vector)
            steering = self.material.steering(vector, trial.layers, trial.dose)
        context = "" if trial.context is None else trial.context.text
        return Example(
            uid=f"{self.split}/{index:06d}",
            scenario_id=trial.question[0] if trial.context is None else trial.context.id,
            question_type=PRIMARY,
            prompt=f"{context}\n\n{trial.question[1]}".strip(),
            answer=trial.answer,
            prompt_ids=asked.context + asked.question,
            answer_ids=(self.dialogues.answer(trial.answer),),
            branches=((b,), (a,)),
            context=Steered(len(asked.context), self.data.gradient == "stopped", steering),
            notes={
                "context": None if trial.context is None else trial.context.id, "question": trial.question[0],
                "vector": trial.vector, "layers": trial.layers, "dose": trial.dose, "steered": trial.steered,
                "says_steered": trial.says_steered,
            },
        )  # fmt: skip


def says_steered(question: Question, pair: Pair) -> str | None:
    """The answer to a question that claims steering; of a question without polarity it is the first one."""
    if question.style in ("food", "concept"):
        return None
    return pair.b if question.yes_means == "unsteered" else pair.a


def _other(pair: Pair, answer: str | None) -> str:
    return pair.a if answer == pair.b else pair.b
