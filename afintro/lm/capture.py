"""Read the residual stream of a forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from afintro.lm.attention import uses_packed_attention
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import decoder_layers, one_stream


@contextmanager
def capture(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Keep the residual stream of the last forward pass inside the block.

    The states are those before any intervention that is entered inside the block.

    Args:
        model: A transformers causal LM, also inside a PEFT wrapper.
        layers: 0-based decoder layers whose output is kept; ``-1`` is what the first layer receives.

    Yields:
        ``[rows, length, hidden]`` by layer, filled by the forward pass.
    """
    states: dict[int, Tensor] = {}
    decoder = decoder_layers(model)
    with ExitStack() as stack:
        for layer in layers:

            def after(_: nn.Module, __: Any, output: Any, layer: int = layer) -> None:
                states[layer] = one_stream(output[0] if isinstance(output, tuple) else output)

            def before(_: nn.Module, args: Any, kwargs: Any) -> None:
                states[-1] = one_stream(args[0] if args else kwargs["hidden_states"])

            if layer == -1:
                handle = decoder[0].register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = decoder[layer].register_forward_hook(after)
            stack.callback(handle.remove)
        yield states


@torch.no_grad()
def read_states(model: nn.Module, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
    """Return the residual stream at every token of several sequences.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`. It reads all sequences in one pass if it uses packed
            attention, and otherwise one by one, unpadded.
        rows: Token ids of each sequence.
        layers: As for :func:`capture`.

    Returns:
        ``[tokens, hidden]`` by layer in the model's compute dtype, sequences end to end without padding.
    """
    if len(rows) > 1 and not uses_packed_attention(model):
        alone = [read_states(model, [row], layers) for row in rows]
        return {layer: torch.cat([states[layer] for states in alone]) for layer in layers}
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    device = embeddings.weight.device
    bounds = torch.tensor([0, *accumulate(map(len, rows))], dtype=torch.int32, device=device)
    ids = torch.tensor([token for row in rows for token in row], device=device)
    with capture(model, layers) as residual:
        packed_logits(model, ids, bounds, torch.tensor([len(ids) - 1], device=device))
    return {layer: states[0] for layer, states in residual.items()}


@torch.no_grad()
def embedding_norm(model: nn.Module, tokens: int = 64) -> float:
    """Return the mean norm of token embeddings as the first decoder layer receives them.

    The norm is measured in a forward pass and not computed from the embedding matrix, because Gemma scales its embeddings.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`.
        tokens: Number of tokens, evenly spaced in the vocabulary, to average over.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary = embeddings.weight.shape[0]  # an adapter around the embedding has no num_embeddings
    ids = torch.linspace(0, vocabulary - 1, min(tokens, vocabulary), device=embeddings.weight.device).long().tolist()
    return float(read_states(model, [ids], [-1])[-1].float().norm(dim=-1).mean())
