"""Pack examples into a batch: sequences end to end in one row, without padding, and the interventions on the row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afintro.lm.injection import Injector, Injectors
from afintro.lm.spans import Located, SpanSteering, spans


@dataclass(frozen=True)
class Context:
    """The first part of a prompt, which the rest of the prompt reads as if an earlier pass had cached it.

    Args:
        length: Number of tokens of the context, counted from the first token of the prompt.
        stop_gradient: Whether no gradient flows through the keys and values of the context.
        steering: Steering of the residual stream at the positions of the context; None for no steering.
    """

    length: int
    stop_gradient: bool = True
    steering: SpanSteering | None = None


@dataclass(frozen=True)
class Slot:
    """Where a vector enters a prompt.

    Args:
        position: Position of the slot token in the prompt.
        layer: 0-based layer of the explained model that the vector comes from.
        vector: ``[width]`` float32; its norm does not matter.
        scale: Multiplier on the norm of the injected vector.
        space: Name of the space that the vector is of, where an explainer reads vectors of several; "" otherwise.
    """

    position: int
    layer: int
    vector: NDArray[np.float32] = field(compare=False, repr=False)
    scale: float = 1.0
    space: str = ""


@dataclass(frozen=True)
class Example:
    """One question about one record, as token ids and as text.

    Args:
        uid: Identifier, unique in its split.
        scenario_id: Examples with the same identifier are resampled together.
        question_type: Type of the question, e.g. ``generative_explanation``.
        prompt: The question as a person reads it.
        answer: The expected answer.
        prompt_ids: Token ids of the rendered prompt.
        answer_ids: Token ids of the answer, end of sequence included unless the answer is cut.
        weight: Weight of this example in the loss.
        branches: Token ids of the beginning of an answer that says "unchanged", and of one that says "changed"; None if the
            question has no verdict.
        copy_answer: The answer of a baseline that sees the monitored output and expects no change; None for no baseline.
        slot: The vector that stands in the prompt; None if the task has no vectors.
        context: The part of the prompt that is read first; None if the task has no contexts.
        group: Group that macro averages are taken over, e.g. the category of a feature.
        twins: Examples with the same value have the same text and opposite verdicts; "" for an example without twin.
        notes: Further facts that the task keeps of the example.
        cut: Whether the answer is a text that was cut at a limit of tokens: no end of sequence follows, and every answer that
            begins with it is right.
        facets: Label, source and category of the sample that the example is about, as far as they are known; metrics are
            reported by groups of items with the same value, see :mod:`afintro.evaluation.groups`.
    """

    uid: str
    scenario_id: str
    question_type: str
    prompt: str
    answer: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    weight: float = 1.0
    branches: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    copy_answer: str | None = None
    slot: Slot | None = None
    context: Context | None = None
    group: str = ""
    twins: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    cut: bool = False
    facets: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def sizes_of(examples: Sequence[Example]) -> NDArray[np.int32]:
    """Return the numbers of tokens of each example's prompt and answer, ``[n, 2]``.

    A sequence that knows them as its attribute ``sizes`` is not iterated.
    """
    known: NDArray[np.int32] | None = getattr(examples, "sizes", None)
    if known is not None:
        return known
    flat = (len(ids) for example in examples for ids in (example.prompt_ids, example.answer_ids))
    return np.fromiter(flat, np.int32, 2 * len(examples)).reshape(-1, 2)


class PackedBatch:
    """B examples as one row of T tokens, A of them answer tokens.

    Args:
        input_ids: ``[T]`` int64.
        cu_seqlens: ``[B + 1]`` int32, where each sequence begins, and T.
        answer_positions: ``[A]`` int64, the positions whose logits predict the answer tokens.
        answer_ids: ``[A]`` int64, the answer tokens.
        answer_rows: ``[A]`` int64, the index of the example that each answer token belongs to.
        weights: ``[B]`` float32, weight of each example in the loss.
        denominator: Divisor of the weighted sum of losses: the configured batch size, also for the short last batch, or with
            a budget of tokens the mean number of examples in a row. No example's gradient then depends on how examples were
            batched or gradients accumulated.
        examples: The examples, in order.
        slot_positions: ``[S]`` int64, positions of slot tokens in the row.
        slot_vectors: ``[S, width]`` float32, the vectors that enter at the slots; width 0 if there are no slots. Where vectors of
            several widths are together, the shorter ones end with zeros.
        slot_layers: ``[S]`` int64, the layer that each vector comes from.
        slot_scales: ``[S]`` float32, multiplier on the norm of each injected vector.
        slot_spaces: ``[S]``, the name of the space of each vector.

    The class is not a dataclass, because Lightning would take a dataclass apart to convert the dtype of its tensors.
    """

    def __init__(
        self,
        *,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        answer_positions: Tensor,
        answer_ids: Tensor,
        answer_rows: Tensor,
        weights: Tensor,
        denominator: float,
        examples: tuple[Example, ...],
        slot_positions: Tensor,
        slot_vectors: Tensor,
        slot_layers: Tensor,
        slot_scales: Tensor,
        slot_spaces: tuple[str, ...] = (),
    ) -> None:
        self.input_ids = input_ids
        self.cu_seqlens = cu_seqlens
        self.answer_positions = answer_positions
        self.answer_ids = answer_ids
        self.answer_rows = answer_rows
        self.weights = weights
        self.denominator = denominator
        self.examples = examples
        self.slot_positions = slot_positions
        self.slot_vectors = slot_vectors
        self.slot_layers = slot_layers
        self.slot_scales = slot_scales
        self.slot_spaces = slot_spaces

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """Return the batch with its tensors on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return PackedBatch(**moved)

    def exact(self, logits: Tensor) -> Tensor:
        """Return whether the arg-max of ``logits [A, vocabulary]`` is every token of each expected answer: ``[B]`` bool."""
        wrong = (logits.argmax(-1) != self.answer_ids).long()
        return wrong.new_zeros(len(self)).index_add(0, self.answer_rows, wrong) == 0

    def __len__(self) -> int:
        return len(self.examples)


def collate(examples: Sequence[Example], denominator: float | None = None) -> PackedBatch:
    """Pack examples into one row.

    Args:
        examples: At least one.
        denominator: See :class:`PackedBatch`; the number of examples if None.

    Raises:
        ValueError: An example has no prompt tokens or no answer tokens.
    """
    ids: list[int] = []
    bounds = [0]
    positions: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    for row, example in enumerate(examples):
        if not example.prompt_ids or not example.answer_ids:
            raise ValueError(f"example {example.uid!r} has no {'answer' if example.prompt_ids else 'prompt'} tokens")
        # The token at position p predicts the one after it, hence the "- 1".
        first = bounds[-1] + len(example.prompt_ids) - 1
        positions.extend(range(first, first + len(example.answer_ids)))
        targets.extend(example.answer_ids)
        rows.extend([row] * len(example.answer_ids))
        ids.extend(example.prompt_ids)
        ids.extend(example.answer_ids)
        bounds.append(len(ids))
    slots = [example.slot for example in examples if example.slot is not None]
    return PackedBatch(
        input_ids=torch.tensor(ids),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        answer_positions=torch.tensor(positions),
        answer_ids=torch.tensor(targets),
        answer_rows=torch.tensor(rows),
        weights=torch.tensor([example.weight for example in examples]),
        denominator=denominator or len(examples),
        examples=tuple(examples),
        slot_positions=torch.tensor(
            [bounds[row] + example.slot.position for row, example in enumerate(examples) if example.slot is not None],
            dtype=torch.long,
        ),
        slot_vectors=_stacked([slot.vector for slot in slots]),
        slot_layers=torch.tensor([slot.layer for slot in slots], dtype=torch.long),
        slot_scales=torch.tensor([slot.scale for slot in slots], dtype=torch.float32),
        slot_spaces=tuple(slot.space for slot in slots),
    )


def _stacked(vectors: Sequence[NDArray[np.float32]]) -> Tensor:
    """Return vectors as the rows of a matrix, the shorter ones with zeros behind them."""
    widest = max((len(vector) for vector in vectors), default=0)
    rows = np.zeros((len(vectors), widest), np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        row[: len(vector)] = vector
    return torch.from_numpy(rows)


class BatchInterventions(NamedTuple):
    """The interventions of a batch on the forward pass over its row.

    Attributes:
        changes: Changes of the residual stream, positions counted in the row.
        detached: ``[T]`` bool, the positions through whose keys and values no gradient flows; None where gradient flows
            through all of them.
    """

    changes: list[Located]
    detached: Tensor | None


def interventions_of(batch: PackedBatch, injector: Injector | Injectors | None) -> BatchInterventions:
    """Return the interventions of a batch: its vectors at their slots, and the steering of its contexts.

    Args:
        batch: The packed examples; everything returned is on the device of its tensors.
        injector: Turns vectors into continuous tokens; None for a task without vectors.

    Raises:
        RuntimeError: A prompt holds a vector and there is no injector.
    """
    device = batch.input_ids.device
    changes: list[Located] = []
    if len(batch.slot_positions):
        if injector is None:
            raise RuntimeError("a prompt holds a vector, but the data module named no vector space")
        tokens = injector(batch.slot_vectors.to(injector.dtype), batch.slot_layers, batch.slot_spaces)
        changes.append(injector.intervention(batch.slot_positions, tokens * batch.slot_scales[:, None]))
    contexts = [example.context or Context(0, stop_gradient=False) for example in batch.examples]
    lengths = [context.length for context in contexts]
    starts = [0, *accumulate(map(len, batch.examples))][:-1]
    changes += spans([context.steering for context in contexts], starts, lengths, device)
    if not any(context.stop_gradient for context in contexts):
        return BatchInterventions(changes, None)
    detached = torch.zeros(len(batch.input_ids), dtype=torch.bool)
    for context, start in zip(contexts, starts, strict=True):
        if context.stop_gradient:
            detached[start : start + context.length] = True
    return BatchInterventions(changes, detached.to(device))
