"""Compare a tiny model of a family, as this package runs it, with what transformers and PEFT make of the same weights."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from afintro.errors import UserError
from afintro.explainer.adapters import export_adapter
from afintro.lm.attention import uses_packed_attention
from afintro.lm.forward import packed_logits
from afintro.lm.generate import generate_greedy
from afintro.lm.interventions import Intervention, residual_width
from afintro.lm.lora import Lora, add_lora
from afintro.lm.padded import use_packed_attention
from benchmarks.architectures.families import CONTEXT, FAMILIES, OTHER_NAMES, SIZE, VOCABULARY, WRAPPERS

NEW = 4  # tokens of a continuation
LENGTHS = (5, CONTEXT + 3, 1, CONTEXT - 1)  # below, beyond and across the original context; a single token
SPECIAL = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
# What transformers generates from kept keys is not what its whole passes say: keys stay rotated by the length at which they were
# made (dynamic RoPE), or the state of a recurrence differs.
UNLIKE_THEIR_CACHE = {"llama, dynamic RoPE", "recurrent_gemma"}
FIRST = 11  # tokens below are special, or stand for images


def tiny(name: str) -> PreTrainedModel:
    """Make a tiny model with large random weights, so that a wrong attention shows, in evaluation mode with eager attention."""
    kind, plain = name.split(",")[0], {**SPECIAL, "initializer_range": 0.3, "tie_word_embeddings": False}
    if name in WRAPPERS:
        text, settings = WRAPPERS[name]
        config = AutoConfig.for_model(kind, text_config={**SIZE, **plain, **text}, **{"audio_config": None, **settings})
    else:
        config = AutoConfig.for_model(kind, **plain, **(OTHER_NAMES.get(name) or {**SIZE, **FAMILIES[name]}))
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    make: Any = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():  # also norms, which start as constants
            parameter.data += 0.3 * torch.randn_like(parameter)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def sequences() -> list[list[int]]:
    """Return the sequences that every family reads."""
    drawn = torch.Generator().manual_seed(1)
    return [torch.randint(FIRST, VOCABULARY, (length,), generator=drawn).tolist() for length in LENGTHS]


@dataclass
class Case:
    """A tiny model twice: as transformers runs it, and as this package runs it.

    Args:
        name: A name of :data:`benchmarks.architectures.families.NAMES`.
    """

    name: str

    @cached_property
    def plain(self) -> PreTrainedModel:
        """Return the model of transformers."""
        return tiny(self.name)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Return a model with the same weights that is run as :func:`afintro.lm.load.load_model` would have it run."""
        model = deepcopy(self.plain)
        if not use_packed_attention(model) and model._supports_sdpa:
            model.set_attn_implementation("sdpa")  # what transformers loads by default
        return model

    @property
    def packed(self) -> bool:
        """Return whether the model reads packed rows."""
        return uses_packed_attention(self.model)

    def alone(self, model: Any) -> Tensor:
        """Return the logits of a model of transformers for each sequence in a pass of its own, end to end."""
        with torch.no_grad():
            each = [model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0] for sequence in sequences()]
        return torch.cat(each)

    @cached_property
    def logits(self) -> Tensor:
        """Return the logits of this package for all sequences in one pass."""
        return together(self.model)


def together(model: Any, changes: tuple[Intervention, ...] = ()) -> Tensor:
    """Return the logits ``[T, vocabulary]`` of all sequences in one pass of this package."""
    ids = torch.tensor([token for sequence in sequences() for token in sequence])
    with torch.no_grad():
        return packed_logits(model, ids, bounds(), torch.arange(len(ids)), changes)


def bounds() -> Tensor:
    """Return where each sequence begins, and the number of all tokens."""
    return torch.tensor([0, *LENGTHS]).cumsum(0).int()


def close(found: Tensor, expected: Tensor) -> bool:
    """Return whether logits are equal to rounding, in units of their spread."""
    return bool((found - expected).abs().max() < 1e-3 * expected.std())


def logits_equal(case: Case) -> bool:
    """Return whether each sequence of one pass has the logits of transformers' eager attention for the sequence alone."""
    return close(case.logits, case.alone(case.plain))


def tokens_equal(case: Case) -> bool:
    """Return whether prompts that are continued together get the tokens of ``generate`` for each of them."""
    found = generate_greedy(case.model, sequences(), max_new_tokens=NEW, eos_ids=(), batch_size=3)
    kept = case.name not in UNLIKE_THEIR_CACHE
    for sequence, tokens in zip(sequences(), found, strict=True):
        generate: Any = case.plain.generate
        with torch.no_grad():
            said = generate(
                torch.tensor([sequence]), max_new_tokens=NEW, do_sample=False, use_cache=kept, pad_token_id=0
            )
        if said[0, len(sequence) :].tolist() != tokens:
            return False
    return True


def interventions_work(case: Case) -> bool:
    """Return whether a vector added in one sequence changes its later logits, and nothing else."""
    place = LENGTHS[0] + 4
    vector = torch.linspace(-9, 9, residual_width(case.model))[None]
    try:
        changed = together(case.model, (Intervention(0, "add", torch.tensor([place]), vector),))
    except UserError:
        return False
    difference = (changed - case.logits).abs().amax(1) / case.logits.std()
    before, rest = difference[:place].max(), difference[LENGTHS[0] + LENGTHS[1] :].max()
    later = difference[place + 1 : LENGTHS[0] + LENGTHS[1]].max()
    return bool(max(before, rest) < 1e-4 and min(difference[place], later) > 1e-3)


def adapters_work(case: Case) -> bool:
    """Return whether every weight of an adapter gets a gradient, and PEFT reloads the export with equal logits."""
    model = add_lora(deepcopy(case.model), Lora(r=2)).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), 0.05)
    ids = torch.tensor([token for sequence in sequences() for token in sequence])
    asked = torch.arange(LENGTHS[0], LENGTHS[0] + LENGTHS[1] - 1)
    reached = dict.fromkeys(trained, False)
    for _ in range(2):  # the first step leaves one of the two matrices of a layer without a gradient
        loss = F.cross_entropy(packed_logits(model, ids, bounds(), asked), ids[asked + 1])
        loss.backward()
        for name, parameter in trained.items():
            reached[name] |= parameter.grad is not None and bool(
                parameter.grad.isfinite().all() and parameter.grad.any()
            )
        optimizer.step()
        optimizer.zero_grad()
    said = together(model.eval())
    with TemporaryDirectory() as folder:
        export_adapter(model, Path(folder))
        stock = PeftModel.from_pretrained(deepcopy(case.plain), folder).eval()
        equal = close(said, case.alone(stock))
    return all(reached.values()) and equal and not close(said, case.logits)


CHECKS: dict[str, Callable[[Case], bool]] = {
    "logits": logits_equal,
    "tokens": tokens_equal,
    "interventions": interventions_work,
    "LoRA": adapters_work,
}
