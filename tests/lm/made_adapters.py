"""Make tiny bases and PEFT adapters on them, and compare a merged adapter with its :class:`PeftModel`."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from afintro.lm.load import load_model

IDS = torch.arange(40, 60)[None]
SIZE = {"vocab_size": 263, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TARGETS = ["q_proj", "v_proj", "down_proj"]
EFFECT = 0.1  # least change of logits by an adapter, so that a test cannot pass with an adapter that does nothing


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids).logits


def save_base(folder, config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)


def save_adapter(model, config, folder):
    """Save an adapter whose every weight was moved."""
    torch.manual_seed(1)
    wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    return str(folder)


def loaded(base, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def edit_config(adapter, **changes):
    path = Path(adapter) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def lora(**changes):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "init_lora_weights": False}
    return LoraConfig(**{**settings, **changes}, task_type="CAUSAL_LM")


def check(base, adapter, tolerance=1e-4):
    """Compare with PeftModel, and once more after the merged model was saved and loaded."""
    merged = load_model(str(adapter))
    expected = logits(PeftModel.from_pretrained(loaded(base), adapter).eval())
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=tolerance)
    assert (expected - logits(loaded(base))).abs().max() > EFFECT
    merged.save_pretrained(f"{adapter}-merged")
    torch.testing.assert_close(logits(loaded(f"{adapter}-merged")), expected, rtol=0, atol=tolerance)
    return merged


def named_after_its_base(call, base, folder):
    """Call a command with an adapter whose base has moved, without and with ``--base``; return what its output names the model."""
    adapter = save_adapter(loaded(base), lora(), folder / "adapter")
    edit_config(adapter, base_model_name_or_path="/no/such/base")
    code, _, err = call(model_name=adapter)
    assert code == 2
    assert "--base" in err
    assert call(model_name=adapter, base=base)[0] == 0
    return f"{adapter}::{base}"
