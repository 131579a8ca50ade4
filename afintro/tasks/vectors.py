"""Vectors in prompts: find the slot, and take away or exchange the vectors of items."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from afintro.data.batch import Example
from afintro.data.splits import stable_hash
from afintro.errors import UserError
from afintro.lm.injection import VectorSpace
from afintro.tasks.contract import ExplainerSpec

ZERO, SHUFFLED = "zero_vector", "shuffled_vector"


def slot_token(reader: ExplainerSpec) -> str:
    """Return the token whose embedding a vector replaces.

    Raises:
        UserError: No slot token is configured.
    """
    if reader.slot_token is None:
        raise UserError("is absent", where="model.slot_token", remedy="name a reserved token of the tokenizer")
    return reader.slot_token


def slot_position(prompt_ids: Sequence[int], reader: ExplainerSpec, where: str, wording: str) -> int:
    """Return the index of the slot in a prompt.

    Args:
        prompt_ids: Token ids of the prompt.
        reader: The explainer that reads the prompt.
        where: The item, for the message.
        wording: The setting to change, for the message.

    Raises:
        UserError: The slot token does not stand in the prompt exactly once.
    """
    slot_id = reader.tokenizer.convert_tokens_to_ids(slot_token(reader))
    assert isinstance(slot_id, int)
    count = prompt_ids.count(slot_id)
    if count != 1:
        raise UserError(
            f"holds the slot token {count} times",
            where=where,
            remedy=f"write {{slot}} once in every wording of {wording}",
        )
    return prompt_ids.index(slot_id)


def vector_of(item: Example) -> NDArray[np.float32]:
    """Return the vector in an item's prompt: float32 ``[width]``."""
    assert item.slot is not None
    return item.slot.vector


def with_vector(item: Example, vector: NDArray[np.float32]) -> Example:
    """Return the item with another vector, float32 ``[width]``."""
    assert item.slot is not None
    return replace(item, slot=replace(item.slot, vector=vector))


def without_vectors(items: Sequence[Example]) -> list[Example]:
    """Return every item with a vector of zeros."""
    return [with_vector(item, np.zeros_like(vector_of(item))) for item in items]


def shuffled(items: Sequence[Example], seed: int, kind: Callable[[Example], Hashable]) -> list[Example]:
    """Return every item with the vector of another item of the same layer, of another kind if there is one.

    Vectors stay within their layer, so that neither the text nor the scale gives the exchange away.

    Args:
        items: Items with vectors.
        seed: Decides, with the uids, which items exchange vectors.
        kind: What an item and the owner of its new vector should differ in.
    """
    layers: dict[int, list[Example]] = {}
    for item in sorted(items, key=lambda item: stable_hash(f"{seed} {item.uid}")):
        assert item.slot is not None
        layers.setdefault(item.slot.layer, []).append(item)
    vectors: dict[str, NDArray[np.float32]] = {}
    for members in layers.values():
        kinds = [kind(item) for item in members]
        for place, item in enumerate(members):
            others = [*range(place + 1, len(members)), *range(place)]
            donor = next((other for other in others if kinds[other] != kinds[place]), (others or [place])[0])
            vectors[item.uid] = vector_of(members[donor])
    return [with_vector(item, vectors[item.uid]) for item in items]


def space_of(space: VectorSpace | None) -> VectorSpace:
    """Return the width and the layers of the vectors that an explainer reads.

    Raises:
        UserError: The explainer does not say it.
    """
    if space is None:
        what = "does not say which vectors the explainer reads"
        raise UserError(what, where="--ckpt_path", remedy="give a checkpoint of a task whose prompts hold vectors")
    return space


def check_space(space: VectorSpace, width: int, layer: int, where: str) -> None:
    """Check that an explainer reads vectors of a width and layer.

    Args:
        space: The width and the layers of the vectors that the explainer reads.
        width: Length of the vectors.
        layer: 0-based layer of the vectors.
        where: Source of the vectors, for the message.

    Raises:
        UserError: The explainer was trained on vectors of another width, or not on the layer.
    """
    if width != space.width:
        what = f"holds vectors of width {width}, while the explainer reads vectors of width {space.width}"
        raise UserError(what, where=where, remedy="give vectors of the model that the explainer was trained to explain")
    if layer not in space.layers:
        known = ", ".join(map(str, space.layers))
        what = f"is of layer {layer}, while the explainer reads vectors of layer {known}"
        raise UserError(what, where=where, remedy="give vectors of one of these layers")
