"""Vectors for the introspection study that a model decides: directions of concepts, and real activations to swap in.

They are computed once for a model, layer and texts and kept in the cache; reading them back takes no model.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
LEAST_PAIRS = 2  # held out in each split
NEARLY_ONE_DIRECTION = 0.5
SPARE = 4  # activations that are read for each that is wanted: some are nearly the same
Place = tuple[int, int]  # a context and a position in it


def concept_vectors(
    name: str, revision: str | None, concepts: Concepts, seed: int, layer: int | None = None
) -> dict[SplitName, VectorSet]:
    """Directions of concepts, called ``concept/<word>``: what reading about one adds to the residual stream.

    Difference of means over contrastive texts (as in Panickssery et al. 2023): the mean over templates of the residual
    stream in the text about the concept less that in its neutral counterpart, each averaged over its positions. Leading
    tokens that all texts share (the chat template's) are left out, and so is the first, which many models use as a sink of
    attention. What all concepts have in common, which is most of such a difference, is then subtracted: the mean
    over all of them, whatever their split.

    Args:
        name: Of the model: hub id, directory or embedded.
        revision: On the hub.
        concepts: Pairs, whose two concepts are always in the same split, and eight templates or more.
        seed: Decides, with the words, the split of each pair; validation and test get two pairs at least.
        layer: 0-based decoder layer whose output is read, ``-1`` for the embeddings; None for the middle one.

    Returns:
        By split. ``facts`` has the geometry of all concepts ``before`` and ``after`` centring.

    Raises:
        UserError: Too few pairs or templates, a word in two pairs, or a concept that the model does not tell from nothing.
    """
    words = sorted(word for pair in concepts.pairs for word in (pair.a, pair.b))
    _check(concepts, words)
    parts = split_pairs(concepts.pairs, seed)
    states = LayerStates(name, revision, layer)
    raw = _differences(states, concepts, words)
    centred = unit_rows(raw - raw.mean(0, dtype=np.float64), "concept vectors, centred").astype(np.float32)
    before, after = geometry(raw), geometry(centred)
    if after.mean_absolute_cosine > NEARLY_ONE_DIRECTION:
        log.warning(
            "concept vectors of %s, layer %d, are nearly one direction: mean absolute cosine %.2f after centring",
            name, states.layer, after.mean_absolute_cosine,
        )  # fmt: skip
    facts = {"layer": states.layer, "concepts": len(words), "before": asdict(before), "after": asdict(after)}
    return {split: _concept_set(pairs, dict(zip(words, centred, strict=True)), facts) for split, pairs in parts.items()}


def _concept_set(
    pairs: Sequence[ConceptPair], vectors: Mapping[str, NDArray[np.float32]], facts: Mapping[str, Any]
) -> VectorSet:
    words = [(word, pair) for pair in pairs for word in (pair.a, pair.b)]
    notes = {f"concept/{word}": {"concept": word, "pair": [pair.a, pair.b]} for word, pair in words}
    return VectorSet(tuple(notes), np.stack([vectors[word] for word, _ in words]), notes, facts)


def _check(concepts: Concepts, words: Sequence[str]) -> None:
    templates = len({template.concept for template in concepts.templates})
    if templates < LEAST_TEMPLATES:
        what = f"{templates} different templates, and {LEAST_TEMPLATES} are needed"
        raise UserError(what, where="concepts", remedy="add templates")
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:  # it could be in two splits
        raise UserError(f"{twice[0]!r} stands twice", where="concept pairs", remedy="use each word in one pair only")


@dataclass(frozen=True)
class _Pair:
    """A pair as :func:`split_texts` wants it."""

    pair: ConceptPair
    group: str = "concept pairs"

    @property
    def text(self) -> str:
        return f"{self.pair.a} {self.pair.b}"

    @property
    def family(self) -> str:
        return self.text


def split_pairs(pairs: Sequence[ConceptPair], seed: int) -> dict[SplitName, list[ConceptPair]]:
    """Pairs by split, by a hash of seed and words: a fifth each for validation and test, and two at least.

    Raises:
        UserError: None would be left to train on.
    """
    share = max(0.2, LEAST_PAIRS / max(1, len(pairs)))
    parts = split_texts([_Pair(pair) for pair in pairs], seed, share, share)
    return {split: [item.pair for item in getattr(parts, split)] for split in SPLITS}


def _differences(states: LayerStates, concepts: Concepts, words: Sequence[str]) -> NDArray[np.float32]:
    """``[words, hidden]``, not yet centred. It depends on no seed, so studies that differ by seed share it."""
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

    identity = {"kind": "concept", "version": VERSION, **states.identity, "words": words, "ids": ids_hash(rows)}
    return kept(identity, make)["differences"]


def swap_vectors(
    name: str,
    revision: str | None,
    texts: Mapping[SplitName, Sequence[Context]],
    count: int,
    seed: int,
    layer: int | None = None,
) -> dict[SplitName, VectorSet]:
    """Directions of real activations, called ``swap/<context>/<position>``, each read at one token of a context of the split.

    They take the place of another context's own states: an intervention with ``mode="replace"`` and ``relative=True``
    gives each the norm of the state that it replaces. Positions are drawn among those from which on a context is like
    no other: before that (the chat template, the same first words) states are equal, across splits too. Every context
    gives one before any gives a second. Of states that are nearly the same, such as those of delimiters, one is taken.

    Args:
        name: Of the model: hub id, directory or embedded.
        revision: On the hub.
        texts: Contexts of each split. ``source`` of the set tells which one a vector is from.
        count: Vectors a split.
        seed: Decides, with the texts, which positions are taken.
        layer: As for :func:`concept_vectors`.

    Raises:
        UserError: A split's contexts have too few different states.
    """
    states = LayerStates(name, revision, layer)
    contexts = [context for split in SPLITS for context in sorted(texts[split], key=lambda context: context.text)]
    rows = [states.encode(turns(context), f"context {context.id}") for context in contexts]
    drawn = _draw_places(texts, contexts, rows, count * SPARE, seed)

    def make() -> Arrays:
        return _take(states, rows, drawn, count)

    identity = {"kind": "swap", "version": VERSION, **states.identity, "ids": ids_hash(rows), "count": count}
    identity |= {split: ids_hash(places) for split, places in drawn.items()}
    stored = kept(identity, make)
    found: dict[SplitName, VectorSet] = {}
    for split in SPLITS:
        notes = {}
        for row, position in stored[f"{split}/places"].tolist():
            notes[f"swap/{contexts[row].id}/{position}"] = {"context": contexts[row].id, "position": position}
        found[split] = VectorSet(tuple(notes), stored[split], notes, {"layer": states.layer})
    return found


def _draw_places(
    texts: Mapping[SplitName, Sequence[Context]], contexts: Sequence[Context], rows: Sequence[Ids], most: int, seed: int
) -> dict[SplitName, list[Place]]:
    """Candidates of each split, in the order in which they are taken."""
    ranked: list[list[tuple[int, int, Place]]] = []
    for row, (context, first) in enumerate(zip(contexts, _own_from(rows), strict=True)):
        key = f"{seed} {stable_hash(context.text)}"
        drawn = sorted((stable_hash(f"{key} {at}"), at) for at in range(first, len(rows[row])))
        ranked.append([(turn, number, (row, at)) for turn, (number, at) in enumerate(drawn)])
    found: dict[SplitName, list[Place]] = {}
    start = 0
    for split in SPLITS:
        stop = start + len(texts[split])
        found[split] = [place for *_, place in sorted(chain(*ranked[start:stop]))[:most]]
        start = stop
    return found


def _own_from(rows: Sequence[Ids]) -> list[int]:
    """From which position on each row is like no other, the first position apart: it is often a sink of attention."""
    order = sorted(range(len(rows)), key=lambda row: list(rows[row]))
    first = [1] * len(rows)
    for one, other in pairwise(order):  # no row shares more with another than with one of its neighbours
        shared = shared_length([rows[one], rows[other]])
        first[one], first[other] = max(first[one], shared), max(first[other], shared)
    return first


def _take(states: LayerStates, rows: Sequence[Ids], drawn: Mapping[SplitName, Sequence[Place]], count: int) -> Arrays:
    """Unit vectors ``[count, hidden]`` of each split, and their places ``[count, 2]``."""
    wanted: dict[int, list[int]] = {}
    for row, position in chain(*drawn.values()):
        wanted.setdefault(row, []).append(position)
    read = {
        (row, position): values[position].copy()
        for row, values in states.read(rows)
        for position in wanted.get(row, ())
    }
    found: Arrays = {}
    taken: list[NDArray[np.float32]] = []
    for split, places in drawn.items():
        chosen: list[Place] = []
        for place in places:
            vector = unit_rows(read[place][None], f"state {place[1]} of a {split} context").astype(np.float32)[0]
            if len(chosen) < count and not (taken and np.abs(np.stack(taken) @ vector).max() > ALIKE):
                taken.append(vector)
                chosen.append(place)
        if len(chosen) < count:
            what = f"the contexts have only {len(chosen)} different states in {len(places)} positions, not {count}"
            raise UserError(what, where=f"swap vectors of {split}", remedy="ask for fewer, or use another layer")
        found |= {split: np.stack(taken[-count:]), f"{split}/places": np.array(chosen, np.int64)}
    return found
