"""Score many continuations of a prefix that is read once: log-probabilities of tokens, and the logit lens of each layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from afintro.lm.attention import packed_forward, uses_packed_attention
from afintro.lm.capture import capture
from afintro.lm.decoding import Decoding, KVSlots
from afintro.lm.engine import read_prefixes, starts_of
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import decoder_layers, final_norm, intervene
from afintro.lm.rope import thresholds
from afintro.lm.spans import SpanSteering, spans

Ids = Sequence[int]
# Most tokens of prefixes, and of rows with their padding, in one pass; a single longer prefix is read in a pass of its own.
TOKENS = 8_192


@dataclass(frozen=True)
class Prefix:
    """Tokens that are read first, with their continuations.

    Args:
        ids: Token ids; may be empty.
        steering: The steering of all tokens of the prefix; None for no steering.
        rows: Continuations, at least one token each; there may be none.
        staying: Whether the rows are steered too. The logit lens of a steered layer shows the state before the steering.
    """

    ids: Ids
    steering: SpanSteering | None
    rows: Sequence[Ids]
    staying: bool = False


@torch.inference_mode()
def last_log_probabilities(
    model: nn.Module, prefixes: Sequence[Prefix], wanted: Sequence[Sequence[Ids]], *, tokens: int = TOKENS
) -> list[list[Tensor]]:
    """Return log-probabilities, over the whole vocabulary, of tokens that may follow each row.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, with or without an adapter, in eval mode.
        prefixes: The prefixes with their rows.
        wanted: Token ids ``[K]`` to score, by prefix and row.
        tokens: Largest number of tokens in one pass.

    Returns:
        ``[K]`` float32 on the host (float64 for a float64 model), in nats, by prefix and row.
    """
    scored: list[list[Tensor]] = [[torch.empty(0)] * len(prefix.rows) for prefix in prefixes]
    for group in _groups(prefixes, tokens):
        owners = [(p, r) for p in group for r in range(len(prefixes[p].rows))]
        ends = [[len(prefixes[p].rows[r]) - 1] for p, r in owners]
        logits = _logits(model, [prefixes[p] for p in group], ends)
        scores = _wide(logits).log_softmax(-1).cpu()
        for (p, r), row in zip(owners, scores, strict=True):
            scored[p][r] = row[list(wanted[p][r])]
    return scored


@torch.inference_mode()
def row_log_probabilities(
    model: nn.Module, prefixes: Sequence[Prefix], counts: Sequence[Sequence[int]], *, tokens: int = TOKENS
) -> list[list[list[float]]]:
    """Return the log-probability of each of the last tokens of each row, given all tokens before it.

    Args:
        model: As for :func:`last_log_probabilities`.
        prefixes: The prefixes with their rows; every row has more tokens than are scored.
        counts: How many tokens at the end of each row are scored, by prefix and row.
        tokens: Largest number of tokens in one pass.

    Returns:
        Log-probabilities in nats, by prefix, row and token.
    """
    scored: list[list[list[float]]] = [[[] for _ in prefix.rows] for prefix in prefixes]
    for group in _groups(prefixes, tokens):
        owners = [(p, r) for p in group for r in range(len(prefixes[p].rows))]
        rows = [prefixes[p].rows[r] for p, r in owners]
        asked = [range(len(row) - counts[p][r] - 1, len(row) - 1) for (p, r), row in zip(owners, rows, strict=True)]
        scores = _wide(_logits(model, [prefixes[p] for p in group], asked)).log_softmax(-1)
        targets = torch.tensor(
            [row[column + 1] for row, columns in zip(rows, asked, strict=True) for column in columns]
        )
        each = scores.gather(1, targets.to(scores.device)[:, None])[:, 0].cpu()
        for (p, r), part in zip(owners, each.split([len(columns) for columns in asked]), strict=True):
            scored[p][r] = part.tolist()
    return scored


def continuation_nll(
    model: nn.Module, prompts: Sequence[Ids], continuations: Sequence[Sequence[Ids]], *, tokens: int = TOKENS
) -> list[list[list[float]]]:
    """Return how surprising each token of a continuation is to the unsteered model.

    Args:
        model: As for :func:`last_log_probabilities`.
        prompts: Token ids of each prompt, at least one.
        continuations: Token ids of the continuations of each prompt, end of sequence included if the model wrote it.
        tokens: Largest number of tokens in one pass.

    Returns:
        Negative log-likelihood of every token, in nats, by prompt and continuation.
    """
    # The last token of the prompt predicts the first token of the continuation, so it is read as part of the row.
    prefixes = [
        Prefix(prompt[:-1], None, [[prompt[-1], *target] for target in targets if len(target)])
        for prompt, targets in zip(prompts, continuations, strict=True)
    ]
    counts = [[len(row) - 1 for row in prefix.rows] for prefix in prefixes]
    scores = map(iter, row_log_probabilities(model, prefixes, counts, tokens=tokens))
    return [
        [[-score for score in next(rows)] if len(target) else [] for target in targets]
        for targets, rows in zip(continuations, scores, strict=True)
    ]


@torch.inference_mode()
def lens_logits(
    model: nn.Module, prefixes: Sequence[Prefix], wanted: Ids, *, tokens: int = TOKENS
) -> list[list[Tensor]]:
    """Return the logits that each layer's residual stream gives to a few tokens after each row.

    This is the logit lens (nostalgebraist 2020): the states of all layers and rows go through the final norm and, in one
    product, through the vocabulary rows of these tokens.

    Args:
        model: As for :func:`last_log_probabilities`.
        prefixes: The prefixes with their rows.
        wanted: Token ids ``[K]`` to score, the same for all rows.
        tokens: Largest number of tokens in one pass.

    Returns:
        ``[layers, K]`` on the host, by prefix and row.
    """
    scored: list[list[Tensor]] = [[torch.empty(0)] * len(prefix.rows) for prefix in prefixes]
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = range(len(decoder_layers(model)))
    for group in _groups(prefixes, tokens):
        owners = [(p, r) for p in group for r in range(len(prefixes[p].rows))]
        ends = [[len(prefixes[p].rows[r]) - 1] for p, r in owners]
        of_group = [prefixes[p] for p in group]
        with capture(model, layers) as residual:
            _logits(model, of_group, ends)
        rows, width = residual[0].shape[:2]
        # A packed row holds all sequences; a padded batch has a row for each of them.
        places = _places(of_group, ends, _keeps(base, of_group), width if rows > 1 else None)
        states = torch.stack([residual[layer].flatten(0, 1)[places.to(residual[layer].device)] for layer in layers])
        vocabulary = base.get_output_embeddings().weight[list(wanted)]
        scores = _wide(final_norm(base)(states) @ vocabulary.T).cpu()
        for index, (p, r) in enumerate(owners):
            scored[p][r] = scores[:, index]
    return scored


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _groups(prefixes: Sequence[Prefix], tokens: int) -> Iterator[list[int]]:
    """Group prefixes of similar length, so that neither the prefixes of a group nor its padded rows exceed ``tokens``."""
    filled = [index for index, prefix in enumerate(prefixes) if prefix.rows]
    order = sorted(filled, key=lambda i: (len(prefixes[i].ids), max(map(len, prefixes[i].rows)), i))
    group: list[int] = []
    rows = widest = 0
    for index in order:
        prefix = prefixes[index]
        count, width = rows + len(prefix.rows), max(widest, *map(len, prefix.rows))
        if group and max((len(group) + 1) * len(prefix.ids), count * width) > tokens:
            yield group
            group, count, width = [], len(prefix.rows), max(map(len, prefix.rows))
        group.append(index)
        rows, widest = count, width
    if group:
        yield group


def _logits(model: nn.Module, prefixes: Sequence[Prefix], asked: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits ``[A, vocabulary]`` after the asked columns of each row."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return (_logits_cached if _keeps(base, prefixes) else _logits_uncached)(model, prefixes, asked)


def _keeps(base: nn.Module, prefixes: Sequence[Prefix]) -> bool:
    """Return whether keys of the prefixes can be kept while the rows are read: all of a row has one rotation."""
    longest = max(len(row) for prefix in prefixes for row in prefix.rows)
    lengths = {max(1, len(prefix.ids)) for prefix in prefixes}
    changing = any(threshold.between(n, n + longest) for threshold in thresholds(base) for n in lengths)
    return uses_packed_attention(base) and not changing


def _logits_cached(model: nn.Module, prefixes: Sequence[Prefix], asked: Sequence[Sequence[int]]) -> Tensor:
    """Read every prefix once and keep its keys and values; then read all rows, padded on the right, in one pass."""
    device = next(model.parameters()).device
    ids, rows = [prefix.ids for prefix in prefixes], [row for prefix in prefixes for row in prefix.rows]
    longest = max(map(len, rows))
    kept = KVSlots(len(prefixes), max(1, *map(len, ids)), device)
    state = Decoding(KVSlots(len(rows), longest, device), kept)
    changes = spans([prefix.steering for prefix in prefixes], starts_of(ids), list(map(len, ids)), device)
    read_prefixes(model, kept, range(len(prefixes)), ids, changes)
    owners = [index for index, prefix in enumerate(prefixes) for _ in prefix.rows]
    state.place(owners, [0] * len(rows), list(map(len, ids)))
    # Padded on the right: later tokens change nothing before them.
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    places = _places(prefixes, asked, True).to(device)
    staying = [prefix.steering if prefix.staying else None for prefix in prefixes for _ in prefix.rows]
    on_rows = spans(staying, range(0, len(rows) * longest, longest), list(map(len, rows)), device)
    with packed_forward(), intervene(model, on_rows), _vocabulary_at(model, places):
        output: Any = model(
            input_ids=padded,
            position_ids=state.prepare(len(rows), longest),
            attention_mask=None,
            use_cache=False,
            rows=state,
        )
    logits: Tensor = output.logits[0]
    return logits


def _logits_uncached(model: nn.Module, prefixes: Sequence[Prefix], asked: Sequence[Sequence[int]]) -> Tensor:
    """Return the same logits where keys cannot be kept: read each prefix again for each of its rows."""
    device = next(model.parameters()).device
    sequences = [[*prefix.ids, *row] for prefix in prefixes for row in prefix.rows]
    bounds = torch.tensor([0, *accumulate(map(len, sequences))], dtype=torch.int32, device=device)
    owners = [prefix for prefix in prefixes for _ in prefix.rows]
    steered = [
        len(sequence if prefix.staying else prefix.ids) for prefix, sequence in zip(owners, sequences, strict=True)
    ]
    changes = spans([prefix.steering for prefix in owners], starts_of(sequences), steered, device)
    ids = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    return packed_logits(model, ids, bounds, _places(prefixes, asked, False).to(device), changes)


def _places(prefixes: Sequence[Prefix], asked: Sequence[Sequence[int]], kept: bool, width: int | None = None) -> Tensor:
    """Return the flat positions of the asked columns.

    Args:
        prefixes: The prefixes with their rows.
        asked: The columns of each row.
        kept: Whether the pass reads the rows alone, padded to one length; otherwise it reads whole sequences.
        width: Number of tokens to which whole sequences are padded; None if whole sequences lie end to end.
    """
    owners = [(prefix, row) for prefix in prefixes for row in prefix.rows]
    if kept:
        width = max(len(row) for _, row in owners)
    starts = starts_of([[*p.ids, *r] for p, r in owners]) if width is None else [i * width for i in range(len(owners))]
    before = [0 if kept else len(prefix.ids) for prefix, _ in owners]
    return torch.tensor(
        [start + skip + c for start, skip, columns in zip(starts, before, asked, strict=True) for c in columns]
    )


@contextmanager
def _vocabulary_at(model: nn.Module, places: Tensor) -> Iterator[None]:
    """Apply the vocabulary matrix to some flat positions alone: ``[rows, length, hidden]`` becomes ``[1, A, hidden]``."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda _, args: (args[0].flatten(0, 1)[places][None],))
    try:
        yield
    finally:
        handle.remove()
