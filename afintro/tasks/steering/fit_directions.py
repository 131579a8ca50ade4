"""Directions of an organism's residual stream, fitted to a contrast of two kinds of conversation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.text import Message, encode_prompt
from afintro.errors import UserError
from afintro.evaluation.detection_metrics import auroc
from afintro.evaluation.intervals import Bootstrap, Estimate
from afintro.lm.capture import read_states
from afintro.lm.load import context_length
from afintro.tasks.steering.contrasts import Contrast, Parts, split_contrast

Floats = NDArray[np.float32]
Site = Literal["last", "mean"]
SITES: tuple[str, ...] = get_args(Site)


def difference_of_means(x0: Floats, x1: Floats) -> Floats:
    """Mean of ``x1 [n1, hidden]`` less that of ``x0 [n0, hidden]``: float32 ``[hidden]``.

    As in Marks & Tegmark 2023 (The Geometry of Truth) and Panickssery et al. 2023 (contrastive activation addition).
    """
    return _means_apart(x0, x1).astype(np.float32)


def logistic_probe(x0: Floats, x1: Floats) -> Floats:
    """Normal of the plane by which L2-regularised logistic regression tells ``x1`` from ``x0``: float32 ``[hidden]``.

    Fitted on standardised features with both classes weighing the same (Alain & Bengio 2016 on linear probes), and
    mapped back to the raw space. Its own norm depends on the regularisation; it gets the norm of the difference of means, so that
    one strength of steering means the same for every method.
    """
    x = np.concatenate([x0, x1]).astype(np.float64)
    spread = x.std(0)
    spread[spread == 0] = 1  # a constant feature tells nothing, and gets no weight
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit((x - x.mean(0)) / spread, np.repeat([0, 1], [len(x0), len(x1)]))
    return _with_norm(model.coef_[0] / spread, _means_apart(x0, x1))


def first_principal_component(x0: Floats, x1: Floats) -> Floats:
    """Direction of most variance of both classes together, ``[hidden]`` float32, as the mean of all is taken off.

    As in Zou et al. 2023 (representation engineering), but of the pooled data and not of paired differences, since
    not every contrast has pairs. The sign is such that class 1 projects higher on average; the norm is that of the
    difference of means, as for :func:`logistic_probe`.
    """
    x = np.concatenate([x0, x1]).astype(np.float64)
    x -= x.mean(0)
    wide = len(x) < x.shape[1]  # the smaller of the two Gram matrices has the same largest eigenvalue
    gram = x @ x.T if wide else x.T @ x
    component = eigh(gram, subset_by_index=[len(gram) - 1] * 2)[1][:, 0]
    apart = _means_apart(x0, x1)
    component = component @ x if wide else component
    return _with_norm(component if component @ apart >= 0 else -component, apart)


def _means_apart(x0: Floats, x1: Floats) -> NDArray[np.float64]:
    return x1.mean(0, dtype=np.float64) - x0.mean(0, dtype=np.float64)


def _with_norm(vector: NDArray[np.float64], of: NDArray[np.float64]) -> Floats:
    return (vector * (np.linalg.norm(of) / np.linalg.norm(vector))).astype(np.float32)


METHODS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "mean_difference": difference_of_means,
    "logistic_probe": logistic_probe,
    "principal_component": first_principal_component,
}


def separation(
    direction: Floats, x0: Floats, x1: Floats, clusters0: Sequence[str], clusters1: Sequence[str], seed: int
) -> Estimate:
    """AUROC of the projection on ``direction [hidden]`` for class 1, with its bootstrap interval over scenarios.

    Args:
        direction: Its norm plays no part.
        x0: Activations of class 0 ``[n0, hidden]``.
        x1: Those of class 1 ``[n1, hidden]``.
        clusters0: The scenario of each row of ``x0``.
        clusters1: That of each row of ``x1``.
        seed: Seeds the draws.
    """
    scores = np.concatenate([x0, x1]).astype(np.float64) @ direction.astype(np.float64)
    truth = np.repeat([False, True], [len(x0), len(x1)])
    return Bootstrap([*clusters0, *clusters1], seed).estimate(lambda weights: auroc(scores, truth, weights))


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    limit: int | None,
    name: str = "conversation",
) -> list[list[int]]:
    """Prompts as token ids.

    Raises:
        UserError: A prompt is longer than ``limit``, the model's context; ``name`` and a number say which.
    """
    prompts = [encode_prompt(tokenizer, conversation) for conversation in conversations]
    for index, prompt in enumerate(prompts):
        if limit is not None and len(prompt) > limit:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, the model's context is {limit}",
                where=f"{name} {index}",
                remedy="shorten or leave out the text, or use a model with a longer context",
            )
    return prompts


@torch.no_grad()
def last_token_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    layers: Sequence[int],
    batch_size: int,
    site: Site = "last",
    on_done: Callable[[int], Any] | None = None,
) -> dict[int, Floats]:
    """Residual stream after some layers, at one site of each prompt.

    Args:
        model: As loaded by :func:`afintro.lm.load.load_model`.
        tokenizer: The model's.
        conversations: What to read, up to where the answer begins.
        layers: 0-based decoder layers.
        batch_size: Prompts a forward pass; no more than one pass is in memory.
        site: ``last``: the last token of the prompt. ``mean``: the mean over all its tokens but the first, which
            many models use as a sink of attention with a norm of its own.
        on_done: Called with the number of prompts just read, for progress.

    Returns:
        float32 ``[n, hidden]`` by layer, rows in the order of the conversations.

    Raises:
        UserError: A prompt longer than the context, or an activation that is NaN or infinite.
    """
    prompts = encode_conversations(tokenizer, conversations, context_length(model.config))
    embeddings: Any = model.get_input_embeddings()
    found = {layer: np.zeros((len(prompts), embeddings.embedding_dim), np.float32) for layer in layers}
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))  # like lengths share a pass
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        bounds = np.cumsum([0] + [len(prompts[row]) for row in rows])
        states = read_states(model, [prompts[row] for row in rows], layers)
        for layer in layers:
            found[layer][rows] = _at_site(states[layer], bounds.tolist(), site).cpu().numpy()
            if not np.isfinite(found[layer][rows]).all():
                what = f"the residual stream after layer {layer} holds NaN or infinite values"
                raise UserError(what, where="activations", remedy="use another --dtype, e.g. float32")
        if on_done is not None:
            on_done(len(rows))
    return found


def _at_site(stream: Tensor, bounds: Sequence[int], site: Site) -> Tensor:
    """float32 ``[rows, hidden]`` of ``[T, hidden]``."""
    if site == "last":
        return stream[[end - 1 for end in bounds[1:]]].float()
    # A prompt of one token has no other.
    return torch.stack([stream[min(first + 1, end - 1) : end].float().mean(0) for first, end in pairwise(bounds)])


@dataclass(frozen=True)
class Computed:
    """Directions of a contrast.

    Args:
        vectors: ``[hidden]`` float32 by method and layer.
        auroc: On held-out scenarios, by method and layer.
        residual_norm: Mean norm of the fitted activations at the site, by layer.
        parts: What was fitted and tested on.
    """

    vectors: Mapping[str, Mapping[int, Floats]]
    auroc: Mapping[str, Mapping[int, Estimate]]
    residual_norm: Mapping[int, float]
    parts: Parts


def compute_directions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: Contrast,
    layers: Sequence[int],
    methods: Sequence[str],
    holdout: float,
    seed: int,
    batch_size: int,
    site: Site = "last",
    on_done: Callable[[int], Any] | None = None,
) -> Computed:
    """Fit a direction for each of ``methods`` and layer on the training scenarios, and test it on the others.

    ``holdout`` is the share of the scenarios to test on; ``seed`` seeds split and intervals. For the other arguments
    see :func:`last_token_activations`.

    Raises:
        UserError: As for :func:`split_contrast` and :func:`last_token_activations`, or two classes that are the same
            to the model.
    """
    parts = split_contrast(contrast, holdout, seed)
    read = [
        last_token_activations(model, tokenizer, conversations, layers, batch_size, site, on_done)
        for conversations in contrast.conversations
    ]
    zero, one = ([ids[i] for i in part] for ids, part in zip(contrast.scenarios, parts.heldout, strict=True))
    vectors: dict[str, dict[int, Floats]] = {method: {} for method in methods}
    auroc: dict[str, dict[int, Estimate]] = {method: {} for method in methods}
    norms: dict[int, float] = {}
    for layer in layers:
        x0, x1 = (read[side][layer][parts.train[side]] for side in (0, 1))
        _check_apart(x0, x1, contrast, layer)
        norms[layer] = float(np.linalg.norm(np.concatenate([x0, x1]), axis=1).mean(dtype=np.float64))
        y0, y1 = (read[side][layer][parts.heldout[side]] for side in (0, 1))
        for method in methods:
            vectors[method][layer] = METHODS[method](x0, x1)
            auroc[method][layer] = separation(vectors[method][layer], y0, y1, zero, one, seed)
    return Computed(vectors, auroc, norms, parts)


def _check_apart(x0: Floats, x1: Floats, contrast: Contrast, layer: int) -> None:
    if not difference_of_means(x0, x1).any():
        what = f"{contrast.classes[0]!r} and {contrast.classes[1]!r} have the same mean after layer {layer}"
        raise UserError(what, where="contrast", remedy="check that the two classes differ in what the model reads")
