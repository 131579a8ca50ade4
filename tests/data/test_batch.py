"""Check every tensor of the packed batch, and the interventions of a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from afintro.data.batch import Context, Example, Slot, collate, interventions_of
from afintro.lm.injection import Injection, Injector, VectorSpace
from afintro.lm.interventions import Intervention
from afintro.lm.spans import Spans, SpanSteering

# Three examples: (prompt, answer, weight).
EXAMPLES = tuple(
    Example(f"u{i}", f"s{i}", "question", "prompt", "answer", prompt, answer, weight)
    for i, (prompt, answer, weight) in enumerate(
        [((10, 11, 12), (20, 2), 1.0), ((13,), (2,), 0.5), ((14, 15), (21, 22, 2), 2.0)]
    )
)
# Vectors in the first and the last of them.
VECTORS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
WITH_SLOTS = (
    replace(EXAMPLES[0], slot=Slot(2, 30, VECTORS[0])),
    EXAMPLES[1],
    replace(EXAMPLES[2], slot=Slot(1, 9, VECTORS[1], 0.5)),
)
SLOTS = ("slot_positions", "slot_vectors", "slot_layers", "slot_scales")
TENSORS = ("input_ids", "cu_seqlens", "answer_positions", "answer_ids", "answer_rows", "weights", *SLOTS)


def test_golden():
    batch = collate(EXAMPLES)
    golden = {
        "input_ids": (torch.int64, [10, 11, 12, 20, 2, 13, 2, 14, 15, 21, 22, 2]),
        "cu_seqlens": (torch.int32, [0, 5, 7, 12]),
        "answer_positions": (torch.int64, [2, 3, 5, 8, 9, 10]),
        "answer_ids": (torch.int64, [20, 2, 2, 21, 22, 2]),
        "answer_rows": (torch.int64, [0, 0, 1, 2, 2, 2]),
        "weights": (torch.float32, [1.0, 0.5, 2.0]),
        "slot_positions": (torch.int64, []),
        "slot_vectors": (torch.float32, []),
        "slot_layers": (torch.int64, []),
        "slot_scales": (torch.float32, []),
    }
    assert {name: (getattr(batch, name).dtype, getattr(batch, name).tolist()) for name in TENSORS} == golden
    assert batch.denominator == len(batch) == 3
    assert batch.examples == EXAMPLES


def test_golden_of_slots():
    """Positions are counted in the row, where the third example begins at 7; slots change no other tensor."""
    batch, without = collate(WITH_SLOTS), collate(EXAMPLES)
    golden = {
        "slot_positions": (torch.int64, [2, 8]),
        "slot_vectors": (torch.float32, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        "slot_layers": (torch.int64, [30, 9]),
        "slot_scales": (torch.float32, [1.0, 0.5]),
    }
    assert {name: (getattr(batch, name).dtype, getattr(batch, name).tolist()) for name in SLOTS} == golden
    assert batch.input_ids[batch.slot_positions].tolist() == [12, 15]
    assert all(torch.equal(getattr(batch, name), getattr(without, name)) for name in TENSORS if name not in SLOTS)
    assert collate(WITH_SLOTS[::-1]).slot_positions.tolist() == [1, 9]
    assert collate(WITH_SLOTS).examples == WITH_SLOTS


def test_the_token_after_each_answer_position_is_the_answer_token():
    batch = collate(EXAMPLES)
    assert torch.equal(batch.input_ids[batch.answer_positions + 1], batch.answer_ids)
    for row, example in enumerate(EXAMPLES):
        start = int(batch.cu_seqlens[row])
        positions = batch.answer_positions[batch.answer_rows == row]
        assert tuple(batch.answer_ids[batch.answer_rows == row].tolist()) == example.answer_ids
        assert positions.min() == start + len(example.prompt_ids) - 1  # the last prompt token
        assert positions.max() == start + len(example) - 2  # not the last answer token: it predicts nothing


def test_exact_where_every_answer_token_is_the_arg_max():
    batch = collate(EXAMPLES)
    right = torch.nn.functional.one_hot(batch.answer_ids, 30).float()
    assert batch.exact(right).tolist() == [True, True, True]
    for position, row in enumerate(batch.answer_rows.tolist()):
        logits = right.clone()
        logits[position, 7] = 2.0
        assert batch.exact(logits).tolist() == [other != row for other in range(3)]
    assert batch.exact(right).dtype == torch.bool


def test_the_denominator_is_the_configured_batch_size_also_for_a_short_last_batch():
    assert collate(EXAMPLES, denominator=16).denominator == 16
    assert collate(EXAMPLES[:1]).denominator == 1


def test_to_moves_every_tensor_and_keeps_the_rest():
    batch = collate(WITH_SLOTS, denominator=7)
    moved = batch.to("meta")
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}
    assert {getattr(batch, name).device.type for name in TENSORS} == {"cpu"}
    assert (moved.denominator, moved.examples) == (7, WITH_SLOTS)
    again = batch.to("cpu", non_blocking=True)
    assert all(torch.equal(getattr(again, name), getattr(batch, name)) for name in TENSORS)


def test_length_of_an_example():
    assert [len(example) for example in EXAMPLES] == [5, 2, 5]


@pytest.mark.parametrize(("prompt", "answer"), [((), (5, 2)), ((5,), ())])
def test_an_empty_prompt_or_answer_is_refused(prompt, answer):
    """No token would predict the first answer token (but the last of the sequence before); an empty mean is NaN."""
    with pytest.raises(ValueError, match="u9"):
        collate([EXAMPLES[0], Example("u9", "", "", "", "", prompt, answer)])


def test_interventions_are_the_vectors_at_their_slots_and_the_steering_of_the_contexts():
    """Positions are counted in the row: the three examples begin at 0, 5 and 7."""
    steering = SpanSteering(VECTORS[0] / np.linalg.norm(VECTORS[0]), (1, 3), 2.0)
    examples = (
        replace(WITH_SLOTS[0], context=Context(2, steering=steering)),
        EXAMPLES[1],
        replace(WITH_SLOTS[2], context=Context(1, stop_gradient=False, steering=steering)),
    )
    injector = Injector(VectorSpace(4, (9, 30)), 4, Injection(), norm=3.0)
    changes, detached = interventions_of(collate(examples), injector)
    slots, *contexts = changes
    assert isinstance(slots, Intervention)
    assert (slots.layer, slots.mode, slots.positions.tolist()) == (-1, "replace", [2, 8])
    torch.testing.assert_close(slots.vectors.norm(dim=1), torch.tensor([3.0, 1.5]))
    assert [(change.layer, change.positions.tolist()) for change in contexts] == [(1, [0, 1, 7]), (2, [0, 1, 7])]
    assert all(isinstance(change, Spans) for change in contexts)
    assert detached.nonzero()[:, 0].tolist() == [0, 1]


def test_interventions_of_a_batch_without_any():
    assert interventions_of(collate(EXAMPLES), None) == ([], None)
    with pytest.raises(RuntimeError, match="vector"):
        interventions_of(collate(WITH_SLOTS), None)
