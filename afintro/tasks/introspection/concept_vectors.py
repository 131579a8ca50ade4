"""Vectors for the introspection study that depend on a model: directions of concepts, and real activations to swap in.

The vectors are computed once for a model, layer and texts, and kept in the cache; reading them back needs no model.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from afintro.data.introspection_texts.items import ConceptPair, Concepts, Context
from afintro.data.introspection_texts.splits import split_texts
from afintro.data.splits import stable_hash
from afintro.errors import UserError
from afintro.tasks.introspection.layer_states import Arrays, Ids, LayerStates, ids_hash, kept, shared_length
from afintro.tasks.introspection.trials import turns
from afintro.tasks.introspection.vectors import ALIKE, SPLITS, SplitName, VectorSet, geometry, unit_rows

log = logging.getLogger(__name__)

VERSION = 1  # raised when the way in which vectors are computed changes
LEAST_TEMPLATES = 8
LEAST_PAIRS = 2  # pairs in each of validation and test
NEARLY_ONE_DIRECTION = 0.5
SPARE = 4  # activations that are read for each wanted activation, because some are nearly the same
Place = tuple[int, int]  # index of a context, and a position in the context


def concept_vectors(
    name: str,
    revision: str | None,
    concepts: Concepts,
    seed: int,
    layer: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[SplitName, VectorSet]:
    """Compute directions of concepts, called ``concept/<word>``: what reading about a concept adds to the residual stream.

    A direction is a difference of means over contrastive texts (as in Panickssery et al. 2023): the mean over templates of
    the residual stream in the text about the concept, minus the residual stream in its neutral counterpart, each averaged
    over positions. Leading tokens that all texts share (from the chat template) are left out, and so is the first token,
    which many models use as a sink of attention. Most of such a difference is common to all concepts, so the mean over all
    concepts of all splits is then subtracted.

    Args:
        name: Hub id, directory or embedded name of the model.
        revision: Revision on the hub.
        concepts: Pairs, whose two concepts are always in the same split, and eight templates or more.
        seed: Decides, with the words, which split a pair is in; validation and test get at least two pairs each.
        layer: 0-based decoder layer whose output is read, ``-1`` for the embeddings; None for the middle layer.
        tokenizer: The model's tokenizer, with the chat template that trials are rendered with; None to load it.

    Returns:
        The vectors of each split. ``facts`` holds the geometry of all concepts ``before`` and ``after`` centering.

    Raises:
        UserError: There are too few pairs or templates, a word is in two pairs, or the model does not distinguish a
            concept from the neutral text.
    """
    words = sorted(word for pair in concepts.pairs for word in (pair.a, pair.b))
    _check(concepts, words)
    parts = split_pairs(concepts.pairs, seed)
    states = LayerStates(name, revision, layer, tokenizer)
    raw = _differences(states, concepts, words)
    centered = unit_rows(raw - raw.mean(0, dtype=np.float64), "centered concept vectors").astype(np.float32)
    before, after = geometry(raw), geometry(centered)
    if after.mean_absolute_cosine > NEARLY_ONE_DIRECTION:
        log.warning(
            "concept vectors of %s, layer %d, are nearly one direction: mean absolute cosine %.2f after centering",
            name, states.layer, after.mean_absolute_cosine,
        )  # fmt: skip
    facts = {"layer": states.layer, "concepts": len(words), "before": asdict(before), "after": asdict(after)}
    return {part: _concept_set(pairs, dict(zip(words, centered, strict=True)), facts) for part, pairs in parts.items()}


def _concept_set(
    pairs: Sequence[ConceptPair], vectors: Mapping[str, NDArray[np.float32]], facts: Mapping[str, Any]
) -> VectorSet:
    words = [(word, pair) for pair in pairs for word in (pair.a, pair.b)]
    notes = {f"concept/{word}": {"concept": word, "pair": [pair.a, pair.b]} for word, pair in words}
    return VectorSet(tuple(notes), np.stack([vectors[word] for word, _ in words]), notes, facts)


def _check(concepts: Concepts, words: Sequence[str]) -> None:
    templates = len({template.concept for template in concepts.templates})
    if templates < LEAST_TEMPLATES:
        what = f"only {templates} templates are different, but {LEAST_TEMPLATES} are needed"
        raise UserError(what, where="concepts", remedy="add templates")
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:  # the word could be in two splits
        raise UserError(f"{twice[0]!r} occurs twice", where="concept pairs", remedy="use each word in one pair only")


@dataclass(frozen=True)
class _Pair:
    """A pair in the form that :func:`split_texts` needs."""

    pair: ConceptPair
    group: str = "concept pairs"

    @property
    def text(self) -> str:
        return f"{self.pair.a} {self.pair.b}"

    @property
    def family(self) -> str:
        return self.text


def split_pairs(pairs: Sequence[ConceptPair], seed: int) -> dict[SplitName, list[ConceptPair]]:
    """Divide pairs by a hash of seed and words: a fifth each, but at least two, for validation and for test.

    Raises:
        UserError: No pair would be left to train on.
    """
    share = max(0.2, LEAST_PAIRS / max(1, len(pairs)))
    parts = split_texts([_Pair(pair) for pair in pairs], seed, share, share)
    return {name: [item.pair for item in getattr(parts, name)] for name in SPLITS}


def _differences(states: LayerStates, concepts: Concepts, words: Sequence[str]) -> NDArray[np.float32]:
    """Compute differences ``[words, hidden]`` before centering. They depend on no seed, so studies of all seeds share them."""
    texts = [template.about(word) for word in words for template in concepts.templates]
    texts += [template.neutral for template in concepts.templates]
    rows = [states.encode([{"role": "user", "content": text}], f"concept text {text[:40]!r}") for text in texts]
    skipped = max(1, shared_length(rows))

    def make() -> Arrays:
        means = np.zeros((len(rows), states.width))
        for row, read in states.read(rows):
            means[row] = read[skipped:].mean(0, dtype=np.float64)
        about, neutral = np.split(means, [-len(concepts.templates)])
        by_template = about.reshape(len(words), -1, states.width) - neutral
        return {"differences": by_template.mean(1).astype(np.float32)}

    identity = {"kind": "concept", "version": VERSION, **states.identity(), "words": words, "ids": ids_hash(rows)}
    return kept(identity, make)["differences"]


def swap_vectors(
    name: str,
    revision: str | None,
    texts: Mapping[SplitName, Sequence[Context]],
    count: int,
    seed: int,
    layer: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[SplitName, VectorSet]:
    """Compute directions of real activations, called ``swap/<context>/<position>``.

    Each activation is read at one token of a context of the split, and takes the place of another context's own states: an
    intervention with ``mode="replace"`` and ``relative=True`` gives it the norm of the state that it replaces. Positions
    are drawn among those after the beginning that a context shares with any other context (the chat template, the same
    first words), where states are equal across splits too. Every context gives one activation before any context gives a
    second. Of states that are nearly the same, such as those of delimiters, one is taken.

    Args:
        name: Hub id, directory or embedded name of the model.
        revision: Revision on the hub.
        texts: Contexts of each split. ``source`` of the set says which context a vector is from.
        count: Number of vectors of each split.
        seed: Decides, with the texts, which positions are taken.
        layer: As for :func:`concept_vectors`.
        tokenizer: As for :func:`concept_vectors`.

    Returns:
        The vectors of each split.

    Raises:
        UserError: The contexts of a split have too few different states.
    """
    states = LayerStates(name, revision, layer, tokenizer)
    contexts = [context for split in SPLITS for context in sorted(texts[split], key=lambda context: context.text)]
    rows = [states.encode(turns(context), f"context {context.id}") for context in contexts]
    drawn = _draw_places(texts, contexts, rows, count * SPARE, seed)

    def make() -> Arrays:
        return _take(states, rows, drawn, count)

    identity = {"kind": "swap", "version": VERSION, **states.identity(), "ids": ids_hash(rows), "count": count}
    identity |= {split: ids_hash(places) for split, places in drawn.items()}
    stored = kept(identity, make)
    sets: dict[SplitName, VectorSet] = {}
    for split in SPLITS:
        notes = {}
        for row, position in stored[f"{split}/places"].tolist():
            notes[f"swap/{contexts[row].id}/{position}"] = {"context": contexts[row].id, "position": position}
        sets[split] = VectorSet(tuple(notes), stored[split], notes, {"layer": states.layer})
    return sets


def _draw_places(
    texts: Mapping[SplitName, Sequence[Context]], contexts: Sequence[Context], rows: Sequence[Ids], most: int, seed: int
) -> dict[SplitName, list[Place]]:
    """Draw candidates of each split, in the order in which they are taken."""
    ranked: list[list[tuple[int, int, Place]]] = []
    for row, (context, first) in enumerate(zip(contexts, _unshared_from(rows), strict=True)):
        key = f"{seed} {stable_hash(context.text)}"
        drawn = sorted((stable_hash(f"{key} {at}"), at) for at in range(first, len(rows[row])))
        ranked.append([(turn, number, (row, at)) for turn, (number, at) in enumerate(drawn)])
    candidates: dict[SplitName, list[Place]] = {}
    start = 0
    for name in SPLITS:
        stop = start + len(texts[name])
        candidates[name] = [place for *_, place in sorted(chain(*ranked[start:stop]))[:most]]
        start = stop
    return candidates


def _unshared_from(rows: Sequence[Ids]) -> list[int]:
    """Return the position from which on each row differs from all other rows.

    The first position never counts, because it is often a sink of attention.
    """
    order = sorted(range(len(rows)), key=lambda row: list(rows[row]))
    first = [1] * len(rows)
    for row, following in pairwise(order):  # no row shares more with another row than with a neighbor in this order
        shared = shared_length([rows[row], rows[following]])
        first[row], first[following] = max(first[row], shared), max(first[following], shared)
    return first


def _take(states: LayerStates, rows: Sequence[Ids], drawn: Mapping[SplitName, Sequence[Place]], count: int) -> Arrays:
    """Return unit vectors ``[count, hidden]`` of each split, and their places ``[count, 2]``."""
    wanted: dict[int, list[int]] = {}
    for row, position in chain(*drawn.values()):
        wanted.setdefault(row, []).append(position)
    read = {
        (row, position): values[position].copy()
        for row, values in states.read(rows)
        for position in wanted.get(row, ())
    }
    arrays: Arrays = {}
    taken: list[NDArray[np.float32]] = []
    for name, places in drawn.items():
        chosen: list[Place] = []
        for place in places:
            vector = unit_rows(read[place][None], f"state {place[1]} of a {name} context").astype(np.float32)[0]
            if len(chosen) < count and not (taken and np.abs(np.stack(taken) @ vector).max() > ALIKE):
                taken.append(vector)
                chosen.append(place)
        if len(chosen) < count:
            what = f"the contexts have only {len(chosen)} different states in {len(places)} positions, not {count}"
            raise UserError(what, where=f"swap vectors of {name}", remedy="ask for fewer vectors, or use another layer")
        arrays |= {name: np.stack(taken[-count:]), f"{name}/places": np.array(chosen, np.int64)}
    return arrays
