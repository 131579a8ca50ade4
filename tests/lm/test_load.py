"""Models load from directories, adapter directories and a made-up hub cache; what is wrong with them is refused by name."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from afintro.errors import UserError
from afintro.lm.adapter import find_adapter
from afintro.lm.load import context_length, fingerprint, load_config, load_model, load_tokenizer

IDS = torch.arange(40, 60)[None]
LOADERS = pytest.mark.parametrize("load", [load_model, load_tokenizer, load_config])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def save_adapter(base, directory, seed=0, safe=True):
    """Save a PEFT adapter directory whose update is not zero."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, settings).save_pretrained(directory)
    if not safe:
        torch.save(load_file(directory / "adapter_model.safetensors"), directory / "adapter_model.bin")
        (directory / "adapter_model.safetensors").unlink()
    return directory


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def llama(model_directories, tmp_path):
    """Return a copy of the Llama directory that a test may damage."""
    return Path(shutil.copytree(model_directories["llama"], tmp_path / "llama"))


@pytest.fixture
def adapter(model_directories, plain_model, tmp_path):
    return save_adapter(plain_model(model_directories["llama"]), tmp_path / "adapter")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function that puts a directory into a hub cache; the commit's hash is made from the revision's name."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name, directory, revision="main"):
        home, commit = tmp_path / "hub" / f"models--{name.replace('/', '--')}", f"{sum(revision.encode()):040x}"
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(commit)
        shutil.copytree(directory, home / "snapshots" / commit)
        return name

    return put


# What comes back.


def test_a_directory_loads_as_a_plain_model_in_eval_mode(model_directories, architecture, plain_model):
    model = load_model(model_directories[architecture], dtype="float64")
    assert not model.training
    assert model.dtype == torch.float64
    expected = logits(plain_model(model_directories[architecture], torch.float64))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtypes_of_models_and_merged_adapters(model_directories, adapter, dtype):
    for name in (model_directories["llama"], str(adapter)):
        model = load_model(name, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_an_adapter_directory_loads_merged(model_directories, adapter, plain_model):
    model = load_model(str(adapter))
    assert not isinstance(model, PeftModel)
    assert not model.training
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    expected = PeftModel.from_pretrained(plain_model(model_directories["llama"]), adapter).eval()
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-4)
    assert (logits(model) - logits(plain_model(model_directories["llama"]))).abs().max() > 0.1


def test_an_adapter_on_an_adapter_is_merged_into_the_merged(adapter, tmp_path):
    """The second adapter was trained on the first one's merged model."""
    second = save_adapter(load_model(str(adapter)), tmp_path / "second", seed=1)
    edit_json(second / "adapter_config.json", base_model_name_or_path=str(adapter))
    found = load_model(str(second))
    expected = PeftModel.from_pretrained(load_model(str(adapter)), second).eval()
    assert not [name for name, _ in found.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(found), logits(expected), rtol=1e-4, atol=1e-3)


def test_an_adapters_tokenizer_and_config_are_its_bases(adapter, tokenizer):
    assert load_tokenizer(str(adapter)).get_vocab() == tokenizer.get_vocab()
    assert load_config(str(adapter)).model_type == "llama"


def test_an_adapters_own_tokenizer_comes_first(adapter, tokenizer):
    tokenizer.save_pretrained(adapter)
    edit_json(adapter / "tokenizer_config.json", model_max_length=77)
    assert load_tokenizer(str(adapter)).model_max_length == 77


def test_find_adapter(adapter, model_directories):
    assert find_adapter(adapter).base == model_directories["llama"]
    assert find_adapter(model_directories["llama"]) is None
    assert find_adapter("no/such") is None


def test_tokenizer_round_trip(model_directories, tokenizer):
    loaded = load_tokenizer(model_directories["qwen3"])
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded("<|user|>a b")["input_ids"] == tokenizer("<|user|>a b")["input_ids"]


def test_context_length(model_directories):
    assert context_length(load_config(model_directories["gemma2"])) == 512
    assert context_length(object()) is None


# A hub cache, offline.


def test_a_cached_hub_model_loads_offline_at_its_revision(hub, model_directories, plain_model):
    hub("tiny/model", model_directories["llama"])
    hub("tiny/model", model_directories["mistral"], revision="other")
    assert load_config("tiny/model").model_type == "llama"
    assert load_config("tiny/model", revision="other").model_type == "mistral"
    assert load_tokenizer("tiny/model", revision="other").eos_token_id == 2
    torch.testing.assert_close(logits(load_model("tiny/model")), logits(plain_model(model_directories["llama"])))
    torch.testing.assert_close(
        logits(load_model("tiny/model", revision="other")), logits(plain_model(model_directories["mistral"]))
    )
    with pytest.raises(UserError, match="tiny/model"):
        load_model("tiny/model", revision="third")


def test_a_cached_hub_adapter_loads_merged_too(hub, adapter):
    """Otherwise LoRA layers would stay inside, and the explainer's adapter would be stacked on them."""
    hub("tiny/adapter", adapter)
    model = load_model("tiny/adapter")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(model), logits(load_model(str(adapter))))


def test_a_cached_hub_adapters_tokenizer_and_config_are_its_bases(hub, adapter, tokenizer):
    hub("tiny/adapter", adapter)
    assert load_config("tiny/adapter").model_type == "llama"
    assert load_tokenizer("tiny/adapter").get_vocab() == tokenizer.get_vocab()


def test_a_cached_hub_adapters_base_has_the_revision_that_the_adapter_names(hub, adapter, model_directories):
    hub("tiny/model", model_directories["mistral"])
    hub("tiny/model", model_directories["llama"], revision="trained")
    expected = logits(load_model(str(adapter)))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="tiny/model", revision="trained")
    hub("tiny/adapter", adapter)
    assert load_config("tiny/adapter").model_type == "llama"
    torch.testing.assert_close(logits(load_model("tiny/adapter")), expected)


# What is refused, as a UserError that names the model.


@LOADERS
@pytest.mark.parametrize("name", ["no/such-model", "no-such-model", "/no/such/directory", "not a name:"])
def test_an_unknown_name_offline(load, name):
    with pytest.raises(UserError) as caught:
        load(name)
    assert caught.value.where == f"model '{name}'"
    assert "cannot be loaded" in caught.value.what
    assert all(word in caught.value.remedy for word in ("HF_HOME", "HF_HUB_OFFLINE", "local"))


def test_an_unknown_dtype(model_directories):
    with pytest.raises(UserError, match="'half'") as error:
        load_model(model_directories["llama"], dtype="half")
    assert "float32, bfloat16, float16, float64" in error.value.remedy


def test_pickled_weights(llama, plain_model):
    torch.save(plain_model(llama).state_dict(), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()
    with pytest.raises(UserError, match="llama"):
        load_model(str(llama))


def test_pickled_adapter_weights_are_refused(model_directories, plain_model, tmp_path):
    adapter = save_adapter(plain_model(model_directories["llama"]), tmp_path / "adapter", safe=False)
    with pytest.raises(UserError, match="adapter"):
        load_model(str(adapter))


@LOADERS
@pytest.mark.parametrize("kind", ["llama", "unheard_of"])
def test_code_beside_the_weights_is_never_run(llama, load, kind):
    ran = llama / "ran"
    (llama / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\nclass M: pass\nclass T: pass\n")
    classes = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M", "AutoTokenizer": ["theirs.T", None]}
    edit_json(llama / "config.json", auto_map=classes, model_type=kind)
    edit_json(llama / "tokenizer_config.json", auto_map=classes)
    # What transformers knows itself needs no foreign code, and loads.
    refused = nullcontext() if kind == "llama" or load is load_tokenizer else pytest.raises(UserError, match="llama")
    with refused:
        load(str(llama))
    assert not ran.exists()


@LOADERS
def test_a_malformed_config(llama, load):
    for name in ("config.json", "tokenizer.json"):
        (llama / name).write_text("{")
    with pytest.raises(UserError, match="llama"):
        load(str(llama))


def test_a_directory_without_a_tokenizer(llama):
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="llama"):
        load_tokenizer(str(llama))


def test_a_truncated_weight_file_is_a_user_error(llama):
    weights = llama / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="llama"):
        load_model(str(llama))


def test_missing_weights_are_refused_not_drawn_at_random(llama):
    weights = load_file(llama / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp"):
        load_model(str(llama))


def test_missing_adapter_weights_are_refused_not_drawn_at_random(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1" not in name}
    save_file(kept, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"layers\.1"):
        load_model(str(adapter))


def test_weights_of_another_shape_are_a_user_error(llama):
    edit_json(llama / "config.json", intermediate_size=64)
    with pytest.raises(UserError, match="llama"):
        load_model(str(llama))


def test_an_adapter_of_another_models_shape_is_a_user_error(adapter):
    edit_json(adapter / "adapter_config.json", r=3)
    with pytest.raises(UserError, match="adapter"):
        load_model(str(adapter))


def test_an_adapter_whose_base_is_gone(adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/no/such/base")
    with pytest.raises(UserError, match="/no/such/base"):
        load_model(str(adapter))


@LOADERS
@pytest.mark.parametrize("content", ["{", "{}", '{"base_model_name_or_path": null}'])
def test_a_malformed_adapter_config_is_a_user_error(adapter, load, content):
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match="adapter"):
        load(str(adapter))


# Fingerprint.


def test_fingerprint_is_that_of_the_weights_wherever_they_lie(llama, tmp_path):
    before = fingerprint(str(llama))
    assert len(before) == 16
    moved = llama.rename(tmp_path / "moved")
    assert fingerprint(str(moved)) == before
    (moved / "README.md").write_text("not a weight")
    assert fingerprint(str(moved)) == before


@pytest.mark.parametrize("offset", [-4, 200, "append"])
def test_fingerprint_changes_with_the_weights(llama, offset):
    before = fingerprint(str(llama))
    weights = llama / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if offset == "append":
        content.append(0)
    else:
        content[offset] ^= 1
    weights.write_bytes(content)
    assert fingerprint(str(llama)) != before


def test_fingerprint_reads_head_and_tail_of_a_large_file(tmp_path):
    found = set()
    for changed in (None, 0, -1):
        weights = torch.zeros(1_000_000)
        if changed is not None:
            weights[changed] = 1.0
        save_file({"weight": weights}, tmp_path / "model.safetensors")
        found.add(fingerprint(str(tmp_path)))
    assert len(found) == 3


def test_fingerprint_sees_a_changed_layer_in_the_middle_of_a_large_file(tmp_path):
    """Fine-tunes of one base often share embeddings and last layers, so their fingerprints must see the layers between."""
    found = set()
    for value in (0.0, 1.0):
        weights = {name: torch.zeros(400_000) for name in "abc"}
        weights["b"] += value
        save_file(weights, tmp_path / "model.safetensors")
        found.add(fingerprint(str(tmp_path)))
    assert len(found) == 2


def test_fingerprint_counts_every_shard(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001.safetensors")
    one = fingerprint(str(tmp_path))
    save_file({"b": torch.ones(2)}, tmp_path / "model-00002.safetensors")
    assert fingerprint(str(tmp_path)) != one


def test_an_adapters_fingerprint_counts_adapter_and_base(adapter, llama, plain_model, tmp_path):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(llama))
    first = fingerprint(str(adapter))
    moved = shutil.copytree(adapter, tmp_path / "moved")
    assert fingerprint(str(moved)) == first
    other = save_adapter(plain_model(llama), tmp_path / "other", seed=5)
    assert fingerprint(str(other)) != first
    weights = llama / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert fingerprint(str(adapter)) != first


def test_a_hub_id_has_no_fingerprint():
    assert fingerprint("tiny/model") is None


def test_context_length_of_a_language_model_in_a_wrapper():
    config = AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 384})
    assert context_length(config) == 384
    assert context_length(AutoConfig.for_model("mpt", max_seq_len=96)) == 96
    assert context_length(AutoConfig.for_model("bloom")) is None


def test_a_tokenizer_that_renders_no_chat_template_is_refused(monkeypatch, small_model):
    """Where mistral-common is installed, transformers may choose its tokenizer, whose prompts nobody can look into."""
    other = type("MistralCommonBackend", (), {})
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: other())
    with pytest.raises(UserError, match="mistral-common") as refused:
        load_tokenizer(str(small_model))
    assert str(small_model) in refused.value.where
