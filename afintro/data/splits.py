"""Split data without leaks: by scenario or cluster, and with held-out texts kept out of training."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afintro.data.conversations import is_conversation, requests_of
from afintro.data.near_duplicates import Corpus
from afintro.data.samples import text_of
from afintro.data.sources import read_rows
from afintro.errors import UserError

TEXT_FIELDS = ("text", "original_text", "ablation_prompt", "prompt", "chosen_label")


@dataclass(frozen=True)
class Hit:
    """A training text that equals or nearly equals a held-out text.

    Args:
        train_index: Index of the training text.
        heldout: File and record of the held-out text.
        containment: Share of the shorter text's shingles, or of its information, that both texts have.
    """

    train_index: int
    heldout: str
    containment: float


def heldout_texts(path: str) -> list[tuple[str, str]]:
    """Read all texts of a held-out file; every text field of a record counts.

    Returns:
        Each text, with the name of its file and record.

    Raises:
        UserError: The file cannot be read, holds no text, or holds a record without a text.
    """
    texts: list[tuple[str, str]] = []
    for index, row in enumerate(read_rows(path)):
        where = f"{path}, record {index}"
        texts.extend((text, where) for text in _texts(row, where) if text.strip())
    if not texts:
        raise UserError("holds no text", where=path, remedy="check the held-out file")
    return texts


def _texts(row: Any, where: str) -> list[str]:
    """Return the text fields of a record, and of a conversation all turns of the user; without both, the text of a sample."""
    fields = row if isinstance(row, dict) else {}
    texts = [fields[name] for name in TEXT_FIELDS if isinstance(fields.get(name), str)]
    conversations = [value for value in (row, *fields.values()) if is_conversation(value)]
    texts += [text for turns in conversations for text in requests_of(turns, where)]
    try:
        return texts or [text_of(row, where)[0]]
    except UserError as error:
        what = f"has none of the fields {', '.join(TEXT_FIELDS)}"
        raise UserError(what, where=where, remedy="give held-out files as samples or records") from error


def find_heldout(train: Sequence[str], heldout: Sequence[tuple[str, str]]) -> list[Hit]:
    """Find all pairs of a training text and a held-out text that match.

    Two texts match if they are near-duplicates (see :mod:`afintro.data.near_duplicates`). A copy of eight words or more always
    matches, also one that consists of template words alone and stands within a longer text.

    Args:
        train: Training texts.
        heldout: Held-out texts, each with its name. Several texts may have the same name.

    Returns:
        The matches by training text; for each training text, the closest match first, and one match a name.
    """
    if not train or not heldout:
        return []
    corpus = Corpus([*train, *(text for text, _ in heldout)])
    found = corpus.duplicates(
        [corpus.changed_words(), corpus.shared_passages(), corpus.whole_copies(len(train) + len(heldout))]
    )
    indices: dict[int, list[int]] = {}
    for index, distinct in enumerate(found.distinct[len(train) :].tolist()):
        indices.setdefault(distinct, []).append(index)
    near = found.neighbors()
    hits: list[Hit] = []
    for train_index, distinct in enumerate(found.distinct[: len(train)].tolist()):
        alike = {distinct: 1.0, **near[distinct]} if distinct >= 0 else {}
        matches = {index: share for other, share in alike.items() for index in indices.get(other, ())}
        closest: dict[str, float] = {}  # a held-out record may have several texts
        for index in sorted(matches, key=lambda index: (-matches[index], index)):
            closest.setdefault(heldout[index][1], matches[index])
        hits.extend(Hit(train_index, name, share) for name, share in closest.items())
    return hits


def check_contamination(
    train: Sequence[str], names: Sequence[str], heldout: Sequence[str], action: str
) -> tuple[list[int], list[str]]:
    """Keep held-out texts out of training.

    Args:
        train: Training texts.
        names: File and record of each training text, for messages.
        heldout: Held-out files.
        action: ``error`` raises an error, ``drop`` removes the training texts.

    Returns:
        Indices of the training texts to keep, and one line of report for each match that was dropped.

    Raises:
        UserError: A training text matches and the action is ``error``; the error names every pair.
    """
    if action not in ("error", "drop"):
        raise UserError(
            f"must be error or drop, and is {action!r}", where="data.heldout_action", remedy="use error or drop"
        )
    hits = find_heldout(train, [text for path in heldout for text in heldout_texts(path)])
    lines = [f"{names[hit.train_index]} matches {hit.heldout} (containment {hit.containment:.2f})" for hit in hits]
    if hits and action == "error":
        raise UserError(
            f"{len({hit.train_index for hit in hits})} training records are in a held-out set: " + "; ".join(lines),
            where="contamination check",
            remedy="remove them from the training file, or set data.heldout_action: drop",
        )
    dropped = {hit.train_index for hit in hits}
    return [index for index in range(len(train)) if index not in dropped], lines


def stable_hash(text: str) -> int:
    """Return a number from 0 to 2**64 - 1 that depends on the text alone: a random draw that every process repeats."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split_by_scenario(scenarios: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split indices so that no scenario is in both parts.

    The part of a scenario depends on its id and the seed alone, so a file that grows keeps its split.

    Args:
        scenarios: Scenario id of each record.
        fraction: Expected share of the scenarios in the second part.
        seed: Seed of the split.

    Returns:
        Indices of the records in the first part, and in the second part.
    """
    first: list[int] = []
    second: list[int] = []
    for index, scenario in enumerate(scenarios):
        (second if stable_hash(f"{seed} {scenario}") < fraction * 2**64 else first).append(index)
    return first, second


def halve_by_scenario(scenarios: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Divide indices into two halves of nearly equal size, so that no scenario is in both.

    Args:
        scenarios: Scenario id of each record.
        seed: Seed of the division.

    Returns:
        Indices of the records in the first half, and in the second half.
    """
    sizes = Counter(scenarios)
    drawn = sorted(sizes, key=lambda scenario: stable_hash(f"halves {seed} {scenario}"))
    first: set[str] = set()
    totals = [0, 0]
    for scenario in sorted(drawn, key=lambda scenario: -sizes[scenario]):  # the largest first, into the smaller half
        half = int(totals[0] > totals[1])
        totals[half] += sizes[scenario]
        if half == 0:
            first.add(scenario)
    left, right = ([i for i, name in enumerate(scenarios) if (name in first) == side] for side in (True, False))
    return left, right


def hold_out(
    keys: NDArray[np.int64],
    clusters: NDArray[np.int32],
    names: Sequence[str],
    fraction: float,
    most: int,
    seed: int,
    whole: Sequence[bool] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Hold features out of training in two ways: whole clusters, and single features of clusters that training keeps.

    Features of a cluster share their label, so a split by feature alone leaks the label; metrics report both kinds.

    Args:
        keys: ``[n]`` int64, a different number for each feature.
        clusters: ``[n]`` int32, index in ``names`` of each feature's cluster.
        names: Names of the clusters.
        fraction: Share of the features to hold out, for each of the two kinds.
        most: Largest number of features to hold out, for each of the two kinds.
        seed: Together with keys and names, but not with their order, the seed decides which features are held out.
        whole: For each cluster, whether it may be held out whole; None if every cluster may.

    Returns:
        Ascending indices of training features, of features in held-out clusters (as many whole clusters as fit), and of
        single held-out features. A cluster larger than the allowed share is never held out.
    """
    budget = min(int(fraction * len(keys)), most)
    sizes = np.bincount(clusters, minlength=len(names))
    unseen = np.zeros(len(names), dtype=bool)
    left = budget
    draws = np.fromiter((stable_hash(f"{seed} {name}") for name in names), np.uint64, len(names))
    for index in np.argsort(draws, kind="stable"):
        if left == 0:
            break
        if 0 < sizes[index] <= left and (whole is None or whole[index]):
            unseen[index] = True
            left -= int(sizes[index])
    by_cluster = unseen[clusters]
    rest = np.flatnonzero(~by_cluster)
    # A feature that is alone in its cluster cannot be held out on its own.
    shared = rest[sizes[clusters[rest]] > 1]
    drawn = shared[np.argsort(_mixed(keys[shared], seed), kind="stable")]
    kept = np.unique(clusters[drawn], return_index=True)[1]  # one feature of each cluster stays in training
    candidates = np.delete(drawn, kept)
    features = np.sort(candidates[:budget])
    training = np.setdiff1d(rest, features, assume_unique=True)
    return training, np.flatnonzero(by_cluster), features


def _mixed(keys: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Hash each key with the seed, by the finalizer of SplitMix64 (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
