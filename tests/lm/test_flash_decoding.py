"""Decoding by the CUDA kernel, here replaced by its contract in float, gives the same tokens as dense decoding."""

import inspect
from itertools import pairwise

import pytest
import torch

from afintro.lm import engine, flash_decoding
from afintro.lm.decoding import Decoding, KVSlots, PrefixWriter
from afintro.lm.flash_decoding import FlashDecoding
from afintro.lm.generate import generate_greedy, generate_sampled, generate_steered
from afintro.lm.interventions import Steering
from afintro.lm.load import load_model
from afintro.lm.sampling import Sampling

LENGTHS = (9, 1, 30, 2, 7, 17, 8, 3, 22, 5)


def reference(query, keys, values, bounds, lengths, most, scaling):
    """Compute what ``flash`` promises; queries of no sequence and tokens beyond a sequence's end are poison."""
    output, total = torch.full_like(query, torch.nan), query.new_full((len(query),), torch.nan, dtype=torch.float32)
    assert bounds.dtype == lengths.dtype == torch.int32
    assert len(keys) == len(values) == len(lengths) == len(bounds) - 1
    assert bounds[0] == 0
    assert bounds[-1] == len(query)
    for sequence, (begin, end) in enumerate(pairwise(bounds.tolist())):
        assert end - begin <= most
        count = int(lengths[sequence])
        assert count <= keys.shape[1]
        scale = query.shape[1] ** -0.5 if scaling is None else scaling
        scores = query[begin:end] @ keys[sequence, :count].T * scale
        total[begin:end] = scores.float().logsumexp(-1)
        output[begin:end] = scores.softmax(-1) @ values[sequence, :count]
    return output, total


@pytest.fixture
def calls(monkeypatch):
    """Use FlashDecoding on the CPU, and return how many queries each call of the kernel had."""
    found = []

    def counted(*arguments):
        found.append(len(arguments[0]))
        return reference(*arguments)

    assert list(inspect.signature(reference).parameters) == list(inspect.signature(flash_decoding.flash).parameters)
    monkeypatch.setattr(flash_decoding, "flash", counted)
    monkeypatch.setattr(flash_decoding, "fits_flash", lambda *_: True)
    monkeypatch.setattr(flash_decoding, "SMALLEST", 2)
    monkeypatch.setattr(engine, "Decoding", FlashDecoding)
    return found


@pytest.fixture
def poison(monkeypatch):
    """Make everything that was not written NaN."""
    write = KVSlots.write

    def poisoned(self, layer, key, value, slots, columns):
        for kept, tensor in ((self.keys, key), (self.values, value)):
            if layer not in kept:
                kept[layer] = tensor.new_full(
                    (self.count, tensor.shape[-2], self.capacity, tensor.shape[-1]), torch.nan
                )
        write(self, layer, key, value, slots, columns)

    monkeypatch.setattr(KVSlots, "write", poisoned)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(41)
    return [torch.randint(7, 263, (length,), generator=generator).tolist() for length in LENGTHS]


DRAWN = torch.randn(2, 32, generator=torch.Generator().manual_seed(31))
CONDITIONS = [
    (),
    (Steering(1, 12 * DRAWN[0], "last"),),
    (Steering(1, 12 * DRAWN[0], "all"),),
    (Steering(0, 5 * DRAWN[1]), Steering(0, DRAWN[0] / 6, relative=True), Steering(2, 5 * DRAWN[0], "last")),
]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("slots", [3, 64])
def test_greedy_tokens_with_slots_refilled_at_different_times(
    model_directories, architecture, prompts, calls, slots, monkeypatch
):
    model = load_model(model_directories[architecture])
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Decoding", Decoding)
        patch.setattr(KVSlots, "write", WRITE)
        wanted = [
            generate_greedy(model, [prompt], max_new_tokens=12, eos_ids=range(0, 263, 9), batch_size=1)[0]
            for prompt in prompts
        ]
    assert len({len(tokens) for tokens in wanted}) > 4
    if architecture in (
        "mistral",
        "gemma2",
        "gemma3_text",
    ):  # whose window is narrower than what is read: dense, no NaN
        monkeypatch.setattr(KVSlots, "write", WRITE)
    found = generate_greedy(model, prompts, max_new_tokens=12, eos_ids=range(0, 263, 9), batch_size=slots)
    assert found == wanted
    assert bool(calls) == (architecture not in ("mistral", "gemma2"))


WRITE = KVSlots.write


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    ("slots", "share"),
    [(4, True), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((6, False), (64, True), (64, False)))],
)
def test_conditions_of_shared_prompts(model_directories, prompts, calls, slots, share, monkeypatch):
    model = load_model(model_directories["llama"])
    asked = [CONDITIONS[: 1 + index % 4] for index in range(len(prompts))]
    options = {"max_new_tokens": 8, "eos_ids": range(0, 263, 9)}
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Decoding", Decoding)
        patch.setattr(KVSlots, "write", WRITE)
        wanted = [
            [generate_steered(model, [prompt], [[condition]], batch_size=1, **options)[0][0] for condition in own]
            for prompt, own in zip(prompts, asked, strict=True)
        ]
    assert generate_steered(model, prompts, asked, batch_size=slots, share_prefix=share, **options) == wanted
    assert calls


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("slots", [4, 64])
def test_samples_of_shared_prompts(model_directories, prompts, calls, slots, monkeypatch):
    """Rows of slots without a row draw along, and rows that move take their streams with them."""
    model, how = load_model(model_directories["llama"]), Sampling(0.9, 0.95)
    streams = [list(range(9 * index, 9 * index + 1 + index % 4)) for index in range(len(prompts))]
    options = {"max_new_tokens": 8, "eos_ids": range(0, 263, 9)}
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Decoding", Decoding)
        patch.setattr(KVSlots, "write", WRITE)
        wanted = [
            [generate_sampled(model, [prompt], [[stream]], how, batch_size=1, **options)[0][0] for stream in own]
            for prompt, own in zip(prompts, streams, strict=True)
        ]
    assert generate_sampled(model, prompts, streams, how, batch_size=slots, **options) == wanted
    assert len({len(row) for own in wanted for row in own}) > 4
    assert calls


class TestSizes:
    @pytest.mark.parametrize(
        ("slots", "rows", "size"),
        [(256, 256, 256), (256, 129, 256), (256, 128, 128), (256, 1, 16), (100, 20, 25), (13, 1, 13), (1, 1, 1)],
    )
    def test_few_of_them(self, slots, rows, size):
        assert FlashDecoding(KVSlots(slots, 4, torch.device("cpu")), None).size(rows) == size


def test_attention_over_a_shared_prompt_equals_that_over_one_slot(calls):
    """Both layouts and dense decoding agree on the same keys and values, also beside slots without a row."""
    generator = torch.Generator().manual_seed(1)
    device, lengths, owners = torch.device("cpu"), [5, 0, 9], [2, 0, None, 2, 1, 2]
    packed = torch.randn(2, 1, 2, 14, 8, generator=generator)
    starts = [0, 5, 5]

    def shared(kind):
        slots = KVSlots(4, 9, device)
        PrefixWriter(slots, [0, 1, 2], lengths).collect(0, *packed)
        state = kind(KVSlots(6, 4, device), slots)
        state.place(owners, [0] * 6, lengths)
        return state

    slots = KVSlots(6, 13, device)
    rows = [row for row, owner in enumerate(owners) if owner is not None]
    held = [0 if owner is None else lengths[owner] for owner in owners]
    index = [starts[owners[row]] + j for row in rows for j in range(held[row])]
    PrefixWriter(slots, rows, [held[row] for row in rows]).collect(0, *packed[:, :, :, index])
    apart = FlashDecoding(slots, None)
    apart.place([None if owner is None else 0 for owner in owners], held, [])
    states = [shared(Decoding), shared(FlashDecoding), apart]
    for _ in range(3):
        query, key, value = (torch.randn(6, heads, 1, 8, generator=generator) for heads in (6, 2, 2))
        found = []
        for state in states:
            state.prepare(6)
            found.append(state.attend(0, query, key, value, 0.3, None, None)[rows])
            state.advance()
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-6)
    assert len(calls) == 3 * (2 + 1)


def test_the_kernel_takes_values_as_wide_as_queries_alone():
    """Latent attention (DeepSeek) has narrower values, and falls back."""

    class OnCuda(torch.Tensor):
        is_cuda = True

    query, narrow = (torch.zeros(1, 2, 1, size, dtype=torch.bfloat16).as_subclass(OnCuda) for size in (16, 8))
    assert flash_decoding.fits_flash(query, query, query)
    assert not flash_decoding.fits_flash(query, query, narrow)
