"""Packed attention equals attention written out in full with a block-diagonal mask."""

from itertools import product
from unittest.mock import create_autospec

import pytest
import torch
import torch.nn.attention.varlen as varlen
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from afintro.lm import attention
from afintro.lm.attention import NAME, packed_attention, packed_forward
from afintro.lm.forward import packed_logits
from afintro.lm.load import load_model

BOUNDS = torch.tensor([0, 4, 5, 17], dtype=torch.int32)
HEADS, KV_HEADS, WIDTH = 4, 2, 6
VARIANTS = list(product((None, 3, 5), (None, 2.0), (None, 0.7)))  # window, softcap, scaling


def tensors():
    generator = torch.Generator().manual_seed(3)
    total = int(BOUNDS[-1])
    shapes = [(1, heads, total, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def in_full(query, key, value, window, softcap, scaling):
    """Return attention ``[1, T, heads, width]`` by its definition: every pair of tokens, a mask, a softmax."""
    total = query.shape[2]
    owner = torch.bucketize(torch.arange(total), BOUNDS[1:].long(), right=True)
    distance = torch.arange(total)[:, None] - torch.arange(total)
    visible = (owner[:, None] == owner) & (distance >= 0) & (distance < (window or total))
    parts = []
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        scores = query[0, head] @ key[0, group].T * (WIDTH**-0.5 if scaling is None else scaling)
        scores = scores if softcap is None else softcap * (scores / softcap).tanh()
        parts.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value[0, group])
    return torch.stack(parts, 1)[None]


@pytest.mark.parametrize(("window", "softcap", "scaling"), VARIANTS)
def test_equals_attention_in_full(window, softcap, scaling):
    query, key, value = tensors()
    found, weights = packed_attention(
        nn.Module(), query, key, value, None, scaling, cu_seq_lens_q=BOUNDS, max_length_q=12, sliding_window=window,
        softcap=softcap,
    )  # fmt: skip
    assert weights is None
    # With a softcap the softmax runs in float32, as transformers' eager attention does it.
    tolerance = 1e-12 if softcap is None else 1e-6
    torch.testing.assert_close(found, in_full(query, key, value, window, softcap, scaling), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("window", "scaling"), [(None, None), (3, 0.7)])
def test_the_varlen_kernel_is_asked_for_the_same_attention(monkeypatch, window, scaling):
    """The CUDA path calls the kernel, here replaced by its contract with the real signature."""

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert torch.equal(cu_seq_q, BOUNDS)
        assert torch.equal(cu_seq_k, BOUNDS)
        assert max_q == max_k == 12
        assert enable_gqa
        assert query.shape == (17, HEADS, WIDTH)
        assert key.shape == value.shape == (17, KV_HEADS, WIDTH)  # not repeated
        back, ahead = window_size
        assert ahead == 0  # causal
        inside = None if back == -1 else back + 1
        grouped = [tensor.transpose(0, 1)[None] for tensor in (key, value)]
        return in_full(query.transpose(0, 1)[None], *grouped, inside, None, scale)[0]

    monkeypatch.setattr(varlen, "varlen_attn", create_autospec(varlen.varlen_attn, side_effect=kernel))
    query, key, value = tensors()
    flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    found = attention._varlen_cuda(*flat, BOUNDS, 12, scaling, window)
    torch.testing.assert_close(found, in_full(query, key, value, window, None, scaling)[0], rtol=0, atol=1e-12)


def test_the_kernel_gets_the_dtype_of_autocast(monkeypatch):
    """Weights in float32 under ``precision: bf16-mixed``: rotary embeddings give queries and keys in float32.

    The kernel of CUDA takes no float32, and one sequence after the other takes several times as long.
    """
    asked, sdpa = set(), torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **settings):
        asked.update((query.dtype, key.dtype, value.dtype))
        return sdpa(query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    query, key, value = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = packed_attention(
            nn.Module(), query.float(), key.float(), value.bfloat16(), None, cu_seq_lens_q=BOUNDS, max_length_q=12
        )
    assert asked == {torch.bfloat16}
    assert found.dtype == torch.bfloat16
    expected = in_full(query, key, value, None, None, None)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.03)
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 as it is
        found, _ = packed_attention(nn.Module(), query, key, value, None, cu_seq_lens_q=BOUNDS, max_length_q=12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_no_square_mask_is_built_for_a_packed_row(monkeypatch, model_directories, architecture):
    model = load_model(model_directories[architecture])

    def refuse(*_, **__):
        raise AssertionError("a [T, T] mask was asked for")

    monkeypatch.setattr(attention, "sdpa_mask", refuse)
    packed_logits(model, torch.arange(7, 24), BOUNDS, torch.tensor([16]))
    with pytest.raises(AssertionError, match="mask was asked for"):
        model(input_ids=torch.arange(7, 24)[None])


def test_the_packed_mark_ends_with_its_block():
    assert not attention._packed.get()
    with packed_forward():
        with packed_forward():
            assert attention._packed.get()
        assert attention._packed.get()
    assert not attention._packed.get()
    with pytest.raises(RuntimeError, match="inside"), packed_forward():
        raise RuntimeError("inside")
    assert not attention._packed.get()


def test_left_padded_rows_outside_of_packing_equal_plain_transformers_without_padding(
    model_directories, architecture, plain_model
):
    ids = torch.arange(7, 55).view(2, 24)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model, reference = (
        load_model(model_directories[architecture], dtype="float64"),
        plain_model(model_directories[architecture], torch.float64),
    )
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        expected = torch.cat([reference(input_ids=ids[:1, 9:]).logits[0], reference(input_ids=ids[1:]).logits[0]])
    # Not 1e-9: a softcapped softmax is float32, and sums in another order where there is padding.
    torch.testing.assert_close(found[mask.bool()], expected, rtol=0, atol=1e-5 if architecture == "gemma2" else 1e-9)


def test_one_unpadded_row_outside_of_packing_equals_plain_transformers(model_directories, architecture, plain_model):
    ids = torch.arange(7, 31)[None]
    with torch.no_grad():
        found = load_model(model_directories[architecture], dtype="float64")(input_ids=ids).logits
        expected = plain_model(model_directories[architecture], torch.float64)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_values_of_another_width_than_queries():
    query, key, value = tensors()
    wider = torch.cat([value, -value], -1)
    found, _ = packed_attention(nn.Module(), query, key, wider, None, cu_seq_lens_q=BOUNDS, max_length_q=12)
    expected = in_full(query, key, value, None, None, None)
    torch.testing.assert_close(found, torch.cat([expected, -expected], -1), rtol=0, atol=1e-12)


def test_a_packed_pass_without_lengths_is_refused():
    """The layers of Nemotron drop them: its sequences would see each other."""
    query, key, value = tensors()
    with pytest.raises(RuntimeError, match="lengths"), packed_forward():
        packed_attention(nn.Module(), query, key, value, None)
    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    size |= {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("nemotron", **size), attn_implementation=NAME)
    with pytest.raises(RuntimeError, match="lengths"):
        packed_logits(model, torch.arange(7, 24), BOUNDS, torch.tensor([16]))


def test_a_mask_beside_the_lengths_is_refused():
    query, key, value = tensors()
    mask = torch.zeros(1, 1, 17, 17, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="mask"), packed_forward():
        packed_attention(nn.Module(), query, key, value, mask, cu_seq_lens_q=BOUNDS, max_length_q=12)


def test_the_name_is_registered(model_directories):
    model = AutoModelForCausalLM.from_pretrained(model_directories["llama"], attn_implementation=NAME)
    assert model.config._attn_implementation == "afintro_packed"
