"""Adapters of single experts, as transformers 4 trained them, are added to the stacked experts of transformers 5."""

import math
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, MixtralConfig, Qwen2MoeConfig

from afintro.errors import UserError
from afintro.lm.load import load_model
from tests.lm.made_adapters import EFFECT, SIZE, check, edit_config, loaded, logits, lora, save_adapter, save_base

MIXTURES = {
    "mixtral": (MixtralConfig, {"num_local_experts": 4}),
    "qwen2_moe": (
        Qwen2MoeConfig,
        {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "num_experts_per_tok": 2},
    ),
    "deepseek_v3": (
        DeepseekV3Config,
        {
            "num_key_value_heads": 4, "n_routed_experts": 4, "first_k_dense_replace": 1, "moe_intermediate_size": 24,
            "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
            "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
        },
    ),
}  # fmt: skip


def save_mixture(kind, folder, use_rslora=False, rank_pattern=None):
    """Save a mixture of experts, a LoRA on each of its matrices as transformers 4 named them, and both added up."""
    make, settings = MIXTURES[kind]
    base = save_base(folder / "base", make(**{**SIZE, "num_key_value_heads": 2, **settings}, initializer_range=0.2))
    weights = load_file(folder / "base" / "model.safetensors")
    targets = {"o_proj", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"}
    adapted = [name for name in weights if name.split(".")[-2] in targets and name.endswith(".weight")]
    adapter, total = {}, dict(weights)
    for name in adapted:
        rank = (rank_pattern or {}).get(name.split(".")[-2], 3)
        down, up = 0.3 * torch.randn(rank, weights[name].shape[1]), 0.3 * torch.randn(weights[name].shape[0], rank)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        adapter |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        total[name] = weights[name] + 6 / (math.sqrt(rank) if use_rslora else rank) * (up @ down)
    used = sorted(targets & {name.split(".")[-2] for name in adapted})
    LoraConfig(
        r=3, lora_alpha=6, target_modules=used, use_rslora=use_rslora, rank_pattern=rank_pattern or {},
        base_model_name_or_path=base, task_type="CAUSAL_LM",
    ).save_pretrained(folder / "adapter")  # fmt: skip
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    shutil.copytree(base, folder / "total")
    save_file(total, folder / "total" / "model.safetensors", {"format": "pt"})
    return base, str(folder / "adapter"), logits(loaded(folder / "total"))


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"rank_pattern": {"up_proj": 2, "w3": 2}}], ids=["plain", "rslora", "ranks"]
)
def test_experts_one_by_one(tmp_path, kind, settings):
    """The right logits are those of the base to whose checkpoint the updates were added, expert by expert."""
    base, adapter, expected = save_mixture(kind, tmp_path, **settings)
    torch.testing.assert_close(logits(load_model(adapter)), expected, rtol=0, atol=1e-4)
    assert (expected - logits(loaded(base))).abs().max() > EFFECT


def test_experts_one_by_one_in_half_precision(tmp_path):
    _, adapter, _ = save_mixture("mixtral", tmp_path)
    found, exact = load_model(adapter, dtype="bfloat16").state_dict(), loaded(tmp_path / "total").state_dict()
    for name, weight in found.items():
        torch.testing.assert_close(weight.float(), exact[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"target_modules": ["o_proj", "w1", "w2"]}, r"16 weights .*experts\.0\.w3"),
        ({"target_modules": ["q_proj", "o_proj", "w1", "w2", "w3"]}, r"missing for .*layers\.0\.self_attn\.q_proj"),
        ({"r": 2}, "rank"),
    ],
)
def test_experts_one_by_one_that_cannot_be_right_are_refused(tmp_path, change, word):
    _, adapter, _ = save_mixture("mixtral", tmp_path)
    edit_config(tmp_path / "adapter", **change)
    with pytest.raises(UserError, match=word) as caught:
        load_model(adapter)
    assert caught.value.where == f"adapter {adapter!r}"


def test_experts_of_transformers_5(tmp_path):
    """Stacked experts are adapted through ``target_parameters``."""
    base, _, _ = save_mixture("mixtral", tmp_path)
    config = lora(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    check(base, save_adapter(loaded(base), config, tmp_path / "stacked"))
