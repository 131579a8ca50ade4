"""Examples of features: the prompt with a slot for the vector, the label as the answer, made when they are asked for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.batch import Example, Slot
from afintro.data.splits import stable_hash
from afintro.data.text import Message, chat, encode_answer, encode_prompt, fill
from afintro.tasks.contract import ExplainerSpec
from afintro.tasks.feature_descriptions.records import Feature
from afintro.tasks.feature_descriptions.splits import FeatureSplit
from afintro.tasks.vectors import slot_position, slot_token


@dataclass
class Wording:
    """How the explainer is asked.

    Args:
        system: System prompt.
        user: One or several wordings with the fields ``{layer}`` and ``{slot}``. Which wording a feature gets depends on
            its layer and number alone.
    """

    system: str = "You describe features of a language model's activations."
    user: list[str] = field(
        default_factory=lambda: [
            "Layer {layer}, feature {slot}\n\nWhat makes this feature fire?",
            "{slot} is a feature of layer {layer}.\n\nDescribe when it is active.",
            "Which texts make the feature {slot} of layer {layer} fire?",
        ]
    )

    def number(self, layer: int, index: int) -> int:
        """Return which of the wordings a feature gets."""
        return stable_hash(f"{layer}/{index}") % len(self.user)

    def render(self, feature: Feature, slot_token: str) -> tuple[list[Message], str]:
        """Return the prompt's messages and the answer for a feature."""
        return chat(self.system, self.text(feature.layer, feature.index, slot_token)), feature.label

    def text(self, layer: int, index: int, slot_token: str) -> str:
        """Return what the user asks about a feature of a layer."""
        return fill(self.user[self.number(layer, index)], {"layer": str(layer), "slot": slot_token})


@dataclass(frozen=True)
class FeatureEncoder:
    """Make examples of features for one explainer.

    Args:
        wording: How the explainer is asked.
        explainer: Tokenizer and slot token.
        weight: Weight of every example in the loss.
        zero_vectors: Whether every vector is replaced by zeros.
        space: Name of the vectors' space, where an explainer reads vectors of several.
    """

    wording: Wording
    explainer: ExplainerSpec
    weight: float
    zero_vectors: bool
    space: str = ""

    def example(self, split: FeatureSplit, index: int) -> Example:
        """Make the example of one feature of a split.

        Raises:
            UserError: No slot token is configured, or a wording does not hold the slot token exactly once.
        """
        row = split.indices[index]
        feature = split.table.feature(row)
        vector = split.table.vectors(row[None])[0]
        slot = slot_token(self.explainer)
        messages, answer = self.wording.render(feature, slot)
        prompt_ids = encode_prompt(self.explainer.tokenizer, messages, slot)
        where = f"prompt of feature {feature.uid}"
        position = slot_position(prompt_ids, self.explainer, where, "data.wording.user")
        return Example(
            uid=feature.uid,
            # Features of one label are resampled together. (records.scenario_id would fold white space, and labels hold it.)
            scenario_id=hashlib.sha256(answer.encode()).hexdigest()[:16],
            question_type=split.kind(index),
            prompt=messages[-1]["content"],
            answer=answer,
            prompt_ids=tuple(prompt_ids),
            answer_ids=tuple(encode_answer(self.explainer.tokenizer, answer)),
            weight=self.weight,
            slot=Slot(
                position, feature.layer, np.zeros_like(vector) if self.zero_vectors else vector, space=self.space
            ),
            group=feature.category,
            facets={"category": feature.category} if feature.category != feature.cluster else {},
        )

    def sizes(self, split: FeatureSplit) -> NDArray[np.int32]:
        """Count the tokens of every prompt and answer of a split.

        No prompt of a layer and no label is tokenized twice.

        Returns:
            ``[n, 2]`` tokens of prompt and answer.
        """
        tokenizer = self.explainer.tokenizer
        prompts: dict[tuple[int, int], int] = {}
        sizes = np.empty((len(split.indices), 2), np.int32)
        for place, key in enumerate(split.table.keys(split.indices).tolist()):
            layer, number = key >> 40, key & (1 << 40) - 1
            kind = (layer, self.wording.number(layer, number))
            if kind not in prompts:
                feature = split.table.feature(split.indices[place])
                slot = slot_token(self.explainer)
                messages, _ = self.wording.render(feature, slot)
                prompts[kind] = len(encode_prompt(tokenizer, messages, slot))
            sizes[place, 0] = prompts[kind]
        codes, labels = split.table.labels(split.indices)
        sizes[:, 1] = np.array([len(encode_answer(tokenizer, label)) for label in labels])[codes]
        return sizes


class FeatureExamples(Sequence[Example]):
    """Examples of a split, made when they are asked for: only then is a vector read and a text tokenized.

    Args:
        split: The features.
        encoder: Makes the examples.
    """

    def __init__(self, split: FeatureSplit, encoder: FeatureEncoder) -> None:
        self.split, self.encoder = split, encoder

    def __len__(self) -> int:
        return len(self.split.indices)

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """Tokens of prompt and answer ``[n, 2]``, see :func:`afintro.data.batch.sizes_of`."""
        return self.encoder.sizes(self.split)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.encoder.example(self.split, index % len(self))
