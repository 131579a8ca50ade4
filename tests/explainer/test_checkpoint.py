"""Checkpoints hold the adapter, say whose it is, and are refused where they do not fit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from afintro.errors import UserError
from afintro.explainer.adapters import export_adapter, import_adapter
from afintro.explainer.checkpoint import (
    check_identity,
    check_state,
    read_checkpoint,
    resolve_checkpoint,
    trainable_state,
)
from afintro.explainer.module import ExplainerModule
from afintro.lm.injection import VectorSpace
from afintro.lm.lora import Lora
from tests.conftest import save_small_model
from tests.lm.made_adapters import edit_config, lora, save_adapter


def explainer(directory: Path, r: int = 4, width: int | None = None) -> ExplainerModule:
    module = ExplainerModule(str(directory), lora=Lora(r=r, alpha=8))
    module.space = None if width is None else VectorSpace(width, (3, 7))
    module.configure_model()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return module


def test_a_checkpoint_holds_the_adapter_alone(small_model: Path) -> None:
    module = explainer(small_model)
    checkpoint: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    state = checkpoint["state_dict"]
    assert isinstance(state, dict)
    assert state.keys() == {name for name, p in module.named_parameters() if p.requires_grad}
    identity = checkpoint["afintro_identity"]
    assert isinstance(identity, dict)
    assert identity["base"] == str(small_model)
    assert identity["lora"]["r"] == 4


def test_an_adapter_on_a_base_that_is_given_has_both_in_its_identity(small_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(AutoModelForCausalLM.from_pretrained(small_model), lora(), tmp_path / "adapter")
    edit_config(adapter, base_model_name_or_path="/no/such/base")
    module = ExplainerModule(adapter, base=str(small_model), lora=Lora(r=4))
    module.configure_model()
    assert module.context_length == 2048
    ids = torch.arange(5, 25)[None]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_model), adapter).eval()
    assert torch.allclose(module.eval().model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["afintro_identity"]["base"] == f"{adapter}::{small_model}"
    other = save_small_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"fingerprint: '\w+' in the checkpoint, '\w+' configured"):
        ExplainerModule(adapter, base=str(other), lora=Lora(r=4)).on_load_checkpoint(checkpoint)
    assert module.on_base(str(other)).directory == str(other)


def test_another_base_another_rank_and_another_template_are_refused_with_both_values(
    small_model: Path, tmp_path: Path
) -> None:
    module = explainer(small_model)
    checkpoint: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    other = explainer(save_small_model(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"fingerprint: '\w+' in the checkpoint, '\w+' configured"):
        other.on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"'r': 4.*'r': 8"):
        explainer(small_model, r=8).on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="identity"):
        check_identity(None, {}, "x")
    saved = dict(module.identity, template_hash="old")
    with pytest.raises(UserError, match="template_hash: 'old' in the checkpoint"):
        check_identity(saved, module.identity, "x")


def test_a_moved_base_is_known_by_its_fingerprint() -> None:
    check_identity({"base": "/a", "fingerprint": "f"}, {"base": "/b", "fingerprint": "f"}, "x")
    with pytest.raises(UserError, match="base: 'a'"):
        check_identity({"base": "a", "fingerprint": None}, {"base": "b", "fingerprint": None}, "x")


def test_weights_that_are_missing_strange_or_of_another_shape_are_refused(small_model: Path) -> None:
    module = explainer(small_model)
    state = trainable_state(module)
    check_state(state, module, "x")
    name = next(iter(state))
    for damaged in (
        {k: v for k, v in state.items() if k != name},
        {**state, "stranger": torch.zeros(1)},
        {**state, name: state[name][:1]},
    ):
        with pytest.raises(UserError, match="1 weights"):
            check_state(damaged, module, "x")


def test_a_damaged_file_and_a_pickle_with_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "a.ckpt")
    torch.save({"state_dict": {}, "code": Path}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "c.ckpt")


def test_best_is_that_of_the_newest_run_that_has_one(tmp_path: Path) -> None:
    def save(run: str, file: str, monitor: str | None, best: str) -> None:
        path = tmp_path / "task" / run / "checkpoints" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"callbacks": {"a": {"monitor": monitor, "best_model_path": str(Path("/elsewhere", best))}}}, path)

    save("version_2", "best-1.ckpt", "val/loss", "best-1.ckpt")
    save("version_10", "best-3.ckpt", "val/loss", "best-3.ckpt")
    save("version_10", "last.ckpt", "val/loss", "best-3.ckpt")
    (tmp_path / "task" / "version_11").mkdir()
    assert resolve_checkpoint("best", tmp_path, "task").parts[-3:] == ("version_10", "checkpoints", "best-3.ckpt")
    assert resolve_checkpoint("last", tmp_path, "task").name == "last.ckpt"
    save("version_12", "last.ckpt", "val/loss", "removed.ckpt")
    newest = ("version_12", "checkpoints", "last.ckpt")
    assert resolve_checkpoint("best", tmp_path, "task").parts[-3:] == newest, "the best file was removed"
    save("version_13", "last.ckpt", "val/loss", str(tmp_path / "task" / "version_10" / "checkpoints" / "best-3.ckpt"))
    resumed = ("version_10", "checkpoints", "best-3.ckpt")
    assert resolve_checkpoint("best", tmp_path, "task").parts[-3:] == resumed, "still the best after more training"
    with pytest.raises(UserError, match="no run of other"):
        resolve_checkpoint("best", tmp_path, "other")


def test_an_exported_adapter_is_stock_peft(small_model: Path, tmp_path: Path) -> None:
    module = explainer(small_model)
    assert module.model is not None
    export_adapter(module.model, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) > 4
    assert targets == sorted(targets), "PEFT writes a set, in an order of the process"
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(small_model), str(tmp_path / "adapter")
    ).eval()
    ids = torch.arange(5, 25)[None]
    expected = module.eval().model(input_ids=ids).logits
    assert torch.allclose(plain(input_ids=ids).logits, expected, atol=1e-5)
    fresh = explainer(small_model)
    assert fresh.model is not None
    import_adapter(fresh.model, tmp_path / "adapter")
    assert torch.allclose(fresh.eval().model(input_ids=ids).logits, expected, atol=1e-6)


def test_an_exported_adapter_has_its_injector_beside_it_and_is_still_stock_peft(
    small_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = explainer(small_model, width=24)
    assert module.model is not None
    export_adapter(module.model, tmp_path / "adapter", module.injector)
    stored = load_file(tmp_path / "adapter" / "injector.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        "log_scale": (2,),
        "projection.weight": (32, 24),
    }
    ids = torch.arange(5, 25)[None]
    expected = module.eval().model(input_ids=ids).logits
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_model), str(tmp_path / "adapter"))
    assert torch.allclose(plain.eval()(input_ids=ids).logits, expected, atol=1e-5)

    fresh = explainer(small_model, width=24)
    assert fresh.model is not None
    import_adapter(fresh.model, tmp_path / "adapter", fresh.injector)
    assert trainable_state(fresh).keys() == trainable_state(module).keys()
    for name, tensor in trainable_state(module).items():
        assert torch.equal(trainable_state(fresh)[name], tensor), name


def test_an_injector_that_does_not_fit_is_refused_and_left_as_it_was(small_model: Path, tmp_path: Path) -> None:
    module = explainer(small_model, width=24)
    assert module.model is not None
    export_adapter(module.model, tmp_path, module.injector)
    for width in (25, 32):  # another width, and one that needs no projection
        other = explainer(small_model, width=width)
        assert other.model is not None
        assert other.injector is not None
        before = {name: tensor.clone() for name, tensor in other.injector.state_dict().items()}
        with pytest.raises(UserError, match=r"weights that do not fit \(projection.weight\)"):
            import_adapter(other.model, tmp_path, other.injector)
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.injector.state_dict().items())


LOST = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda weights: weights.pop(LOST), rf"lacks weights \({re.escape(LOST)}\)"),
        (
            lambda weights: weights.update({"other.lora_A.weight": torch.ones(1)}),
            r"do not fit \(other\.lora_A\.weight\)",
        ),
        (lambda weights: weights.update({LOST: torch.ones(2, 2)}), rf"do not fit \({re.escape(LOST)}\)"),
    ],
)
def test_an_adapter_with_lost_left_over_or_misshapen_weights_is_refused(
    small_model: Path, tmp_path: Path, damage: Callable[[dict[str, torch.Tensor]], object], word: str
) -> None:
    """Lost weights would leave an untrained part in place, which answers like the base."""
    module = explainer(small_model)
    assert module.model is not None
    export_adapter(module.model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    weights = load_file(path)
    damage(weights)
    save_file(weights, path)
    with pytest.raises(UserError, match=word) as caught:
        import_adapter(explainer(small_model).loaded(), tmp_path)
    assert caught.value.where == str(path)


def test_an_adapter_whose_weights_are_a_pickle_is_never_read(small_model: Path, tmp_path: Path) -> None:
    module = explainer(small_model)
    assert module.model is not None
    export_adapter(module.model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(path), tmp_path / "adapter_model.bin")
    path.unlink()
    with pytest.raises(UserError, match="absent") as caught:
        import_adapter(module.model, tmp_path)
    assert caught.value.where == str(path)
