"""This project as a benchmark runs it: the package's own module on a random base, instead of one loaded from files."""

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
    """An explainer that loads as it always does, except that its base is random instead of read from files.

    Args:
        shape: Of the base and its adapter.
        seed: Of both.
        options: Of :class:`ExplainerModule`.
    """
    module = ExplainerModule("random", lora=shape.lora, **options)
    module.to(device_name())
    with patch("afintro.explainer.module.load_model", lambda *_: random_model(shape, PACKED, seed)):
        module.configure_model()
    return module


def plan(same: list[list[Example]], examples: Iterator[Example], steps: int, budget: int) -> list[list[Example]]:
    """Groups of all steps: those that every system shares, then rows of ``budget`` tokens as the data module packs them."""
    drawn = at_least(examples, (steps + 1) * budget)
    rows = best_fit(np.arange(len(drawn), dtype=np.int32), sizes_of(drawn).sum(1, dtype=np.int32), budget)
    own = [[drawn[index] for index in rows[row]] for row in range(len(rows))]
    own.sort(key=lambda group: -sum(map(len, group)))  # the rows that were never filled up are the end of an epoch
    own = own[:steps]
    random.Random(0).shuffle(own)
    return [*same, *own]


def train(module: ExplainerModule, groups: list[list[Example]]) -> Iterator[tuple[int, Tensor]]:
    """Real tokens and loss of every step, one step at a time, as the trainer makes it."""
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
