"""Turn vectors into continuous tokens, which enter the model where a slot token stands in the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from afintro.lm.capture import embedding_norm
from afintro.lm.interventions import Intervention, decoder_layers, residual_width


@dataclass
class Injection:
    """How a vector enters the model.

    Args:
        site: ``embedding`` puts the vector in the place of the slot's embedding. ``residual`` adds the vector to the
            residual stream at the slot, in units of the residual stream's own norm there (norm-matched).
        layer: For ``residual``: the decoder layer (0-based) after which the vector is added.
        projection: Whether to learn a linear map even if the vectors are as wide as the model. If they are not, a linear
            map is always learned.
        ridge: Strength of the ridge regression (vectors to the mean embedding of their answers' tokens) that the
            projection starts from; None starts from the identity, or from a random orthogonal map if widths differ.
    """

    site: Literal["embedding", "residual"] = "embedding"
    layer: int = 0
    projection: bool = False
    ridge: float | None = None


@dataclass(frozen=True)
class VectorSpace:
    """Where the vectors of a task come from: their width, and the layers of the explained model."""

    width: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class VectorSpaces:
    """Where the vectors of several tasks come from, by the name of the task; widths and layers may differ."""

    spaces: dict[str, VectorSpace]


class Injector(nn.Module):
    """Map vectors of a space to continuous tokens of a model: unit norm, projection, unit norm, times a scale per layer.

    Args:
        space: Width and layers of the vectors.
        hidden: Width of the model.
        settings: See :class:`Injection`.
        norm: Norm of a token before training: the norm of embeddings, or 1 if the intervention is relative.
    """

    def __init__(self, space: VectorSpace, hidden: int, settings: Injection, norm: float) -> None:
        super().__init__()
        self.layers: Tensor
        self.settings, self.norm, self.width = settings, norm, space.width
        # A logarithm, so that a step of the optimizer changes the scale by the same share whatever the model's norms are.
        self.log_scale = nn.Parameter(torch.zeros(len(space.layers)))
        self.register_buffer("layers", torch.tensor(sorted(space.layers)), persistent=False)
        self.projection: nn.Linear | None = None
        if settings.projection or space.width != hidden:
            self.projection = nn.Linear(space.width, hidden, bias=False)
            if space.width == hidden:
                nn.init.eye_(self.projection.weight)
            else:
                nn.init.orthogonal_(self.projection.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights, which the vectors must have."""
        return self.log_scale.dtype

    def forward(self, vectors: Tensor, layers: Tensor, spaces: Sequence[str] = ()) -> Tensor:
        """Return the continuous tokens of vectors.

        Args:
            vectors: ``[S, width]`` float; a zero vector stays zero.
            layers: ``[S]`` int64, the layer that each vector comes from; a layer of the space.
            spaces: Names of the spaces of the vectors, which are all of this space.

        Returns:
            ``[S, hidden]``.
        """
        tokens = F.normalize(vectors, dim=-1)
        if self.projection is not None:
            tokens = F.normalize(self.projection(tokens), dim=-1)
        index = torch.searchsorted(self.layers, layers)
        return tokens * (self.norm * self.log_scale.exp()[index])[:, None]

    def intervention(self, positions: Tensor, tokens: Tensor) -> Intervention:
        """Return the intervention that puts ``tokens [S, hidden]`` at ``positions [S]``."""
        if self.settings.site == "embedding":
            return Intervention(-1, "replace", positions, tokens)
        return Intervention(self.settings.layer, "add", positions, tokens, relative=True)

    def fit_projection(self, vectors: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        """Set the projection to the ridge regression of unit ``targets [n, hidden]`` on unit ``vectors [n, width]``."""
        from sklearn.linear_model import Ridge  # imported here because the import takes seconds, and few runs need it

        assert self.projection is not None
        assert self.settings.ridge is not None
        x, y = (F.normalize(torch.from_numpy(array).double(), dim=-1).numpy() for array in (vectors, targets))
        weight = Ridge(alpha=self.settings.ridge, fit_intercept=False).fit(x, y).coef_
        self.projection.weight.data.copy_(torch.from_numpy(weight))


class Injectors(nn.Module):
    """Map vectors of several spaces to continuous tokens of a model, each by the injector of its space.

    Args:
        parts: The injector of each space; all have the same settings.
    """

    def __init__(self, parts: Mapping[str, Injector]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    @property
    def first(self) -> Injector:
        """Return the injector of the first space, whose dtype and settings all have."""
        first = next(iter(self.parts.values()))
        assert isinstance(first, Injector)
        return first

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights, which the vectors must have."""
        return self.first.dtype

    def forward(self, vectors: Tensor, layers: Tensor, spaces: Sequence[str]) -> Tensor:
        """Return the continuous tokens of vectors.

        Args:
            vectors: ``[S, widest]`` float; a vector of a narrower space ends with zeros.
            layers: ``[S]`` int64, the layer that each vector comes from; a layer of the vector's space.
            spaces: ``[S]``, the name of the space of each vector.

        Returns:
            ``[S, hidden]``.
        """
        tokens: list[Tensor | None] = [None] * len(spaces)
        for name in dict.fromkeys(spaces):
            part = self.parts[name]
            assert isinstance(part, Injector)
            own = [place for place, space in enumerate(spaces) if space == name]
            places = torch.tensor(own, device=vectors.device)
            for place, token in zip(own, part(vectors[places, : part.width], layers[places]), strict=True):
                tokens[place] = token
        return torch.stack([token for token in tokens if token is not None])

    def intervention(self, positions: Tensor, tokens: Tensor) -> Intervention:
        """Return the intervention that puts ``tokens [S, hidden]`` at ``positions [S]``."""
        return self.first.intervention(positions, tokens)

    def nothing(self) -> Tensor:
        """Return 0, which depends on every weight: processes that train together must all have gradients of all weights."""
        return 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()


def make_injector(model: nn.Module, space: VectorSpace, settings: Injection, seed: int = 0) -> Injector:
    """Make an untrained injector for a model; every call makes the same one.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`.
        space: Width and layers of the vectors.
        settings: How a vector enters the model.
        seed: Seed of the random projection.

    Raises:
        ValueError: The model does not have the layer of ``settings``.
    """
    depth = len(decoder_layers(model))
    if settings.site == "residual" and not 0 <= settings.layer < depth:
        raise ValueError(f"layer {settings.layer} does not exist in a model with {depth} layers (0 to {depth - 1})")
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    norm = embedding_norm(model) if settings.site == "embedding" else 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        injector = Injector(space, residual_width(model), settings, norm)
    return injector.to(embeddings.weight.device)
