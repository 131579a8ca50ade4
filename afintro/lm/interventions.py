"""Change the residual stream of a forward pass: the one way in which this package intervenes on a model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn

from afintro.errors import UserError


@dataclass(frozen=True)
class Intervention:
    """Change the residual stream after one decoder layer at chosen positions.

    Args:
        layer: 0-based decoder layer whose output is changed; ``-1`` is the embedding output, that is, exactly what
            the first decoder layer receives (after the scaling that Gemma applies).
        mode: ``add`` adds the vectors to the hidden states, ``replace`` puts the vectors in their place.
        positions: ``[n]`` int64, flat token positions in the forward pass: ``row * length + column`` for input of
            shape ``[rows, length]``; for a packed batch this is the position in the row.
        vectors: ``[n, hidden]``, one vector a position, in any float dtype; cast to the dtype of the hidden states.
        relative: Whether the vectors are in units of the hidden state's own norm at each position (norm-matched).
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
        """Return a changed copy of ``hidden [rows, length, hidden]``; the input stays unchanged."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        positions = self.positions.to(hidden.device)
        vectors = self.vectors.to(hidden.device)
        if self.relative:
            wide = torch.promote_types(vectors.dtype, hidden.dtype)
            vectors = vectors * flat[positions].norm(dim=-1, keepdim=True, dtype=wide)
        vectors = vectors.to(hidden.dtype)
        # For a position that is named twice, index_add sums up and index_copy takes the last, as an assignment would.
        changed = (
            flat.index_add(0, positions, vectors) if self.mode == "add" else flat.index_copy(0, positions, vectors)
        )
        return changed.view_as(hidden)


class Change(Protocol):
    """A change that :func:`intervene` applies: an :class:`Intervention`, or several of them merged into one."""

    @property
    def layer(self) -> int:
        """Return the 0-based decoder layer; -1 for the embedding output."""

    @property
    def vectors(self) -> Tensor:
        """Return the vectors, the last dimension of which is the width of the model."""

    def apply(self, hidden: Tensor) -> Tensor:
        """Return a changed copy of ``hidden [rows, length, hidden]``."""


@dataclass(frozen=True)
class Steering:
    """Add a vector to the residual stream while a prompt is continued.

    Args:
        layer: 0-based decoder layer after which the vector is added; ``-1`` is the embedding output.
        vector: ``[hidden]`` float, already multiplied by its strength.
        positions: ``last`` is the last position of the prompt, whose logits choose the first new token. ``decode`` is the
            last position of the prompt and every new token, so that every token is chosen with the vector. ``all`` is
            every position of prompt and continuation.
        relative: Whether the vector is in units of the hidden state's own norm at each position.
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
        """Return the intervention that adds the vector at flat positions."""
        vectors = self.vector.expand(len(positions), -1)
        return Intervention(self.layer, "add", torch.tensor(positions, dtype=torch.long), vectors, self.relative)


def at_rows(interventions: Sequence[Sequence[Intervention]], offsets: Sequence[int]) -> list[Intervention]:
    """Merge the interventions on several prompts into interventions on one forward pass.

    Interventions of different prompts become one intervention if they have the same layer, mode and unit. The interventions
    on one prompt at one layer act in the order given, whatever the other prompts have there.

    Args:
        interventions: The interventions on each prompt, positions counted in the prompt.
        offsets: Flat position of each prompt's first token in the pass.
    """
    alike: dict[tuple[int, int, Literal["add", "replace"], bool], list[tuple[Tensor, Tensor]]] = {}
    for changes, offset in zip(interventions, offsets, strict=True):
        before: Counter[int] = Counter()  # number of interventions so far, by layer
        for change in changes:
            key = (before[change.layer], change.layer, change.mode, change.relative)
            alike.setdefault(key, []).append((change.positions + offset, change.vectors))
            before[change.layer] += 1
    return [
        Intervention(layer, mode, torch.cat([p for p, _ in parts]), torch.cat([v for _, v in parts]), relative)
        for (_, layer, mode, relative), parts in sorted(alike.items(), key=lambda item: item[0][0])
    ]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder layers of a transformers causal LM, also inside a PEFT wrapper."""
    # Architectures name the list of layers differently (layers, h), but it is always the longest list of modules.
    return max((child for child in text_decoder(model).children() if isinstance(child, nn.ModuleList)), key=len)


def text_decoder(model: nn.Module) -> nn.Module:
    """Return the module whose children are embedding, decoder layers and final norm of the language model.

    Raises:
        UserError: The architecture has no list of decoder layers.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    # transformers takes Llama 4 as a whole, and ModernBERT's vocabulary matrix, for the decoder.
    for decoder in (base.get_decoder(), getattr(base, "model", base)):
        for candidate in (decoder, getattr(decoder, "model", decoder)):
            if any(isinstance(child, nn.ModuleList) for child in candidate.children()):
                assert isinstance(candidate, nn.Module)
                return candidate
    raise UserError(
        "has no list of decoder layers",
        where=f"architecture {type(base).__name__}",
        remedy="use another model",
    )


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm between the last decoder layer and the vocabulary matrix.

    Raises:
        UserError: The architecture has none, or names it in a way that is not known.
    """
    decoder = text_decoder(model)
    for name in ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "embedding_norm", "layer_norm"):
        norm = getattr(decoder, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise UserError(
        "has no final norm, which the logit lens needs",
        where=f"architecture {type(decoder).__name__}",
        remedy="use another model",
    )


def residual_width(model: nn.Module) -> int:
    """Return the width of the residual stream of a transformers causal LM, also inside a PEFT wrapper.

    The embedding may be narrower (OPT-350M), so that the configuration counts where there is one.
    """
    config: Any = getattr(model, "config", None)
    if config is not None:
        return int(config.get_text_config().hidden_size)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[1])


def one_stream(hidden: Tensor) -> Tensor:
    """Return the hidden states, ``[rows, length, hidden]``, unchanged.

    Raises:
        UserError: The architecture keeps several residual streams (Gemma 3n), so that "the" residual stream is not defined.
    """
    if hidden.ndim != 3:
        raise UserError(
            f"keeps {hidden.shape[0]} residual streams, and vectors can be read and added where there is one",
            where="architecture of the model",
            remedy="use another model for tasks with vectors",
        )
    return hidden


@contextmanager
def intervene(model: nn.Module, interventions: Sequence[Change]) -> Iterator[list[int]]:
    """Apply interventions to every forward pass inside the block.

    Args:
        model: A transformers causal LM, also inside a PEFT wrapper.
        interventions: Interventions at one layer act in the order given.

    Yields:
        How often each intervention fired so far, in the order given. The list is live, for the caller to assert on.

    Raises:
        ValueError: The model does not have a layer, or a vector does not have the model's width.
    """
    layers = decoder_layers(model)
    width = residual_width(model)
    fired = [0] * len(interventions)
    with ExitStack() as stack:
        for index, intervention in enumerate(interventions):
            if not -1 <= intervention.layer < len(layers):
                raise ValueError(
                    f"layer {intervention.layer} does not exist in a model with {len(layers)} layers (-1 to {len(layers) - 1})"
                )
            if intervention.vectors.shape[1] != width:
                raise ValueError(f"vectors have width {intervention.vectors.shape[1]}, and the model has width {width}")

            def after(_: nn.Module, __: Any, output: Any, index: int = index, change: Change = intervention) -> Any:
                fired[index] += 1
                # A decoder layer returns a tensor in transformers 5 and a tuple before.
                if isinstance(output, tuple):
                    return (change.apply(one_stream(output[0])), *output[1:])
                return change.apply(one_stream(output))

            def before(_: nn.Module, args: Any, kwargs: Any, index: int = index, change: Change = intervention) -> Any:
                fired[index] += 1
                if args:
                    return (change.apply(one_stream(args[0])), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": change.apply(one_stream(kwargs["hidden_states"]))}

            if intervention.layer == -1:
                handle = layers[0].register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = layers[intervention.layer].register_forward_hook(after)
            stack.callback(handle.remove)
        yield fired
