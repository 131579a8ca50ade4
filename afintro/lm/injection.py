"""Continuous tokens: a vector enters the model where a slot token stands in the prompt."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from afintro.lm.capture import embedding_norm
from afintro.lm.interventions import Intervention, decoder_layers


@dataclass
class Injection:
    """How a vector enters the model.

    Args:
        site: ``embedding`` puts the vector in the place of the slot's embedding; ``residual`` adds it to the residual
            stream at the slot, in units of that stream's own norm there (norm-matched).
        layer: For ``residual``: the decoder layer (0-based) after which it is added.
        projection: Learn a linear map even where the vectors are as wide as the model; where they are not, one is
            always learnt.
        ridge: Strength of the ridge regression (vectors to the mean embedding of their answers' tokens) that the
            projection starts from; None starts from the identity, or from a random orthogonal map if widths differ.
    """

    site: Literal["embedding", "residual"] = "embedding"
    layer: int = 0
    projection: bool = False
    ridge: float | None = None


@dataclass(frozen=True)
class VectorSpace:
    """Where a task's vectors come from: their width, and the layers (of the model that is explained)."""

    width: int
    layers: tuple[int, ...]


class Injector(nn.Module):
    """Vectors of a space to continuous tokens of a model: unit norm, projection, unit norm, times a scale per layer.

    Args:
        space: Width and layers of the vectors.
        hidden: Width of the model.
        settings: See :class:`Injection`.
        norm: Norm of a token at the start: that of embeddings, or 1 where the intervention is relative.
    """

    def __init__(self, space: VectorSpace, hidden: int, settings: Injection, norm: float) -> None:
        super().__init__()
        self.layers: Tensor
        self.settings, self.norm = settings, norm
        # A logarithm: a step of the optimizer changes it by the same share whatever the model's norms are.
        self.log_scale = nn.Parameter(torch.zeros(len(space.layers)))
        self.register_buffer("layers", torch.tensor(sorted(space.layers)), persistent=False)
        self.projection: nn.Linear | None = None
        if settings.projection or space.width != hidden:
            self.projection = nn.Linear(space.width, hidden, bias=False)
            if space.width == hidden:
                nn.init.eye_(self.projection.weight)
            else:
                nn.init.orthogonal_(self.projection.weight)

    def forward(self, vectors: Tensor, layers: Tensor) -> Tensor:
        """Continuous tokens.

        Args:
            vectors: ``[S, width]`` float; a zero vector stays zero.
            layers: ``[S]`` int64, the layer that each comes from; one of the space's.

        Returns:
            ``[S, hidden]``.
        """
        tokens = F.normalize(vectors, dim=-1)
        if self.projection is not None:
            tokens = F.normalize(self.projection(tokens), dim=-1)
        index = torch.searchsorted(self.layers, layers)
        return tokens * (self.norm * self.log_scale.exp()[index])[:, None]

    def intervention(self, positions: Tensor, tokens: Tensor) -> Intervention:
        """The intervention that puts ``tokens [S, hidden]`` at ``positions [S]``."""
        if self.settings.site == "embedding":
            return Intervention(-1, "replace", positions, tokens)
        return Intervention(self.settings.layer, "add", positions, tokens, relative=True)

    def fit_projection(self, vectors: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        """Start the projection from a ridge regression of unit ``targets [n, hidden]`` on unit ``vectors [n, width]``."""
        assert self.projection is not None
        assert self.settings.ridge is not None
        x, y = (F.normalize(torch.from_numpy(array).double(), dim=-1).numpy() for array in (vectors, targets))
        weight = Ridge(alpha=self.settings.ridge, fit_intercept=False).fit(x, y).coef_
        self.projection.weight.data.copy_(torch.from_numpy(weight))


def make_injector(model: nn.Module, space: VectorSpace, settings: Injection, seed: int = 0) -> Injector:
    """An untrained injector for a model, the same at every call.

    Raises:
        ValueError: A layer that the model does not have.
    """
    depth = len(decoder_layers(model))
    if settings.site == "residual" and not 0 <= settings.layer < depth:
        raise ValueError(f"layer {settings.layer} of a model with {depth} layers (0 to {depth - 1})")
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    norm = embedding_norm(model) if settings.site == "embedding" else 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        injector = Injector(space, embeddings.embedding_dim, settings, norm)
    return injector.to(embeddings.weight.device)
