"""Architectures without packed attention use padded batches and uncached generation, with the same results."""

import logging

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from afintro.lm.attention import NAME as PACKED
from afintro.lm.forward import packed_logits
from afintro.lm.generate import generate_greedy, generate_steered, reached_limit
from afintro.lm.interventions import Intervention, Steering
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora
from afintro.lm.padded import supports_packed_attention
from afintro.lm.shared_prefix import continuation_nll

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 263}
GROUPED = {**SIZE, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
SINKS = {**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1}
LINEAR = {
    **GROUPED, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "mlp_only_layers": [0, 1, 2],
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
OTHERS = {
    "no attention backend": ("falcon", SIZE),
    "attention sinks": ("gpt_oss", SINKS),
    "linear attention": ("qwen3_next", LINEAR),
    "layers that drop the lengths": ("nemotron", GROUPED),
}
PROMPTS = [[7, 8, 9, 10, 11], [20], [12, 13, 14], [30, 31, 32, 33, 34, 35, 36]]


def drawn(name, settings, directory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings, initializer_range=0.3))
    model.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module", params=OTHERS)
def directory(request, tmp_path_factory):
    name, settings = OTHERS[request.param]
    return drawn(name, settings, tmp_path_factory.mktemp("models") / name)


def one_by_one(model, prompts, new):
    found = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(new):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        found.append(ids[len(prompt) :])
    return found


def test_it_is_said_when_a_model_is_loaded(directory, caplog):
    with caplog.at_level(logging.WARNING):
        model = load_model(directory)
    assert not supports_packed_attention(model)
    assert model.config._attn_implementation != PACKED
    assert "batches are padded" in caplog.text


def test_the_tested_architectures_take_packed_rows(model_directories, architecture, caplog):
    with caplog.at_level(logging.WARNING):
        model = load_model(model_directories[architecture])
    assert model.config._attn_implementation == PACKED
    assert "padded" not in caplog.text


def test_what_is_inside_of_a_tested_architecture_counts_too(model_directories):
    """A wrapper may hold any language model, and a version of an architecture may have learned scores beside its keys."""
    model = load_model(model_directories["llama"])
    assert supports_packed_attention(model)
    model.model.layers[1].self_attn.register_parameter("sinks", torch.nn.Parameter(torch.zeros(4)))
    assert not supports_packed_attention(model)
    for inside, packed in (("mistral", True), ("diffllama", False)):
        text = {**GROUPED, "model_type": inside}
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = AutoConfig.for_model("mistral3", text_config=text, vision_config={**vision, "model_type": "pixtral"})
        with torch.device("meta"):
            assert supports_packed_attention(AutoModelForImageTextToText.from_config(config)) is packed


def test_logits_equal_one_by_one(directory):
    model = load_model(directory)
    ids = torch.tensor([token for prompt in PROMPTS for token in prompt])
    bounds = torch.tensor([0, *map(len, PROMPTS)]).cumsum(0).int()
    positions = torch.tensor([4, 5, 7, 8, 11])
    with torch.no_grad():
        found = packed_logits(model, ids, bounds, positions)
        each = torch.cat([model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0] for prompt in PROMPTS])
    torch.testing.assert_close(found, each[positions], rtol=0, atol=1e-3)  # of numbers around 10


def test_training_through_padding(directory):
    """Training lowers the loss, and an intervention in one sequence changes this sequence alone."""
    torch.manual_seed(0)
    model = add_lora(load_model(directory), Lora(r=4)).train()
    ids, bounds = torch.arange(7, 31), torch.tensor([0, 9, 24], dtype=torch.int32)
    positions = torch.tensor([6, 7, 20, 21])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(packed_logits(model, ids, bounds, positions), ids[positions + 1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[5] < losses[0]
    change = Intervention(1, "add", torch.tensor([3]), torch.linspace(-4, 4, 32)[None])
    with torch.no_grad():
        difference = (
            (packed_logits(model, ids, bounds, positions, [change]) - packed_logits(model, ids, bounds, positions))
            .abs()
            .amax(1)
        )
    assert difference[:2].min() > 1e-3
    assert difference[2:].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [3])
def test_generation(directory, batch_size):
    model = load_model(directory)
    expected, done = one_by_one(model, PROMPTS, 5), []
    options = {"max_new_tokens": 5, "batch_size": batch_size, "on_done": done.append}
    assert generate_greedy(model, PROMPTS, eos_ids=(), **options) == expected
    assert sum(done) == len(PROMPTS)
    stop = expected[0][2]
    ended = [row[: row.index(stop)] if stop in row else row for row in expected]
    found = generate_greedy(model, PROMPTS, eos_ids=(stop,), **options)
    assert found == ended
    assert [reached_limit(row, 5) for row in found] == [stop not in row for row in expected]
    last = generate_greedy(
        model, PROMPTS, eos_ids=(stop,), **{**options, "max_new_tokens": expected[0].index(stop) + 1}
    )
    assert not reached_limit(last[0], expected[0].index(stop) + 1), "its end came with the last allowed token"


def test_the_slow_way_is_the_fast_way(model_directories, plain_model):
    """On a model that the engine can run, uncached generation gives the engine's tokens, with every kind of steering."""
    fast, slow = load_model(model_directories["llama"]), plain_model(model_directories["llama"])
    vectors = torch.linspace(-3, 3, 96).view(3, 32)
    conditions = [
        (),
        (Steering(1, vectors[0], "last"),),
        (Steering(0, vectors[1], "decode", relative=True), Steering(2, vectors[2], "all")),
        (Steering(1, vectors[2], "decode"), Steering(1, vectors[0], "last", relative=True)),
    ]
    options = {"max_new_tokens": 6, "eos_ids": (2,), "batch_size": 3}
    runs = [generate_steered(model, PROMPTS, [conditions] * len(PROMPTS), **options) for model in (fast, slow)]
    assert runs[0] == runs[1]
    assert len({tuple(row) for row in runs[0][0]}) == len(conditions)
    changes = [[Intervention(-1, "replace", torch.tensor([len(p) - 1]), vectors[:1])] for p in PROMPTS]
    runs = [generate_greedy(model, PROMPTS, interventions=changes, **options) for model in (fast, slow)]
    assert runs[0] == runs[1]
    assert runs[0] != generate_greedy(fast, PROMPTS, **options)
    given = [[[9, 10], [5]], [], [[4, 4, 4]], [[8], [], [2]]]
    found, again = (continuation_nll(model, PROMPTS, given) for model in (fast, slow))
    for one, other in zip(found, again, strict=True):
        for row, same in zip(one, other, strict=True):
            assert same == pytest.approx(row, abs=1e-4)
