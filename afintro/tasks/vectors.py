"""Vectors in prompts: where the slot is, and items whose vector was taken away or exchanged."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from afintro.data.batch import Example
from afintro.data.splits import stable_hash
from afintro.errors import UserError
from afintro.tasks.base import ExplainerSpec

ZERO, SHUFFLED = "zero_vector", "shuffled_vector"


def slot_token(reader: ExplainerSpec) -> str:
    """The token that a vector takes the place of.

    Raises:
        UserError: None is configured.
    """
    if reader.slot_token is None:
        raise UserError("is absent", where="model.slot_token", remedy="name a reserved token of the tokenizer")
    return reader.slot_token


def slot_position(prompt_ids: Sequence[int], reader: ExplainerSpec, where: str, wording: str) -> int:
    """Where the slot stands in a prompt.

    Raises:
        UserError: Not exactly once; ``where`` names the item, ``wording`` the setting to mend.
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
    """The vector in an item's prompt."""
    assert item.slot is not None
    return item.slot.vector


def with_vector(item: Example, vector: NDArray[np.float32]) -> Example:
    """The item with another vector."""
    assert item.slot is not None
    return replace(item, slot=replace(item.slot, vector=vector))


def without_vectors(items: Sequence[Example]) -> list[Example]:
    """Every item with a vector of zeros."""
    return [with_vector(item, np.zeros_like(vector_of(item))) for item in items]


def shuffled(items: Sequence[Example], seed: int, kind: Callable[[Example], Hashable]) -> list[Example]:
    """Every item with the vector of another one of its layer, if there is one of another kind.

    Within the layer, so that neither the text nor the scale gives the exchange away.
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
