"""A LoRA on the embedding: interventions, injection, generation, export, import and merging as with any other LoRA."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from afintro.errors import UserError
from afintro.explainer.adapters import export_adapter, import_adapter
from afintro.lm.capture import embedding_norm, read_states
from afintro.lm.generate import generate_greedy
from afintro.lm.injection import Injection, VectorSpace, make_injector
from afintro.lm.interventions import Intervention, intervene
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora
from tests.conftest import save_small_model
from tests.lm.test_load import logits

LORA = Lora(r=4, alpha=8, target_modules=["all-linear", "embed_tokens"])
PROMPTS = [[1, 5, 40, 41, 6], [1, 5, 77, 6]]


def wrapped(directory):
    """Load a model with an adapter on the embedding and on every linear layer, which changes what the model says."""
    model = add_lora(load_model(str(directory)), LORA).eval()
    drawn = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += (0.5 if "embedding" in name else 0.1) * torch.randn(parameter.shape, generator=drawn)
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def directory(request, tmp_path_factory):
    """A small Llama whose vocabulary matrix is a weight of its own, or is the embedding."""
    folder = tmp_path_factory.mktemp("embedding") / "model"
    return save_small_model(folder, seed=0, tie_word_embeddings=request.param)


def test_is_on_the_embedding_and_on_every_linear_layer_but_the_head(directory):
    model = add_lora(load_model(str(directory)), LORA)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum("embed_tokens.lora_embedding" in name for name in trained) == 2
    assert len(trained) == 2 + 2 * 7 * 2
    assert not [name for name in trained if "lm_head" in name]


def test_a_fresh_one_changes_nothing(directory):
    model = load_model(str(directory))
    before = logits(model)
    assert torch.equal(logits(add_lora(model, LORA).eval()), before)


@pytest.mark.parametrize("layer", [-1, 0])
def test_interventions_fire_and_widths_are_checked(directory, layer):
    model, ids = wrapped(directory), torch.tensor([PROMPTS[0]])
    vectors = torch.ones(1, 32)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with intervene(model, [Intervention(layer, "add", torch.tensor([2]), vectors)]) as fired:
            after = model(input_ids=ids).logits
    assert fired == [1]
    assert torch.equal(after[0, :2], before[0, :2])
    assert not torch.equal(after[0, 2:], before[0, 2:])
    with (
        pytest.raises(ValueError, match="31"),
        intervene(model, [Intervention(0, "add", torch.tensor([2]), vectors[:, 1:])]),
    ):
        pass


@pytest.mark.parametrize("site", ["embedding", "residual"])
def test_vectors_are_injected(directory, site):
    model = wrapped(directory)
    injector = make_injector(model, VectorSpace(24, (1,)), Injection(site=site, layer=1, projection=True))
    assert injector.projection.weight.shape == (32, 24)
    vocabulary = load_model(str(directory)).config.vocab_size
    norms = [float(read_states(model, [[token]], [-1])[-1].norm()) for token in (0, vocabulary - 1)]
    assert embedding_norm(model, 2) == pytest.approx(sum(norms) / 2, rel=1e-5)


def test_generation_chooses_what_whole_passes_choose(directory):
    model = wrapped(directory)
    ours = generate_greedy(model, PROMPTS, max_new_tokens=8, eos_ids=[2], batch_size=2)
    for prompt, new in zip(PROMPTS, ours, strict=True):
        with torch.no_grad():
            said = model(input_ids=torch.tensor([[*prompt, *new]])).logits[0].argmax(-1).tolist()
        assert said[len(prompt) - 1 : -1] == new
        assert len(new) > 2


def test_an_export_holds_the_adapter_alone_and_all_ways_of_loading_agree(directory, tmp_path):
    model = wrapped(directory)
    said = logits(model)
    assert (said - logits(load_model(str(directory)))).abs().max() > 0.1
    export_adapter(model, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in stored)
    assert len(stored) == 2 + 2 * 7 * 2
    again = add_lora(load_model(str(directory)), LORA).eval()
    import_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), said)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(directory), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(stock), said, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load_model(str(tmp_path / "adapter"))), said, atol=1e-4, rtol=1e-4)


def test_merging_keeps_what_every_architecture_says(model_directories, architecture, tmp_path):
    """Gemma scales what its embedding says, and so the adapter's part of it."""
    model = wrapped(model_directories[architecture])
    export_adapter(model, tmp_path)
    torch.testing.assert_close(logits(load_model(str(tmp_path))), logits(model), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("gone", ["embed_tokens.lora_embedding_A", "self_attn.q_proj.lora_A.weight"])
def test_an_adapter_without_a_weight_is_refused(directory, tmp_path, gone):
    export_adapter(wrapped(directory), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.endswith(gone)}, file)
    with pytest.raises(UserError) as error:
        load_model(str(tmp_path))
    assert gone in str(error.value)
