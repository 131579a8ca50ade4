"""Measure how large a context's activations are, and how well that alone tells whether the context was steered."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from afintro.evaluation.intervals import Floats
from afintro.lm.attention import uses_packed_attention
from afintro.lm.capture import capture
from afintro.lm.engine import starts_of
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import decoder_layers
from afintro.lm.spans import SpanSteering, spans

TOKENS = 8_192  # in one pass
SMALLEST = 1e-30  # a state of zeros has no logarithm


@torch.no_grad()
def context_norms(
    model: nn.Module, contexts: Sequence[Sequence[int]], steerings: Sequence[SpanSteering | None]
) -> Floats:
    """Return the logarithm of the mean norm of the residual stream after each decoder layer, over a context's positions.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, with or without an adapter, in eval mode.
        contexts: Token ids of each context, at least one.
        steerings: The steering of all positions of each context; None for no steering.

    Returns:
        ``[contexts, layers]`` float64. The steering of a layer shows from the next layer on.
    """
    layers = range(len(decoder_layers(model)))
    device = next(model.parameters()).device
    norms = np.empty((len(contexts), len(layers)))
    for members in _passes(contexts, TOKENS if uses_packed_attention(_whole(model)) else 0):
        ids, changes = [contexts[index] for index in members], [steerings[index] for index in members]
        lengths, starts = list(map(len, ids)), starts_of(ids)
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        row = torch.tensor([token for context in ids for token in context], device=device)
        last = torch.tensor([len(row) - 1], device=device)
        with capture(model, layers) as residual:
            packed_logits(model, row, bounds, last, spans(changes, starts, lengths, device))
        for layer in layers:
            of_tokens = residual[layer].flatten(0, 1).float().norm(dim=-1).cpu()
            means = [float(part.mean()) for part in of_tokens.split(lengths)]
            norms[members, layer] = np.log(np.maximum(means, SMALLEST))
    return norms


def _whole(model: Any) -> nn.Module:
    whole: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return whole


def _passes(contexts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Group contexts up to a number of tokens; a longer context is alone."""
    members: list[int] = []
    filled = 0
    for index, context in enumerate(contexts):
        if members and filled + len(context) > tokens:
            yield members
            members, filled = [], 0
        members.append(index)
        filled += len(context)
    if members:
        yield members


def fit_norm_probe(norms: Floats, steered: Sequence[bool]) -> Pipeline:
    """Fit a logistic regression that tells steered from unsteered contexts by their norms alone.

    Args:
        norms: ``[readings, layers]`` float64, of :func:`context_norms`.
        steered: The truth, both classes.

    Returns:
        The fitted probe. Its ``decision_function`` gives log-odds in favor of "steered".
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    probe.fit(norms, steered)
    return probe
