"""Merge a PEFT adapter into its base, checked against the logits of the unmerged :class:`peft.PeftModel`."""

import logging
import warnings
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file

from afintro.errors import UserError, one_line
from afintro.lm.adapter import Adapter
from afintro.lm.expert_lora import has_single_experts, merge_expert_lora
from afintro.lm.forward import packed_logits
from afintro.lm.load_errors import UNLOADABLE, refuse_missing_weights, refuse_unused_weights
from afintro.lm.vocabulary import fit_rows, refuse_unknown_rows, tie_equal, tied, untie

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
TOKENS = 8
# Largest distance of the merged model's logits from the unmerged model's, in units of the spread of the logits, at the median
# token. Rounding to bfloat16 moves a model of 30 layers by up to 0.1, so that each layer is compared alone too, in float32.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
LAYER_TOLERANCE = 1e-4


def merged(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Return ``model`` with an adapter merged into its weights.

    Half-precision weights are merged in float32 and rounded once. Embedding and vocabulary matrix are untied where the adapter
    makes them differ, and the vocabulary gets the adapter's number of rows.

    Args:
        model: The adapter's base, as :func:`afintro.lm.load.load_model` loads it; it is changed.
        adapter: The adapter.

    Raises:
        UserError: The adapter is of a kind that cannot be merged, lacks weights, has weights that its configuration does not
            name, or gives other logits when it is merged.
    """
    try:
        path, config, shapes = _read(adapter)
        model = _dequantized(model, adapter)
        was_tied = tied(model)
        fit_rows(model, shapes, adapter.place)
        if has_single_experts(model, shapes):
            merge_expert_lora(model, config, path, adapter.place)
            merged, logits = model, None
        else:
            merged, logits = _merged_by_peft(model, adapter, path, config)
    except (*UNLOADABLE, AttributeError, TypeError) as error:
        reason = one_line(error, 300)
        raise UserError(
            f"cannot be loaded ({type(error).__name__}: {reason})",
            where=adapter.place,
            remedy="check that its weights, its adapter_config.json and the base belong together",
        ) from error
    if was_tied:
        tie_equal(merged)
    refuse_unknown_rows(merged, adapter.place)
    if logits is not None:
        _check(*logits, _logits(merged), adapter.place, merged.dtype)
    return merged.eval()


def _dequantized(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Return a quantized base with the weights that it computes with; a merged matrix would be rounded to few bits again."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or getattr(quantizer.quantization_config, "dequantize", False):  # while loading
        return model
    try:
        plain = model.dequantize(dtype=model.dtype)
    except NotImplementedError as error:
        raise UserError(
            f"is quantized ({quantizer.quantization_config.quant_method.value}), and no adapter can be merged into it",
            where=f"base {adapter.base!r} of {adapter.place}",
            remedy="give the base before it was quantized (model.base, --base)",
        ) from error
    assert isinstance(plain, PreTrainedModel)
    log.info("base %r of %s is dequantized, so that the adapter can be merged", adapter.base, adapter.place)
    return plain


def _merged_by_peft(
    model: PreTrainedModel, adapter: Adapter, path: str, config: Any
) -> tuple[PreTrainedModel, tuple[Tensor, Tensor]]:
    """Return the merged model, and the logits of the unmerged model with the adapter and without the adapter."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters(remove_duplicate=False)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT warns of is checked here
        wrapped = _wrapped(model, adapter, path, config)
        expected = _logits(wrapped)
        with wrapped.disable_adapter():
            without = _logits(wrapped)
        untie(model)
        merged = _merged(wrapped, adapter)
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, merged.dtype))
        parameter.requires_grad_(False)
    return merged, (expected, without)


def _read(adapter: Adapter) -> tuple[str, Any, dict[str, tuple[int, ...]]]:
    """Return the path of the adapter's weights, its configuration, and the shapes of its weights by name."""
    found = cached_file(adapter.name, WEIGHTS, revision=adapter.revision, _raise_exceptions_for_missing_entries=False)
    if found is None:
        what = f"has no {WEIGHTS} (adapter_model.bin is a pickle, which is never read)"
        raise UserError(what, where=adapter.place, remedy="save the adapter again with a current PEFT")
    config: Any = PeftConfig.from_pretrained(adapter.name, revision=adapter.revision)
    kind = f"{config.peft_type.value} adapter"
    if config.is_prompt_learning or config.is_adaption_prompt:
        refused = f"is a {kind}, which adds to the prompt or to attention and cannot be merged into weights"
    elif getattr(config, "alora_invocation_tokens", None):
        refused = "is an activated LoRA (alora_invocation_tokens), which acts on some tokens alone and cannot be merged"
    elif config.task_type not in (None, "CAUSAL_LM"):
        refused = f"was trained for another task than language modeling ({config.task_type})"
    else:
        with safe_open(found, "pt") as stored:
            return found, config, {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    raise UserError(refused, where=adapter.place, remedy="use a LoRA or another adapter of weights, or a whole model")


def _wrapped(model: PreTrainedModel, adapter: Adapter, path: str, config: Any) -> PeftModel:
    """Return the base with the adapter, all of whose weights have found their place, and which lacks none."""
    mapping = getattr(model, "_checkpoint_conversion_mapping", {})  # as PeftModel.from_pretrained chooses it
    settings: dict[str, Any] = {"revision": adapter.revision, "torch_device": str(model.device), "key_mapping": mapping}
    wrapped = PeftModel.from_pretrained(model, adapter.name, config=config, **settings)
    # The class method forgets which weights of the file it did not use; loading them again tells.
    loaded = wrapped.load_adapter(adapter.name, "default", **settings)
    missing, unused = (
        {name.replace(".default", "") for name in names} for names in (loaded.missing_keys, loaded.unexpected_keys)
    )
    refuse_missing_weights(missing)
    refuse_unused_weights(unused - _repeated(unused, path), adapter.place)
    return wrapped.eval()


def _repeated(names: set[str], path: str) -> set[str]:
    """Return names of weights that a file holds twice: PEFT saves ends of a grown vocabulary under a second name."""
    with safe_open(path, "pt") as stored:
        others = [name for name in stored.keys() if name not in names and "layers." not in name]  # noqa: SIM118
        kept = [stored.get_tensor(name) for name in others] if names else []
        second = [name for name in names if ".modules_to_save." in name or ".trainable_tokens_delta" in name]
        return {name for name in second if any(torch.equal(stored.get_tensor(name), weight) for weight in kept)}


def _merged(wrapped: PeftModel, adapter: Adapter) -> PreTrainedModel:
    try:
        layers = {
            name.removeprefix("base_model.model."): _merge_layer(module, adapter.place)
            for name, module in list(wrapped.named_modules())
            if isinstance(module, BaseTunerLayer)
        }
        merged = wrapped.merge_and_unload()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        kind = wrapped.active_peft_config.peft_type.value
        raise UserError(
            f"is a {kind} adapter that PEFT cannot merge into weights ({error})",
            where=adapter.place,
            remedy="use a LoRA, or a whole model",
        ) from error
    assert isinstance(merged, PreTrainedModel)
    modules = dict(merged.named_modules())
    for name in layers.keys() & modules.keys():  # layers inside of another layer are gone, and are checked with it
        _check_layer(modules[name], layers[name], adapter.place)
    return merged


@torch.no_grad()
def _merge_layer(layer: Any, place: str) -> tuple[Tensor, Tensor] | None:
    """Merge one layer in float32, so that half-precision weights are rounded once; the caller restores their dtype.

    Returns:
        Inputs, and what the layer makes of them with its adapter; None for a layer that is not compared alone.
    """
    base: nn.Module = layer.get_base_layer()
    for parameter in base.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    inputs = _inputs(base)
    expected = None if inputs is None else (inputs, layer(inputs))
    layer.merge()
    _check_layer(layer, expected, place)
    return expected


@torch.no_grad()
def _check_layer(layer: nn.Module, expected: tuple[Tensor, Tensor] | None, place: str) -> None:
    """Refuse a merged layer whose outputs are not what they were with the adapter beside it."""
    if expected is None:
        return
    inputs, output = expected
    known = output.isfinite()  # what is no number is told from the logits
    difference, size = torch.where(known, layer(inputs) - output, 0.0).norm(), torch.where(known, output, 0.0).norm()
    off = float(difference / size.clamp_min(torch.finfo(output.dtype).tiny))
    if not off <= LAYER_TOLERANCE:
        raise _differs(place, f"a layer is off by {off:.1e} of its output")


def _inputs(base: nn.Module) -> Tensor | None:
    """Return inputs to compare a layer on; None for a layer that is not a matrix, which the logits alone check."""
    drawn = torch.Generator().manual_seed(0)
    if isinstance(base, nn.Embedding):
        return torch.linspace(0, base.num_embeddings - 1, TOKENS).long()[None].to(base.weight.device)
    if isinstance(base, nn.Linear | Conv1D):
        width = base.in_features if isinstance(base, nn.Linear) else base.weight.shape[0]
        return torch.randn(1, TOKENS, width, generator=drawn).to(base.weight)
    return None


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    """Return the logits of a few tokens from the whole vocabulary, ``[TOKENS, vocabulary]`` float64."""
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.linspace(0, rows - 1, TOKENS).long().to(model.device)  # type: ignore[arg-type]
    bounds = torch.tensor([0, TOKENS], dtype=torch.int32, device=ids.device)
    return packed_logits(model, ids, bounds, torch.arange(TOKENS, device=ids.device)).double()


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the distance at the median token in units of what is expected there, over all entries that are known."""
    known = expected.isfinite()
    difference = torch.where(known, found - expected, 0.0)
    spread = torch.where(known, expected - expected.nanmean(-1, keepdim=True), 0.0)
    smallest = torch.finfo(spread.dtype).tiny  # a token whose embedding is zero, as that of padding is, has no spread
    return float((difference.norm(dim=-1) / spread.norm(dim=-1).clamp_min(smallest)).median())


def _check(expected: Tensor, without: Tensor, found: Tensor, place: str, dtype: torch.dtype) -> None:
    """Refuse a merged model whose logits differ from the unmerged model's by more than rounding, or are nearer to the base's."""
    difference, effect = _distance(found, expected), _distance(without, expected)
    limit = TOLERANCE[dtype]
    if not expected.isfinite().all():
        raise UserError("gives logits that are no numbers", where=place, remedy="use another adapter")
    if not difference <= limit or (effect > limit and difference > effect / 2):
        raise _differs(
            place, f"off by {difference:.1e} of their spread, where the adapter changes them by {effect:.1e}"
        )


def _differs(place: str, how: str) -> UserError:
    what = f"gives other logits when it is merged ({how})"
    return UserError(what, where=place, remedy="merge it yourself into a whole model, and give that model")
