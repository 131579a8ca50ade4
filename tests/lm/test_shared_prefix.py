"""A prefix that is read once for all its rows gives the same scores as reading every row alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from afintro.lm import shared_prefix as branches
from afintro.lm.attention import NAME
from afintro.lm.interventions import Intervention, decoder_layers, intervene
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora
from afintro.lm.shared_prefix import Prefix, last_log_probabilities, lens_logits, row_log_probabilities
from afintro.lm.spans import SpanSteering
from benchmarks.architectures.checks import Case

VECTOR = np.linspace(-1, 1, 32, dtype=np.float32) / np.linalg.norm(np.linspace(-1, 1, 32))
STEERED = SpanSteering(VECTOR.astype(np.float32), (0, 2), 4.0)
PREFIXES = [
    Prefix(tuple(range(10, 23)), STEERED, [(40, 41, 42), (50,), tuple(range(60, 71))]),
    Prefix(tuple(range(10, 23)), None, [(40, 41, 42)]),
    Prefix((), None, [(7, 8, 9), (30, 31)]),
    Prefix((5,), STEERED, [(7, 8), (9,)]),
]
WANTED = [[(1, 99)] * len(prefix.rows) for prefix in PREFIXES]


def alone(model, prefix, row):
    """Return log-probabilities ``[n, vocabulary]`` after every token of a row, computed by transformers."""
    ids = torch.tensor([[*prefix.ids, *row]])
    changes = []
    if prefix.steering is not None:
        steered = ids.shape[1] if prefix.staying else len(prefix.ids)
        vectors = torch.from_numpy(prefix.steering.size * prefix.steering.vector).expand(steered, -1)
        changes = [
            Intervention(layer, "add", torch.arange(steered), vectors) for layer in range(*prefix.steering.layers)
        ]
    with torch.inference_mode(), intervene(model, changes):
        logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits.double().log_softmax(-1)[len(prefix.ids) :]


@pytest.mark.parametrize("tokens", [1, 40, 8192])
def test_last_log_probabilities_are_those_of_whole_sequences(model_directories, architecture, plain_model, tokens):
    model = load_model(model_directories[architecture])
    reference = plain_model(model_directories[architecture], torch.float64)
    found = last_log_probabilities(model, PREFIXES, WANTED, tokens=tokens)
    for prefix, scores in zip(PREFIXES, found, strict=True):
        for row, score in zip(prefix.rows, scores, strict=True):
            expected = alone(reference, prefix, row)[-1][[1, 99]]
            torch.testing.assert_close(score.double(), expected, rtol=0, atol=2e-4)


def test_batched_equals_one_by_one_to_a_millionth(model_directories, architecture):
    """The study's evaluations rely on this margin in float32."""
    model = load_model(model_directories[architecture])
    together = last_log_probabilities(model, PREFIXES, WANTED)
    for p, prefix in enumerate(PREFIXES):
        for r, row in enumerate(prefix.rows):
            [[score]] = last_log_probabilities(model, [Prefix(prefix.ids, prefix.steering, [row])], [[WANTED[p][r]]])
            scale = max(1.0, float(score.abs().max()))
            torch.testing.assert_close(together[p][r], score, rtol=0, atol=1e-6 * 10 * scale)


def test_rows_without_kept_keys_give_the_same(model_directories, monkeypatch):
    model = load_model(model_directories["llama"], dtype="float64")
    kept = last_log_probabilities(model, PREFIXES, WANTED)
    scores = row_log_probabilities(model, PREFIXES[:2], [[2, 0, 5], [1]])
    monkeypatch.setattr(branches, "uses_packed_attention", lambda _: False)
    anew = last_log_probabilities(model, PREFIXES, WANTED)
    for own, other in zip(kept, anew, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)
    again = row_log_probabilities(model, PREFIXES[:2], [[2, 0, 5], [1]])
    assert [[len(row) for row in own] for own in again] == [[2, 0, 5], [1]]
    for own, other in zip(again, scores, strict=True):
        for row, same in zip(own, other, strict=True):
            assert row == pytest.approx(same, abs=1e-5)


@pytest.mark.parametrize("kept", [True, False])
def test_steering_may_stay_on_in_the_rows(model_directories, plain_model, monkeypatch, kept):
    """Prefixes of similar length whose steering ends with the prefix, or without steering, are in the same pass."""
    model = load_model(model_directories["llama"])
    reference = plain_model(model_directories["llama"], torch.float64)
    monkeypatch.setattr(branches, "uses_packed_attention", lambda _: kept)
    both = [change for prefix in PREFIXES for change in (prefix, replace(prefix, staying=True))]
    found = last_log_probabilities(model, both, [wanted for wanted in WANTED for _ in range(2)])
    for prefix, scores in zip(both, found, strict=True):
        for row, score in zip(prefix.rows, scores, strict=True):
            expected = alone(reference, prefix, row)[-1][[1, 99]]
            torch.testing.assert_close(score.double(), expected, rtol=0, atol=2e-4)
    assert (found[0][0] - found[1][0]).abs().max() > 0.01
    assert torch.equal(found[4][0], found[5][0])  # nothing stays where nothing was


def test_row_log_probabilities_are_of_the_last_tokens(model_directories, plain_model):
    model = load_model(model_directories["qwen3"])
    reference = plain_model(model_directories["qwen3"], torch.float64)
    [[_, _, found], _] = row_log_probabilities(model, PREFIXES[:2], [[1, 0, 4], [2]])
    row = PREFIXES[0].rows[2]
    expected = alone(reference, PREFIXES[0], row)[range(6, 10), row[7:]]
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)


def test_a_prefix_is_read_once(model_directories):
    model = load_model(model_directories["llama"])
    shapes = []
    decoder_layers(model)[0].register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2])),
        with_kwargs=True,
    )
    last_log_probabilities(model, PREFIXES[:1], WANTED[:1])
    assert shapes == [(1, 13), (3, 11)]


def test_the_last_layer_of_the_lens_is_the_model(model_directories):
    model = load_model(model_directories["llama"], dtype="float64")
    lens = lens_logits(model, PREFIXES, [1, 99])
    scores = last_log_probabilities(model, PREFIXES, WANTED)
    for own, other in zip(lens, scores, strict=True):
        for by_layer, score in zip(own, other, strict=True):
            assert by_layer.shape == (3, 2)
            torch.testing.assert_close(by_layer[-1].diff(), score.diff(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["nemotron", "gpt_oss", "gpt2", "deepseek_v3", "gemma3"])
def test_the_last_layer_of_the_lens_is_the_model_in_other_architectures(name):
    """Padded batches, other names of the final norm, values of another width, and wrappers."""
    model = Case(name).model
    prefixes = [Prefix((20, 21, 22), None, [(30, 31, 32), (40,)]), Prefix((23,), None, [(33, 34)])]
    lens = lens_logits(model, prefixes, [15, 50])
    scores = last_log_probabilities(model, prefixes, [[(15, 50)] * 2, [(15, 50)]])
    for own, other in zip(lens, scores, strict=True):
        for by_layer, score in zip(own, other, strict=True):
            torch.testing.assert_close(by_layer[-1].diff(), score.diff(), rtol=0, atol=1e-3)


def test_an_adapter_takes_part_and_can_be_left_out(model_directories):
    base = load_model(model_directories["llama"])
    plain = last_log_probabilities(base, PREFIXES, WANTED)
    model = add_lora(base, Lora(r=2)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    assert model.get_base_model().config._attn_implementation == NAME
    changed = last_log_probabilities(model, PREFIXES, WANTED)
    assert (changed[0][0] - plain[0][0]).abs().max() > 1e-3
    with model.disable_adapter():
        again = last_log_probabilities(model, PREFIXES, WANTED)
    torch.testing.assert_close(again[0], plain[0], rtol=0, atol=1e-6)


def test_no_rows_no_pass(model_directories):
    model = load_model(model_directories["llama"])
    assert last_log_probabilities(model, [Prefix((1, 2), None, [])], [[]]) == [[]]
    assert last_log_probabilities(model, [], []) == []
