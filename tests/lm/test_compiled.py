"""Compiled and recomputed decoder layers give the same results and lose no intervention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from afintro.errors import UserError
from afintro.lm import compiled
from afintro.lm.compiled import checkpoint_layers, compile_layers
from afintro.lm.forward import packed_logits
from afintro.lm.generate import generate_greedy, generate_sampled
from afintro.lm.interventions import Intervention, decoder_layers, intervene
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora
from afintro.lm.sampling import Sampling

IDS = torch.arange(7, 31)
BOUNDS = torch.tensor([0, 9, 24], dtype=torch.int32)
POSITIONS = torch.tensor([5, 6, 20, 21])


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Trace graphs and run them without code generation, which is all that could lose a hook."""
    torch.compiler.reset()
    plain, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled.torch, "compile", lambda f, **options: plain(f, backend=backend, **options))
    yield graphs
    torch.compiler.reset()


def trained(directory):
    torch.manual_seed(1)
    model = add_lora(load_model(directory, dtype="float64"), Lora(r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def step(model, changes):
    vectors = torch.linspace(-2, 2, 64, dtype=torch.float64).view(2, 32).requires_grad_()
    made = [change(vectors) for change in changes]
    with intervene(model, made) as fired:
        logits = packed_logits(model, IDS, BOUNDS, POSITIONS)
        F.cross_entropy(logits, IDS[POSITIONS + 1]).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return logits.detach(), gradients, vectors.grad, list(fired)


CHANGES = [
    lambda vectors: Intervention(-1, "replace", torch.tensor([2, 9]), vectors),
    lambda vectors: Intervention(1, "add", torch.tensor([3, 20]), 2 * vectors, relative=True),
]


# Which layers are compiled differs little between architectures: two stand for all where time counts.
ARCHITECTURES = [
    "llama", "gemma2", *(pytest.param(name, marks=pytest.mark.long) for name in ("mistral", "qwen3", "gemma3_text"))
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_interventions_survive_compilation(model_directories, architecture, traced):
    eager, model = trained(model_directories[architecture]), trained(model_directories[architecture])
    compile_layers(model)
    plain = step(model, [])  # compiled without hooks: what comes later must still fire
    assert traced
    for changes in (CHANGES, [], CHANGES[:1], CHANGES):
        expected, found = step(eager, changes), step(model, changes)
        assert found[3] == [1] * len(changes)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
        for name, gradient in expected[1].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-12)
        if changes:
            assert expected[2].abs().max() > 0
            torch.testing.assert_close(found[2], expected[2], rtol=0, atol=1e-12)
            assert (found[0] - plain[0]).abs().max() > 1e-3


@pytest.mark.slow
def test_layers_share_their_graphs(model_directories, traced):
    """Three layers need as many graphs as one, so compilation takes as long for 64 layers as for two."""
    counts = []
    for layers in (1, 3):
        torch.compiler.reset()
        traced.clear()
        model = trained(model_directories["llama"])
        decoder = model.get_base_model().get_decoder()
        decoder.layers = decoder.layers[:layers]
        compile_layers(model)
        with torch.no_grad():
            packed_logits(model, IDS, BOUNDS, POSITIONS)
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_rows_of_any_number_of_sequences_share_their_graphs(model_directories, traced, architecture):
    model = trained(model_directories[architecture])
    compile_layers(model)
    with torch.no_grad():
        packed_logits(model, IDS, BOUNDS, POSITIONS)
        graphs = len(traced)
        for starts in ([0, 24], [0, 3, 10, 24], [0, 5, 6, 7, 15, 24]):
            packed_logits(model, IDS, torch.tensor(starts, dtype=torch.int32), POSITIONS)
    assert len(traced) == graphs > 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", pytest.param("gemma2", marks=pytest.mark.long)])
def test_generation_through_compiled_layers(model_directories, architecture):
    prompts = [[7, 8, 9, 10], [20, 21], [11, 12, 13, 14, 15, 16]]
    eager, model = trained(model_directories[architecture]), trained(model_directories[architecture])
    compile_layers(model)
    runs = [
        generate_greedy(network.eval(), prompts, max_new_tokens=6, eos_ids=[2], batch_size=2)
        for network in (eager, model)
    ]
    assert runs[0] == runs[1]


@pytest.mark.long
def test_sampling_through_compiled_layers(model_directories):
    prompts = [[7, 8, 9, 10], [20, 21], [11, 12, 13, 14, 15, 16]]
    eager, model = trained(model_directories["llama"]), trained(model_directories["llama"])
    compile_layers(model)
    sampled = [
        generate_sampled(
            network.eval(),
            prompts,
            [[1, 2], [3], [4, 5]],
            Sampling(0.9, 0.9),
            max_new_tokens=6,
            eos_ids=[2],
            batch_size=2,
        )
        for network in (eager, model)
    ]
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize(
    ("share", "layers"), [(0, []), (1, [0, 1, 2]), (0.5, [1]), (0.34, [2]), (0.67, [1, 2]), (1 / 3, [2])]
)
def test_checkpointing_of_a_share(model_directories, share, layers):
    reference, model = trained(model_directories["llama"]), trained(model_directories["llama"])
    checkpoint_layers(model.get_base_model(), share)
    runs = [0] * 3
    for index, layer in enumerate(decoder_layers(model)):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    expected, found = step(reference, CHANGES), step(model, CHANGES)
    assert runs == [2 if index in layers else 1 for index in range(3)]
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_no_such_share(model_directories, share):
    with pytest.raises(UserError, match="gradient_checkpointing"):
        checkpoint_layers(load_model(model_directories["llama"]), share)
