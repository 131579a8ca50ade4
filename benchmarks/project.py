"""This project as a benchmark runs it: the package's own module on a random base instead of a base loaded from files."""

import random
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from afintro.data.batch import Example, sizes_of
from afintro.data.loader import best_fit
from afintro.explainer.module import ExplainerModule
from afintro.lm.attention import NAME as PACKED
from benchmarks.inputs import at_least, token_mean
from benchmarks.shapes import Shape, device_name, random_model

LEARNING_RATE = 1e-4
CLIP = 1.0


def explainer(shape: Shape, seed: int = 0, **options: Any) -> ExplainerModule:
    """Make an explainer as always, except that its base is random instead of read from files.

    Args:
        shape: Shape of the base and its adapter.
        seed: Seed of the weights of both.
        options: Arguments of :class:`ExplainerModule`.
    """
    module = ExplainerModule("random", lora=shape.lora, **options)
    module.to(device_name())
    with patch("afintro.explainer.loading.load_model", lambda *_: random_model(shape, PACKED, seed)):
        module.configure_model()
    return module


def plan(same: list[list[Example]], examples: Iterator[Example], steps: int, budget: int) -> list[list[Example]]:
    """Plan the groups of all steps.

    Args:
        same: Groups of the first steps, which every system shares.
        examples: Stream of the further examples.
        steps: Number of further steps.
        budget: Tokens of a row, packed as the data module packs rows.
    """
    drawn = at_least(examples, (steps + 1) * budget)
    rows = best_fit(np.arange(len(drawn), dtype=np.int32), sizes_of(drawn).sum(1, dtype=np.int32), budget)
    packed = [[drawn[index] for index in rows[row]] for row in range(len(rows))]
    packed.sort(key=lambda group: -sum(map(len, group)))  # rows that were never filled stand at the end of an epoch
    packed = packed[:steps]
    random.Random(0).shuffle(packed)
    return [*same, *packed]


def train(module: ExplainerModule, groups: list[list[Example]]) -> Iterator[tuple[int, Tensor]]:
    """Train step by step as the trainer does, and yield real tokens and loss of every step."""
    device = device_name()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.0)
    for group in groups:
        batch = token_mean(group).to(device)
        loss = module.loss(batch)
        loss.backward()
        module.on_after_backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        yield len(batch.input_ids), loss.detach()
