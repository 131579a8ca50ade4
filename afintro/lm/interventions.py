"""Interventions on the residual stream: the one way in which this package changes a forward pass."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Intervention:
    """Change the residual stream after one decoder layer at chosen positions.

    Args:
        layer: 0-based decoder layer whose output is changed; ``-1`` is the embedding output, that is, exactly what
            the first decoder layer receives (after the scaling that Gemma applies).
        mode: ``add`` adds the vectors to the hidden states, ``replace`` puts them in their place.
        positions: ``[n]`` int64, flat token positions in the forward pass: ``row * length + column`` for input of
            shape ``[rows, length]``, so simply the position in the row for a packed batch.
        vectors: ``[n, hidden]``, one vector a position, in any float dtype (cast to that of the hidden states).
        relative: The vectors are in units of the hidden state's own norm at each position (norm-matched).
    """

    layer: int
    mode: Literal["add", "replace"]
    positions: Tensor
    vectors: Tensor
    relative: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("add", "replace"):
            raise ValueError(f"mode is {self.mode!r}, not 'add' or 'replace'")
        if self.positions.ndim != 1 or self.vectors.ndim != 2 or len(self.positions) != len(self.vectors):
            raise ValueError(
                f"positions {tuple(self.positions.shape)} and vectors {tuple(self.vectors.shape)} are not [n], [n, h]"
            )

    def apply(self, hidden: Tensor) -> Tensor:
        """Return a changed copy of ``hidden [rows, length, hidden]``; the input is left as it is."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        positions = self.positions.to(hidden.device)
        vectors = self.vectors.to(hidden.device)
        if self.relative:
            wide = torch.promote_types(vectors.dtype, hidden.dtype)
            vectors = vectors * flat[positions].norm(dim=-1, keepdim=True, dtype=wide)
        vectors = vectors.to(hidden.dtype)
        # index_add sums where one position is named twice; index_copy takes the last, as an assignment would.
        changed = (
            flat.index_add(0, positions, vectors) if self.mode == "add" else flat.index_copy(0, positions, vectors)
        )
        return changed.view_as(hidden)


class Change(Protocol):
    """What :func:`intervene` applies: an :class:`Intervention`, or several rows' or spans' as one."""

    @property
    def layer(self) -> int: ...

    @property
    def vectors(self) -> Tensor: ...

    def apply(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Steering:
    """Add a vector to the residual stream while a prompt is continued.

    Args:
        layer: 0-based decoder layer after which it is added; ``-1`` is the embedding output.
        vector: ``[hidden]`` float, already times its strength.
        positions: ``last`` is the last position of the prompt, whose logits choose the first new token; ``decode`` is
            that position and every new token's, so that no token is chosen without the vector; ``all`` is every position
            of prompt and continuation.
        relative: The vector is in units of the hidden state's own norm at each position.
    """

    layer: int
    vector: Tensor
    positions: Literal["last", "decode", "all"] = "decode"
    relative: bool = False

    def __post_init__(self) -> None:
        if self.positions not in ("last", "decode", "all"):
            raise ValueError(f"positions is {self.positions!r}, not 'last', 'decode' or 'all'")
        if self.vector.ndim != 1:
            raise ValueError(f"vector {tuple(self.vector.shape)} is not [hidden]")

    def on(self, positions: Sequence[int]) -> Intervention:
        """The intervention that adds the vector at flat positions."""
        vectors = self.vector.expand(len(positions), -1)
        return Intervention(self.layer, "add", torch.tensor(positions, dtype=torch.long), vectors, self.relative)


def at_rows(interventions: Sequence[Sequence[Intervention]], offsets: Sequence[int]) -> list[Intervention]:
    """Interventions of several prompts as interventions on one forward pass; like ones of different prompts become one.

    Those of one prompt at one layer act in the order given, whatever the others have there.

    Args:
        interventions: Those of each prompt, positions counted in it.
        offsets: Flat position of each prompt's first token in the pass.
    """
    like: dict[tuple[int, int, Literal["add", "replace"], bool], list[tuple[Tensor, Tensor]]] = {}
    for changes, offset in zip(interventions, offsets, strict=True):
        before: Counter[int] = Counter()  # by layer
        for change in changes:
            key = (before[change.layer], change.layer, change.mode, change.relative)
            like.setdefault(key, []).append((change.positions + offset, change.vectors))
            before[change.layer] += 1
    return [
        Intervention(layer, mode, torch.cat([p for p, _ in parts]), torch.cat([v for _, v in parts]), relative)
        for (_, layer, mode, relative), parts in sorted(like.items(), key=lambda item: item[0][0])
    ]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a transformers causal LM, also inside a PEFT wrapper."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    # The longest list of modules: most architectures call it layers, older ones h.
    return max((child for child in base.get_decoder().children() if isinstance(child, nn.ModuleList)), key=len)


@contextmanager
def intervene(model: nn.Module, interventions: Sequence[Change]) -> Iterator[list[int]]:
    """Apply interventions to every forward pass inside the block.

    Yields:
        How often each intervention fired so far, in the order given; live, for the caller to assert on.

    Raises:
        ValueError: A layer that the model does not have, or a vector width that does not fit it.
    """
    layers = decoder_layers(model)
    width = model.get_input_embeddings().embedding_dim  # type: ignore[operator]
    fired = [0] * len(interventions)
    with ExitStack() as stack:
        for index, intervention in enumerate(interventions):
            if not -1 <= intervention.layer < len(layers):
                raise ValueError(
                    f"layer {intervention.layer} of a model with {len(layers)} layers (-1 to {len(layers) - 1})"
                )
            if intervention.vectors.shape[1] != width:
                raise ValueError(f"vectors of width {intervention.vectors.shape[1]} for a model of width {width}")

            def after(_: nn.Module, __: Any, output: Any, index: int = index, change: Change = intervention) -> Any:
                fired[index] += 1
                # A decoder layer returns a tensor in transformers 5 and a tuple before.
                if isinstance(output, tuple):
                    return (change.apply(output[0]), *output[1:])
                return change.apply(output)

            def before(_: nn.Module, args: Any, kwargs: Any, index: int = index, change: Change = intervention) -> Any:
                fired[index] += 1
                if args:
                    return (change.apply(args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": change.apply(kwargs["hidden_states"])}

            if intervention.layer == -1:
                handle = layers[0].register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = layers[intervention.layer].register_forward_hook(after)
            stack.callback(handle.remove)
        yield fired
