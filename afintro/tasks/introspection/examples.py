"""Trials of the introspection study, drawn by their index: the same for the same seed, in whatever order they are requested."""

from collections.abc import Sequence
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
from afintro.tasks.introspection.material import Material
from afintro.tasks.introspection.trials import AnswerPair, Dialogues, says_steered, worded
from afintro.tasks.introspection.vectors import SplitName

PRIMARY = "detection"
Label = Literal["correct", "inverted", "half_inverted", "coin", "always_yes", "always_no"]
Polarity = Literal["original", "balanced"]
Style = Literal["suggestive", "vague", "food", "neutral", "concept", "self_report"]


@dataclass(frozen=True)
class Trial:
    """What one example asks, before it becomes token ids.

    Args:
        context: The context; None for a question without a context.
        question: Id of the question, and its wording in this trial.
        pair: The two answers.
        answer: The expected answer.
        steered: Whether the context is steered.
        vector: Name of the vector; "" without steering.
        layers: First decoder layer and one past the last; None without steering.
        strength: Strength of the steering; None without steering.
        says_steered: The answer that claims steering; None where no answer does.
    """

    context: Context | None
    question: tuple[str, str]
    pair: AnswerPair
    answer: str
    steered: bool = False
    vector: str = ""
    layers: tuple[int, int] | None = None
    strength: float | None = None
    says_steered: str | None = None


@dataclass(frozen=True)
class TrialSettings:
    """What decides which trials are drawn, besides the material.

    Args:
        seed: Seed of everything that is drawn for each example.
        style: Style of the questions.
        questions: Number of wordings in training; evaluation asks all wordings of its split.
        pair: The two answers.
        label: Which answer is expected.
        stop_gradient: Whether no gradient flows through the keys and values of the context.
        polarity: Whether questions are asked as first worded (``original``), or half of them as their reversed twins.

    Raises:
        UserError: Reversed twins are asked for, and the style has none.
    """

    seed: int
    style: Style
    questions: int
    pair: AnswerPair
    label: Label
    stop_gradient: bool
    polarity: Polarity = "original"

    def __post_init__(self) -> None:
        if self.polarity == "balanced" and self.style in ("neutral", "self_report"):
            what = f"is 'balanced', but questions of style {self.style!r} have no reversed twins to train on"
            raise UserError(what, where="data.polarity", remedy="set data.polarity to original, or another data.style")


class TrialExamples(Sequence[Example]):
    """Examples that are drawn by their index.

    Args:
        settings: What decides which trials are drawn.
        split: Split of the texts, vectors and strengths.
        dialogues: Makes token ids of texts.
        material: Everything that trials are drawn from.
        size: Number of examples.
    """

    def __init__(
        self, settings: TrialSettings, split: SplitName, dialogues: Dialogues, material: Material, size: int
    ) -> None:
        self.settings, self.split, self.dialogues, self.material, self.size = settings, split, dialogues, material, size
        questions = getattr(material.questions.get(settings.style), split, [])
        # In training the first few wordings are asked; otherwise all.
        plain = [question for question in questions if question.reversed_of is None]
        self._questions: list[Question] = plain[: settings.questions] if split == "train" else plain
        if settings.polarity == "balanced":
            asked = {question.id for question in self._questions}
            self._questions += [question for question in questions if question.reversed_of in asked]

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
        """Tokens of prompt and answer ``[n, 2]``, see :func:`afintro.data.batch.sizes_of`."""
        return np.array([(len(e.prompt_ids), len(e.answer_ids)) for e in self], np.int32).reshape(-1, 2)

    def trial(self, index: int) -> Trial:
        """Draw what an example asks. Every second example is steered, so that neither answer is more frequent."""
        settings, material = self.settings, self.material
        if settings.style == "self_report":
            report = self._pick(getattr(material.reports, self.split), index, "question")
            return self._labeled(index, Trial(None, (report.id, report.text), settings.pair, settings.pair.a))
        context = self._pick(getattr(material.contexts, self.split), index, "context")
        question = self._pick(self._questions, index, "question")
        steered = material.kind is not None and (index % 2 == 0 or settings.style == "concept")
        vector, layers, strength = "", None, None
        if steered:
            vector = self._pick(material.vectors(self.split).names, index, "vector")
            layers = self._pick(material.ranges, index, "layers")
            strength = self._pick(material.strengths.of(self.split), index, "dose")
        pair = self._concepts(vector) if settings.style == "concept" else settings.pair
        text = worded(question.text, pair, swapped=self._bit(index, "order"))
        claim = says_steered(question, pair)
        trial = Trial(context, (question.id, text), pair, "", steered, vector, layers, strength, claim)
        return self._labeled(index, replace(trial, answer=self._correct(trial, question)))

    def _concepts(self, vector: str) -> AnswerPair:
        """Return the pair that a concept belongs to."""
        first, second = self.material.vectors(self.split).partner(vector)
        return AnswerPair(f"{first}_{second}", first, second)

    def _correct(self, trial: Trial, question: Question) -> str:
        if self.settings.style == "concept":
            present = self.material.vectors(self.split).concept(trial.vector)
            return present if question.yes_means == "present" else _other(trial.pair, present)
        if self.settings.style == "food":
            assert trial.context is not None
            return trial.pair.a if trial.context.food == (question.yes_means == "food") else trial.pair.b
        claim = trial.says_steered
        return claim if trial.steered and claim is not None else _other(trial.pair, claim)

    def _labeled(self, index: int, trial: Trial) -> Trial:
        """Replace the correct answer by the answer that ``label`` asks for."""
        pair, label = trial.pair, self.settings.label
        if label in ("always_yes", "always_no"):
            return replace(trial, answer=pair.a if label == "always_yes" else pair.b)
        if label == "coin":
            return replace(trial, answer=pair.a if self._bit(index, "coin") else pair.b)
        if label == "inverted" or (label == "half_inverted" and self._bit(index, "flip")):
            return replace(trial, answer=_other(pair, trial.answer))
        return trial

    def _draw(self, index: int, what: str) -> int:
        return stable_hash(f"{self.settings.seed} {self.split} {index} {what}")

    def _pick(self, options: Sequence[Any], index: int, what: str) -> Any:
        return options[self._draw(index, what) % len(options)]

    def _bit(self, index: int, what: str) -> bool:
        return bool(self._draw(index, what) % 2)

    def _example(self, index: int, trial: Trial) -> Example:
        asked = self.dialogues.asked(trial.context, trial.question[1])
        a, b = self.dialogues.answers(trial.pair)
        steering = None
        if trial.steered:
            assert trial.layers is not None
            assert trial.strength is not None
            vector = self.material.vectors(self.split).of(trial.vector)
            steering = self.material.steering(vector, trial.layers, trial.strength)
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
            context=Steered(len(asked.context), self.settings.stop_gradient, steering),
            notes={
                "context": None if trial.context is None else trial.context.id, "question": trial.question[0],
                "vector": trial.vector, "layers": trial.layers, "dose": trial.strength, "steered": trial.steered,
                "says_steered": trial.says_steered,
            },
        )  # fmt: skip


def _other(pair: AnswerPair, answer: str | None) -> str:
    return pair.a if answer == pair.b else pair.b
