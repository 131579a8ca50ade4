"""What the introspection study is made of: texts, vectors, layers and doses, none of them in two splits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from afintro.data.introspection_texts import read_concepts, read_contexts, read_questions, read_self_reports
from afintro.data.introspection_texts.items import Context, Question, SelfReport
from afintro.data.introspection_texts.splits import Splits, assert_disjoint, split_texts
from afintro.errors import UserError
from afintro.lm.load import load_config
from afintro.lm.spans import SpanSteering
from afintro.tasks.introspection.concept_vectors import concept_vectors, swap_vectors
from afintro.tasks.introspection.vectors import SPLITS, SplitName, VectorSet, assert_disjoint_vectors, random_vectors
from afintro.toys.embedded import ensure_built

Kind = Literal["random", "concept", "swap"]
Unit = Literal["raw", "residual", "displacement"]


@dataclass
class Doses:
    """Strengths of steering in each split; no strength is in two splits.

    Args:
        train: In units of ``dose_unit``.
        validation: Likewise.
        test: Likewise.
    """

    train: list[float] = field(default_factory=lambda: [0.3, 0.6, 1.2, 2.4])
    validation: list[float] = field(default_factory=lambda: [0.35, 0.7, 1.4, 2.8])
    test: list[float] = field(default_factory=lambda: [0.4, 0.8, 1.6, 3.2])

    def __post_init__(self) -> None:
        for split in SPLITS:
            if not getattr(self, split) or min(getattr(self, split)) <= 0:
                raise UserError("must hold strengths above 0", where=f"data.doses.{split}", remedy="give some")
        assert_disjoint(**{f"data.doses.{split}": map(repr, map(float, getattr(self, split))) for split in SPLITS})


@dataclass(frozen=True)
class Model:
    """The model whose activations are steered.

    Args:
        name: Hub id, directory, or the name of an embedded one.
        revision: On the hub.
    """

    name: str
    revision: str | None = None

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Decoder layers and width, read from its configuration alone."""
        config = load_config(ensure_built(self.name), self.revision).get_text_config()
        return config.num_hidden_layers, config.hidden_size


class Material:
    """Everything that a trial is drawn from.

    Args:
        model: Whose activations are steered.
        contexts: By split.
        seed: Decides, with the texts, the split of questions, self-reports and concepts, and the vectors.
        kind: Of the vectors of the trials; None where nothing is steered.
        count: Random vectors a split.
        layer_ranges: ``thirds`` (early, middle, late), ``middle`` for one layer, or first and one past last of each.
        doses: Strengths by split.
        unit: ``raw`` adds a vector of that norm at each layer and position; ``residual`` one in units of the local
            hidden state's norm; ``displacement`` divides that by the number of layers, so that ranges of different
            width displace equally far.
    """

    def __init__(
        self,
        model: Model,
        contexts: Splits[Context],
        seed: int,
        kind: Kind | None,
        count: int,
        layer_ranges: str | Sequence[Sequence[int]],
        doses: Doses,
        unit: Unit,
    ) -> None:
        self.model, self.contexts, self.seed, self.count = model, contexts, seed, count
        self.kind, self.doses, self.unit = kind, doses, unit
        self.ranges = ranges_of(layer_ranges, model.shape[0])

    @cached_property
    def questions(self) -> dict[str, Splits[Question]]:
        """By style, then by split."""
        styles: dict[str, list[Question]] = {}
        for question in read_questions():
            styles.setdefault(question.style, []).append(question)
        return {style: split_texts(questions, self.seed) for style, questions in styles.items()}

    @cached_property
    def reports(self) -> Splits[SelfReport]:
        """Self-reports and their controls."""
        return split_texts(read_self_reports().items, self.seed)

    def vectors(self, split: SplitName, kind: Kind | None = None) -> VectorSet:
        """Those of one split; of the trials' kind unless another is named. All splits are made, and compared, at once."""
        kind = kind or self.kind
        if kind is None:
            raise ValueError("nothing is steered here")
        return self._made(kind)[split]

    def _made(self, kind: Kind) -> dict[SplitName, VectorSet]:
        if kind not in self._sets:
            name, revision = self.model.name, self.model.revision
            if kind == "random":
                width = self.model.shape[1]
                made = {split: random_vectors(self.count, width, split, self.seed) for split in SPLITS}
            elif kind == "concept":
                made = dict(concept_vectors(name, revision, read_concepts(), seed=self.seed))
            else:
                texts: dict[SplitName, list[Context]] = {split: getattr(self.contexts, split) for split in SPLITS}
                made = dict(swap_vectors(name, revision, texts, count=self.count, seed=self.seed))
            assert_disjoint_vectors(**made)
            self._sets[kind] = made
        return self._sets[kind]

    @cached_property
    def _sets(self) -> dict[Kind, dict[SplitName, VectorSet]]:
        return {}

    def steering(
        self, vector: NDArray[np.float32], layers: tuple[int, int], dose: float, kind: Kind | None = None
    ) -> SpanSteering:
        """Steering of a context by a unit vector. A swap puts a real activation in place, whatever the dose."""
        if (kind or self.kind) == "swap":
            return SpanSteering(vector, layers, 1.0, relative=True, mode="replace")
        size = dose / (layers[1] - layers[0]) if self.unit == "displacement" else dose
        return SpanSteering(vector, layers, size, relative=self.unit != "raw")


def ranges_of(wanted: str | Sequence[Sequence[int]], layers: int) -> list[tuple[int, int]]:
    """Ranges of decoder layers, each as its first and one past its last.

    What the last layer gives out is read by no later token, so it belongs to no range.

    Raises:
        UserError: A range that the model does not have.
    """
    usable = layers - 1
    if wanted == "middle":
        return [(usable // 2, usable // 2 + 1)]
    if isinstance(wanted, str):
        bounds = [usable * part // 3 for part in range(4)]
        found = list(pairwise(bounds))
    else:
        found = [(int(start), int(stop)) for start, stop in wanted]
    for start, stop in found:
        if not 0 <= start < stop <= usable:
            raise UserError(
                f"[{start}, {stop}] of a model with {layers} layers",
                where="data.layer_ranges",
                remedy=f"give first and one past last, from 0 to {usable}: the last layer's output is read by no later token",
            )
    return found


def contexts_of(paths: dict[str, str | None], seed: int, longest: int | None) -> Splits[Context]:
    """Contexts by split: the embedded ones or a file's, divided by hash, or those of a file a split.

    Args:
        paths: Files by split; None for none.
        seed: Decides the division.
        longest: Leaves out longer ones, in characters; None for no limit.
    """
    train = paths["train"]
    whole = read_contexts() if train is None else read_contexts(Path(train))
    splits = split_texts(whole, seed)
    if paths["validation"] or paths["test"]:
        given = {split: read_contexts(Path(path)) for split, path in paths.items() if path}
        splits = Splits(
            given["train"], given.get("validation", []) or given["test"], given.get("test", []) or given["validation"]
        )
        assert_disjoint(**{str(paths[split]): [c.text for c in texts] for split, texts in given.items()})
    short = {
        split: [c for c in getattr(splits, split) if longest is None or len(c.text) <= longest] for split in SPLITS
    }
    for split, left in short.items():
        if not left:
            raise UserError("no context is left", where=f"{split} contexts", remedy="raise data.longest_context")
    return Splits(**short)
