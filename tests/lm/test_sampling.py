"""Sampled tokens follow the model's distribution, and depend on their stream alone."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare, kstest
from transformers import TopPLogitsWarper

from afintro.lm import generate, sampling
from afintro.lm.generate import generate_greedy, generate_sampled
from afintro.lm.load import load_model
from afintro.lm.sampling import RowDraws, Sampling, gumbel_noise, nucleus, philox, stream_of

LENGTHS = (9, 1, 30, 2, 17, 3)
NEW = 12
HOT = Sampling(0.9, 0.95)


def words(*numbers):
    return tuple(torch.tensor([number]) for number in numbers)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_published_answers_of_philox(counter, key, expected):
    """The known answers of the Random123 library, ``kat_vectors``."""
    assert tuple(int(word) for word in philox(words(*counter), words(*key))) == expected


def test_noise_is_gumbel_noise_and_differs_by_stream_step_and_token():
    streams = torch.tensor([[1, 0], [0, 1], [1, 0]])
    noise = gumbel_noise(streams, torch.tensor([0, 0, 1]), 4001)
    assert noise.shape == (3, 4001)
    assert len(noise.unique()) > 0.999 * noise.numel()
    for row in noise:
        assert kstest(row.double().numpy(), "gumbel_r").pvalue > 0.01
    assert torch.equal(gumbel_noise(streams[1:2], torch.tensor([0]), 17), noise[1:2, :17])


def test_noise_is_finite_at_both_ends(monkeypatch):
    for word in (0, 0xFFFFFFFF):
        monkeypatch.setattr(sampling, "philox", lambda c, _, word=word: (torch.full_like(c[0], word),) * 4)
        assert gumbel_noise(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, dtype=torch.long), 4).isfinite().all()


def test_streams_are_named_by_all_that_they_are_given():
    names = [(0, "a", "monitored", 1), (0, "a", "monitored", 2), (1, "a", "monitored", 1), (0, "a1", "monitored", 1)]
    streams = [stream_of(*name) for name in names]
    assert len(set(streams)) == 4
    assert all(0 <= stream < 2**64 for stream in streams)
    assert stream_of(0, "a", "monitored", 1) == streams[0] == 0x44CDFFCF4A3FDD6E


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (2.0, 0.6)])
def test_tokens_follow_the_distribution(temperature, top_p):
    logits = torch.tensor([2.0, 1.0, -1.0, 0.5, 0.0, 2.0, -torch.inf])
    count = 20_000
    draws = RowDraws(Sampling(temperature, top_p), count, torch.device("cpu"))
    draws.put([stream_of("coin", sample) for sample in range(count)], [0] * count)
    found = Counter(draws.next(logits.expand(count, -1)).tolist())
    wanted = (logits / temperature).softmax(-1)
    if top_p < 1:
        wanted = TopPLogitsWarper(top_p)(None, (logits / temperature)[None])[0].softmax(-1)
    assert set(found) == set(wanted.nonzero()[:, 0].tolist())
    kept = sorted(found)
    shares = wanted[kept].double()
    assert chisquare([found[token] for token in kept], (shares / shares.sum() * count).numpy()).pvalue > 0.01


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.95, 0.999])
@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("size", [263, 5000])
def test_the_nucleus_is_that_of_transformers(top_p, spread, size):
    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(5)) * spread
    expected = TopPLogitsWarper(top_p)(None, logits.double()) > -torch.inf
    assert torch.equal(nucleus(logits.double().softmax(-1), top_p), expected)


def test_of_equally_likely_tokens_the_first_ids_belong_to_the_nucleus():
    probabilities = torch.tensor([[0.125, 0.25, 0.125, 0.25, 0.125, 0.125]])
    assert nucleus(probabilities, 0.6).tolist() == [[True, True, False, True, False, False]]
    assert nucleus(probabilities, 0.63).tolist() == [[True, True, True, True, False, False]]
    assert nucleus(probabilities, 0.2).tolist() == [[False, True, False, False, False, False]]
    many = torch.full((2, 4096), 1 / 4096)  # more than are sorted at once
    assert nucleus(many, 0.125).sum(-1).tolist() == [512, 512]
    assert nucleus(many, 0.125)[:, :512].all()


@pytest.mark.parametrize(
    "numbers", [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, 1.1)]
)
def test_numbers_out_of_range(numbers):
    with pytest.raises(ValueError, match="must be above 0"):
        Sampling(*numbers)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(23)
    return [torch.randint(7, 263, (length,), generator=generator).tolist() for length in LENGTHS]


def streams_of(prompts, samples=3):
    return [[stream_of(7, str(prompt), sample) for sample in range(samples)] for prompt in prompts]


def run(model, prompts, streams, batch_size, eos=(), how=HOT, new=NEW, **options):
    return generate_sampled(
        model, prompts, streams, how, max_new_tokens=new, eos_ids=eos, batch_size=batch_size, **options
    )


def by_hand(reference, prompt, stream, how):
    """Draw one token after the other from a plain model that keeps nothing."""
    ids = list(prompt)
    for step in range(NEW):
        with torch.inference_mode():
            logits = reference(torch.tensor([ids])).logits[:, -1].float()
        scores = TopPLogitsWarper(how.top_p)(None, logits / how.temperature)
        noise = gumbel_noise(torch.tensor([[stream & 0xFFFFFFFF, stream >> 32]]), torch.tensor([step]), 263)
        ids.append(int((scores + noise).argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def expected(model_directories, plain_model, prompts):
    found = {}
    for name, directory in model_directories.items():
        reference = plain_model(directory)
        found[name] = [
            [by_hand(reference, prompt, stream, HOT) for stream in of_prompt]
            for prompt, of_prompt in zip(prompts, streams_of(prompts), strict=True)
        ]
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_changes_no_token(model, architecture, expected, prompts, batch_size):
    assert run(model, prompts, streams_of(prompts), batch_size) == expected[architecture]


def test_order_changes_no_token(model, architecture, expected, prompts):
    backwards = [of_prompt[::-1] for of_prompt in streams_of(prompts)[::-1]]
    found = run(model, prompts[::-1], backwards, 4)
    assert [of_prompt[::-1] for of_prompt in found[::-1]] == expected[architecture]


def test_what_is_generated_besides_changes_no_token(model, architecture, expected, prompts):
    """A part of the prompts, and one sample of each, as after a run that was killed."""
    streams = streams_of(prompts)
    assert run(model, prompts[2:4], streams[2:4], 16) == expected[architecture][2:4]
    alone = run(model, prompts, [of_prompt[1:2] for of_prompt in streams], 4)
    assert alone == [of_prompt[1:2] for of_prompt in expected[architecture]]


def test_an_end_of_sequence_ends_its_row_alone(model, architecture, expected, prompts):
    eos = {row[5] for of_prompt in expected[architecture][::2] for row in of_prompt}
    wanted = [
        [row[: next((i for i, token in enumerate(row) if token in eos), NEW)] for row in of_prompt]
        for of_prompt in expected[architecture]
    ]
    assert run(model, prompts, streams_of(prompts), 4, eos) == wanted
    assert len({len(row) for of_prompt in wanted for row in of_prompt}) > 3


def test_without_kept_keys_the_tokens_are_the_same(model, architecture, expected, prompts, monkeypatch):
    monkeypatch.setattr(generate, "uses_packed_attention", lambda _: False)
    assert run(model, prompts[:3], streams_of(prompts)[:3], 4) == expected[architecture][:3]


def test_samples_of_a_prompt_differ_and_its_prefix_is_read_once(model_directories, prompts):
    model, read = load_model(model_directories["llama"]), []
    model.register_forward_pre_hook(lambda _, __, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    found = run(model, prompts, streams_of(prompts, 5), 64)
    assert all(len({tuple(row) for row in of_prompt}) == 5 for of_prompt in found)
    assert read == [sum(LENGTHS) - len(LENGTHS), *[1] * NEW]


def test_almost_no_temperature_is_greedy(model_directories, prompts):
    model = load_model(model_directories["llama"])
    greedy = generate_greedy(model, prompts, max_new_tokens=NEW, eos_ids=(), batch_size=4)
    cold = run(model, prompts, streams_of(prompts, 2), 4, how=Sampling(1e-6))
    assert cold == [[row, row] for row in greedy]
    assert run(model, prompts, streams_of(prompts, 1), 4, how=Sampling(1.0, 1e-9)) == [[row] for row in greedy]


def test_a_prompt_without_streams_has_no_sample(model_directories, prompts):
    done = []
    model = load_model(model_directories["llama"])
    found = run(model, prompts[:2], [[], [3]], 4, on_done=done.append)
    assert [len(of_prompt) for of_prompt in found] == [0, 1]
    assert sum(done) == 2
