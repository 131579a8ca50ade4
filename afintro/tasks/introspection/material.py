"""What the introspection study is made of: texts, vectors, layers and strengths. No two splits share any of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from afintro.data.introspection_texts import read_concepts, read_contexts, read_questions, read_self_reports
from afintro.data.introspection_texts.items import Context, Question, SelfReport
from afintro.data.introspection_texts.splits import Splits, assert_disjoint, split_texts
from afintro.errors import UserError
from afintro.lm.load import load_config
from afintro.lm.spans import SpanSteering
from afintro.tasks.introspection.concept_vectors import concept_vectors, swap_vectors
from afintro.tasks.introspection.vectors import (
    SPLITS,
    SplitName,
    VectorSet,
    assert_disjoint_vectors,
    random_vectors,
)
from afintro.toys.embedded import ensure_built

Kind = Literal["random", "concept", "swap"]
Unit = Literal["raw", "residual", "displacement"]


@dataclass
class Strengths:
    """Strengths of steering of each split; no strength is in two splits.

    Args:
        train: Strengths in training, in the unit that ``data.dose_unit`` names.
        validation: Strengths in validation, in the same unit.
        test: Strengths in the test split, in the same unit.

    Raises:
        UserError: A split has no strength, a strength is not above 0, or two splits share a strength.
    """

    train: list[float] = field(default_factory=lambda: [0.3, 0.6, 1.2, 2.4])
    validation: list[float] = field(default_factory=lambda: [0.35, 0.7, 1.4, 2.8])
    test: list[float] = field(default_factory=lambda: [0.4, 0.8, 1.6, 3.2])

    def __post_init__(self) -> None:
        for split in SPLITS:
            if not self.of(split) or min(self.of(split)) <= 0:
                what = "must hold one or more strengths above 0"
                raise UserError(what, where=f"data.doses.{split}", remedy="give such strengths")
        assert_disjoint(**{f"data.doses.{split}": map(repr, map(float, self.of(split))) for split in SPLITS})

    def of(self, split: SplitName) -> list[float]:
        """Return the strengths of a split."""
        strengths: list[float] = getattr(self, split)
        return strengths


@dataclass(frozen=True)
class Model:
    """The model whose activations are steered.

    Args:
        name: Hub id, directory, or the name of an embedded model.
        revision: Revision on the hub.
        tokenizer: Its tokenizer, with the chat template that trials are rendered with; None to load it.
    """

    name: str
    revision: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    def shape(self) -> tuple[int, int]:
        """Read the number of decoder layers and the width from the model's configuration, without its weights.

        An embedded model that does not exist yet is trained.
        """
        config = load_config(ensure_built(self.name), self.revision).get_text_config()
        return config.num_hidden_layers, config.hidden_size


class Material:
    """Everything that a trial is drawn from.

    Args:
        model: The model whose activations are steered.
        contexts: Contexts by split.
        seed: Decides, with the texts, which split questions, self-reports and concepts are in, and the vectors.
        kind: Kind of the trials' vectors; None where nothing is steered.
        count: Number of random vectors, or of activations, of each split.
        layer_ranges: ``thirds`` (early, middle, late), ``middle`` for one layer, or first and one past last of each range.
        strengths: Strengths by split.
        unit: ``raw`` adds a vector of that norm at each layer and position; ``residual`` adds a vector in units of the local
            hidden state's norm; ``displacement`` divides the latter by the number of layers, so that ranges of different
            width displace equally far.

    Attributes:
        ranges: Ranges of decoder layers, each as its first and one past its last.
        questions: Questions by style, then by split.
        reports: Self-reports and their controls by split.
    """

    def __init__(
        self,
        model: Model,
        contexts: Splits[Context],
        seed: int,
        kind: Kind | None,
        count: int,
        layer_ranges: str | Sequence[Sequence[int]],
        strengths: Strengths,
        unit: Unit,
    ) -> None:
        self.model, self.contexts, self.seed, self.count = model, contexts, seed, count
        self.kind, self.strengths, self.unit = kind, strengths, unit
        layers, self._width = model.shape()
        self.ranges = ranges_of(layer_ranges, layers)
        styles: dict[str, list[Question]] = {}
        for question in read_questions():
            styles.setdefault(question.style, []).append(question)
        self.questions = {style: split_texts(questions, seed) for style, questions in styles.items()}
        self.reports: Splits[SelfReport] = split_texts(read_self_reports().items, seed)
        self._sets: dict[Kind, dict[SplitName, VectorSet]] = {}

    def vectors(self, split: SplitName, kind: Kind | None = None) -> VectorSet:
        """Return the vectors of a split. The first call makes the vectors of all splits and compares them.

        Args:
            split: The split.
            kind: Kind of the vectors; None for the kind of the trials' vectors.

        Raises:
            ValueError: Nothing is steered, and no kind is named.
        """
        kind = kind or self.kind
        if kind is None:
            raise ValueError("nothing is steered here")
        if kind not in self._sets:
            self._sets[kind] = self._make(kind)
            assert_disjoint_vectors(**self._sets[kind])
        return self._sets[kind][split]

    def _make(self, kind: Kind) -> dict[SplitName, VectorSet]:
        model, revision, tokenizer = self.model.name, self.model.revision, self.model.tokenizer
        if kind == "random":
            return {split: random_vectors(self.count, self._width, split, self.seed) for split in SPLITS}
        if kind == "concept":
            return dict(concept_vectors(model, revision, read_concepts(), seed=self.seed, tokenizer=tokenizer))
        texts: dict[SplitName, list[Context]] = {split: getattr(self.contexts, split) for split in SPLITS}
        return dict(swap_vectors(model, revision, texts, count=self.count, seed=self.seed, tokenizer=tokenizer))

    def steering(
        self, vector: NDArray[np.float32], layers: tuple[int, int], strength: float, kind: Kind | None = None
    ) -> SpanSteering:
        """Return the steering of a context by a unit vector.

        Args:
            vector: ``[hidden]``, norm 1.
            layers: First decoder layer and one past the last.
            strength: Strength in the material's unit. A swap puts a real activation in place, whatever the strength.
            kind: Kind of the vector; None for the kind of the trials' vectors.
        """
        if (kind or self.kind) == "swap":
            return SpanSteering(vector, layers, 1.0, relative=True, mode="replace")
        size = strength / (layers[1] - layers[0]) if self.unit == "displacement" else strength
        return SpanSteering(vector, layers, size, relative=self.unit != "raw")


def ranges_of(wanted: str | Sequence[Sequence[int]], layers: int) -> list[tuple[int, int]]:
    """Return ranges of decoder layers, each as its first and one past its last.

    No later token reads the output of the last layer, so the last layer belongs to no range.

    Args:
        wanted: ``thirds``, ``middle``, or first and one past last of each range.
        layers: Number of decoder layers of the model.

    Raises:
        UserError: The model does not have a range.
    """
    usable = layers - 1
    if wanted == "middle":
        return [(usable // 2, usable // 2 + 1)]
    if isinstance(wanted, str):
        return list(pairwise([usable * part // 3 for part in range(4)]))
    ranges = [(int(start), int(stop)) for start, stop in wanted]
    for start, stop in ranges:
        if not 0 <= start < stop <= usable:
            remedy = f"give first and one past last, from 0 to {usable}: no later token reads the last layer's output"
            what = f"[{start}, {stop}] is not a range of a model with {layers} layers"
            raise UserError(what, where="data.layer_ranges", remedy=remedy)
    return ranges


def contexts_of(paths: dict[str, str | None], seed: int, longest: int | None) -> Splits[Context]:
    """Read contexts by split: the embedded contexts or those of one file divided by hash, or one file for each split.

    Args:
        paths: File of each split; None where a split has no file.
        seed: Decides the division.
        longest: Length in characters above which a context is left out; None for no limit.

    Raises:
        UserError: A file is wrong, two files share a text, or no context of a split is short enough.
    """
    train = paths["train"]
    contexts = split_texts(read_contexts() if train is None else read_contexts(Path(train)), seed)
    if paths["validation"] or paths["test"]:
        given = {split: read_contexts(Path(path)) for split, path in paths.items() if path}
        contexts = Splits(
            given["train"], given.get("validation", []) or given["test"], given.get("test", []) or given["validation"]
        )
        assert_disjoint(**{str(paths[split]): [c.text for c in texts] for split, texts in given.items()})
    short = {
        split: [c for c in getattr(contexts, split) if longest is None or len(c.text) <= longest] for split in SPLITS
    }
    for split, left in short.items():
        if not left:
            raise UserError("no context is left", where=f"{split} contexts", remedy="raise data.longest_context")
    return Splits(**short)
