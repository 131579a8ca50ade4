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
from afintro.evaluation.intervals import Clusters, Estimate
from afintro.evaluation.statistic import Statistic
from afintro.lm.capture import read_states
from afintro.lm.interventions import residual_width
from afintro.lm.load import context_length
from afintro.tasks.steering.contrasts import Contrast, Parts, split_contrast

Floats = NDArray[np.float32]
Site = Literal["last", "mean"]
SITES: tuple[str, ...] = get_args(Site)


def difference_of_means(x0: Floats, x1: Floats) -> Floats:
    """Return the mean of ``x1 [n1, hidden]`` minus the mean of ``x0 [n0, hidden]``: float32 ``[hidden]``.

    As in Marks & Tegmark 2023 (The Geometry of Truth) and Panickssery et al. 2023 (contrastive activation addition).
    """
    return _means_apart(x0, x1).astype(np.float32)


def logistic_probe(x0: Floats, x1: Floats) -> Floats:
    """Return the normal of the plane by which L2-regularized logistic regression separates the classes: float32 ``[hidden]``.

    The regression is fitted on standardized features with both classes weighing the same (Alain & Bengio 2016 on linear
    probes), and its normal mapped back to the raw space. The norm of the normal depends on the regularization; it is
    replaced by the norm of the difference of means, so that one strength of steering means the same for every method.
    """
    x = np.concatenate([x0, x1]).astype(np.float64)
    spread = x.std(0)
    spread[spread == 0] = 1  # a constant feature gets no weight
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit((x - x.mean(0)) / spread, np.repeat([0, 1], [len(x0), len(x1)]))
    return _with_norm(model.coef_[0] / spread, _means_apart(x0, x1))


def first_principal_component(x0: Floats, x1: Floats) -> Floats:
    """Return the direction of largest variance of both classes together, after the common mean is subtracted: ``[hidden]``.

    As in Zou et al. 2023 (representation engineering), but of the pooled data and not of paired differences, since
    not every contrast has pairs. The sign is chosen so that class 1 projects higher on average; the norm is the norm of the
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
    direction: Floats, x0: Floats, x1: Floats, clusters0: Sequence[str], clusters1: Sequence[str]
) -> Estimate:
    """Measure the AUROC of the projection on a direction for class 1, with its interval over scenarios.

    Args:
        direction: float32 ``[hidden]``; the norm does not matter.
        x0: Activations of class 0, float32 ``[n0, hidden]``.
        x1: Activations of class 1, float32 ``[n1, hidden]``.
        clusters0: The scenario of each row of ``x0``.
        clusters1: The scenario of each row of ``x1``.
    """
    scores = np.concatenate([x0, x1]).astype(np.float64) @ direction.astype(np.float64)
    truth = np.repeat([0.0, 1.0], [len(x0), len(x1)])
    rows = tuple(map(str, range(len(truth))))
    return Statistic("auroc", np.stack([scores, truth], 1), "auroc", rows).estimate(Clusters([*clusters0, *clusters1]))


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    limit: int | None,
    name: str = "conversation",
) -> list[list[int]]:
    """Encode prompts as token ids.

    Args:
        tokenizer: The model's tokenizer.
        conversations: Messages of each prompt.
        limit: The model's context in tokens; None if it is unknown.
        name: What a message calls a conversation, before its number.

    Raises:
        UserError: A prompt is longer than the context.
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
    """Read the residual stream after some layers, at one site of each prompt.

    Args:
        model: A model loaded by :func:`afintro.lm.load.load_model`.
        tokenizer: The model's tokenizer.
        conversations: What to read, up to where the answer begins.
        layers: 0-based decoder layers.
        batch_size: Number of prompts in a forward pass; only one pass at a time is in memory.
        site: ``last`` is the last token of the prompt; ``mean`` is the mean over all tokens except the first, which many
            models use as a sink of attention with a norm of its own.
        on_done: Called with the number of prompts just read, for progress.

    Returns:
        float32 ``[n, hidden]`` by layer, rows in the order of the conversations.

    Raises:
        UserError: A prompt is longer than the context, or an activation is NaN or infinite.
    """
    prompts = encode_conversations(tokenizer, conversations, context_length(model.config))
    return prompt_activations(model, prompts, layers, batch_size, site, on_done)


def prompt_activations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int],
    batch_size: int,
    site: Site = "last",
    on_done: Callable[[int], Any] | None = None,
) -> dict[int, Floats]:
    """Read the residual stream after some layers, at one site of each prompt, see :func:`last_token_activations`.

    Args:
        model: A model loaded by :func:`afintro.lm.load.load_model`.
        prompts: Token ids of each prompt.
        layers: 0-based decoder layers.
        batch_size: Number of prompts in a forward pass.
        site: ``last`` or ``mean``.
        on_done: Called with the number of prompts just read.

    Returns:
        float32 ``[n, hidden]`` by layer, rows in the order of the prompts.

    Raises:
        UserError: An activation is NaN or infinite.
    """
    activations = {layer: np.zeros((len(prompts), residual_width(model)), np.float32) for layer in layers}
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))  # prompts of similar length share a pass
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        bounds = np.cumsum([0] + [len(prompts[row]) for row in rows])
        states = read_states(model, [prompts[row] for row in rows], layers)
        for layer in layers:
            activations[layer][rows] = _at_site(states[layer], bounds.tolist(), site).cpu().numpy()
            if not np.isfinite(activations[layer][rows]).all():
                what = f"the residual stream after layer {layer} holds NaN or infinite values"
                raise UserError(what, where="activations", remedy="use another --dtype, e.g. float32")
        if on_done is not None:
            on_done(len(rows))
    return activations


def _at_site(stream: Tensor, bounds: Sequence[int], site: Site) -> Tensor:
    """Reduce ``[T, hidden]`` to float32 ``[rows, hidden]``."""
    if site == "last":
        return stream[[end - 1 for end in bounds[1:]]].float()
    # A prompt of a single token has no other tokens: its mean is that token.
    return torch.stack([stream[min(first + 1, end - 1) : end].float().mean(0) for first, end in pairwise(bounds)])


@dataclass(frozen=True)
class Computed:
    """Directions of a contrast.

    Args:
        vectors: ``[hidden]`` float32 by method and layer.
        auroc: AUROC on held-out scenarios, by method and layer.
        residual_norm: Mean norm of the fitted activations at the site, by layer.
        parts: The conversations that were fitted to, and those that were tested on.
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
    """Fit a direction for each method and layer on the training scenarios, and test it on the held-out scenarios.

    Args:
        model: A model loaded by :func:`afintro.lm.load.load_model`.
        tokenizer: The model's tokenizer.
        contrast: The two classes of conversation.
        layers: 0-based decoder layers.
        methods: Names among :data:`METHODS`.
        holdout: Share of the scenarios to test on, between 0 and 1.
        seed: Seed of the split.
        batch_size: Number of prompts in a forward pass.
        site: See :func:`last_token_activations`.
        on_done: Called with the number of prompts just read, for progress.

    Raises:
        UserError: See :func:`split_contrast` and :func:`last_token_activations`; or the model reads the same in both
            classes.
    """
    parts = split_contrast(contrast, holdout, seed)
    activations = [
        last_token_activations(model, tokenizer, conversations, layers, batch_size, site, on_done)
        for conversations in contrast.conversations
    ]
    zero, one = ([ids[i] for i in part] for ids, part in zip(contrast.scenarios, parts.heldout, strict=True))
    vectors: dict[str, dict[int, Floats]] = {method: {} for method in methods}
    auroc: dict[str, dict[int, Estimate]] = {method: {} for method in methods}
    norms: dict[int, float] = {}
    for layer in layers:
        x0, x1 = (activations[side][layer][parts.train[side]] for side in (0, 1))
        _check_apart(x0, x1, contrast, layer)
        norms[layer] = float(np.linalg.norm(np.concatenate([x0, x1]), axis=1).mean(dtype=np.float64))
        y0, y1 = (activations[side][layer][parts.heldout[side]] for side in (0, 1))
        for method in methods:
            vectors[method][layer] = METHODS[method](x0, x1)
            auroc[method][layer] = separation(vectors[method][layer], y0, y1, zero, one)
    return Computed(vectors, auroc, norms, parts)


def _check_apart(x0: Floats, x1: Floats, contrast: Contrast, layer: int) -> None:
    if not difference_of_means(x0, x1).any():
        what = f"{contrast.classes[0]!r} and {contrast.classes[1]!r} have the same mean after layer {layer}"
        raise UserError(what, where="contrast", remedy="check that the two classes differ in what the model reads")


def tied_layers(auroc: Mapping[int, Estimate]) -> list[int]:
    """Return the layers whose AUROC lies within the interval of the highest AUROC: held-out conversations do not tell them apart.

    Args:
        auroc: AUROC by layer.
    """
    best = max(auroc.values(), key=lambda estimate: estimate.value or 0.0)
    least = best.ci_low if best.ci_low is not None else best.value
    return sorted(layer for layer, estimate in auroc.items() if (estimate.value or 0.0) >= (least or 0.0))


def best_layer(auroc: Mapping[int, Estimate], depth: int) -> int:
    """Return the layer with the highest AUROC; of layers that cannot be told apart, the one nearest to the middle of the model.

    A contrast of two system prompts can be read off at every layer, the first included, where steering does nothing. Published
    steering works in middle layers (Turner et al. 2023, activation addition; Panickssery et al. 2023, contrastive activation
    addition).

    Args:
        auroc: AUROC by layer.
        depth: Number of layers of the model.
    """
    return min(tied_layers(auroc), key=lambda layer: (abs(layer - depth / 2), layer))
