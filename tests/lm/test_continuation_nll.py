"""The surprise of continuations is the same as by a plain forward pass, and each prompt is read once."""

import pytest
import torch

from afintro.lm.load import load_model
from afintro.lm.shared_prefix import continuation_nll

LENGTHS = (9, 1, 30, 2, 7, 17, 8)  # below, at and above the sliding window of 8, not sorted


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(22)
    return [torch.randint(7, 263, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def continuations(prompts):
    """Draw continuations of different lengths for every prompt, some of them empty, and none for one prompt."""
    generator = torch.Generator().manual_seed(5)
    sizes = [(3, 0, 12, 1), (4, 9), (1,), (), (0, 0), (20, 2, 5), (8, 8)]
    drawn = [[torch.randint(0, 263, (size,), generator=generator).tolist() for size in own] for own in sizes]
    drawn[5][0][:7] = range(7)  # special tokens are read as any other
    return drawn


# The logits are taken in float32.
@pytest.mark.parametrize(
    ("dtype", "within", "tokens"),
    [("float64", 2e-6, 1), ("float64", 2e-6, 30), ("float64", 2e-6, 8192), ("float32", 1e-3, 30)],
)
def test_continuation_nll_is_that_of_a_plain_forward_pass(
    model_directories, architecture, plain_model, prompts, continuations, tokens, dtype, within
):
    model = load_model(model_directories[architecture], dtype=dtype)
    reference = plain_model(model_directories[architecture], torch.float64)
    found = continuation_nll(model, prompts, continuations, tokens=tokens)
    assert [[len(nll) for nll in own] for own in found] == [[len(ids) for ids in own] for own in continuations]
    for prompt, own, measured in zip(prompts, continuations, found, strict=True):
        for ids, nll in zip(own, measured, strict=True):
            if ids:
                with torch.inference_mode():
                    logits = reference(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
                wanted = -logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
                torch.testing.assert_close(torch.tensor(nll, dtype=torch.float64), wanted, rtol=within, atol=within)


def test_continuation_nll_leaves_its_input_alone_and_reads_the_prefix_once(model_directories, prompts, continuations):
    llama, shapes = load_model(model_directories["llama"]), []
    before = [[list(ids) for ids in own] for own in continuations]
    first = continuation_nll(llama, prompts, continuations)
    llama.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    assert continuation_nll(llama, prompts, continuations) == first
    read = sum(length - 1 for length, own in zip(LENGTHS, continuations, strict=True) if any(own))
    # All prompts with a continuation that holds anything, then those: each behind its prompt's last token.
    assert shapes == [(1, read), (11, 21)]
    assert continuations == before
    assert continuation_nll(llama, prompts[::-1], continuations[::-1]) == first[::-1]
    assert continuation_nll(llama, [], []) == []
    shapes.clear()
    assert continuation_nll(llama, prompts[:1], [[[], []]]) == [[[], []]]
    assert shapes == []
