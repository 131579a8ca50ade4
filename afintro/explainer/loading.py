"""Load what an explainer is made of: tokenizer, base model with its adapter, and the injector of vectors."""

from collections.abc import Sequence

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from afintro.data.batch import Example
from afintro.errors import UserError
from afintro.explainer.settings import ExplainerSettings
from afintro.lm.compiled import checkpoint_layers, compile_layers
from afintro.lm.dtypes import resolve_dtype
from afintro.lm.fused import quantize_base
from afintro.lm.injection import Injection, Injector, Injectors, VectorSpace, VectorSpaces, make_injector
from afintro.lm.load import load_model, load_tokenizer
from afintro.lm.lora import add_lora
from afintro.lm.nf4 import quantize_base_nf4

# Enough to fit the projection of any width in use; more examples would only take time and memory.
RIDGE_EXAMPLES = 4096


def load_checked_tokenizer(
    directory: str, settings: ExplainerSettings, known_only: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the base model and check that it has what training needs.

    Args:
        directory: Hub id or directory of the base model.
        settings: Revision, slot token, and what the chat template reads beside the turns.
        known_only: Leave out ``chat_template_kwargs`` that the template does not read, instead of refusing them.

    Raises:
        UserError: The tokenizer has no end-of-sequence token, or lacks the slot token.
    """
    tokenizer = load_tokenizer(
        directory, settings.revision, settings.chat_template_kwargs, settings.prompt_date, known_only
    )
    where = f"tokenizer of {settings.name!r}"
    if tokenizer.eos_token_id is None:
        raise UserError("has no end-of-sequence token", where=where, remedy="use another model")
    if settings.slot_token is not None and settings.slot_token not in tokenizer.get_vocab():
        raise UserError(
            f"has no token {settings.slot_token!r}",
            where=where,
            remedy="set model.slot_token to a reserved token of this tokenizer",
        )
    return tokenizer


def load_adapted(directory: str, settings: ExplainerSettings, device: torch.device) -> PeftModel:
    """Load the base model, freeze it and put an untrained adapter on it.

    Args:
        directory: Hub id or directory of the base model.
        settings: Revision, dtype and adapter, and how memory and time are saved.
        device: Where the model will run; ``fp8``, ``quantize`` and ``dtype: auto`` look at it.

    Returns:
        The model on the processor, in training mode: ``from_pretrained`` leaves it in evaluation mode, Lightning keeps the
        mode that it finds, and gradient checkpointing would then be silently off.
    """
    dtype = resolve_dtype(settings.dtype, directory, settings.revision, device, training=True)
    base = load_model(directory, settings.revision, dtype)
    model = add_lora(base, settings.lora)
    if settings.fp8:
        quantize_base(model, device)
    if settings.quantize:
        quantize_base_nf4(model, device)
    checkpoint_layers(base, float(settings.gradient_checkpointing))
    if settings.compile_layers:
        compile_layers(model)
    model.train()
    return model


def new_injector(
    model: PeftModel,
    space: VectorSpace | VectorSpaces,
    injection: Injection,
    examples: Sequence[Example] | None = None,
) -> Injector | Injectors:
    """Make an untrained injector for a model.

    Args:
        model: The base with its adapter.
        space: Where the vectors come from; each of several spaces gets an injector of its own.
        injection: How a vector enters the model.
        examples: Training examples with vectors, for ``injection.ridge`` to fit the projection to; None fits nothing.

    Raises:
        UserError: The model lacks the layer, or a ridge regression is asked for where there is no projection to fit.
    """
    if isinstance(space, VectorSpaces):
        fitted = examples if injection.ridge is not None else None
        return Injectors(
            {name: _new_part(model, one, injection, _of_space(fitted, name)) for name, one in space.spaces.items()}
        )
    return _new_part(model, space, injection, examples)


def _of_space(examples: Sequence[Example] | None, name: str) -> Sequence[Example] | None:
    """Return the examples whose vectors are of a space."""
    if examples is None:
        return None
    return [example for example in examples if example.slot is not None and example.slot.space == name]


def _new_part(
    model: PeftModel, space: VectorSpace, injection: Injection, examples: Sequence[Example] | None
) -> Injector:
    """Make the injector of one space, see :func:`new_injector`."""
    try:
        injector = make_injector(model, space, injection)
    except ValueError as error:
        raise UserError(str(error), where="model.injection.layer", remedy="use a layer that the model has") from error
    if injection.ridge is not None and injector.projection is None:
        raise UserError(
            "has no projection to start", where="model.injection.ridge", remedy="set model.injection.projection: true"
        )
    if injection.ridge is not None and examples is not None:
        fit_projection(injector, model, examples)
    return injector


@torch.no_grad()
def fit_projection(
    injector: Injector, model: PeftModel, examples: Sequence[Example], limit: int = RIDGE_EXAMPLES
) -> None:
    """Fit the injector's projection from each example's vector to the mean embedding of its answer's tokens.

    Args:
        injector: The injector whose projection is set; its ``ridge`` is the strength of the regression.
        model: The model whose embeddings are the targets.
        examples: Training examples with vectors.
        limit: Roughly the largest number of examples used, spread evenly over all of them.
    """
    chosen = [examples[index] for index in range(0, len(examples), max(1, len(examples) // limit))]
    embedding = model.get_input_embeddings()
    vectors, targets = [], []
    for example in chosen:
        if example.slot is None:
            continue
        text = example.answer_ids if example.cut else example.answer_ids[:-1]  # without end of sequence
        answer = torch.tensor(text, device=embedding.weight.device)
        vectors.append(example.slot.vector)
        targets.append(embedding(answer).float().mean(0).cpu().numpy())
    injector.fit_projection(np.stack(vectors), np.stack(targets))
