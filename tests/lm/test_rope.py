"""Rotary frequencies that depend on the length are chosen for each sequence."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from afintro.lm.forward import packed_logits
from afintro.lm.generate import generate_greedy, generate_steered
from afintro.lm.interventions import Steering
from afintro.lm.load import load_model
from afintro.lm.rope import Threshold, sequence_lengths, thresholds
from afintro.lm.shared_prefix import Prefix, last_log_probabilities

CONTEXT = 12  # tokens of the original context
SIZE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [4.0, 8.0, 16.0, 32.0], "original_max_position_embeddings": CONTEXT, "factor": 4.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
CONFIGS = {
    "longrope": Phi3Config(
        **SIZE, rope_parameters=LONG, original_max_position_embeddings=CONTEXT, max_position_embeddings=48
    ),
    "dynamic": LlamaConfig(**SIZE, rope_parameters=DYNAMIC, max_position_embeddings=CONTEXT),
}
# Below, at and beyond the original context, in an order in which a longer sequence comes before a shorter one.
LENGTHS = (5, 20, 12, 13, 1, 16, 11)


@pytest.fixture(scope="module", params=CONFIGS)
def directory(request, tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("rope") / request.param
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(directory):
    """Return a function that reads one sequence with a model of transformers that has read nothing before."""

    def logits(ids):
        fresh = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
        with torch.no_grad():
            return fresh(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    return logits


def sequences():
    drawn = torch.Generator().manual_seed(1)
    return [torch.randint(3, 64, (length,), generator=drawn).tolist() for length in LENGTHS]


@pytest.mark.parametrize("packed", [True, False])
def test_every_sequence_of_a_pass_is_rotated_as_if_alone(directory, alone, packed):
    model = load_model(str(directory))
    if not packed:
        model.set_attn_implementation("sdpa")
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    ids = torch.tensor([token for sequence in sequences() for token in sequence])
    with torch.no_grad():
        found = packed_logits(model, ids, bounds, torch.arange(len(ids)))
    expected = torch.cat([alone(sequence) for sequence in sequences()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_generation_chooses_what_whole_sequences_choose(directory, alone):
    """Prompts that stay within the original context, leave it while they are continued, and are beyond it already."""
    model = load_model(str(directory))
    prompts = [sequence[:length] for sequence, length in zip(sequences(), (5, 20, 12, 11, 1, 13, 8), strict=True)]
    found = generate_greedy(model, prompts, max_new_tokens=4, eos_ids=(), batch_size=3)
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in tokens:
            assert int(alone(ids)[-1].argmax()) == token
            ids.append(token)


def test_steered_rows_share_a_prompt_that_leaves_the_original_context(directory):
    model = load_model(str(directory))
    vector = torch.linspace(-3, 3, 32)
    conditions = [(), (Steering(0, vector, "decode"),), (Steering(1, -vector, "last"),)]
    options = {"max_new_tokens": 5, "eos_ids": (), "batch_size": 4}
    prompts = [sequences()[0], sequences()[2], sequences()[1]]
    together = generate_steered(model, prompts, [conditions] * 3, **options)
    assert together == [generate_steered(model, [prompt], [conditions], **options)[0] for prompt in prompts]
    assert len({tuple(row) for row in together[1]}) > 1


@pytest.mark.parametrize("lengths", [(4, 3), (10, 5), (14, 2), (0, 13)])
def test_rows_of_a_shared_prefix(directory, alone, lengths):
    prefix, row = sequences()[1][: lengths[0]], sequences()[5][: lengths[1]]
    [scores] = last_log_probabilities(load_model(str(directory)), [Prefix(prefix, None, [row, row[:1]])], [[[7], [7]]])
    for own, score in zip((row, row[:1]), scores, strict=True):
        expected = alone([*prefix, *own])[-1].log_softmax(-1)[[7]]
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-4)


def test_sequence_lengths():
    packed = torch.tensor([[0, 1, 2, 0, 0, 1]])
    assert sequence_lengths(packed).tolist() == [[3, 3, 3, 1, 2, 2]]
    assert sequence_lengths(torch.tensor([[7], [2]])).tolist() == [[8], [3]]
    assert packed.tolist() == [[0, 1, 2, 0, 0, 1]]


def test_when_the_rotation_changes(directory, model_directories):
    two_sets = "longrope" in str(directory)
    [threshold] = thresholds(load_model(str(directory)))
    assert threshold == Threshold(CONTEXT, two_sets)
    assert not threshold.between(5, CONTEXT)
    assert not threshold.between(CONTEXT + 1, CONTEXT + 1)
    assert threshold.between(CONTEXT, CONTEXT + 1)
    assert threshold.between(CONTEXT + 1, CONTEXT + 2) != two_sets
    assert thresholds(load_model(model_directories["llama"])) == []
