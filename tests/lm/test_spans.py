"""Steering of spans equals interventions written out position by position."""

import numpy as np
import pytest
import torch

from afintro.lm.forward import packed_logits
from afintro.lm.interventions import Intervention
from afintro.lm.load import load_model
from afintro.lm.spans import Spans, SpanSteering, spans

IDS = torch.tensor([*range(10, 17), *range(30, 34), *range(50, 62)])
BOUNDS = torch.tensor([0, 7, 11, 23], dtype=torch.int32)
ENDS = torch.tensor([6, 10, 22])
STARTS, LENGTHS = [0, 7, 11], [4, 3, 9]
CPU = torch.device("cpu")


def unit(seed):
    vector = np.random.default_rng(seed).standard_normal(32).astype(np.float32)
    return vector / np.linalg.norm(vector)


STEERINGS = [
    SpanSteering(unit(0), (0, 2), 3.0),
    None,
    SpanSteering(unit(1), (1, 3), 0.7, relative=True),
]


def test_equals_interventions_written_out(model_directories, architecture):
    model = load_model(model_directories[architecture], dtype="float64")
    found = packed_logits(model, IDS, BOUNDS, ENDS, spans(STEERINGS, STARTS, LENGTHS, CPU))
    by_hand = []
    for start, length, steering in zip(STARTS, LENGTHS, STEERINGS, strict=True):
        if steering is not None:
            vectors = torch.from_numpy(steering.size * steering.vector).expand(length, -1)
            positions = torch.arange(start, start + length)
            by_hand += [
                Intervention(layer, "add", positions, vectors, steering.relative) for layer in range(*steering.layers)
            ]
            for change, own in zip(steering.on(length, CPU), by_hand[-2:], strict=True):
                assert (change.layer, change.mode, change.relative) == (own.layer, own.mode, own.relative)
                assert torch.equal(change.positions + start, own.positions)
                torch.testing.assert_close(change.vectors, own.vectors)
    expected = packed_logits(model, IDS, BOUNDS, ENDS, by_hand)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    plain = packed_logits(model, IDS, BOUNDS, ENDS)
    assert torch.equal(found[1], plain[1]), "a sequence that is left alone stays as it is"
    assert (found[0] - plain[0]).abs().max() > 1e-3
    assert (found[2] - plain[2]).abs().max() > 1e-3


def test_one_change_a_layer_mode_and_unit():
    steerings = [
        SpanSteering(unit(0), (0, 3), 1.0),
        SpanSteering(unit(1), (1, 2), 2.0),
        SpanSteering(unit(2), (1, 2), 1.0, relative=True, mode="replace"),
    ]
    found = spans(steerings, [0, 5, 9], [2, 1, 3], CPU)
    assert [(change.layer, change.mode, change.relative) for change in found] == [
        (0, "add", False), (1, "add", False), (1, "replace", True), (2, "add", False),
    ]  # fmt: skip
    assert found[1].positions.tolist() == [0, 1, 5]
    assert found[1].rows.tolist() == [0, 0, 1]
    assert found[1].vectors.norm(dim=1).tolist() == pytest.approx([1.0, 2.0])
    assert found[2].positions.tolist() == [9, 10, 11]


def test_replacing_in_relative_size_keeps_the_norm():
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    vector = torch.from_numpy(unit(3))[None]
    change = Spans(0, "replace", torch.tensor([1, 3]), torch.tensor([0, 0]), vector, True)
    changed = change.apply(hidden)
    torch.testing.assert_close(changed.norm(dim=-1), hidden.norm(dim=-1))
    assert torch.equal(changed[0, [0, 2, 4]], hidden[0, [0, 2, 4]])
    direction = torch.nn.functional.normalize(changed[0, 1], dim=0)
    torch.testing.assert_close(direction, vector[0])


def test_an_empty_span_is_no_change():
    assert spans([SpanSteering(unit(0), (0, 1), 1.0)], [0], [0], CPU) == []


@pytest.mark.parametrize("layers", [(2, 2), (3, 1), (-1, 1)])
def test_layers_that_are_no_range_are_refused(layers):
    with pytest.raises(ValueError, match="range"):
        SpanSteering(unit(0), layers, 1.0)
