"""Give a base as many rows of vocabulary as its adapter was trained with."""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.errors import UserError
from afintro.lm.template_inputs import chosen_template

# Which dimension of an adapter's weight counts the tokens, by the weight's name behind that of the embedding or the head.
ROWS = {
    "weight": 0,
    "base_layer.weight": 0,
    "original_module.weight": 0,
    "modules_to_save.weight": 0,
    "token_adapter.base_layer.weight": 0,
    "lora_embedding_A": 1,
    "lora_B.weight": 0,
}


def ends_of(model: PreTrainedModel) -> list[Any]:
    """Return the embedding and, if the model has one, the vocabulary matrix; an adapter's wrapping is taken off."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [unwrapped(end) for end in ends if end is not None]


def unwrapped(module: nn.Module) -> Any:
    """Return the base's module inside of an adapter's wrapping."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return unwrapped(module.original_module)
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def vocabulary_rows(model: PreTrainedModel) -> int:
    """Return the number of rows of the embedding."""
    return int(ends_of(model)[0].weight.shape[0])


def untie(model: PreTrainedModel) -> bool:
    """Give a vocabulary matrix that is the embedding weights of its own, where an adapter lies on one of them.

    Returns:
        Whether weights were separated; :func:`tie_equal` puts together what is still equal after merging.
    """
    adapted = ends_of(model) != [model.get_input_embeddings(), model.get_output_embeddings()]
    return adapted and separate(model)


def separate(model: PreTrainedModel) -> bool:
    """Give a vocabulary matrix that is the embedding weights of its own, and return whether it was the embedding."""
    if not tied(model):
        return False
    ends = ends_of(model)
    ends[1].weight = nn.Parameter(ends[1].weight.detach().clone(), requires_grad=False)
    return True


def tied(model: PreTrainedModel) -> bool:
    """Return whether the vocabulary matrix is the embedding."""
    ends = ends_of(model)
    return len(ends) == 2 and ends[0].weight is ends[1].weight


def tie_equal(model: PreTrainedModel) -> None:
    """Tie embedding and vocabulary matrix if they are equal, and let the configuration say whether they are."""
    embedding, head = ends_of(model)
    if embedding.weight is not head.weight and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = embedding.weight is head.weight


def fit_rows(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], place: str) -> None:
    """Resize a base's vocabulary to the rows of an adapter's weights; rows that are new hold NaN until weights are loaded.

    Args:
        model: The base.
        shapes: Shapes of the adapter's weights by their names in the file.
        place: What error messages call the adapter.

    Raises:
        UserError: The weights have different numbers of rows.
    """
    names = {module: name for name, module in model.named_modules()}
    ends = ends_of(model)
    found = {
        shapes[key][dimension]
        for end in ends
        for suffix, dimension in ROWS.items()
        if (key := f"base_model.model.{names[end]}.{suffix}") in shapes
    }
    if len(found) > 1:
        what = f"has weights for vocabularies of different sizes ({', '.join(map(str, sorted(found)))})"
        raise UserError(what, where=place, remedy="save the adapter again")
    before = vocabulary_rows(model)
    if not found or found == {before}:
        return
    model.resize_token_embeddings(found.pop(), mean_resizing=False)
    for end in ends_of(model):
        end.weight.data[before:] = float("nan")
        if getattr(end, "bias", None) is not None:
            end.bias.data[before:] = 0.0


def refuse_unknown_rows(model: PreTrainedModel, place: str) -> None:
    """Refuse a merged model of whose vocabulary rows are still unknown.

    Args:
        model: The merged model.
        place: What error messages call the adapter.

    Raises:
        UserError: A row holds NaN.
    """
    for end in ends_of(model):
        unknown = end.weight.isnan().any(1)
        if unknown.any():
            what = f"was trained with {len(unknown)} tokens, but has no weights for {int(unknown.sum())} of them"
            raise UserError(what, where=place, remedy="save the adapter with save_embedding_layers=True")


def refuse_more_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Refuse an adapter whose own tokenizer gives tokens that the merged model has no rows for.

    A special token that no prompt and no answer holds needs no row: training code often adds one that pads batches.

    Args:
        model: The merged model.
        tokenizer: The tokenizer in the adapter's directory.
        place: What error messages call the adapter.

    Raises:
        UserError: The tokenizer has tokens beyond the embedding's rows that texts, the chat template, or the ends of a sequence
            can hold.
    """
    rows = vocabulary_rows(model)
    template = "" if tokenizer.chat_template is None else chosen_template(tokenizer)
    ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if any(token not in special or token in ends or token in template for token in beyond):
        what = f"has a tokenizer of {len(tokenizer)} tokens, but the merged model has {rows} rows"
        raise UserError(what, where=place, remedy="save the adapter with save_embedding_layers=True")
